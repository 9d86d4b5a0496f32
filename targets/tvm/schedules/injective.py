"""Stages that compute each element by itself: activations that nothing fused with, sums of two maps, concatenations,
enlargements, changes of layout.

Vectors go along the last axis; the last one overlaps the one before. Where a comparison with a constant tells parts of
that axis apart, as in a concatenation, each part is a loop of its own and nothing is compared. Maps that are read where
they are written are one long vector.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.sym import Analyzer

from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, index, loop, parallel, sequence
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.stages import Segment, Stage, dims, in_place, loads, replaced
from dnc.targets.tvm.schedules.tiles import Channels
from dnc.targets.tvm.schedules.window import affine

__all__ = ["injective", "unflattened"]

_WORTH = 32_768
"""Elements from which on threads are woken."""
_CHUNK = 4_096
"""Elements of a task, where any number can be taken."""
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def unflattened(place: Expr, shape: Sequence[int]) -> list[Expr]:
    """The indices of an element by its number."""
    indices: list[Expr] = []
    step = math.prod(shape)
    for axis, side in enumerate(shape):
        step //= side
        position = place // step if step > 1 else place
        indices.append(position % side if axis else position)
    return indices


def injective(segment: Segment, machine: Machine) -> Kernel | None:
    """The kernel of a segment whose anchor is no reduction."""
    if not segment.anchor.plain:
        return None
    shape = dims(segment.result)
    stages = (segment.anchor, *segment.rest)
    worth = math.prod(shape) >= _WORTH
    if not shape:
        return Kernel("injective", segment.finish(lambda lane: [], 1, lambda lane: segment.anchor.value))
    if all(in_place(load, stage) and dims(load.source) == shape for stage in stages for load in loads(stage.value)):
        return Kernel("injective", _flat(segment, shape, machine, worth))
    return Kernel("injective", _rows(segment, shape, machine, worth))


def _value(segment: Segment, at: Sequence[Expr]) -> Expr:
    return replaced(segment.anchor.value, segment.anchor.axes, at)


def _flat(segment: Segment, shape: Sequence[int], machine: Machine, worth: bool) -> Stmt:
    size = math.prod(shape)
    parts = _vectors(size, machine, segment.inner)

    def line(vectors: Channels, low: int) -> Stmt:
        per_task = _CHUNK // vectors.lanes
        tasks = -(-vectors.vectors // per_task)

        def at(number: Expr, lane: Expr) -> list[Expr]:
            return unflattened(vectors.start(number) + low + lane, shape)

        def finish(number: Expr) -> Stmt:
            return segment.finish(
                lambda lane: at(number, lane), vectors.lanes, lambda lane: _value(segment, at(number, lane))
            )

        def task(number: Expr) -> Stmt:
            # The last task is shorter.
            first = number * per_task
            whole = tasks * per_task == vectors.vectors
            count = per_task if whole else tirx.min(index(per_task), vectors.vectors - first)
            return loop(count, finish, start=first)

        if tasks == 1:
            return loop(vectors.vectors, finish)
        return parallel(tasks, task, worth)

    return sequence(*(line(vectors, low) for low, vectors in parts))


def _vectors(count: int, machine: Machine, once: bool) -> list[tuple[int, Channels]]:
    """Vectors for so many elements, and where they start: overlapping ones, or ever shorter ones if each element is to
    be computed once."""
    vectors = Channels.of(count, machine)
    if not once or count % vectors.lanes == 0:
        return [(0, vectors)]
    whole = count - count % vectors.lanes
    rest = _vectors(count - whole, machine, once)
    return [(0, Channels(whole, vectors.lanes)), *((whole + low, part) for low, part in rest)]


def _rows(segment: Segment, shape: Sequence[int], machine: Machine, worth: bool) -> Stmt:
    *outer, inner = shape
    pieces = _pieces(segment, inner)
    # A task is a row of pixels, or a pixel where there is one row.
    kept = outer[-1:] if len(outer) > 1 and math.prod(outer[:-1]) >= 2 else []
    shared = outer[: len(outer) - len(kept)]

    def task(number: Expr) -> Stmt:
        before = unflattened(number, shared)
        if kept:
            return loop(kept[0], lambda x: _line(pieces, [*before, x], machine))
        return _line(pieces, before, machine)

    return parallel(math.prod(shared), task, worth)


def _line(pieces: Sequence[tuple[int, int, Segment]], outer: Sequence[Expr], machine: Machine) -> Stmt:
    statements = []
    for low, high, segment in pieces:
        for first, vectors in _vectors(high - low, machine, segment.inner):
            part = partial(_vector, segment, outer, low + first, vectors)
            statements.append(loop(vectors.vectors, part))
    return sequence(*statements)


def _vector(segment: Segment, outer: Sequence[Expr], low: int, vectors: Channels, number: Expr) -> Stmt:
    def at(lane: Expr) -> list[Expr]:
        return [*outer, vectors.start(number) + low + lane]

    return segment.finish(at, vectors.lanes, lambda lane: _value(segment, at(lane)))


def _pieces(segment: Segment, size: int) -> list[tuple[int, int, Segment]]:
    """The last axis cut where a comparison changes, and what is computed in each part."""
    cuts = {0, size}
    for stage in (segment.anchor, *segment.rest):
        cuts |= {cut for cut in _cuts(stage) if 0 < cut < size}
    ordered = sorted(cuts)
    if len(ordered) == 2:
        return [(0, size, segment)]
    pieces = []
    for low, high in itertools.pairwise(ordered):
        anchor, *rest = (_within(stage, low, high) for stage in (segment.anchor, *segment.rest))
        pieces.append((low, high, replace(segment, anchor=anchor, rest=rest)))
    return pieces


def _cuts(stage: Stage) -> set[int]:
    """Positions on the last axis where the comparisons of a stage change."""
    axis = stage.axes[-1]
    analyzer = Analyzer()
    cuts: set[int] = set()
    comparisons: list[Any] = []
    for kind in _COMPARISONS:
        tvm_ffi.structural_walk(stage.value, (kind, comparisons.append), order="pre")
    for comparison in comparisons:
        factors = affine(comparison.a - comparison.b, axis)
        if factors is None or not factors[0]:
            continue
        middle = -factors[1] // factors[0]
        truths = []
        for place in range(middle - 1, middle + 3):
            truth = analyzer.simplify(replaced(comparison, [axis], [index(place)]))
            truths.append(int(truth))
        cuts |= {middle + step for step in range(3) if truths[step] != truths[step + 1]}
    return cuts


def _within(stage: Stage, low: int, high: int) -> Stage:
    """The stage for a part of its last axis."""
    analyzer = Analyzer()
    analyzer.bind(stage.axes[-1], ir.Range(index(low), index(high)))
    return replace(stage, value=analyzer.simplify(stage.value))
