"""What target cuda's back end tvm does before and after a network: preprocessing, decoding and suppression on the
emulated GPU (emulation.py), with the numbers that the host computes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.builder import Builder
from dnc.graph.serialization import serialize_to
from dnc.graph.suppression import MAX_CANDIDATES, emit_nms
from dnc.runtime.decoding import Candidates, non_maximum_suppression
from dnc.runtime.preprocessing import Preprocessing
from dnc.targets.cuda.process import cuda_runtime
from dnc.targets.tvm.emit import unsupported
from tests import ROOT
from tests.targets.cuda.emulation import make_driver

pytestmark = [
    pytest.mark.skipif(cuda_runtime() is None, reason="needs apache-tvm"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

Feeds = Mapping[str, npt.NDArray[Any]]


def _compute(folder: Path, models: Mapping[str, ir.Model], feeds: Mapping[str, Sequence[Feeds]]) -> dict[str, Any]:
    """For each model, and each of its inputs, the outputs in order."""
    make_driver(folder)
    for name, built in models.items():
        serialize_to(built, folder / f"{name}.onnx")
        for number, arrays in enumerate(feeds[name]):
            np.savez(folder / f"{name}{f'.{number}' if number else ''}.npz", **arrays)  # type: ignore[arg-type]
    command = [sys.executable, "-m", "tests.targets.cuda.worker", str(folder)]
    more = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {}
    for name in models:
        rules = json.loads((folder / f"{name}.json").read_text()).values()
        assert not [rule for rule in rules if "none" in rule]
        files = [folder / f"{name}{f'.{number}' if number else ''}.out.npz" for number in range(len(feeds[name]))]
        found[name] = [list(np.load(file).values()) for file in files]
    return found


def _detections(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The rows before the one that ends them."""
    ends = np.flatnonzero(rows[:, 0] == -1)
    return rows[: ends[0]] if len(ends) else rows


SIZES = ((333, 8), (480, 640), (61, 97), (31, 500), (240, 7), (1, 1))
"""Height and width; 333 to 320 is one of those where Darknet's last row is black."""


def _prepared(folder: Path, cases: Mapping[str, Preprocessing], sizes: Sequence[tuple[int, int]] = SIZES) -> None:
    """Networks that do nothing but prepare images give the host's numbers, to the bit."""
    models, feeds, images = {}, {}, {}
    for name, p in cases.items():
        cfg = folder / f"{name}.cfg"
        text = f"[net]\nwidth={p.width}\nheight={p.height}\nchannels={p.channels}\n[maxpool]\nsize=1\nstride=1\n"
        cfg.write_text(text, encoding="utf-8")
        models[name] = lower(Network.load(cfg).with_random_weights(0), batch=2, preprocessing=p, pixels=True)
        assert not unsupported(models[name])
        generator = np.random.default_rng(0)
        images[name] = [generator.integers(0, 256, (2, *size, p.channels), np.uint8) for size in sizes]
        # Black and white, where a cubic overshoots.
        images[name].append(images[name][0] // 128 * 255)
        feeds[name] = [{"input": pixels} for pixels in images[name]]
    for name, outputs in _compute(folder, models, feeds).items():
        for pixels, (output,) in zip(images[name], outputs, strict=True):
            expected = np.stack([cases[name](image) for image in pixels])
            np.testing.assert_array_equal(output, expected, err_msg=f"{name} {pixels.shape}")


def test_preprocessing(tmp_path: Path) -> None:
    """Two modes, in batches of images whose size varies from one to the next."""
    usual: Any = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    cases = {
        "letterbox": Preprocessing(97, 60, 3, "letterbox", color="bgr", **usual),
        "bicubic": Preprocessing(56, 24, 3, "center-crop", crop=0.875, interpolation="bicubic", color="bgr", **usual),
    }
    _prepared(tmp_path, cases, SIZES[2:4])


@pytest.mark.slow
def test_all_preprocessing(tmp_path: Path) -> None:
    """Every mode, images of many sizes, other numbers of channels."""
    cases = {
        "resize": Preprocessing(320, 320, 3),
        "resize, color": Preprocessing(97, 61, 3, color="bgr", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1)),
        "half": Preprocessing(61, 97, 3, "resize-half-pixel", color="bgr"),
        "letterbox": Preprocessing(320, 320, 3, "letterbox", mean=(0.5,)),
        "crop": Preprocessing(64, 48, 3, "center-crop"),
        "crop, less": Preprocessing(64, 64, 3, "center-crop", crop=0.8),
        "bicubic": Preprocessing(24, 56, 3, "center-crop", crop=0.3, interpolation="bicubic"),
        "bicubic, more": Preprocessing(64, 48, 3, "center-crop", interpolation="bicubic", scale=1.0),
        "gray": Preprocessing(20, 30, 1, color="gray"),
        "many": Preprocessing(30, 20, 7, "letterbox"),
    }
    _prepared(tmp_path, cases)


