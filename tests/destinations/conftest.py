"""What the tests of destinations share: engines of small networks, compiled once in a process, and dnc's own boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest

from dnc.compiler.compiling import compile
from dnc.runtime.decoding import Detection
from dnc.runtime.engine import Engine
from dnc.typing import Array
from tests.destinations.networks import NETWORKS, REFUSED
from tests.networks import write_network

__all__ = ["Box", "boxes_of", "pixels", "same"]

Box = tuple[int, float, float, float, float, float]
"""Class, score, and left, top, right, bottom in pixels of the network's input."""


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    """The engine of one of `NETWORKS` or `REFUSED`, for target onnx."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "a.tree").write_text("a -1\nb -1\naa 0\n")

    @cache
    def make(name: str) -> Engine:
        small = (NETWORKS | REFUSED)[name]
        cfg = write_network(folder, name, small.cfg)
        return compile(cfg, None, "onnx", folder / f"{name}.engine", verify=False, **small.options)

    return make


def pixels(engine: Engine, seed: int = 0, images: int = 1) -> Array:
    """Noise (N, C, H, W) in [0, 1]: RGB pixels / 255 as programs feed them."""
    return np.random.default_rng(seed).random((images, *engine.manifest.input_shape), np.float32)


def boxes_of(engine: Engine, images: Array, confidence: float = 0.25, iou: float = 0.45) -> list[list[Box]]:
    """What dnc itself finds in such pixels, image by image."""
    prepared = engine.manifest.preprocessing
    assert prepared is not None
    width, height = prepared.width, prepared.height
    if prepared.color == "bgr":
        images = images[:, ::-1]
    mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (prepared.mean, prepared.std))
    outputs = engine.forward(np.ascontiguousarray((images - mean) / std))
    found = []
    for number in range(len(images)):
        maps = [output[number : number + 1] for output in outputs]
        # As an image of the input's size: nothing is stretched, and no letterbox cuts anything off.
        boxes = engine.postprocess(maps, (width, height), confidence=confidence, iou=iou)
        found.append([_corners(box, width, height) for box in boxes if isinstance(box, Detection)])
    return found


def _corners(box: Detection, width: int, height: int) -> Box:
    left, right = (width * (box.center_x + side * box.width / 2) for side in (-1, 1))
    top, bottom = (height * (box.center_y + side * box.height / 2) for side in (-1, 1))
    return box.class_id, box.confidence, left, top, right, bottom


def same(found: Sequence[Box], expected: Sequence[Box], tolerance: float = 1e-3) -> None:
    """Compares boxes of one image, in any order; the tolerance is in pixels, for sums in float32 in another order."""
    assert expected, "nothing to compare"
    assert len(found) == len(expected)
    order = [sorted(boxes, key=lambda box: (box[0], -round(box[1], 5), box[2:])) for boxes in (found, expected)]
    for one, other in zip(*order, strict=True):
        assert one[0] == other[0]
        np.testing.assert_allclose(one[1:], other[1:], rtol=1e-5, atol=tolerance)
