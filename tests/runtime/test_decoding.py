"""Decoding against Darknet's loops, written out here with scalars, and against Darknet's own detections."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.errors import BundleError, DncError, DncWarning
from dnc.runtime import postprocessing, suppression
from dnc.runtime.decoding import (
    NMS_KINDS,
    BoxHead,
    Candidates,
    ClassifierHead,
    Detection,
    DetectionHead,
    GaussianYoloHead,
    Head,
    RegionHead,
    YoloHead,
    head_from_json,
)
from dnc.runtime.postprocessing import Postprocess
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.suppression import best_candidates, darknet_order, non_maximum_suppression
from tests import goldens
from tests.manifests import manifest

Floats = npt.NDArray[np.float32]
f = np.float32

FLOAT = 4e-7
"""Two float32 roundings of a value near 1: numpy's exp is not the C library's to the last bit."""


def noise(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(f)


def detections(
    heads: Sequence[Head],
    outputs: Mapping[str, Floats],
    image_size: tuple[int, int] | None = None,
    labels: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    **options: float,
) -> Any:
    """What an engine with these heads shows."""
    about = manifest(
        heads=tuple(heads),
        outputs=tuple(outputs),
        output_shapes=tuple(output.shape for output in outputs.values()),
        labels=tuple(labels),
        preprocessing=preprocessing,
    )
    return Postprocess(about)(list(outputs.values()), image_size, **options)  # type: ignore[arg-type]


def logistic(values: Floats) -> Floats:
    return (1 / (1 + np.exp(-values.astype(np.float64)))).astype(f)


def softmax(values: Floats) -> Floats:
    e = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), f)


# The boxes of one map


def yolo_loop(head: YoloHead, output: Floats, threshold: float) -> list[tuple[list[float], float, list[float]]]:
    """get_yolo_detections, get_gaussian_yolo_detections: boxes, objectness, scores, by Darknet's indices."""
    gaussian = isinstance(head, GaussianYoloHead)
    _, lh, lw = output.shape
    n = len(head.anchors)
    entries = (9 if gaussian else 5) + head.classes
    flat = output.reshape(-1)
    found = []

    def at(anchor: int, location: int, entry: int) -> Any:
        return flat[anchor * lw * lh * entries + entry * lw * lh + location]

    for i in range(lw * lh):
        row, col = divmod(i, lw)
        for a in range(n):
            objectness = at(a, i, 8 if gaussian else 4)
            if not objectness > f(threshold):
                continue
            x, y, w, h = (at(a, i, entry) for entry in ((0, 2, 4, 6) if gaussian else range(4)))
            anchor_w, anchor_h = (f(size) for size in head.anchors[a])
            net_w, net_h = head.input_size
            if head.new_coords:
                bw = w * w * f(4) * anchor_w / f(net_w)
                bh = h * h * f(4) * anchor_h / f(net_h)
            else:
                bw = f(math.exp(w) * float(anchor_w) / net_w)
                bh = f(math.exp(h) * float(anchor_h) / net_h)
            bx, by = (f(col) + x) / f(lw), (f(row) + y) / f(lh)
            certainty = 1.0
            if isinstance(head, GaussianYoloHead):
                sign = {"center": 0, "left_top": 1, "right_bottom": -1}[head.yolo_point]
                bx, by = bx + f(sign) * bw / f(2), by + f(sign) * bh / f(2)
                certainty = 1 - float(f(sum((at(a, i, entry) for entry in (1, 3, 5, 7)), f(0)) / 4.0))
            scores = []
            for j in range(head.classes):
                prob = f(float(objectness * at(a, i, (9 if gaussian else 5) + j)) * certainty)
                scores.append(float(prob) if prob > f(threshold) else 0.0)
            found.append(([float(v) for v in (bx, by, bw, bh)], float(objectness), scores))
    return found


def same(got: Candidates, expected: list[tuple[list[float], float, list[float]]]) -> None:
    assert len(got.boxes) == len(expected) > 0
    np.testing.assert_allclose(got.boxes, [box for box, _, _ in expected], rtol=FLOAT, atol=FLOAT)
    np.testing.assert_allclose(got.objectness, [objectness for _, objectness, _ in expected], rtol=FLOAT)
    np.testing.assert_allclose(got.scores, [scores for _, _, scores in expected], rtol=FLOAT)
    assert {array.dtype for array in got[:3]} == {np.dtype(f)}


ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))