def _alone(kind: str, beta: float, shape: tuple[int, int, int]) -> ir.Model:
    """The suppression of scores of a shape, and nothing else."""
    b = Builder(shape[0])
    boxes, scores = b.input("boxes", [shape[1], 4]), b.input("scores", list(shape[1:]))
    b.enter("nms")
    b.output(emit_nms(b, boxes, scores, kind, beta, window=False), "detections", ["detections", 7])
    return b.model("nms", {})


def _limits(confidence: float, iou: float) -> dict[str, npt.NDArray[np.float32]]:
    return {"confidence": np.array([confidence], np.float32), "iou": np.array([iou], np.float32)}


def test_suppression_is_the_hosts(tmp_path: Path) -> None:
    """Boxes on a coarse grid, so that many are equal, touch, contain each other or have no size; many equal scores. Of
    few candidates, and of more than are compared at once."""
    kinds = {"default": 0.6, "greedynms": 0.9, "diounms": 0.25}
    images, places = 8, 150
    models = {kind: _alone(kind, beta, (images, places, 1)) for kind, beta in kinds.items()}
    feeds = []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        boxes = (generator.integers(0, generator.integers(2, 7), (images, places, 4)) / 8).astype(np.float32)
        scores = (generator.integers(0, 30, (images, places, 1)) / 30).astype(np.float32)
        limits = _limits((0.0, 0.3, 0.9, 0.97)[seed % 4], (0.0, 0.23, 0.45, 0.77)[seed // 2])
        feeds.append({"boxes": boxes, "scores": scores, **limits})
    feeds[0]["scores"][0, 3] = np.nan
    feeds[0]["boxes"][1, :5, 0] = np.nan
    found = _compute(tmp_path, models, dict.fromkeys(models, feeds))
    for kind, beta in kinds.items():
        for given, (rows,) in zip(feeds, found[kind], strict=True):
            expected: list[tuple[float, ...]] = []
            for image in range(images):
                boxes, scores = given["boxes"][image], given["scores"][image]
                above = np.where(scores > given["confidence"], scores, np.float32(0))
                candidates = Candidates(boxes, above.max(axis=1), above, np.zeros(places, np.uint8))
                left = non_maximum_suppression(candidates, kind, float(given["iou"][0]), beta)
                expected += [(image, 0, left[box, 0], *boxes[box]) for box in np.flatnonzero(left[:, 0])]
            expected.sort(key=lambda row: -row[2])
            np.testing.assert_array_equal(_detections(rows), np.array(expected).reshape(-1, 7))


def test_more_than_are_given(tmp_path: Path) -> None:
    """The best of them, sorted; of equal ones the first, which decide who is the last."""
    generator = np.random.default_rng(0)
    boxes = generator.random((1, 3000, 4)).astype(np.float32)
    feeds = []
    for values in (500, 3, 10**6):
        scores = (generator.integers(-values // 9, values, (1, 3000, 2)) / values).astype(np.float32)
        feeds.append({"boxes": boxes, "scores": scores, **_limits(-1.0, 1.0)})
    found = _compute(tmp_path, {"nms": _alone("default", 0.6, (1, 3000, 2))}, {"nms": feeds})["nms"]
    for given, (rows,) in zip(feeds, found, strict=True):
        scores = given["scores"].ravel()
        best = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
        expected = np.stack([0 * best, best % 2, scores[best], *boxes[0, best // 2].T], axis=1)
        np.testing.assert_array_equal(rows, expected.astype(np.float32))
