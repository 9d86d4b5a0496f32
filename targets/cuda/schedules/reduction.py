"""Sums, products and extremes along axes, and products with so few rows that there is nothing to tile.

The threads of a block share the terms of some results that lie side by side: thread (part, lane) takes every
`parts`-th term of up to four of them. What they have is combined in shared memory, half of the parts at a time, and the
first part goes on with what follows. Float16 is added and multiplied in float32.

Where there are many terms for each thread, and they are added, blocks share them as well: they put what they have into
memory, and the last one to arrive adds that, in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    return Kernel("reduction", _Reduction(segment, device).kernel())


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


class _Reduction:
    """Writer of one kernel, for the thread (part, lane) of a block."""

    def __init__(self, segment: Segment, device: Device) -> None:
        stage = segment.anchor
        self.segment, self.stage, self.shape = segment, stage, dims(stage.buffer)
        kept = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if not reduced]
        self.axes = [*kept, *(axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if reduced)]
        self.extents = [extent for extent, reduced in zip(stage.extents, stage.reduced, strict=True) if reduced]
        self.results, self.terms = math.prod(self.shape), math.prod(self.extents)
        self.form = _forms(stage, self.results, self.terms, device)
        self.row = self.form.lanes * self.form.per_thread
        self.rows = -(-self.results // self.row)
        self.turns = -(-self.terms // (self.form.parts * self.form.blocks))
        self.dtype = str(stage.buffer.dtype)
        self.wide = "float32" if self.dtype == "float16" else self.dtype
        self.sums = allocate([self.form.per_thread], self.wide, "sums")
        self.exchange = allocate([self.form.parts, self.row], self.wide, "exchange", "shared")

    def kernel(self) -> Stmt:
        """Writes all blocks."""
        grid = [self.rows, self.form.blocks] if self.form.blocks > 1 else [self.rows]
        return kernel(grid, self.form.parts * self.form.lanes, self._block)

    def _block(self, blocks: Sequence[Expr], thread: Expr) -> Stmt:
        form = self.form
        self.part, self.first = thread // form.lanes, thread % form.lanes * form.per_thread
        number = blocks[0] * self.row + self.first
        # All threads take part in the exchange; those beyond the last result repeat it.
        last = index(self.results - form.per_thread)
        place = unflattened(tirx.min(number, last) if self.results % self.row else number, self.shape)
        share = blocks[1] if form.blocks > 1 else index(0)
        start = self.stage.start if self.wide == self.dtype else tirx.Cast(self.wide, self.stage.start)

        def at(own: Expr) -> list[Expr]:
            return [*place[:-1], place[-1] + own] if place else []

        def total(own: Expr) -> Expr:
            value = self._exchanged(index(0), own)
            return value if self.wide == self.dtype else tirx.Cast(self.dtype, value)

        return scoped(
            [self.sums, self.exchange],
            vector(form.per_thread, lambda own: self._put(own, start)),
            loop(self.turns, lambda turn: self._add(turn, share, at)),
            *self._combined(),
            *(self._handed_over(blocks[0], share) if form.blocks > 1 else []),
            when(tirx.all(self.part == 0, number < self.results), self.segment.finish(at, form.per_thread, total)),
        )

    def _put(self, own: Expr, value: Expr) -> Stmt:
        return tirx.BufferStore(self.sums, value, [own])

    def _add(self, turn: Expr, share: Expr, at: Callable[[Expr], list[Expr]]) -> Stmt:
        """Adds a term to each of the thread's sums."""
        term = self.part + (share * self.turns + turn) * self.form.parts

        def one(own: Expr) -> Stmt:
            value = replaced(self.stage.value.b, self.axes, [*at(own), *unflattened(term, self.extents)])
            held = tirx.BufferLoad(self.sums, [own])
            return self._put(own, type(self.stage.value)(held, widened(value, self.wide)))

        inside = self.terms == self.form.parts * self.form.blocks * self.turns
        return when(None if inside else term < self.terms, vector(self.form.per_thread, one))

    def _exchanged(self, part: Expr, own: Expr) -> Expr:
        return tirx.BufferLoad(self.exchange, [part, self.first + own])

    def _combined(self) -> list[Stmt]:
        """Puts the sums into shared memory, and combines the parts there, one half with the other."""

        def keep(own: Expr) -> Stmt:
            return tirx.BufferStore(self.exchange, tirx.BufferLoad(self.sums, [own]), [self.part, self.first + own])

        def combine(step: int) -> Stmt:
            def one(own: Expr) -> Stmt:
                value = type(self.stage.value)(self._exchanged(self.part, own), self._exchanged(self.part + step, own))
                return tirx.BufferStore(self.exchange, value, [self.part, self.first + own])

            return when(self.part < step, vector(self.form.per_thread, one))

        parts = self.form.parts
        steps = [combine(parts >> turn) for turn in range(1, parts.bit_length())]
        return [vector(self.form.per_thread, keep), *steps]

    def _handed_over(self, block: Expr, share: Expr) -> list[Stmt]:
        """Adds up what the blocks have that share results; only the last one goes on."""
        form, row = self.form, self.row
        first, size = block * (form.blocks * row) + self.first, self.rows * form.blocks * row
        local = vector(form.per_thread, lambda own: self._put(own, self._exchanged(index(0), own)))
        moved = move(scratch(size, first + share * row), address(self.sums, index(0)), 4 * form.per_thread)
        count = narrow((index(form.blocks + form.parts - 1) - self.part) // form.parts)
        return [
            when(self.part == 0, sequence(local, moved)),
            when(tirx.Not(arrived_last(block, form.blocks)), end()),
            gather(self.sums, scratch(size, first + self.part * row), form.per_thread, count, form.parts * row),
            *self._combined(),
        ]


def widened(value: Expr, dtype: str) -> Expr:
    """The term in another type; the factors of a product each by itself."""
    if str(value.ty.dtype) == dtype:
        return value
    if isinstance(value, tirx.Mul):
        return widened(value.a, dtype) * widened(value.b, dtype)
    return tirx.Cast(dtype, value)
