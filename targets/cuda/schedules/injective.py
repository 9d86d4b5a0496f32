"""Stages that compute each element by itself: activations that nothing fused with, sums of two maps, concatenations,
enlargements, changes of layout.

A thread has some elements that lie side by side on the last axis, if nothing tells them apart, or one. A piece of a
concatenation, or of another map, may begin anywhere that a thread's elements can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx

from dnc.targets.cuda.schedules.threads import kernel, lanes_of, when
from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt
from dnc.targets.tvm.schedules.stages import Segment, Stage, dims, loads, replaced
from dnc.targets.tvm.schedules.window import affine

__all__ = ["alike", "injective"]

_THREADS = 256
_VECTORS = ("float32", "float16", "int8")
"""Types that neighbours of are computed at once."""
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def injective(segment: Segment) -> Kernel | None:
    """The kernel of a segment whose anchor is no reduction."""
    anchor = segment.anchor
    if not anchor.plain:
        return None
    shape = dims(segment.result)
    lanes = 1
    if shape and all(_alike(stage) for stage in segment.rest) and str(anchor.buffer.dtype) in _VECTORS:
        lanes = _lanes(segment, math.gcd(shape[-1], _pieces(anchor)))
    grouped = [*shape[:-1], shape[-1] // lanes] if shape else []
    total = math.prod(grouped)
    # What tells a thread's elements from those of others is the same for all of them.
    first = tirx.Var("first", "int64")
    compared = anchor.value if lanes == 1 else _compared_by(anchor, first)

    def body(blocks: Sequence[Expr], thread: Expr) -> Stmt:
        number = blocks[0] * _THREADS + thread
        place = unflattened(number, grouped)

        def at(lane: Expr) -> list[Expr]:
            return [*place[:-1], place[-1] * lanes + lane] if shape else []

        def value(lane: Expr) -> Expr:
            if lanes == 1:
                return replaced(compared, anchor.axes, at(lane))
            return replaced(compared, [*anchor.axes, first], [*at(lane), place[-1] * lanes])

        statement = segment.finish(at, lanes, value)
        return when(number < total if total % _THREADS else None, statement)

    return Kernel("injective", kernel([-(-total // _THREADS)], _THREADS, body))


def _lanes(segment: Segment, count: int) -> int:
    """How many of so many neighbours a thread computes."""
    dtypes = {str(buffer.dtype) for buffer in segment.buffers} | {str(load.ty.dtype) for load in _every_load(segment)}
    if "int8" not in dtypes:
        return lanes_of(count, "float16", 8) if "float16" in dtypes else lanes_of(count, "float32")
    # Of constants, TVM has no more than four 8-bit numbers at once.
    if dtypes == {"int8"} and not segment.rest and count % 16 == 0 and not _constants(segment.anchor.value):
        return 16
    return lanes_of(count, "float32")


def _every_load(segment: Segment) -> list[Any]:
    return [load for stage in (segment.anchor, *segment.rest) for load in loads(stage.value)]


def _constants(value: Expr) -> bool:
    """Whether an expression has a constant that is no index."""
    found: list[Any] = []
    tvm_ffi.structural_walk(value, (tirx.IntImm, found.append), order="pre")
    return any(str(number.ty.dtype) == "int8" for number in found)


def _pieces(stage: Stage) -> int:
    """Length of pieces of the last axis within which neighbours are computed alike; 0 if they are everywhere."""
    axis, value = stage.axes[-1], stage.value
    if not _vectors(value, axis):
        return 1
    starts = []
    for load in loads(value):
        *others, last = load.indices or [tirx.IntImm("int64", 0)]
        if any(_uses(at, axis) for at in others):
            return 1
        if _uses(last, axis):
            factors = affine(last, axis)
            if factors is None or factors[0] != 1:
                return 1
            starts += [factors[1], dims(load.source)[-1]]
    for comparison in _comparisons(value):
        if loads(comparison) or not _uses(comparison, axis):
            continue
        factors = affine(comparison.a - comparison.b, axis)
        # axis < c and axis >= c, or c > axis and c <= axis.
        if factors is None or factors[0] != (1 if isinstance(comparison, tirx.LT | tirx.GE) else -1):
            return 1
        if isinstance(comparison, tirx.EQ | tirx.NE):
            return 1
        starts.append(factors[1])
    return math.gcd(*starts)


def _comparisons(value: Expr) -> list[Any]:
    comparisons: list[Any] = []
    for kind in _COMPARISONS:
        tvm_ffi.structural_walk(value, (kind, comparisons.append), order="pre")
    return comparisons


def _compared_by(stage: Stage, first: Expr) -> Expr:
    """The value of a stage, whose comparisons look at another variable instead of the last axis."""

    def compare(comparison: Any) -> Expr:
        return comparison if loads(comparison) else replaced(comparison, [stage.axes[-1]], [first])

    return tvm_ffi.structural_map(stage.value, [(kind, compare) for kind in _COMPARISONS], order="post")


def _alike(stage: Stage) -> bool:
    """Whether neighbours on the last axis are computed in the same way."""
    return str(stage.buffer.dtype) in _VECTORS and alike(stage.value, stage.axes[-1])


def _vectors(value: Expr, axis: Expr) -> bool:
    """Whether TVM has vectors of what is read for neighbours along an axis. Of one 8-bit number, it makes none."""
    dtypes = [str(load.ty.dtype) for load in loads(value)]
    bytes_ = [load for load in loads(value) if str(load.ty.dtype) == "int8"]
    return all(dtype in _VECTORS for dtype in dtypes) and all(
        any(_uses(at, axis) for at in load.indices) for load in bytes_
    )


def alike(value: Expr, axis: Expr) -> bool:
    """Whether neighbours along an axis are computed in the same way from neighbours, or from the same number."""
    if not _vectors(value, axis):
        return False
    reads = [load.indices for load in loads(value)]
    if any(_uses(at, axis) for indices in reads for at in indices[:-1]):
        return False
    if any(_uses(indices[-1], axis) and not indices[-1].same_as(axis) for indices in reads if indices):
        return False
    return not any(_uses(comparison, axis) and not loads(comparison) for comparison in _comparisons(value))


def _uses(value: Expr, axis: Expr) -> bool:
    uses: list[bool] = []

    def visit(variable: Expr) -> None:
        uses.append(variable.same_as(axis))

    tvm_ffi.structural_walk(value, (tirx.Var, visit), order="pre")
    return any(uses)