@pytest.mark.parametrize("new_coords", [False, True])
def test_yolo_is_darknets_loop(new_coords: bool) -> None:
    head = YoloHead("o", "", 4, ANCHORS, (96, 64), new_coords=new_coords)
    output = noise(0, 3 * 9, 5, 7)
    same(head.candidates(output, 0.3), yolo_loop(head, output, 0.3))
    same(head.candidates(output[None], 0.3), yolo_loop(head, output, 0.3))


@pytest.mark.parametrize("point", ["center", "left_top", "right_bottom"])
def test_gaussian_yolo_is_darknets_loop(point: str) -> None:
    head = GaussianYoloHead("o", "", 4, ANCHORS, (96, 64), yolo_point=point)
    output = logistic(noise(1, 3 * 13, 5, 7))
    got = head.candidates(output, 0.2)
    same(got, yolo_loop(head, output, 0.2))
    assert set(got.points) == {{"center": 1, "left_top": 2, "right_bottom": 4}[point]}


def region_loop(head: RegionHead, output: Floats, threshold: float) -> list[tuple[list[float], float, list[float]]]:
    """get_region_boxes, with what no suppression or threshold would see left out."""
    _, h, w = output.shape
    n, size = len(head.anchors), head.classes + 5
    flat = output.reshape(-1)
    found = []
    for i in range(w * h):
        row, col = divmod(i, w)
        for a in range(n):
            x = flat[(i * n + a) * size : (i * n + a + 1) * size].copy()
            scale = f(0) if head.classfix == -1 and x[4] < 0.5 else x[4]
            probs = [0.0] * (len(head.map) or head.classes)
            if head.tree:
                for j, parent in enumerate(head.tree):
                    if parent >= 0:
                        x[5 + j] *= x[5 + parent]
                if head.map:
                    for j, node in enumerate(head.map):
                        prob = scale * x[5 + node]
                        probs[j] = float(prob) if prob > f(threshold) else 0.0
                else:
                    for j in reversed(range(head.classes)):
                        if x[5 + j] > 0.5:
                            probs[j] = float(x[5 + j]) if scale > f(threshold) else 0.0
                            break
            else:
                for j in range(head.classes):
                    prob = scale * x[5 + j]
                    probs[j] = float(prob) if prob > f(threshold) else 0.0
            if any(probs):
                cx, cy = (1 / (1 + math.exp(-v)) for v in x[:2])
                box = [
                    (col + cx) / w,
                    (row + cy) / h,
                    math.exp(x[2]) * head.anchors[a][0] / w,
                    math.exp(x[3]) * head.anchors[a][1] / h,
                ]
                found.append((box, float(scale), probs))
    return found


#       0   1
#      / \   \
#     2   3   4
#    / \
#   5   6
TREE = (-1, -1, 0, 0, 1, 2, 2)
GROUPS = ((0, 1), (2, 3), (4,), (5, 6))


def region_map(seed: int, tree: bool, h: int = 4, w: int = 5, n: int = 2) -> Floats:
    cells = 3 * noise(seed, h * w * n, 12)
    cells[:, 4] = logistic(cells[:, 4])
    for group in GROUPS if tree else (range(7),):
        columns = [5 + node for node in group]
        cells[:, columns] = softmax(cells[:, columns])
    return cells.reshape(n * 12, h, w)


@pytest.mark.parametrize(
    "options",
    [{}, {"classfix": -1}, {"tree": TREE}, {"tree": TREE, "map": (5, 3, 1)}],
    ids=["flat", "classfix", "tree", "map"],
)
def test_region_is_darknets_loop(options: dict[str, Any]) -> None:
    head = RegionHead("o", "", 7, ((1.0, 2.0), (3.5, 2.5)), **options)
    output = region_map(2, "tree" in options)
    before = output.copy()
    same(head.candidates(output, 0.2), region_loop(head, output, 0.2))
    np.testing.assert_array_equal(output, before)


def test_a_tree_gives_one_class_without_objectness() -> None:
    cell = np.array([0, 0, 0, 0, 0.3, 0.9, 0.1, 0.8, 0.2, 1, 0.95, 0.05], f)
    head = RegionHead("o", "", 7, ((1.0, 1.0),), tree=TREE)
    scores = head.candidates(cell.reshape(12, 1, 1), 0.25).scores
    # Node 5 under 2 under 0: 0.9 * 0.8 * 0.95, three float32 factors.
    np.testing.assert_allclose(scores, [[0, 0, 0, 0, 0, 0.684, 0]], rtol=FLOAT)
    assert not len(head.candidates(cell.reshape(12, 1, 1), 0.3).boxes)


