"""`--decode graph+nms` for target tvm gives the host's detections, as tests/test_graph_nms.py holds ONNX Runtime to."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.graph.builder import Builder
from dnc.graph.suppression import MAX_CANDIDATES, emit_nms
from dnc.runtime.decoding import Candidates
from dnc.runtime.engine import Engine
from dnc.runtime.suppression import non_maximum_suppression
from dnc.targets.tvm.target import Tvm
from tests.graph.test_suppression import HEADS, STEM, hold, noise

pytest.importorskip("tvm.relax", exc_type=ImportError)
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="model.so is linked with g++")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Engine]]:
    """Engines that decode on the host and in the graph, with suppression."""

    @functools.cache
    def build(text: str, **options: Any) -> dict[str, Engine]:
        folder = tmp_path_factory.mktemp("network")
        cfg = folder / "net.cfg"
        cfg.write_text(f"[net]\nwidth=64\nheight=48\nchannels=3\n{STEM}{text}", encoding="utf-8")
        network = Network.load(cfg).with_random_weights(3)
        with (folder / "net.weights").open("wb") as file:
            write_weights(file, network.layers, network.arrays)
        more = {"verify": False, **options}
        host = dnc.compile(cfg, None, "tvm", folder / "host", **more)
        return {"host": host, "nms": dnc.compile(cfg, None, "tvm", folder / "nms", decode="graph+nms", **more)}

    return build


@pytest.mark.filterwarnings("ignore:confidence=1e")
@pytest.mark.parametrize("head", [
    "diounms, beta", "two heads",
    *(pytest.param(head, marks=pytest.mark.slow) for head in HEADS
      if head not in ("diounms, beta", "two heads")),
])  # fmt: skip
def test_every_head(head: str, engines: Callable[..., dict[str, Engine]]) -> None:
    """At three thresholds; and of a plain image, whose cells have all the same scores, the first one wins."""
    own = engines(HEADS[head])
    confidence = 0.2 if head.startswith(("gaussian", "detection")) else 0.38
    counts = [hold(own, [noise(1), noise(2)], confidence, iou) for iou in (0.0, 0.45, 1.0)]
    assert 5 < counts[0] < counts[2]
    assert hold(own, [noise(3)], 0.05, 0.6) > 20
    plain = np.full((48, 64, 3), 200, np.uint8)
    assert 0 < hold(own, [plain], 0.1, 0.45) <= len(own["host"](plain, confidence=0.1, iou=1.0))
    assert own["nms"]([noise(1), noise(2)], confidence=1e6) == [[], []]


def test_window_batch_and_pixels(engines: Callable[..., dict[str, Engine]]) -> None:
    """Boxes are mapped to the image before they are compared; images do not suppress each other's."""
    own = engines(HEADS["greedynms"], preprocess="letterbox", batch=2, keep_layers=True)
    assert own["nms"].manifest.extra_inputs == ("confidence", "iou", "window")
    images = [noise(4, 90, 40), noise(5, 20, 70), noise(4, 90, 40)]
    assert hold(own, images, confidence=0.3) > 10
    results = own["nms"](images, confidence=0.3)
    assert results[0] == results[2]
    assert own["nms"].manifest.outputs[:2] == ("detections", "layer000")
    pixels = engines(HEADS["yolo"], preprocess="letterbox", input="u8")
    assert hold(pixels, images, confidence=0.3) > 10


def _alone(folder: Path, kind: str, beta: float, shape: tuple[int, int, int]) -> Callable[..., np.ndarray]:
    """The suppression of scores of a shape, and nothing else."""
    b = Builder(shape[0])
    boxes, scores = b.input("boxes", [shape[1], 4]), b.input("scores", list(shape[1:]))
    b.enter("nms")
    b.output(emit_nms(b, boxes, scores, kind, beta, window=False), "detections", ["detections", 7])
    Tvm().build(b.model("nms", {}), folder)
    session = Tvm().runner().open(folder)

    def run(boxes: np.ndarray, scores: np.ndarray, confidence: float, iou: float) -> np.ndarray:
        feeds = {"boxes": boxes, "scores": scores}
        feeds |= {"confidence": np.array([confidence], np.float32), "iou": np.array([iou], np.float32)}
        return session.run(feeds)[0]

    return run


@pytest.mark.parametrize(("kind", "beta"), [("default", 0.6), ("greedynms", 0.9), ("diounms", 0.25)])
def test_suppression_is_the_hosts(kind: str, beta: float, tmp_path: Path) -> None:
    """Boxes on a coarse grid, so that many are equal, touch, contain each other or have no size; many equal scores, of
    which the host puts some into another order from the second class on (see tests/test_graph_nms.py): one class."""
    run = _alone(tmp_path, kind, beta, (2, 40, 1))
    for seed in range(60):
        generator = np.random.default_rng(seed)
        boxes = (generator.integers(0, generator.integers(2, 7), (2, 40, 4)) / 8).astype(np.float32)
        scores = (generator.integers(0, 30, (2, 40, 1)) / 30).astype(np.float32)
        confidence, iou = ((0.0, 0.3, 0.9)[seed % 3], (0.0, 0.23, 0.45, 0.77)[seed % 4])
        expected = []
        for image in range(2):
            above = np.where(scores[image] > np.float32(confidence), scores[image], np.float32(0))
            candidates = Candidates(boxes[image], above.max(axis=1), above, np.zeros(40, np.uint8))
            left = non_maximum_suppression(candidates, kind, iou, beta)
            rows = [(image, 0, left[place, 0], *boxes[image, place]) for place in np.flatnonzero(left[:, 0])]
            expected += rows
        expected.sort(key=lambda row: -row[2])
        np.testing.assert_array_equal(run(boxes, scores, confidence, iou), np.array(expected).reshape(-1, 7))


def test_more_than_are_given(tmp_path: Path) -> None:
    """The best of them, sorted; of equal ones the first."""
    run = _alone(tmp_path, "default", 0.6, (1, 3000, 2))
    generator = np.random.default_rng(0)
    boxes = generator.random((1, 3000, 4)).astype(np.float32)
    scores = (generator.integers(1, 500, (1, 3000, 2)) / 500).astype(np.float32)
    found = run(boxes, scores, 0.0, 1.0)
    best = np.argsort(-scores.ravel(), kind="stable")[:MAX_CANDIDATES]
    expected = np.stack([0 * best, best % 2, scores.ravel()[best], *boxes[0, best // 2].T], axis=1)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    scores[0, 7, 1] = np.nan
    assert len(run(boxes, scores, 0.999, 1.0)) == np.count_nonzero(scores > 0.999)
