"""The boxes of a head inside the graph, written from the `Head`, which is data: what `candidates` of
`dnc.runtime.decoding` computes on the host, for all K places of the head's grid and without a threshold.

`emit_scores` gives what `--decode graph` puts out, `emit_boxes` the same with objectness and classes apart, as the
programs want it that the engine is exported for: one score is the product of the two. `emit_maps` leaves boxes where
they are in the grid, for programs that have a formula of their own.

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
from dnc.typing import Array

__all__ = ["Boxes", "Maps", "count_of", "emit_boxes", "emit_maps", "emit_scores", "undecodable"]


class Boxes(NamedTuple):
    """All K boxes of a head, or of several: cell by cell and within a cell anchor by anchor, as Darknet lists them."""

    boxes: ir.Value
    """(N, K, 4): center x, center y, width, height, in fractions of the input; not clipped."""
    objectness: ir.Value
    """(N, K, 1)"""
    classes: ir.Value
    """(N, K, classes): the probabilities, for the certainty of [Gaussian_yolo] multiplied by it."""


class Maps(NamedTuple):
    """The boxes of a head where they are in its grid of w x h cells, n in each: maps (N, n, length, h, w)."""

    shifts: ir.Value
    """Length 2: from the left upper corner of the cell to the center of the box, in cells."""
    sizes: ir.Value
    """Length 2: width and height, in fractions of the input."""
    objectness: ir.Value
    """Length 1."""
    classes: ir.Value
    """One for each class, as those of `Boxes`."""


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
    return Boxes(
        parts.rows(parts.box(b), 4), parts.rows(parts.objectness, 1), parts.rows(parts.certain(b), head.classes)
    )


def emit_maps(b: Builder, head: BoxHead, output: ir.Value, shape: Sequence[int]) -> Maps:
    """The boxes of a head's map (N, *shape), in their cells."""
    parts = _parts(b, head, output, shape)
    return Maps(*map(parts.maps, (parts.shifts, parts.sizes, parts.objectness, parts.certain(b))))


def emit_scores(b: Builder, head: BoxHead, output: ir.Value, shape: Sequence[int]) -> tuple[ir.Value, ir.Value]:
    """Boxes (N, K, 4) and scores (N, K, classes) of a head's map (N, *shape)."""
    parts = _parts(b, head, output, shape)
    scores = b.op("Mul", parts.classes, parts.objectness)
    if parts.certainty is not None:
        scores = b.op("Mul", scores, parts.certainty)
    return parts.rows(parts.box(b), 4), parts.rows(scores, head.classes)


class _Parts(NamedTuple):
    """A map in parts, each with its channels along `axis`."""

    shifts: ir.Value
    sizes: ir.Value
    objectness: ir.Value
    classes: ir.Value
    cells: Array
    """Column and row of each cell, to be added to `shifts`."""
    grid: Array
    """(w, h), by which to divide them then."""
    axis: int
    rows: Callable[[ir.Value, int], ir.Value]
    """Makes (N, K, length) of a part of that many channels."""
    certainty: ir.Value | None = None
    spread: Callable[[ir.Value], ir.Value] = lambda classes: classes
    """Makes classes for each box of those that several share."""

    maps: Callable[[ir.Value], ir.Value] = lambda part: part
    """Makes (N, n, length, h, w) of a part."""

    def box(self, b: Builder) -> ir.Value:
        """Center and size, in fractions of the input."""
        cells, grid = b.constant(self.cells, "cells"), b.constant(self.grid, "grid")
        centers = b.op("Div", b.op("Add", self.shifts, cells), grid)
        return b.op("Concat", centers, self.sizes, axis=self.axis)

    def certain(self, b: Builder) -> ir.Value:
        """The classes of each box, times the certainty: there and not in the objectness, which Darknet compares with
        the threshold as it is."""
        classes = self.classes if self.certainty is None else b.op("Mul", self.classes, self.certainty)
        return self.spread(classes)


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
    shifts, wh = b.slice(x, 2, 0, 2), b.slice(x, 2, 2, 4)
    if head.new_coords:
        unit = np.array(head.input_size, np.float32)
        scale = (np.array(head.anchors, np.float32) * 4 / unit).reshape(1, -1, 2, 1, 1)
        sizes = b.op("Mul", b.op("Mul", wh, wh), b.constant(scale, "anchors"))
    else:
        sizes = _sizes(b, wh, head.anchors, head.input_size)
    classes, objectness = b.slice(x, 2, 5, 5 + head.classes), b.slice(x, 2, 4, 5)
    return _Parts(shifts, sizes, objectness, classes, *_cells(height, width), 2, _by_cell(b))