@pytest.mark.parametrize(
    ("tree", "message"), [((-1, 0), "2 nodes for 3 classes"), ((-1, 2, 0), "node 1 .* before its parent 2")]
)
def test_a_tree_that_is_none(tree: tuple[int, ...], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        ClassifierHead("o", "", 3, tree).top_k(np.zeros(3, f), 1)


@pytest.mark.parametrize("sqrt", [False, True])
def test_detection_is_darknets_loop(sqrt: bool) -> None:
    head = DetectionHead("o", "", 3, side=4, num=2, sqrt=sqrt)
    flat = noise(3, 4 * 4 * (3 + 2 * 5))
    expected = []
    for i in range(16):
        row, col = divmod(i, 4)
        for n in range(2):
            scale = flat[16 * 3 + i * 2 + n]
            x, y, w, h = flat[16 * (3 + 2) + (i * 2 + n) * 4 :][:4]
            products = [scale * flat[i * 3 + j] for j in range(3)]
            probs = [float(p) if p > f(0.4) else 0.0 for p in products]
            if any(probs):
                box = [(x + col) / 4, (y + row) / 4, w * w if sqrt else w, h * h if sqrt else h]
                expected.append((box, float(scale), probs))
    # Two negative factors make a score, too.
    assert any(objectness < 0 for _, objectness, _ in expected)
    same(head.candidates(flat, 0.4), expected)


def test_an_output_that_does_not_fit_is_named() -> None:
    yolo = YoloHead("boxes", "a.cfg:9 [yolo] #3", 4, ANCHORS, (96, 64))
    for head, output in (
        (yolo, noise(0, 26, 5, 7)),
        (yolo, noise(0, 27)),
        (RegionHead("boxes", "a.cfg:9 [yolo] #3", 4, ANCHORS), noise(0, 26, 5, 7)),
        (DetectionHead("boxes", "a.cfg:9 [yolo] #3", 4, 7, 2), noise(0, 26)),
    ):
        with pytest.raises(BundleError, match="output 'boxes' of shape") as caught:
            head.candidates(output, 0.1)
        assert caught.value.where == "a.cfg:9 [yolo] #3"
    with pytest.raises(BundleError, match="is not 4 classes"):
        ClassifierHead("o", "", 4).top_k(noise(0, 5), 1)


def test_nothing_found() -> None:
    head = YoloHead("o", "", 4, ANCHORS, (96, 64))
    assert head.candidates(np.zeros((27, 5, 7), f), 0.1).scores.shape == (0, 4)
    assert detections([head], {"o": np.zeros((27, 5, 7), f)}) == []


# Non-maximum suppression


def box_iou(a: Floats, b: Floats) -> Any:
    def overlap(x1: Any, w1: Any, x2: Any, w2: Any) -> Any:
        return min(x1 + w1 / f(2), x2 + w2 / f(2)) - max(x1 - w1 / f(2), x2 - w2 / f(2))

    w, h = overlap(a[0], a[2], b[0], b[2]), overlap(a[1], a[3], b[1], b[3])
    intersection = f(0) if w < 0 or h < 0 else w * h
    union = a[2] * a[3] + b[2] * b[3] - intersection
    return f(0) if intersection == 0 or union == 0 else intersection / union


def box_diounms(a: Floats, b: Floats, beta: float) -> Any:
    w, h = (
        max(a[k] + a[k + 2] / f(2), b[k] + b[k + 2] / f(2)) - min(a[k] - a[k + 2] / f(2), b[k] - b[k + 2] / f(2))
        for k in (0, 1)
    )
    c = w * w + h * h
    if c == 0:
        return box_iou(a, b)
    d = (a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1])
    return box_iou(a, b) - f(float(d / c) ** beta)


def nms_loop(boxes: Floats, scores: Floats, kind: str, threshold: float, beta: float) -> Floats:
    """do_nms_sort and diounms_sort: one list, sorted anew in place for each class (glibc sorts stably)."""
    overlap: dict[str, Callable[[Floats, Floats], Any]] = {
        "greedynms": lambda a, b: box_diounms(a, b, 0.6),
        "diounms": lambda a, b: box_diounms(a, b, float(f(beta))),
    }
    dets = [(box, row.copy(), place) for place, (box, row) in enumerate(zip(boxes, scores, strict=True))]
    for k in range(scores.shape[1]):
        dets.sort(key=lambda det: -det[1][k])
        for i, (a, probs, _) in enumerate(dets):
            if probs[k] == 0:
                continue
            for b, others, _ in dets[i + 1 :]:
                if overlap.get(kind, box_iou)(a, b) > f(threshold):
                    others[k] = 0
    return np.array([probs for _, probs, _ in sorted(dets, key=lambda det: det[2])], f).reshape(scores.shape)


