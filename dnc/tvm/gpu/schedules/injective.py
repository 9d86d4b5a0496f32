"""Stages that compute each element by itself: activations that nothing fused with, sums of two maps, concatenations,
enlargements, changes of layout.

A thread has some elements that lie side by side on the last axis, if nothing tells them apart, or one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm_ffi
from tvm import tirx

from dnc.tvm.gpu.schedules.threads import kernel, lanes_of, when
from dnc.tvm.schedules.injective import unflattened
from dnc.tvm.schedules.kernel import Kernel
from dnc.tvm.schedules.loops import Expr, Stmt
from dnc.tvm.schedules.stages import Segment, Stage, loads, replaced, sides

__all__ = ["injective"]

_THREADS = 256


def injective(segment: Segment) -> Kernel | None:
    """The kernel of a segment whose anchor is no reduction."""
    if not segment.anchor.plain:
        return None
    shape = sides(segment.result)
    stages = (segment.anchor, *segment.rest)
    lanes = 1
    if shape and all(_alike(stage) for stage in stages):
        narrowest = min((str(stage.buffer.dtype) for stage in stages), key=lambda dtype: dtype != "float16")
        lanes = lanes_of(shape[-1], narrowest, 8 if narrowest == "float16" else 16)
    grouped = [*shape[:-1], shape[-1] // lanes] if shape else []
    total = math.prod(grouped)

    def body(blocks: Sequence[Expr], thread: Expr) -> Stmt:
        number = blocks[0] * _THREADS + thread
        place = unflattened(number, grouped)

        def at(lane: Expr) -> list[Expr]:
            return [*place[:-1], place[-1] * lanes + lane] if shape else []

        def value(lane: Expr) -> Expr:
            return replaced(segment.anchor.value, segment.anchor.axes, at(lane))

        statement = segment.finish(at, lanes, value)
        return when(number < total if total % _THREADS else None, statement)

    return Kernel("injective", kernel([-(-total // _THREADS)], _THREADS, body))


def _alike(stage: Stage) -> bool:
    """Whether neighbours on the last axis are computed in the same way from neighbours, or from the same number."""
    axis = stage.axes[-1]
    if str(stage.buffer.dtype) not in ("float32", "float16"):
        return False
    if any(str(load.ty.dtype) not in ("float32", "float16") for load in loads(stage.value)):
        return False
    reads = [load.indices for load in loads(stage.value)]
    if any(_uses(at, axis) for indices in reads for at in indices[:-1]):
        return False
    if any(_uses(indices[-1], axis) and not indices[-1].same_as(axis) for indices in reads if indices):
        return False
    inside: list[Expr] = []
    for kind in (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE):
        tvm_ffi.structural_walk(stage.value, (kind, inside.append), order="pre")
    return not any(_uses(comparison, axis) and not loads(comparison) for comparison in inside)


def _uses(value: Expr, axis: Expr) -> bool:
    found: list[bool] = []

    def visit(variable: Expr) -> None:
        found.append(variable.same_as(axis))

    tvm_ffi.structural_walk(value, (tirx.Var, visit), order="pre")
    return any(found)
