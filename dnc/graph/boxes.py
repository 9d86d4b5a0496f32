"""The boxes of a head inside the graph, written from the `Head`, which is data: what `candidates` of
`dnc.runtime.decoding` computes on the host, for all K places of the head's grid and without a threshold.

`emit_scores` gives what `--decode graph` puts out, `emit_boxes` the same with objectness and classes apart, as the
programs want it that the engine is exported for: one score is the product of the two.

Of the map each head takes its parts, in which a cell (column, row) of the grid w x h and an input of W x H pixels give

    [yolo]           ((column + x) / w, (row + y) / h, e^tw * anchor_w / W, e^th * anchor_h / H); 4 t^2 for new_coords=1
    [Gaussian_yolo]  the same; yolo_point says whether x and y are the center, the left top or the right bottom. The
                     score is also multiplied by the certainty, 1 - the mean of the four uncertainties
    [region]         the same with the logistic of x and y, which the layer leaves raw, and anchors in cells
    [detection]      ((column + x) / side, (row + y) / side, w, h), with sqrt=1 w^2 and h^2; the boxes of a cell share
                     its classes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from dnc.graph.builder import Builder
from dnc.runtime.decoding import BoxHead, DetectionHead, GaussianYoloHead, RegionHead, YoloHead

__all__ = ["Boxes", "count_of", "emit_boxes", "emit_scores", "undecodable"]


class Boxes(NamedTuple):
    """All K boxes of a head, or of several: cell by cell and within a cell anchor by anchor, as Darknet lists them."""

    boxes: ir.Value
    """(N, K, 4): center x, center y, width, height, in fractions of the input; not clipped."""
    objectness: ir.Value
    """(N, K, 1)"""
    classes: ir.Value
    """(N, K, classes): the probabilities, for the certainty of [Gaussian_yolo] multiplied by it."""


def undecodable(heads: Sequence[BoxHead]) -> tuple[BoxHead, str] | None:
    """The first head whose boxes cannot be put together in the graph with those of the last, and why; None if all can
    be. A class tree gives one class for each box, by a walk that is left to the host."""
    for head in heads:
        if isinstance(head, RegionHead) and head.tree:
            return head, "the class tree of [region] cannot be decoded in the graph"
        if head.classes != heads[-1].classes:
            what = f"a head of {head.classes} classes and one of {heads[-1].classes} cannot be decoded in one graph"
            return head, what
    return None


def count_of(head: BoxHead, shape: Sequence[int]) -> int:
    """How many boxes K the map (N, *shape) of a head has."""
    if isinstance(head, DetectionHead):
        return head.side * head.side * head.num
    assert isinstance(head, YoloHead | RegionHead), head
    return len(head.anchors) * shape[1] * shape[2]


def emit_boxes(b: Builder, head: BoxHead, output: ir.Value, shape: Sequence[int]) -> Boxes:
    """The boxes of a head's map (N, *shape)."""
    parts = _parts(b, head, output, shape)
    classes = parts.classes
    if parts.certainty is not None:
        # There and not in the objectness, which Darknet compares with the threshold as it is.
        classes = b.op("Mul", classes, parts.certainty)
    return Boxes(
        parts.rows(parts.box(b), 4), parts.rows(parts.objectness, 1), parts.rows(parts.spread(classes), head.classes)
    )


def emit_scores(b: Builder, head: BoxHead, output: ir.Value, shape: Sequence[int]) -> tuple[ir.Value, ir.Value]:
    """Boxes (N, K, 4) and scores (N, K, classes) of a head's map (N, *shape)."""
    parts = _parts(b, head, output, shape)
    scores = b.op("Mul", parts.classes, parts.objectness)
    if parts.certainty is not None:
        scores = b.op("Mul", scores, parts.certainty)
    return parts.rows(parts.box(b), 4), parts.rows(scores, head.classes)


class _Parts(NamedTuple):
    """A map in parts, each with its channels along `axis`."""

    centers: ir.Value
    sizes: ir.Value
    objectness: ir.Value
    classes: ir.Value
    axis: int
    rows: Callable[[ir.Value, int], ir.Value]
    """Makes (N, K, length) of a part of that many channels."""
    certainty: ir.Value | None = None
    spread: Callable[[ir.Value], ir.Value] = lambda classes: classes
    """Makes classes for each box of those that several share."""

    def box(self, b: Builder) -> ir.Value:
        return b.op("Concat", self.centers, self.sizes, axis=self.axis)


def _parts(b: Builder, head: BoxHead, output: ir.Value, shape: Sequence[int]) -> _Parts:
    if isinstance(head, GaussianYoloHead):
        return _gaussian(b, head, output, shape)
    if isinstance(head, YoloHead):
        return _yolo(b, head, output, shape)
    if isinstance(head, RegionHead):
        return _region(b, head, output, shape)
    assert isinstance(head, DetectionHead), head
    return _detection(b, head, output)