def candidates(boxes: Floats, scores: Floats) -> Candidates:
    return Candidates(boxes, scores.max(axis=1, initial=0), scores, np.zeros(len(boxes), np.uint8))


# On a coarse grid there are equal scores, equal boxes and overlaps that meet a threshold exactly.
coarse = st.integers(0, 4).map(lambda value: value / 4)
objects = st.lists(st.tuples(st.tuples(coarse, coarse, coarse, coarse), st.tuples(coarse, coarse, coarse)), max_size=9)


@settings(max_examples=150)
@given(objects, st.sampled_from(NMS_KINDS), st.sampled_from([0.0, 0.25, 0.45, 0.5]), st.sampled_from([0.6, 1.0]))
def test_suppression_is_darknets_loop(
    things: list[tuple[tuple[float, ...], tuple[float, ...]]], kind: str, threshold: float, beta: float
) -> None:
    boxes = np.array([box for box, _ in things], f).reshape(-1, 4)
    scores = np.array([row for _, row in things], f).reshape(-1, 3)
    got = non_maximum_suppression(candidates(boxes, scores), kind, threshold, beta)
    np.testing.assert_array_equal(got, nms_loop(boxes, scores, kind, threshold, beta))


@pytest.mark.parametrize("kind", NMS_KINDS)
def test_suppression_is_darknets_loop_over_several_blocks(kind: str) -> None:
    random = np.random.default_rng(4)
    boxes = np.hstack([random.random((300, 2)), random.uniform(0.05, 0.3, (300, 2))]).astype(f)
    scores = random.random((300, 2)).round(2).astype(f)
    got = non_maximum_suppression(candidates(boxes, scores), kind, 0.3, 0.8)
    np.testing.assert_array_equal(got, nms_loop(boxes, scores, kind, 0.3, 0.8))
    assert 0 < (got > 0).sum() < (scores > 0).sum()


def many(name: str, count: int) -> Floats:
    """Boxes of a kind: as heads give them, and as none should."""
    random = np.random.default_rng(len(name))
    centers = random.random((count, 2))
    if name == "lines":
        sizes = np.full((count, 2), 0.9)
        sizes[np.arange(count), np.arange(count) % 2] = 0.002
    else:
        spread = {"anchors": (-4, -1), "alike": (-3, -2.9), "mixed": (-12, 1), "tiny": (-17, -11), "wild": (-40, 40)}
        sizes = np.exp(random.uniform(*spread.get(name, (-3, -2)), (count, 2)))
    if name == "anchors":
        centers = (np.floor(centers * 26) + random.random((count, 2))) / 26
    if name == "clusters":
        centers = centers[random.integers(20, size=count)] + random.normal(0, 0.01, (count, 2))
    boxes = np.hstack([centers, sizes]).astype(f)
    if name == "same":
        boxes[:] = boxes[0]
    if name == "wild":
        boxes[:, :2] = 10 * boxes[:, :2] - 5
        for column, value in ((0, np.nan), (1, -np.inf), (2, np.inf), (2, 0), (3, -0.1), (3, 1e-44)):
            boxes[random.random(count) < 0.02, column] = value
    return boxes


def plain_suppression(boxes: Floats, scores: Floats, kind: str, threshold: float, beta: float) -> Floats:
    """nms_loop, a box with all at a time: those before and itself have been looked at and stay as they are."""
    scores, order = scores.copy(), np.arange(len(boxes))
    for k in range(scores.shape[1]):
        order = order[np.argsort(-scores[order, k], kind="stable")]
        left, sorted_boxes = scores[order, k], boxes[order]
        x, y, w, h = sorted_boxes.T
        for i, (a, b, c, d) in enumerate(sorted_boxes):
            if left[i] == 0:
                continue
            across = np.minimum(a + c / f(2), x + w / f(2)) - np.maximum(a - c / f(2), x - w / f(2))
            down = np.minimum(b + d / f(2), y + h / f(2)) - np.maximum(b - d / f(2), y - h / f(2))
            intersection = np.where((across < 0) | (down < 0), f(0), across * down)
            union = c * d + w * h - intersection
            iou = np.where((intersection == 0) | (union == 0), f(0), intersection / union)
            if kind in ("greedynms", "diounms"):
                width = np.maximum(a + c / f(2), x + w / f(2)) - np.minimum(a - c / f(2), x - w / f(2))
                height = np.maximum(b + d / f(2), y + h / f(2)) - np.minimum(b - d / f(2), y - h / f(2))
                diagonal, apart = width * width + height * height, (a - x) * (a - x) + (b - y) * (b - y)
                exponent = 0.6 if kind == "greedynms" else float(f(beta))
                penalty = np.power((apart / diagonal).astype(np.float64), exponent).astype(f)
                iou = np.where(diagonal == 0, iou, iou - penalty)
            later = np.arange(len(left)) > i
            left[later & (iou > f(threshold))] = 0
        scores[order, k] = left
    return scores


