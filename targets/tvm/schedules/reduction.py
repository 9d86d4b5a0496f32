"""Sums, products and maxima along axes: means over a map, softmax.

Where the last axis of what is read is kept, vectors go along it, and each has several sums so that one need not wait
for the other. Where it is summed over, vectors of sums go along it and are added up at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import ir, tirx

from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import (
    STACK,
    Expr,
    Stmt,
    allocate,
    index,
    loop,
    parallel,
    sequence,
    unrolled,
    vector,
)
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.stages import Segment, Stage, dims, loads, replaced
from dnc.targets.tvm.schedules.tiles import Channels

__all__ = ["reduction"]

_WORTH = 100_000
"""Elements read from which on threads are woken."""
_SUMS = 4
"""Sums that are kept for each element of the result, where that many terms are left."""
_KINDS = (tirx.Add, tirx.Mul, tirx.Max, tirx.Min)


def reduction(segment: Segment, machine: Machine) -> Kernel | None:
    """The kernel of a reduction that adds, multiplies or takes the extreme of terms; None for others."""
    stage = segment.anchor
    if stage.start is None or not stage.straight or not isinstance(stage.value, _KINDS) or not _accumulates(stage):
        return None
    if not dims(stage.buffer) or not any(stage.reduced):
        return None
    body = _across(segment, machine) if _keeps_last(stage) else _along(segment, machine)
    return Kernel("reduction", body)


def _accumulates(stage: Stage) -> bool:
    held = stage.value.a
    own = isinstance(held, ir.TensorLoad) and held.source.same_as(stage.buffer)
    return own and not any(load.source.same_as(stage.buffer) for load in loads(stage.value.b))


def _keeps_last(stage: Stage) -> bool:
    """Whether the terms of neighbours along the last axis of the result lie side by side."""
    if dims(stage.buffer)[-1] == 1:
        return False
    axis = stage.indices[-1]
    reads = [load.indices[-1] for load in loads(stage.value.b)]
    return all(isinstance(at, tirx.IntImm) or at.same_as(axis) for at in reads)


def _split(stage: Stage) -> tuple[list[Any], list[Any], list[int]]:
    """The axes that are kept, those that are not, and the extents of these."""
    kept = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if not reduced]
    summed = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if reduced]
    extents = [extent for extent, reduced in zip(stage.extents, stage.reduced, strict=True) if reduced]
    return kept, summed, extents


def _combine(stage: Stage, held: Expr, term: Expr) -> Expr:
    # An operator's class makes one of its own kind.
    return type(stage.value)(held, term)


def _across(segment: Segment, machine: Machine) -> Stmt:
    """Vectors along the last axis of the result."""
    stage = segment.anchor
    kept, summed, extents = _split(stage)
    *outer, inner = dims(stage.buffer)
    channels = Channels.of(inner, machine)
    terms = math.prod(extents)
    count = min(_SUMS, terms)

    def task(number: Expr) -> Stmt:
        before = unflattened(number // channels.vectors, outer) if outer else []
        start = channels.start(number % channels.vectors)
        sums = [allocate([channels.lanes], stage.buffer.dtype, f"sum{place}", STACK) for place in range(count)]

        def at(lane: Expr) -> list[Expr]:
            return [*before, start + lane]

        def add(place: int, term: Expr) -> Stmt:
            def one(lane: Expr) -> Stmt:
                indices = [*at(lane), *unflattened(term, extents)]
                value = replaced(stage.value.b, [*kept, *summed], indices)
                held = tirx.BufferLoad(sums[place], [lane])
                return tirx.BufferStore(sums[place], _combine(stage, held, value), [lane])

            return vector(channels.lanes, one)

        def clear(buffer: Any) -> Stmt:
            return vector(channels.lanes, lambda lane: tirx.BufferStore(buffer, stage.start, [lane]))

        whole = terms // count
        return sequence(
            *(tirx.AllocBuffer(buffer) for buffer in sums),
            *(clear(buffer) for buffer in sums),
            loop(whole, lambda i: sequence(*(add(place, i * count + place) for place in range(count)))),
            *(add(place, index(whole * count + place)) for place in range(terms - whole * count)),
            segment.finish(at, channels.lanes, lambda lane: _total(stage, sums, lane)),
        )

    number = math.prod(outer) * channels.vectors
    return parallel(number, task, math.prod(stage.extents) >= _WORTH)


def _total(stage: Stage, sums: Sequence[Any], lane: Expr) -> Expr:
    values = [tirx.BufferLoad(buffer, [lane]) for buffer in sums]
    while len(values) > 1:
        values = [_combine(stage, values[0], values[1]), *values[2:]]
    return values[0]


def _along(segment: Segment, machine: Machine) -> Stmt:
    """Vectors along the last axis that is summed over; the results one by one."""
    stage = segment.anchor
    kept, summed, extents = _split(stage)
    shape = dims(stage.buffer)
    *rest, inner = extents
    lanes = machine.lanes
    while lanes > inner:
        lanes //= 2

    def task(number: Expr) -> Stmt:
        place = unflattened(number, shape)
        sums = allocate([lanes], stage.buffer.dtype, "sums", STACK)
        total = allocate([1], stage.buffer.dtype, "total", STACK)

        def term(outer: Expr, i: Expr) -> Expr:
            return replaced(stage.value.b, [*kept, *summed], [*place, *(unflattened(outer, rest) if rest else []), i])

        def vectors(outer: Expr) -> Stmt:
            def one(i: Expr) -> Stmt:
                def add(lane: Expr) -> Stmt:
                    held = tirx.BufferLoad(sums, [lane])
                    return tirx.BufferStore(sums, _combine(stage, held, term(outer, i * lanes + lane)), [lane])

                return vector(lanes, add)

            return loop(inner // lanes, one)

        def single(value: Expr) -> Stmt:
            return tirx.BufferStore(total, _combine(stage, tirx.BufferLoad(total, [index(0)]), value), [index(0)])

        def left(outer: Expr) -> Stmt | None:
            if inner % lanes == 0:
                return None
            return loop(inner % lanes, lambda i: single(term(outer, i)), start=inner - inner % lanes)

        turns = math.prod(rest)
        leftover = None if inner % lanes == 0 else loop(turns, lambda outer: left(outer))
        return sequence(
            tirx.AllocBuffer(sums),
            tirx.AllocBuffer(total),
            vector(lanes, lambda lane: tirx.BufferStore(sums, stage.start, [lane])),
            tirx.BufferStore(total, stage.start, [index(0)]),
            loop(turns, vectors),
            leftover,
            unrolled(lanes, lambda lane: single(tirx.BufferLoad(sums, [lane]))),
            segment.finish(lambda lane: place, 1, lambda lane: tirx.BufferLoad(total, [index(0)])),
        )

    return parallel(math.prod(shape), task, math.prod(stage.extents) >= _WORTH)
