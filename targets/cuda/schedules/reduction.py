"""Sums, products and extremes along axes, and products with so few rows that there is nothing to tile.

The threads of a block share the terms of some results that lie side by side: thread (part, lane) takes every
`parts`-th term of up to four of them. What they have is combined in shared memory, half of the parts at a time, and the
first part goes on with what follows. Float16 is added and multiplied in float32.

Where there are many terms for each thread, and they are added, blocks share them as well: they put what they have into
memory, and the last one to arrive adds that, in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, tirx

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.helpers import TILES, address, arrived_last, end, gather, move, scratch
from dnc.targets.cuda.schedules.injective import alike
from dnc.targets.cuda.schedules.threads import kernel, lanes_of, narrow, scoped, when
from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, index, loop, sequence, vector
from dnc.targets.tvm.schedules.stages import Segment, Stage, dims, loads, replaced

__all__ = ["reduction", "widened"]

_THREADS = 256
_BYTES = (128, 64, 32)
"""Of a row of results of a block, where neighbours read neighbours: memory gives 32 at least."""
_EACH = 4
"""Results of a thread, at most."""
_TERMS = 4
"""Terms that a thread has at least, if there are as many."""
_MANY = 32
"""Terms of a thread from which on blocks share them, and how many each thread is left with about."""
_LEFT = 16
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


@dataclass(frozen=True)
class _Form:
    """Division of a kernel among threads."""

    per_thread: int
    """Results of a thread."""
    lanes: int
    """Threads with different results, in a block."""
    parts: int
    """Threads with the same results."""
    blocks: int
    """Blocks with the same results."""


def _forms(stage: Stage, results: int, terms: int, device: Device) -> _Form:
    """The form of the device's rank: the usual one, then those with more blocks and with fewer."""
    kept = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if not reduced]
    axis = kept[-1] if kept else None
    reads = [load for load in loads(stage.value.b) if load.indices]
    beside = axis is not None and any(load.indices[-1].same_as(axis) for load in reads) and dims(stage.buffer)[-1] > 1
    per_thread, widths = 1, [1]
    if beside:
        size = min(2 if str(load.ty.dtype) == "float16" else 4 for load in reads)
        if alike(stage.value.b, axis):
            per_thread = min(_EACH, lanes_of(dims(stage.buffer)[-1], "float32"))
        possible = [bytes_ // size for bytes_ in _BYTES]
        usual = next((width for width in possible if results >= width * device.processors), possible[-1])
        widths = sorted(possible, key=lambda width: (width != usual, width))
    forms = []
    for width in widths:
        lanes, parts = max(1, width // per_thread), 1
        while parts * lanes < _THREADS and parts * _TERMS * 2 <= terms:
            parts *= 2
        shared = -(-terms // parts // _LEFT)
        blocks = -(-results // (lanes * per_thread))
        adds = isinstance(stage.value, tirx.Add) and str(stage.buffer.dtype) in ("float32", "float16")
        if not adds or terms <= parts * _MANY or blocks > min(TILES, device.processors):
            shared = 1
        shared = min(shared, max(1, 4 * device.processors // blocks))
        forms += [_Form(per_thread, lanes, parts, blocks) for blocks in ((shared, 1) if shared > 1 else (1,))]
    return forms[min(device.rank, len(forms) - 1)]


def _body(segment: Segment, device: Device) -> Stmt:
    stage = segment.anchor
    shape = dims(stage.buffer)
    kept = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if not reduced]
    summed = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if reduced]
    extents = [extent for extent, reduced in zip(stage.extents, stage.reduced, strict=True) if reduced]
    results, terms = math.prod(shape), math.prod(extents)
    form = _forms(stage, results, terms, device)
    per_thread, lanes, parts = form.per_thread, form.lanes, form.parts
    row = lanes * per_thread
    rows = -(-results // row)
    turns = -(-terms // (parts * form.blocks))
    dtype = str(stage.buffer.dtype)
    wide = "float32" if dtype == "float16" else dtype
    start = stage.start if wide == dtype else tirx.Cast(wide, stage.start)
    sums = allocate([per_thread], wide, "sums")
    exchange = allocate([parts, row], wide, "exchange", "shared")

    def body(blocks: Sequence[Expr], thread: Expr) -> Stmt:
        part, lane = thread // lanes, thread % lanes
        number = blocks[0] * row + lane * per_thread
        share = blocks[1] if form.blocks > 1 else index(0)
        # All threads take part in the exchange; those beyond the last result repeat it.
        result = tirx.min(number, index(results - per_thread)) if results % row else number
        place = unflattened(result, shape)

        def at(own: Expr) -> list[Expr]:
            return [*place[:-1], place[-1] + own] if place else []

        def held(own: Expr) -> Expr:
            return tirx.BufferLoad(sums, [own])

        def put(own: Expr, value: Expr) -> Stmt:
            return tirx.BufferStore(sums, value, [own])

        def add(turn: Expr) -> Stmt:
            term = part + (share * turns + turn) * parts

            def one(own: Expr) -> Stmt:
                value = replaced(stage.value.b, [*kept, *summed], [*at(own), *unflattened(term, extents)])
                return put(own, type(stage.value)(held(own), widened(value, wide)))

            inside = terms == parts * form.blocks * turns
            return when(None if inside else term < terms, vector(per_thread, one))

        def exchanged(which: Expr, own: Expr) -> Expr:
            return tirx.BufferLoad(exchange, [which, lane * per_thread + own])

        def combine(step: int) -> Stmt:
            def one(own: Expr) -> Stmt:
                value = type(stage.value)(exchanged(part, own), exchanged(part + step, own))
                return tirx.BufferStore(exchange, value, [part, lane * per_thread + own])

            return when(part < step, vector(per_thread, one))

        def combined() -> list[Stmt]:
            keep = vector(
                per_thread, lambda own: tirx.BufferStore(exchange, held(own), [part, lane * per_thread + own])
            )
            return [keep, *(combine(parts >> turn) for turn in range(1, parts.bit_length()))]

        def total(own: Expr) -> Expr:
            value = exchanged(index(0), own)
            return value if wide == dtype else tirx.Cast(dtype, value)

        def handed_over() -> list[Stmt]:
            """Adds up what the blocks have that share results; only the last one goes on."""
            first, size = blocks[0] * (form.blocks * row) + lane * per_thread, rows * form.blocks * row
            own = scratch(size, first + share * row)
            local = vector(per_thread, lambda own: put(own, exchanged(index(0), own)))
            last = arrived_last(blocks[0], form.blocks)
            count = narrow((index(form.blocks + parts - 1) - part) // parts)
            return [
                when(part == 0, sequence(local, move(own, address(sums, index(0)), 4 * per_thread))),
                when(tirx.Not(last), end()),
                gather(sums, scratch(size, first + part * row), per_thread, count, parts * row),
                *combined(),
            ]

        return scoped(
            [sums, exchange],
            vector(per_thread, lambda own: put(own, start)),
            loop(turns, add),
            *combined(),
            *(handed_over() if form.blocks > 1 else []),
            when(tirx.all(part == 0, number < results), segment.finish(at, per_thread, total)),
        )

    grid = [rows, form.blocks] if form.blocks > 1 else [rows]
    return kernel(grid, parts * lanes, body)


def widened(value: Expr, dtype: str) -> Expr:
    """The term in another type; the factors of a product each by itself."""
    if str(value.ty.dtype) == dtype:
        return value
    if isinstance(value, tirx.Mul):
        return widened(value.a, dtype) * widened(value.b, dtype)
    return tirx.Cast(dtype, value)