@pytest.mark.parametrize(
    ("name", "kind", "threshold"),
    [
        ("anchors", "default", 0.45),
        ("anchors", "greedynms", 0.45),
        ("anchors", "diounms", 0.1),
        ("anchors", "default", 0.9),
        ("alike", "default", 0.3),
        ("mixed", "default", 0.45),
        ("mixed", "default", 0.06),
        ("mixed", "default", 0.0),
        ("tiny", "default", 0.2),
        ("tiny", "greedynms", 0.45),
        ("lines", "cornersnms", 0.45),
        ("clusters", "diounms", 0.6),
        ("same", "default", 0.45),
        ("wild", "default", 0.45),
        ("wild", "greedynms", 0.07),
        ("mixed", "default", -0.1),
    ],
)
@np.errstate(all="ignore")
def test_suppression_of_many_is_the_plain_one(
    name: str, kind: str, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suppression, "_FEW", 100)
    boxes = many(name, 600)
    random = np.random.default_rng(7)
    # Two classes that nearly all share, with ties, and one of few boxes.
    scores = random.random((600, 3)).round(2).astype(f)
    scores[random.random(600) < 0.9, 2] = 0
    got = non_maximum_suppression(candidates(boxes, scores), kind, threshold, 0.8)
    np.testing.assert_array_equal(got, plain_suppression(boxes, scores, kind, threshold, 0.8))


@pytest.mark.parametrize("name", ["anchors", "mixed", "clusters", "same", "lines"])
def test_boxes_that_cannot_overlap_are_not_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 6000
    compared: list[int] = []

    def overlaps(boxes: Floats, others: Floats, exponent: float | None) -> Floats:
        found = measure(boxes, others, exponent)
        compared.append(found.size)
        return found

    measure = suppression._overlap
    monkeypatch.setattr(suppression, "_overlap", overlaps)
    boxes = many("small" if name == "anchors" else name, count)
    if name in ("anchors", "mixed"):
        boxes[:, 2:] /= 20
    non_maximum_suppression(candidates(boxes, np.random.default_rng(1).random((count, 1)).astype(f)))
    # All with all are 18 million.
    assert sum(compared) < 300 * count


def test_the_best_candidates() -> None:
    scores = np.array([[0.5, 0.9], [0.5, 0], [0.7, 0.5]], f)
    given = candidates(np.zeros((3, 4), f), scores)
    assert best_candidates(given, 5) is given
    np.testing.assert_array_equal(best_candidates(given, 3).scores, np.array([[0.5, 0.9], [0, 0], [0.7, 0]], f))
    np.testing.assert_array_equal(best_candidates(given, 1).scores, np.array([[0, 0.9], [0, 0], [0, 0]], f))
    np.testing.assert_array_equal(given.scores[0], scores[0])


def test_darknets_order() -> None:
    """By the last class, boxes without it by the one before, and equals as they were."""
    scores = np.array([[0.1, 0], [0.3, 0], [0, 0.2], [0.3, 0], [0.9, 0.2]], f)
    dets = list(range(5))
    for k in range(2):
        dets.sort(key=lambda det: -scores[det, k])
    assert darknet_order(scores).tolist() == dets == [4, 2, 1, 3, 0]


def test_a_suppressed_box_suppresses_nothing() -> None:
    boxes = np.array([[0.3, 0.5, 0.2, 0.2], [0.37, 0.5, 0.2, 0.2], [0.44, 0.5, 0.2, 0.2]], f)
    scores = np.array([[0.9], [0.8], [0.7]], f)
    np.testing.assert_array_equal(non_maximum_suppression(candidates(boxes, scores)), np.array([[0.9], [0], [0.7]], f))


