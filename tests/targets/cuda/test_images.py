"""What target cuda's back end tvm does before and after a network: preprocessing, decoding and suppression on the
emulated GPU (emulation.py), with the numbers that the host computes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from PIL import Image

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.errors import TargetError
from dnc.graph.builder import Builder
from dnc.graph.composites import inline_composites
from dnc.graph.serialization import serialize_to
from dnc.graph.suppression import MAX_CANDIDATES, emit_nms
from dnc.runtime.decoding import Candidates, Detection
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.suppression import non_maximum_suppression
from dnc.targets.cuda.process import Compiler, Job, cuda_runtime
from dnc.targets.cuda.target import Cuda
from dnc.targets.cuda.toolkit import find_toolkit
from dnc.targets.tvm.emit import unsupported
from tests import ROOT
from tests.conftest import Result
from tests.graph.test_suppression import HEADS, STEM, noise, same
from tests.models import run
from tests.targets.cuda.emulation import environment, make_driver, make_nvcc

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


@pytest.mark.parametrize("seeds", [(0, 3, 5, 6), pytest.param((1, 2, 4, 7), marks=pytest.mark.slow)])
def test_suppression_is_the_hosts(seeds: tuple[int, ...], tmp_path: Path) -> None:
    """Boxes on a coarse grid, so that many are equal, touch, contain each other or have no size; many equal scores. Of
    few candidates, and of more than are compared at once."""
    kinds = {"default": 0.6, "greedynms": 0.9, "diounms": 0.25}
    images, places = 8, 150
    models = {kind: _alone(kind, beta, (images, places, 1)) for kind, beta in kinds.items()}
    feeds = []
    for seed in seeds:
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


@pytest.mark.parametrize("values", [3, *(pytest.param(values, marks=pytest.mark.slow) for values in (500, 10**6))])
def test_more_than_are_given(values: int, tmp_path: Path) -> None:
    """The best of them, sorted; of equal ones the first, which decide who is the last."""
    generator = np.random.default_rng(0)
    boxes = generator.random((1, 3000, 4)).astype(np.float32)
    scores = (generator.integers(-values // 9, values, (1, 3000, 2)) / values).astype(np.float32)
    feeds = [{"boxes": boxes, "scores": scores, **_limits(-1.0, 1.0)}]
    found = _compute(tmp_path, {"nms": _alone("default", 0.6, (1, 3000, 2))}, {"nms": feeds})["nms"]
    for given, (rows,) in zip(feeds, found, strict=True):
        scores = given["scores"].ravel()
        best = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
        expected = np.stack([0 * best, best % 2, scores[best], *boxes[0, best // 2].T], axis=1)
        np.testing.assert_array_equal(rows, expected.astype(np.float32))


def _network(folder: Path, head: str) -> Path:
    """The cfg of a small network with a head, and its weights beside it."""
    cfg = folder / f"{head}.cfg"
    cfg.write_text(f"[net]\nwidth=64\nheight=48\nchannels=3\n{STEM}{HEADS[head]}", encoding="utf-8")
    network = Network.load(cfg).with_random_weights(3)
    with cfg.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    return cfg


def _read(rows: npt.NDArray[np.float32], image: int) -> list[Detection]:
    chosen = rows[rows[:, 0] == image]
    return [Detection(int(kind), "", score, *place) for _, kind, score, *place in chosen.tolist()]


def _heads(folder: Path, heads: Sequence[str], kinds: Sequence[str] = ("graph+nms",)) -> None:
    """Boxes and scores, and what is left of them after the suppression, are what ONNX Runtime gives."""
    p = Preprocessing(64, 48, 3, "letterbox")
    models: dict[str, ir.Model] = {}
    feeds: dict[str, list[Feeds]] = {}
    pixels = np.stack([noise(seed, 90, 40) for seed in (1, 2)])
    window = [(*transform.offset, *transform.ratio) for transform in [p.transform(40, 90)] * 2]
    for head in heads:
        cfg = _network(folder, head)
        network = Network.load(cfg, cfg.with_suffix(".weights"))
        for decode in kinds:
            built = lower(network, batch=2, preprocessing=p, pixels=True, decode=decode)
            target = Cuda({"backend": "tvm", "arch": "sm_75"}).candidates()[0]
            inline_composites(built, target.composites)
            for each in target.optimizations():
                each.rewriting.rewrite(built)
            assert not unsupported(built)
            confidence = 0.2 if head.startswith(("gaussian", "detection")) else 0.38
            models[f"{head} {decode}"] = built
            given: list[Feeds] = [{"input": pixels}]
            if decode == "graph+nms":
                limits = _limits(confidence, 0.45), _limits(0.3 * confidence, 0.7)
                given = [{**given[0], "window": np.array(window, np.float32), **each} for each in limits]
            feeds[f"{head} {decode}"] = given
    for name, results in _compute(folder, models, feeds).items():
        for one, outputs in zip(feeds[name], results, strict=True):
            expected = list(run(models[name], one).values())
            if name.endswith(" graph"):
                for found, wanted in zip(outputs, expected, strict=True):
                    # Exponentials of float32, of boxes a few times as large as the image.
                    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max(), err_msg=name)
                continue
            rows = _detections(outputs[0])
            assert len(rows) > (10 if one is feeds[name][-1] else 0), name
            for image in range(2):
                same(_read(rows, image), _read(expected[0], image))


@pytest.mark.parametrize("decode", ["graph+nms", pytest.param("graph", marks=pytest.mark.slow)])
def test_two_heads(decode: str, tmp_path: Path) -> None:
    """From maps of two sizes; decoded, and suppressed by a distance of centers."""
    _heads(tmp_path, ["two heads"], [decode])


@pytest.mark.slow
def test_every_head(tmp_path: Path) -> None:
    """[yolo], [Gaussian_yolo], [region], [detection], with all that they compute."""
    yolo = ["new_coords", "mask", "greedynms", "gaussian left_top"]
    _heads(tmp_path, [*yolo, "region", "region softmax", "region classfix", "detection sqrt, softmax"])


@pytest.mark.slow
def test_commands(command: Callable[..., Result], tmp_path: Path) -> None:
    """From the command line: bytes go in, boxes come out, those of target tvm; images of several sizes, CUDA graphs."""
    cfg = _network(tmp_path, "diounms, beta")
    folder = tmp_path / "gpu"
    folder.mkdir()
    nvcc = make_nvcc(folder, make_driver(folder))
    options = ("--decode", "graph+nms", "--preprocess", "letterbox", "--input", "u8", "--no-verify")
    gpu = (
        "--target",
        "cuda",
        "--backend",
        "tvm",
        "--arch",
        "sm_75",
        "--option",
        f"compiler={nvcc}",
        "--option",
        "graphs=on",
    )
    for name, more in (("cuda", gpu), ("tvm", ("--target", "tvm"))):
        result = command("compile", cfg, *options, *more, "-o", tmp_path / name)
        assert result.code == 0, result.err
    images = []
    for number, sides in enumerate(((48, 64), (90, 40), (20, 70), (333, 8), (90, 40))):
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(noise(number, *sides)).save(images[-1])

    def on_gpu(*arguments: object) -> str:
        given = [sys.executable, "-m", "dnc", *map(str, arguments)]
        done = subprocess.run(given, cwd=ROOT, env=environment(folder), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    wanted = json.loads(command("detect", tmp_path / "tvm", *images, "-c", 0.3, "--json").out)
    assert sum(len(frame["objects"]) for frame in wanted) > 50
    found = json.loads(on_gpu("detect", tmp_path / "cuda", *images, "-c", 0.3, "--json"))
    for one, other in zip(found, wanted, strict=True):
        places = [[box["pixels"] for box in frame["objects"]] for frame in (one, other)]
        assert places[0] == places[1]
    said = json.loads(on_gpu("bench", tmp_path / "cuda", "--images", tmp_path, "--seconds", 0.01, "--json"))
    assert said["end_to_end"][0]["frames"] >= len(images)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "head"), [("letterbox", "two heads"), ("center-crop", "region softmax")])
def test_nvidias_compiler(mode: str, head: str, tmp_path: Path) -> None:
    """It takes the kernels for four generations; no register of theirs is in memory."""
    try:
        find_toolkit()
    except TargetError:
        pytest.skip("needs nvcc or NVRTC with CUDA's headers")
    cfg = _network(tmp_path, head)
    interpolation = "bicubic" if mode == "center-crop" else "bilinear"
    p = Preprocessing(64, 48, 3, mode, interpolation=interpolation, mean=(0.5,))
    built = lower(
        Network.load(cfg, cfg.with_suffix(".weights")), batch=1, preprocessing=p, pixels=True, decode="graph+nms"
    )
    inline_composites(built, Cuda({"backend": "tvm"}).candidates()[0].composites)
    with Compiler(built, Job(("sm_75", "sm_87", "sm_90", "sm_120")), lambda _: None) as compiler:
        reply = compiler.network(tmp_path / "model.so").result()
    own = [name for name, rule in reply["rules"].items() if rule in ("preprocessing", "suppression")]
    assert len(own) == (7 if interpolation == "bicubic" else 5)
    for name in own:
        taken = reply["resources"][f"{name}_kernel"]
        assert taken["spilled"] == 0
        # A block of 1024 threads has 64 each.
        assert 0 < taken["registers"] <= 64
        assert taken["shared"] <= 48 * 1024
