"""Decoding in C++: every head and kind of suppression gives Python's boxes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.errors import BundleError
from dnc.runtime.decoding import (
    NMS_KINDS,
    BoxHead,
    ClassifierHead,
    DetectionHead,
    GaussianYoloHead,
    Head,
    RegionHead,
    YoloHead,
)
from dnc.runtime.manifest import read_manifest
from dnc.runtime.postprocessing import Postprocess
from dnc.runtime.preprocessing import Preprocessing
from tests.embed.conftest import Folder
from tests.embed.native import Harness, NativeError

pytestmark = pytest.mark.slow
"""They compile C++."""

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float64]

EXACT = 1e-6
"""Of the largest number: exp, pow and the logistic function of the C library and of numpy may differ in their last bit,
and are rounded to float32 afterwards."""

ANCHORS = ((10.0, 14.0), (23.0, 27.5), (37.0, 58.0))
TREE = (-1, -1, 0, 0, 1, 2, 2)
COMMON: dict[str, Any] = {"output": "out", "where": "a.cfg:1 [x] #0"}
PREPARED = Preprocessing(48, 32, mode="letterbox")

YOLO: dict[str, Any] = {**COMMON, "classes": 3, "anchors": ANCHORS, "input_size": (48, 32)}
REGION: dict[str, Any] = {**COMMON, "anchors": ((1.0, 2.0), (3.5, 0.5))}
HEADS: dict[str, tuple[BoxHead, tuple[int, ...]]] = {
    "yolo": (YoloHead(**YOLO), (24, 4, 6)),
    "scale_x_y": (YoloHead(**YOLO, scale_x_y=1.2), (24, 4, 6)),
    "new_coords": (YoloHead(**YOLO, new_coords=True), (24, 4, 6)),
    **{kind: (YoloHead(**YOLO, nms_kind=kind, beta_nms=0.3), (24, 4, 6)) for kind in NMS_KINDS},
    **{
        f"gaussian {point}": (GaussianYoloHead(**YOLO, yolo_point=point, nms_kind="greedynms"), (36, 4, 6))
        for point in ("center", "left_top", "right_bottom")
    },
    "gaussian new_coords": (GaussianYoloHead(**YOLO, new_coords=True), (36, 4, 6)),
    "region": (RegionHead(**REGION, classes=3), (16, 4, 6)),
    "region classfix": (RegionHead(**REGION, classes=3, classfix=-1, thresh=0.6), (16, 4, 6)),
    "region tree": (RegionHead(**REGION, classes=7, tree=TREE), (24, 4, 6)),
    "region tree, sure": (RegionHead(**REGION, classes=7, tree=TREE, tree_threshold=0.2), (24, 4, 6)),
    "region tree, map": (RegionHead(**REGION, classes=7, tree=TREE, map=(6, 0, 3)), (24, 4, 6)),
    "detection": (DetectionHead(**COMMON, classes=3, side=5, num=2), (5 * 5 * 13,)),
    "detection sqrt": (DetectionHead(**COMMON, classes=3, side=5, num=2, sqrt=True), (5 * 5 * 13,)),
}


def numbers(shape: tuple[int, ...], seed: int) -> Floats:
    """Activated values as heads have them; sizes of e^t stay small."""
    return np.random.default_rng(seed).random(shape, np.float32)


def boxes(
    harness: Harness, place: Path, maps: Sequence[Floats], confidence: float, iou: float, size: tuple[int, int]
) -> Rows:
    (place / "numbers").write_bytes(b"".join(each.astype(np.float32).tobytes() for each in maps))
    lines = harness("detect", place, place / "numbers", confidence, iou, *size)
    return np.array([line.split() for line in lines], np.float64).reshape(-1, 6)


def expected_boxes(place: Path, maps: Sequence[Floats], confidence: float, iou: float, size: tuple[int, int]) -> Rows:
    postprocess = Postprocess(read_manifest(place))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found: Any = postprocess(maps, size, confidence=confidence, iou=iou)
    rows = [(d.class_id, d.confidence, d.center_x, d.center_y, d.width, d.height) for d in found]
    return np.array(rows, np.float64).reshape(-1, 6)


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str, harness: Harness, folder: Folder) -> None:
    """At several thresholds; 0 and below let everything through, boxes without a score among it."""
    head, shape = HEADS[name]
    place = folder(heads=(head,), output_shapes=(shape,), preprocessing=PREPARED)
    counts = []
    for seed, size in enumerate([(48, 32), (90, 41), (20, 70)]):
        maps = [numbers(shape, seed)]
        for confidence, iou in ((0.3, 0.45), (0.1, 0.2), (0.5, 1.0), (0.0, 0.7), (-0.1, 0.5), (2.0, 0.5)):
            expected = expected_boxes(place, maps, confidence, iou, size)
            np.testing.assert_allclose(
                boxes(harness, place, maps, confidence, iou, size), expected, rtol=EXACT, atol=EXACT
            )
            counts.append(len(expected))
    assert max(counts) > 20


@pytest.mark.parametrize("kind", ["default", "greedynms"])
def test_many_boxes(kind: str, harness: Harness, folder: Folder) -> None:
    """More than are all compared with one another: of sizes from a hair to the whole image."""
    head, shape = YoloHead(**YOLO, nms_kind=kind), (24, 32, 48)
    place = folder(heads=(head,), output_shapes=(shape,), preprocessing=PREPARED)
    maps = [numbers(shape, 3)]
    for channel in (2, 3):
        maps[0][channel::8] = 9 * maps[0][channel::8] - 8
    for confidence, iou in ((0.0, 0.45), (0.1, 0.06), (0.2, 0.8)):
        expected = expected_boxes(place, maps, confidence, iou, (48, 32))
        assert len(expected) > 1024
        np.testing.assert_allclose(
            boxes(harness, place, maps, confidence, iou, (48, 32)), expected, rtol=EXACT, atol=EXACT
        )


def test_as_many_candidates_as_asked_for(harness: Harness, folder: Folder) -> None:
    head, shape = HEADS["yolo"]
    place = folder(heads=(head,), output_shapes=(shape,), preprocessing=PREPARED)
    maps = [numbers(shape, 0).round(1)]
    (place / "numbers").write_bytes(maps[0].tobytes())
    lines = harness("detect", place, place / "numbers", 0.1, 0.45, 48, 32, 20)
    expected = Postprocess(read_manifest(place))(maps, (48, 32), confidence=0.1, max_candidates=20)
    assert [float(line.split()[1]) for line in lines] == pytest.approx([found.confidence for found in expected])
    assert 0 < len(expected) <= 20


def test_several_heads(harness: Harness, folder: Folder) -> None:
    """Boxes of all are suppressed together, as the last one says."""
    heads = [
        YoloHead(**{**YOLO, "output": "a"}, nms_kind="greedynms"),
        YoloHead(**{**YOLO, "output": "b"}, new_coords=True, nms_kind="diounms", beta_nms=0.9),
    ]
    shapes = ((24, 4, 6), (24, 8, 12))
    place = folder(heads=tuple(heads), outputs=("a", "b"), output_shapes=shapes, preprocessing=PREPARED)
    maps = [numbers(shape, seed) for seed, shape in enumerate(shapes)]
    expected = expected_boxes(place, maps, 0.2, 0.3, (64, 64))
    np.testing.assert_allclose(boxes(harness, place, maps, 0.2, 0.3, (64, 64)), expected, rtol=EXACT, atol=EXACT)
    assert len(expected) > 20


@given(name=st.sampled_from(sorted(HEADS)), seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 3))
@settings(max_examples=40)
def test_ties(name: str, seed: int, levels: int, harness: Harness, folder: Folder) -> None:
    """Few different scores: their order is Darknet's."""
    head, shape = HEADS[name]
    place = folder(heads=(head,), output_shapes=(shape,), preprocessing=PREPARED)
    maps = [(np.random.default_rng(seed).integers(0, levels + 1, shape) / levels).astype(np.float32)]
    expected = expected_boxes(place, maps, 0.2, 0.45, (48, 32))
    np.testing.assert_allclose(boxes(harness, place, maps, 0.2, 0.45, (48, 32)), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", HEADS)
def test_what_is_no_number(name: str, harness: Harness, folder: Folder) -> None:
    """Infinities and what is no number, as a network with bad weights gives them: the same boxes, and no crash."""
    head, shape = HEADS[name]
    place = folder(heads=(head,), output_shapes=(shape,), preprocessing=PREPARED)
    generator = np.random.default_rng(0)
    for special in (np.nan, np.inf, -np.inf, 1e30, -1e30, 100.0):
        values = numbers(shape, 5)
        values[generator.random(shape) < 0.1] = special
        expected = expected_boxes(place, [values], 0.3, 0.45, (48, 32))
        found = boxes(harness, place, [values], 0.3, 0.45, (48, 32))
        np.testing.assert_allclose(found, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("tree", [(), TREE])
def test_classes(tree: tuple[int, ...], harness: Harness, folder: Folder) -> None:
    head = ClassifierHead(**COMMON, classes=7, tree=tree)
    place = folder(heads=(head,), output_shapes=((7,),))
    for values in (numbers((7,), 0), np.array([0.5, 1, 0.5, 1, 0, np.nan, 0.5], np.float32)):
        (place / "numbers").write_bytes(values.tobytes())
        for top in (1, 3, 100):
            lines = harness("classify", place, place / "numbers", top)
            expected = [(one.class_id, one.confidence) for one in head.top_k(values, top)]
            np.testing.assert_array_equal(
                np.array([line.split() for line in lines], np.float32), np.array(expected, np.float32)
            )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("yolo", (23, 4, 6), r"output 'out' of shape \(23, 4, 6\) does not fit 3 anchors and 3 classes"),
        ("yolo", (24, 24), r"output 'out' of shape \(24, 24\) has no grid"),
        ("yolo", (0, 4, 6), "has no grid"),
        ("gaussian center", (24, 4, 6), "does not fit 3 anchors"),
        ("region", (24, 4, 6), "does not fit 2 anchors"),
        ("detection", (324,), "is not 325 values"),
    ],
)
def test_outputs_that_do_not_fit(
    name: str, shape: tuple[int, ...], message: str, harness: Harness, folder: Folder
) -> None:
    """They are refused by both."""
    head = HEADS[name][0]
    with pytest.raises(BundleError):
        head.candidates(np.zeros(shape, np.float32), 0.1)
    place = folder(heads=(head,), output_shapes=(shape,), preprocessing=PREPARED)
    with pytest.raises(NativeError, match=message) as caught:
        boxes(harness, place, [np.zeros(shape, np.float32)], 0.1, 0.5, (48, 32))
    assert caught.value.status == 2
    assert "at a.cfg:1 [x] #0" in str(caught.value)


def test_every_field_is_covered() -> None:
    """A field that a head gets has to be taught to decode.cpp; this is where one notices."""
    known = {
        "YoloHead": {"anchors", "input_size", "scale_x_y", "new_coords", "nms_kind", "beta_nms"},
        "GaussianYoloHead": {"anchors", "input_size", "scale_x_y", "new_coords", "nms_kind", "beta_nms", "yolo_point"},
        "RegionHead": {"anchors", "tree", "tree_threshold", "map", "classfix", "thresh"},
        "DetectionHead": {"side", "num", "sqrt"},
        "ClassifierHead": {"tree"},
    }
    common = {field.name for field in dataclasses.fields(Head)}
    for kind in (YoloHead, GaussianYoloHead, RegionHead, DetectionHead, ClassifierHead):
        assert {field.name for field in dataclasses.fields(kind)} - common == known[kind.__name__]