def test_greedynms_keeps_what_default_drops() -> None:
    boxes = np.array([[0.4, 0.5, 0.2, 0.2], [0.46, 0.5, 0.2, 0.2]], f)
    scores = np.array([[0.9], [0.8]], f)
    assert non_maximum_suppression(candidates(boxes, scores), "default")[1, 0] == 0
    assert non_maximum_suppression(candidates(boxes, scores), "cornersnms")[1, 0] == 0
    assert non_maximum_suppression(candidates(boxes, scores), "greedynms")[1, 0] == f(0.8)


def test_an_unknown_suppression() -> None:
    with pytest.raises(BundleError, match="unknown nms_kind 'soft'"):
        non_maximum_suppression(candidates(np.zeros((1, 4), f), np.ones((1, 1), f)), "soft")


# From heads to detections


def one_box(head_classes: int, cells: dict[tuple[int, int], dict[int, float]]) -> Floats:
    """A map of one anchor on 4 x 4 cells that has the given channels at each (row, column)."""
    output = np.zeros((5 + head_classes, 4, 4), f)
    for (row, column), channels in cells.items():
        for channel, value in {0: 0.5, 1: 0.5, **channels}.items():
            output[channel, row, column] = value
    return output


def yolo(output: str, classes: int = 2, **options: Any) -> YoloHead:
    return YoloHead(output, f"a.cfg:1 [yolo] #{output}", classes, ((8.0, 8.0),), (32, 32), **options)


def test_detections_are_sorted_and_labelled() -> None:
    heads = [yolo("1"), yolo("2")]
    outputs = {
        "1": one_box(2, {(0, 0): {4: 0.5, 6: 1.0}, (3, 3): {4: 0.5, 5: 0.4}}),
        "2": one_box(2, {(1, 2): {4: 1.0, 5: 0.75, 6: 0.5}}),
    }
    found = detections(heads, outputs, labels=["cat", "dog"])
    # Powers of two: exact in float32.
    assert found == [
        Detection(0, "cat", 0.75, 0.625, 0.375, 0.25, 0.25),
        Detection(1, "dog", 0.5, 0.125, 0.125, 0.25, 0.25),
        Detection(1, "dog", 0.5, 0.625, 0.375, 0.25, 0.25),
    ]
    assert [d.label for d in detections(heads, outputs)] == ["0", "1", "1"]
    assert [d.label for d in detections(heads, outputs, labels=["cat", "dont_show dog"])] == ["cat"]
    assert len(detections(heads, outputs, confidence=0.1)) == 4
    assert found[0].to_json() == {
        "class_id": 0,
        "name": "cat",
        "relative_coordinates": {"center_x": 0.625, "center_y": 0.375, "width": 0.25, "height": 0.25},
        "confidence": 0.75,
    }
    # Darknet lists boxes by the last class, then by the one before it; and what one box is, together.
    assert [(d.label, d.place) for d in detections(heads, outputs, confidence=0.1)] == [
        ("0", 0),
        ("1", 2),
        ("1", 1),
        ("0", 3),
    ]


def test_as_many_candidates_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = {"1": one_box(2, {(0, 0): {4: 0.5, 6: 1.0}, (3, 3): {4: 0.5, 5: 0.75}, (1, 2): {4: 1.0, 5: 0.75, 6: 0.5}})}
    assert [d.confidence for d in detections([yolo("1")], maps, max_candidates=2)] == [0.75, 0.5]
    assert len(detections([yolo("1")], maps)) == 4
    with pytest.raises(DncError, match="max_candidates=0 must be at least 1"):
        detections([yolo("1")], maps, max_candidates=0)
    monkeypatch.setattr(postprocessing, "DEFAULT_CANDIDATES", 3)
    with pytest.warns(DncWarning, match="more than 3 scores over the threshold"):
        assert len(detections([yolo("1")], maps)) == 3


def overlapping(**options: Any) -> tuple[list[BoxHead], dict[str, Floats]]:
    """Two heads with a box of width and height 1/4 each, 0.05 apart: their IoU is 2/3, their DIoU 0.58."""
    first, second = one_box(2, {(1, 1): {4: 0.9, 5: 1.0}}), one_box(2, {(1, 1): {0: 0.7, 4: 0.8, 5: 1.0}})
    return [yolo("1"), yolo("2", **options)], {"1": first, "2": second}


def test_the_last_head_says_how_to_suppress() -> None:
    heads, outputs = overlapping(nms_kind="greedynms")
    assert len(detections(heads, outputs, iou=0.6)) == 2
    assert len(detections(heads[::-1], outputs, iou=0.6)) == 1
    heads, outputs = overlapping(nms_kind="diounms", beta_nms=4.0)
    assert len(detections(heads, outputs, iou=0.6)) == 1


