"""Sums, products and extremes along axes, and products with so few rows that there is nothing to tile.

The threads of a block share the terms of some results that lie side by side: thread (part, lane) takes every
`parts`-th term of one of them. What they have is combined in shared memory, half of the parts at a time, and the first
part goes on with what follows. Float16 is added and multiplied in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import ir, tirx

from dnc.tvm.gpu.device import Device
from dnc.tvm.gpu.schedules.threads import kernel, scoped, when
from dnc.tvm.schedules.injective import unflattened
from dnc.tvm.schedules.kernel import Kernel
from dnc.tvm.schedules.loops import Expr, Stmt, allocate, index, loop
from dnc.tvm.schedules.stages import Segment, Stage, loads, replaced, sides

__all__ = ["reduction"]

_THREADS = 256
_LANES = (32, 16, 8)
"""Results of a block, where neighbours read neighbours: 8 float32 numbers are what memory gives at least."""
_TERMS = 4
"""Terms that a thread has at least, if there are as many."""
_KINDS = (tirx.Add, tirx.Mul, tirx.Max, tirx.Min)


def reduction(segment: Segment, device: Device) -> Kernel | None:
    """The kernel of a reduction that adds, multiplies or takes the extreme of terms; None for others."""
    stage = segment.anchor
    if stage.start is None or not stage.straight or not isinstance(stage.value, _KINDS) or not any(stage.reduced):
        return None
    held = stage.value.a
    if not isinstance(held, ir.TensorLoad) or not held.source.same_as(stage.buffer):
        return None
    if any(load.source.same_as(stage.buffer) for load in loads(stage.value.b)):
        return None
    return Kernel("reduction", _body(segment, device))


def _body(segment: Segment, device: Device) -> Stmt:
    stage = segment.anchor
    shape = sides(stage.buffer)
    kept = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if not reduced]
    summed = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if reduced]
    extents = [extent for extent, reduced in zip(stage.extents, stage.reduced, strict=True) if reduced]
    results, terms = math.prod(shape), math.prod(extents)
    lanes = _lanes(stage, results, device)
    parts = 1
    while parts * lanes < _THREADS and parts * _TERMS * 2 <= terms:
        parts *= 2
    dtype = str(stage.buffer.dtype)
    wide = "float32" if dtype == "float16" else dtype
    start = stage.start if wide == dtype else tirx.Cast(wide, stage.start)
    sums = allocate([1], wide, "sums")
    exchange = allocate([parts, lanes], wide, "exchange", "shared")
    zero = [index(0)]

    def body(blocks: Sequence[Expr], thread: Expr) -> Stmt:
        part, lane = thread // lanes, thread % lanes
        number = blocks[0] * lanes + lane
        # All threads take part in the exchange; those beyond the last result repeat it.
        result = tirx.min(number, index(results - 1)) if results % lanes else number
        place = unflattened(result, shape)

        def add(turn: Expr) -> Stmt:
            term = part + turn * parts
            value = replaced(stage.value.b, [*kept, *summed], [*place, *unflattened(term, extents)])
            held = tirx.BufferLoad(sums, zero)
            statement = tirx.BufferStore(sums, type(stage.value)(held, _widened(value, wide)), zero)
            return when(term < terms if terms % parts else None, statement)

        def combine(step: int) -> Stmt:
            values = [tirx.BufferLoad(exchange, [part + shift, lane]) for shift in (0, step)]
            return when(part < step, tirx.BufferStore(exchange, type(stage.value)(*values), [part, lane]))

        def total(_: Expr) -> Expr:
            held = tirx.BufferLoad(exchange, [index(0), lane])
            return held if wide == dtype else tirx.Cast(dtype, held)

        inside = tirx.all(part == 0, number < results)
        return scoped(
            [sums, exchange],
            tirx.BufferStore(sums, start, zero),
            loop(-(-terms // parts), add),
            tirx.BufferStore(exchange, tirx.BufferLoad(sums, zero), [part, lane]),
            *(combine(parts >> turn) for turn in range(1, parts.bit_length())),
            when(inside, segment.finish(lambda _: place, 1, total)),
        )

    return kernel([-(-results // lanes)], parts * lanes, body)


def _lanes(stage: Stage, results: int, device: Device) -> int:
    """How many results a block has: one, where its threads read neighbours of one term each."""
    axis = stage.indices[-1] if stage.indices else None
    reads = [load.indices[-1] for load in loads(stage.value.b) if load.indices]
    beside = axis is not None and any(at.same_as(axis) for at in reads) and sides(stage.buffer)[-1] > 1
    if not beside:
        return 1
    return next((lanes for lanes in _LANES if results >= lanes * device.processors), _LANES[-1])


def _widened(value: Expr, dtype: str) -> Expr:
    """The term in another type; the factors of a product each by itself."""
    if str(value.ty.dtype) == dtype:
        return value
    if isinstance(value, tirx.Mul):
        return _widened(value.a, dtype) * _widened(value.b, dtype)
    return tirx.Cast(dtype, value)