def _yolo(b: Builder, head: YoloHead, output: ir.Value, shape: Sequence[int]) -> _Parts:
    _, height, width = shape
    x = b.reshape(output, [len(head.anchors), 5 + head.classes, height, width])
    centers = _centers(b, b.slice(x, 2, 0, 2), height, width)
    wh = b.slice(x, 2, 2, 4)
    if head.new_coords:
        unit = np.array(head.input_size, np.float32)
        scale = (np.array(head.anchors, np.float32) * 4 / unit).reshape(1, -1, 2, 1, 1)
        sizes = b.op("Mul", b.op("Mul", wh, wh), b.constant(scale, "anchors"))
    else:
        sizes = _sizes(b, wh, head.anchors, head.input_size)
    classes, objectness = b.slice(x, 2, 5, 5 + head.classes), b.slice(x, 2, 4, 5)
    return _Parts(centers, sizes, objectness, classes, 2, _by_cell(b))


def _gaussian(b: Builder, head: GaussianYoloHead, output: ir.Value, shape: Sequence[int]) -> _Parts:
    _, height, width = shape
    x = b.reshape(output, [len(head.anchors), 9 + head.classes, height, width])
    centers = _centers(b, b.slice(x, 2, 0, 3, 2), height, width)
    sizes = _sizes(b, b.slice(x, 2, 4, 7, 2), head.anchors, head.input_size)
    if head.yolo_point != "center":
        half = b.op("Mul", sizes, b.constant(0.5 if head.yolo_point == "left_top" else -0.5))
        centers = b.op("Add", centers, half)
    mean = b.op("ReduceMean", b.slice(x, 2, 1, 8, 2), axes=[2], keepdims=1)
    certainty = b.op("Sub", b.constant(1.0), mean)
    classes, objectness = b.slice(x, 2, 9, 9 + head.classes), b.slice(x, 2, 8, 9)
    return _Parts(centers, sizes, objectness, classes, 2, _by_cell(b), certainty)


def _region(b: Builder, head: RegionHead, output: ir.Value, shape: Sequence[int]) -> _Parts:
    assert not head.tree, "see undecodable"
    _, height, width = shape
    # Its memory is ordered by cell, whatever the shape says.
    x = b.reshape(output, [height, width, len(head.anchors), 5 + head.classes])
    x = b.op("Transpose", x, perm=[0, 3, 4, 1, 2])
    centers = _centers(b, b.op("Sigmoid", b.slice(x, 2, 0, 2)), height, width)
    sizes = _sizes(b, b.slice(x, 2, 2, 4), head.anchors, (width, height))
    objectness = b.slice(x, 2, 4, 5)
    if head.classfix == -1:
        low = b.op("Less", objectness, b.constant(0.5))
        objectness = b.op("Where", low, b.constant(0.0), objectness)
    return _Parts(centers, sizes, objectness, b.slice(x, 2, 5, 5 + head.classes), 2, _by_cell(b))


def _detection(b: Builder, head: DetectionHead, output: ir.Value) -> _Parts:
    cells = head.side * head.side
    first, second = cells * head.classes, cells * (head.classes + head.num)
    end = second + cells * head.num * 4
    classes = b.reshape(b.slice(output, 1, 0, first), [cells, 1, head.classes])
    objectness = b.reshape(b.slice(output, 1, first, second), [cells, head.num, 1])
    boxes = b.reshape(b.slice(output, 1, second, end), [cells, head.num, 4])
    row, column = np.divmod(np.arange(cells, dtype=np.float32), head.side)
    offsets = b.constant(np.stack([column, row], axis=-1).reshape(1, cells, 1, 2), "cells")
    centers = b.op("Div", b.op("Add", b.slice(boxes, 3, 0, 2), offsets), b.constant(float(head.side)))
    sizes = b.slice(boxes, 3, 2, 4)
    if head.sqrt:
        sizes = b.op("Mul", sizes, sizes)

    def spread(shared: ir.Value) -> ir.Value:
        return shared if head.num == 1 else b.op("Concat", *[shared] * head.num, axis=2)

    return _Parts(
        centers, sizes, objectness, classes, 3, lambda part, length: b.reshape(part, [-1, length]), spread=spread
    )


def _centers(b: Builder, xy: ir.Value, height: int, width: int) -> ir.Value:
    """(x, y) of maps (N, n, 2, h, w), relative to their cells, as fractions of the input."""
    row, column = np.indices((height, width), np.float32)
    cells = b.constant(np.stack([column, row])[None, None], "cells")
    grid = b.constant(np.array([width, height], np.float32).reshape(1, 1, 2, 1, 1), "grid")
    return b.op("Div", b.op("Add", xy, cells), grid)


def _sizes(b: Builder, wh: ir.Value, anchors: Sequence[tuple[float, float]], unit: Sequence[int]) -> ir.Value:
    """e^wh * anchor / unit of maps (N, n, 2, h, w)."""
    scale = (np.array(anchors, np.float32) / np.array(unit, np.float32)).reshape(1, -1, 2, 1, 1)
    return b.op("Mul", b.op("Exp", wh), b.constant(scale, "anchors"))


def _by_cell(b: Builder) -> Callable[[ir.Value, int], ir.Value]:
    """Makes rows (N, h * w * n, length) of maps (N, n, length, h, w)."""
    return lambda x, length: b.reshape(b.op("Transpose", x, perm=[0, 3, 4, 1, 2]), [-1, length])
