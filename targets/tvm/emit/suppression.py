"""Non-maximum suppression as one function of loops, in place of the composite's nodes (`dnc.graph.suppression`).

Those find its fixed point with matrices, of which TVM would need sizes that depend on numbers, a sort and a loop. Here
it is done as it is defined, box after box; the arithmetic of an overlap is that of the nodes, in the same order:

    1. the scores over the threshold, in the order of images, boxes and classes
    2. merge sort, the best first; equals stay in this order
    3. of the best `limit`, each is kept that no kept one of its image and class overlaps too much

The function writes as many rows as there can be, and behind the last one a row of image -1. Their number becomes the
size of an array when the engine runs (TVM's `tensor_to_shape`), which is filled then. None of these functions may be
fused with anything: FuseOps does not see that an array depends on what makes its size.

Products are made in double and rounded, so that LLVM cannot make one operation of a product and what follows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx

from dnc.targets.tvm.emit.builder import RelaxBuilder, Tensor
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, constant, index, loop, sequence
from dnc.targets.tvm.schedules.rewriting import RULE

__all__ = ["SUPPRESSION", "suppressed"]

SUPPRESSION = "suppression"
"""The rule of these functions, for a report; how long they take depends on the numbers that they get."""
_ROW = 7
_OPAQUE = 8
"""For AnnotateTIROpPattern: not to be fused."""


def suppressed(b: RelaxBuilder, given: Sequence[Tensor], limit: int, exponent: float | None = None) -> Tensor:
    """Detections (D, 7) float32, as `dnc.graph.suppression.emit_nms` gives them.

    Args:
        given: boxes (N, K, 4), scores (N, K, classes), the thresholds of scores (1,) and of overlaps (1,).
        limit: how many candidates there are at most.
        exponent: of the distance of centers, for those kinds that take it into account.
    """
    shape = given[1].shape
    most = min(math.prod(shape), limit)
    real = [
        tensor if tensor.dtype == "float32" else b.emit(b.op.astype(tensor.expr, "float32"))
        for tensor in map(b.first, given)
    ]
    rows = b.call(_suppress(shape, most, exponent), real, "suppress")
    count = b.call(_count(most), [rows], "count")
    size = b.size(count, "detections")
    return b.call(_take(most, size), [rows], "take")


class _Cell:
    """A variable."""

    def __init__(self, name: str, dtype: str = "int64") -> None:
        self.buffer = allocate([1], dtype, name)

    def get(self) -> Expr:
        return tirx.BufferLoad(self.buffer, [index(0)])

    def set(self, value: Expr) -> Stmt:
        return tirx.BufferStore(self.buffer, value, [index(0)])

    def add(self, value: Expr) -> Stmt:
        return self.set(self.get() + value)


class _List:
    """Numbers of scores, or of candidates."""

    def __init__(self, length: int, name: str) -> None:
        self.buffer = allocate([length], "int32", name, "global")

    def __getitem__(self, place: Expr) -> Expr:
        return tirx.Cast("int64", tirx.BufferLoad(self.buffer, [place]))

    def set(self, place: Expr, value: Expr) -> Stmt:
        return tirx.BufferStore(self.buffer, tirx.Cast("int32", value), [place])


def _suppress(shape: Sequence[int], most: int, exponent: float | None) -> Any:
    """The function of loops (boxes, scores, confidence, iou, rows) for scores of this shape."""
    images, places, classes = shape
    boxes = tirx.decl_buffer([index(side) for side in (images, places, 4)], "float32", "boxes")
    scores = tirx.decl_buffer([index(side) for side in shape], "float32", "scores")
    confidence, iou = (tirx.decl_buffer([index(1)], "float32", name) for name in ("confidence", "iou"))
    rows = _rows(most, "rows")
    order, other, kept = _List(math.prod(shape), "order"), _List(math.prod(shape), "other"), _List(most, "kept")
    found, length = _Cell("found"), _Cell("length")

    def parts(number: Expr) -> list[Expr]:
        """Image, box and class of a score's number."""
        return [number // (places * classes), number // classes % places, number % classes]

    def score(number: Expr) -> Expr:
        return tirx.BufferLoad(scores, parts(number))

    def side(number: Expr, axis: int) -> Expr:
        image, place, _ = parts(number)
        return tirx.BufferLoad(boxes, [image, place, index(axis)])

    def select(number: Expr) -> Stmt:
        above = score(number) > tirx.BufferLoad(confidence, [index(0)])
        return tirx.IfThenElse(above, sequence(order.set(found.get(), number), found.add(index(1))), None)

    def keep(place: Expr) -> Stmt:
        mine = order[place]
        step, free = _Cell("step"), _Cell("free")
        theirs = order[kept[step.get()]]
        image, _, kind = parts(mine)
        image_there, _, kind_there = parts(theirs)
        again = _overlap(side, theirs, mine, exponent) > tirx.BufferLoad(iou, [index(0)])
        alike = tirx.all(image == image_there, kind == kind_there)
        drop = tirx.IfThenElse(again, free.set(index(0)), None)
        test = sequence(tirx.IfThenElse(alike, drop, None), step.add(index(1)))
        row = [*(tirx.Cast("float32", value) for value in (image, kind)), score(mine)]
        row += [side(mine, axis) for axis in range(4)]
        take = [tirx.BufferStore(rows, value, [length.get(), index(column)]) for column, value in enumerate(row)]
        taken = sequence(*take, kept.set(length.get(), place), length.add(index(1)))
        return sequence(
            *(tirx.AllocBuffer(memory.buffer) for memory in (step, free)),
            step.set(index(0)),
            free.set(index(1)),
            tirx.While(tirx.all(step.get() < length.get(), free.get() == 1), test),
            tirx.IfThenElse(free.get() == 1, taken, None),
        )

    end = tirx.BufferStore(rows, constant(-1.0, "float32"), [length.get(), index(0)])
    body = sequence(
        *(tirx.AllocBuffer(memory.buffer) for memory in (order, other, kept, found, length)),
        found.set(index(0)),
        loop(math.prod(shape), select),
        _sorted(order, other, found, score),
        length.set(index(0)),
        loop(tirx.min(found.get(), index(most)), keep),
        tirx.IfThenElse(length.get() < most, end, None),
    )
    return _function([boxes, scores, confidence, iou, rows], body)


def _count(most: int) -> Any:
    """The function (rows, count) that counts them."""
    rows, count = _rows(most, "rows"), tirx.decl_buffer([index(1)], "int64", "count")
    length = _Cell("length")
    one = tirx.if_then_else(length.get() < most, tirx.BufferLoad(rows, [length.get(), index(0)]) >= 0, False)
    body = sequence(
        tirx.AllocBuffer(length.buffer),
        length.set(index(0)),
        tirx.While(one, length.add(index(1))),
        tirx.BufferStore(count, length.get(), [index(0)]),
    )
    return _function([rows, count], body)


def _take(most: int, size: Expr) -> Any:
    """The function (rows, detections) that takes so many."""
    rows, detections = _rows(most, "rows"), _rows(size, "detections")

    def copy(row: Expr, column: Expr) -> Stmt:
        return tirx.BufferStore(detections, tirx.BufferLoad(rows, [row, column]), [row, column])

    return _function([rows, detections], loop(size, lambda row: loop(_ROW, lambda column: copy(row, column))))


def _rows(count: int | Expr, name: str) -> Any:
    return tirx.decl_buffer([index(count), index(_ROW)], "float32", name)


def _function(parameters: Sequence[Any], body: Stmt) -> Any:
    root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
    attributes = {"tirx.noalias": True, "s_tir": True, "op_pattern": _OPAQUE, RULE: SUPPRESSION}
    return tirx.PrimFunc(parameters, root, attrs=tvm.ir.make_node("ir.DictAttrs", **attributes))


def _sorted(order: _List, other: _List, found: _Cell, score: Callable[[Expr], Expr]) -> Stmt:
    """Merges runs of 1, 2, 4, ... numbers, the highest score first."""
    width, left, right = _Cell("width"), _Cell("left"), _Cell("right")

    def merge(pair: Expr) -> Stmt:
        start = pair * 2 * width.get()
        middle = tirx.min(start + width.get(), found.get())
        end = tirx.min(start + 2 * width.get(), found.get())

        def take(place: Expr) -> Stmt:
            # Nothing is read beyond a run: `if_then_else` computes one side alone.
            better = tirx.if_then_else(
                tirx.all(left.get() < middle, right.get() < end),
                score(order[left.get()]) >= score(order[right.get()]),
                left.get() < middle,
            )
            return tirx.IfThenElse(
                better,
                sequence(other.set(place, order[left.get()]), left.add(index(1))),
                sequence(other.set(place, order[right.get()]), right.add(index(1))),
            )

        return sequence(left.set(start), right.set(middle), loop(end - start, take, start=start))

    def copy(place: Expr) -> Stmt:
        return order.set(place, other[place])

    pairs = tirx.floordiv(found.get() + 2 * width.get() - 1, 2 * width.get())
    step = sequence(loop(pairs, merge), loop(found.get(), copy), width.set(2 * width.get()))
    return sequence(
        *(tirx.AllocBuffer(memory.buffer) for memory in (width, left, right)),
        width.set(index(1)),
        tirx.While(width.get() < found.get(), step),
    )


def _overlap(side: Callable[[Expr, int], Expr], one: Expr, other: Expr, exponent: float | None) -> Expr:
    """Of two boxes by their scores' numbers: IoU, less the power of the distance if there is an exponent."""

    def product(x: Expr, y: Expr) -> Expr:
        return tirx.Cast("float32", tirx.Cast("float64", x) * tirx.Cast("float64", y))

    def edge(box: Expr, axis: int, sign: int) -> Expr:
        half = side(box, axis + 2) / constant(2.0, "float32")
        return side(box, axis) + half if sign > 0 else side(box, axis) - half

    zero = constant(0.0, "float32")
    low, high = ([[edge(box, axis, sign) for box in (one, other)] for axis in range(2)] for sign in (-1, 1))
    spans = [tirx.max(tirx.min(*high[axis]) - tirx.max(*low[axis]), zero) for axis in range(2)]
    shared = product(*spans)
    union = product(side(one, 2), side(one, 3)) + product(side(other, 2), side(other, 3)) - shared
    # Darknet gives 0, not NaN, for boxes of no size.
    overlap = tirx.Select(shared == zero, zero, shared / union)
    if exponent is None:
        return overlap
    shifts = [side(one, axis) - side(other, axis) for axis in range(2)]
    hulls = [tirx.max(*high[axis]) - tirx.min(*low[axis]) for axis in range(2)]
    distance, diagonal = (product(x, x) + product(y, y) for x, y in (shifts, hulls))
    term = tirx.pow(distance / diagonal, constant(exponent, "float32"))
    return overlap - tirx.Select(diagonal == zero, zero, term)