def test_boxes_go_back_to_the_image_before_the_suppression() -> None:
    heads, outputs = overlapping(nms_kind="greedynms")
    # Four times the height, of an image in a quarter of the input: the same IoU, but a DIoU of 0.64.
    wide: Any = {"image_size": (128, 32), "preprocessing": Preprocessing(32, 32, mode="letterbox")}
    assert len(detections(heads, outputs, iou=0.6)) == 2
    assert len(detections(heads, outputs, iou=0.6, **wide)) == 1
    assert detections(heads, outputs, **wide)[0].height == 1.0


def test_heads_share_their_classes() -> None:
    with pytest.raises(BundleError, match=r"3 classes, but 2 at a.cfg:1 \[yolo\] #2") as caught:
        detections([yolo("1", 3), yolo("2", 2)], {})
    assert caught.value.where == "a.cfg:1 [yolo] #1"


def test_pixels_are_truncated_and_clipped() -> None:
    assert Detection(0, "", 1, 0.5, 0.5, 0.5, 0.25).pixels(101, 101) == (25, 37, 75, 63)
    assert Detection(0, "", 1, 0.9, 0.1, 0.5, 0.5).pixels(100, 50) == (65, 0, 99, 17)
    assert Detection(0, "", 1, 0.5, 0.5, math.inf, -3.0).pixels(100, 50) == (0, 49, 99, 0)


def test_top_k_takes_the_first_of_equals() -> None:
    head = ClassifierHead("o", "", 4)
    values = np.array([0.1, 0.4, 0.1, 0.4], f).reshape(4, 1, 1)
    found = head.top_k(values, 3, ["a", "b", "c", "d"])
    assert [(c.class_id, c.label) for c in found] == [(1, "b"), (3, "d"), (0, "a")]
    assert found[0].to_json() == {"class_id": 1, "name": "b", "confidence": float(f(0.4))}
    assert len(head.top_k(values, 9)) == 4


def test_top_k_of_a_tree_is_absolute() -> None:
    values = np.array([0.9, 0.1, 0.8, 0.2, 1, 0.6, 0.4], f)
    found = ClassifierHead("o", "", 7, TREE).top_k(values, 4)
    assert [c.class_id for c in found] == [0, 2, 5, 6]
    # Three float32 factors.
    np.testing.assert_allclose([c.confidence for c in found], [0.9, 0.72, 0.432, 0.288], rtol=FLOAT)


HEADS: list[Head] = [
    YoloHead("o", "w", 2, ANCHORS, (96, 64), 1.05, True, "diounms", 0.7),
    GaussianYoloHead("o", "w", 2, ANCHORS, (96, 64), yolo_point="left_top"),
    RegionHead("o", "w", 7, ANCHORS, TREE, 0.4, (1, 2), -1),
    DetectionHead("o", "w", 2, 7, 2, True),
    ClassifierHead("o", "w", 7, TREE),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_json_round_trip(head: Head) -> None:
    assert head_from_json(json.loads(json.dumps(head.to_json()))) == head


def test_heads_of_a_newer_dnc_are_refused() -> None:
    for fields in (
        {"kind": "segment", "where": "a.cfg:3"},
        {**HEADS[0].to_json(), "where": "a.cfg:3", "masks": 1},
    ):
        with pytest.raises(BundleError, match=r"unknown kind of head 'segment'|unusable head 'yolo'") as caught:
            head_from_json(fields)
        assert caught.value.where == "a.cfg:3"
        assert "newer dnc" in caught.value.hint


# Darknet's own results

TINY = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (135.0, 169.0), (344.0, 319.0))
FASTEST = ((12.0, 18.0), (37.0, 49.0), (52.0, 132.0), (115.0, 73.0), (119.0, 199.0), (242.0, 238.0))
NANO = (*FASTEST[:3], (115.0, 74.0), FASTEST[4], (243.0, 238.0))
HEADS_OF = {
    "yolov3-tiny": (TINY, 416, "default"),
    "yolo-fastest-1.1": (FASTEST, 320, "greedynms"),
    "yolo-fastest-1.1-xl": (FASTEST, 320, "greedynms"),
    "MobileNetV2-YOLOv3-Nano-coco": (NANO, 320, "greedynms"),
}
"""Anchors, the larger ones being those of the first head, the side of the input, and nms_kind."""