def _gaussian(b: Builder, head: GaussianYoloHead, output: ir.Value, shape: Sequence[int]) -> _Parts:
    _, height, width = shape
    x = b.reshape(output, [len(head.anchors), 9 + head.classes, height, width])
    shifts = b.slice(x, 2, 0, 3, 2)
    sizes = _sizes(b, b.slice(x, 2, 4, 7, 2), head.anchors, head.input_size)
    cells, grid = _cells(height, width)
    if head.yolo_point != "center":
        half = grid * np.float32(0.5 if head.yolo_point == "left_top" else -0.5)
        shifts = b.op("Add", shifts, b.op("Mul", sizes, b.constant(half, "half")))
    mean = b.op("ReduceMean", b.slice(x, 2, 1, 8, 2), axes=[2], keepdims=1)
    certainty = b.op("Sub", b.constant(1.0), mean)
    classes, objectness = b.slice(x, 2, 9, 9 + head.classes), b.slice(x, 2, 8, 9)
    return _Parts(shifts, sizes, objectness, classes, cells, grid, 2, _by_cell(b), certainty)


def _region(b: Builder, head: RegionHead, output: ir.Value, shape: Sequence[int]) -> _Parts:
    assert not head.tree, "see undecodable"
    _, height, width = shape
    # Its memory is ordered by cell, whatever the shape says.
    x = b.reshape(output, [height, width, len(head.anchors), 5 + head.classes])
    x = b.op("Transpose", x, perm=[0, 3, 4, 1, 2])
    shifts = b.op("Sigmoid", b.slice(x, 2, 0, 2))
    sizes = _sizes(b, b.slice(x, 2, 2, 4), head.anchors, (width, height))
    objectness = b.slice(x, 2, 4, 5)
    if head.classfix == -1:
        low = b.op("Less", objectness, b.constant(0.5))
        objectness = b.op("Where", low, b.constant(0.0), objectness)
    classes = b.slice(x, 2, 5, 5 + head.classes)
    return _Parts(shifts, sizes, objectness, classes, *_cells(height, width), 2, _by_cell(b))


def _detection(b: Builder, head: DetectionHead, output: ir.Value) -> _Parts:
    cells = head.side * head.side
    first, second = cells * head.classes, cells * (head.classes + head.num)
    end = second + cells * head.num * 4
    classes = b.reshape(b.slice(output, 1, 0, first), [cells, 1, head.classes])
    objectness = b.reshape(b.slice(output, 1, first, second), [cells, head.num, 1])
    boxes = b.reshape(b.slice(output, 1, second, end), [cells, head.num, 4])
    row, column = np.divmod(np.arange(cells, dtype=np.float32), head.side)
    offsets = np.stack([column, row], axis=-1).reshape(1, cells, 1, 2)
    shifts, sizes = b.slice(boxes, 3, 0, 2), b.slice(boxes, 3, 2, 4)
    if head.sqrt:
        sizes = b.op("Mul", sizes, sizes)

    def spread(shared: ir.Value) -> ir.Value:
        return shared if head.num == 1 else b.op("Concat", *[shared] * head.num, axis=2)

    def rows(part: ir.Value, length: int) -> ir.Value:
        return b.reshape(part, [-1, length])

    def maps(part: ir.Value) -> ir.Value:
        return b.op("Transpose", b.reshape(part, [head.side, head.side, head.num, -1]), perm=[0, 3, 4, 1, 2])

    grid = np.array(head.side, np.float32)
    return _Parts(shifts, sizes, objectness, classes, offsets, grid, 3, rows, spread=spread, maps=maps)


def _cells(height: int, width: int) -> tuple[Array, Array]:
    """Column and row of the cells of maps (N, n, 2, h, w), and how many there are of each."""
    row, column = np.indices((height, width), np.float32)
    return np.stack([column, row])[None, None], np.array([width, height], np.float32).reshape(1, 1, 2, 1, 1)


def _sizes(b: Builder, wh: ir.Value, anchors: Sequence[tuple[float, float]], unit: Sequence[int]) -> ir.Value:
    """e^wh * anchor / unit of maps (N, n, 2, h, w)."""
    scale = (np.array(anchors, np.float32) / np.array(unit, np.float32)).reshape(1, -1, 2, 1, 1)
    return b.op("Mul", b.op("Exp", wh), b.constant(scale, "anchors"))


def _by_cell(b: Builder) -> Callable[[ir.Value, int], ir.Value]:
    """Makes rows (N, h * w * n, length) of maps (N, n, length, h, w)."""
    return lambda x, length: b.reshape(b.op("Transpose", x, perm=[0, 3, 4, 1, 2]), [-1, length])