@pytest.mark.parametrize("image", goldens.IMAGES)
@pytest.mark.parametrize("model", goldens.TRAINED)
def test_darknets_maps_give_darknets_detections(model: str, image: str) -> None:
    maps = {f"layer{index}": output for index, output in goldens.heads(model, image).items()}
    anchors, side, kind = HEADS_OF[model]
    heads = [
        YoloHead(layer, "", 80, own, (side, side), nms_kind=kind)
        for layer, own in zip(maps, (anchors[3:], anchors[:3]), strict=True)
    ]
    expected = next(frame["objects"] for frame in goldens.frames(model) if frame["filename"] == f"{image}.jpg")
    assert expected
    found = detections(heads, maps, confidence=0.1)

    def rows(things: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
        table = [(t["class_id"], t["confidence"], *t["relative_coordinates"].values()) for t in things]
        return np.array(sorted(table, key=lambda row: tuple(round(value, 4) for value in row)))

    # Darknet prints six decimals; numpy's exp may add a bit.
    np.testing.assert_allclose(rows([d.to_json() for d in found]), rows(expected), atol=1e-6, rtol=0)


def micro(name: str) -> tuple[Floats, Floats]:
    """What goes into the last layer of a micro network, and what Darknet has as its output."""
    *_, before, after = goldens.micro(name).layers.values()
    return before, after


@pytest.mark.parametrize("name", ["region_logistic", "region_softmax"])
def test_darknets_region_map_is_stored_cell_by_cell(name: str) -> None:
    raw, output = micro(name)
    anchors = ((1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (9.42, 5.11), (16.62, 10.52))
    # A map whose shape is true, unlike Darknet's: anchor, channel, row, column.
    maps = raw.reshape(5, 9, 8, 8)
    classes = softmax(maps[:, 5:].transpose(0, 2, 3, 1)) if "softmax" in name else maps[:, 5:].transpose(0, 2, 3, 1)
    scores = logistic(maps[:, 4])[..., None] * classes
    threshold = 0.2
    expected = []
    for row, column, a in np.ndindex(8, 8, 5):
        if (scores[a, row, column] > threshold).any():
            x, y, w, h = (float(value) for value in maps[a, :4, row, column])
            cx, cy = (column + 1 / (1 + math.exp(-x))) / 8, (row + 1 / (1 + math.exp(-y))) / 8
            expected.append((cx, cy, math.exp(w) * anchors[a][0] / 8, math.exp(h) * anchors[a][1] / 8))
    got = RegionHead("o", "", 4, anchors).candidates(output, threshold)
    assert len(expected) > 10
    # Darknet's activations, in float32, against those of this test.
    np.testing.assert_allclose(got.boxes, expected, rtol=1e-5)


def test_darknets_gaussian_map_has_an_uncertainty_after_each_coordinate() -> None:
    raw, output = micro("gaussian_yolo")
    anchors = ((81.0, 82.0), (135.0, 169.0), (344.0, 319.0))
    maps = raw.reshape(3, 12, 64)
    sure = 1 - logistic(maps[:, 1:8:2]).mean(axis=1)
    scores = (logistic(maps[:, 8:9]) * logistic(maps[:, 9:]) * sure[:, None]).transpose(2, 0, 1).reshape(-1, 3)
    sizes = (np.exp(maps[:, 4:8:2]) * np.array(anchors)[:, :, None] / 32).transpose(2, 0, 1).reshape(-1, 2)
    got = GaussianYoloHead("o", "", 3, anchors, (32, 32)).candidates(output, 0.0)
    # Darknet's activations, in float32, against those of this test.
    np.testing.assert_allclose(got.scores, scores, rtol=1e-5)
    np.testing.assert_allclose(got.boxes[:, 2:], sizes, rtol=1e-5)


def test_boxes_in_pixels() -> None:
    """Clipped to the image, not rounded; where nobody says how large it is, that is an error and not a guess."""
    known = Detection(3, "dog", 0.5, 0.25, 0.5, 0.75, 0.25, (40, 20))
    assert known.box == (0.0, 7.5, 25.0, 12.5)
    assert known.pixels() == known.pixels(40, 20) == (0, 7, 25, 12)
    assert known.pixels(80, 40) == (0, 15, 50, 25)
    assert known.to_json()["pixels"] == {"left": 0, "top": 7, "right": 25, "bottom": 12}
    unknown = Detection(3, "dog", 0.5, 0.25, 0.5, 0.75, 0.25)
    assert "pixels" not in unknown.to_json()
    for ask in (lambda: unknown.box, unknown.pixels):
        with pytest.raises(ValueError, match="the size of the image is not known"):
            ask()
