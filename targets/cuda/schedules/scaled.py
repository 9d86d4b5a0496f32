"""Maps that are computed element by element with a number for each channel, which is a short sum itself: what a block
of squeeze and excitation ends with,

    out[n, y, x, c] = data[n, y, x, c] * sigmoid(bias[c] + sum over k of squeezed[n, k] * weight[k, c])

A block has some channels and pixels of an image. It computes the numbers of its channels itself, which other blocks of
the same channels do as well: that takes less than to wait for a kernel that does it once. The threads of a channel
share the terms, and one of them adds what they have, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import ir, tirx

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.injective import alike
from dnc.targets.cuda.schedules.reduction import widened
from dnc.targets.cuda.schedules.threads import kernel, lanes_of, scoped, when
from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, constant, index, loop, sequence
from dnc.targets.tvm.schedules.stages import Segment, Stage, dims, in_place, loads, replaced
from dnc.targets.tvm.schedules.window import Window

__all__ = ["scaled", "unscaled"]

_THREADS = 256
_BYTES = 128
"""Of a row of channels of a block."""
_TERMS = 64
"""Of a sum, at most."""
_WAVES = 4
"""Blocks for each multiprocessor, if there is as much to do."""
_FLOATS = ("float32", "float16")


class _Numbers:
    """The number of each channel: the stages between a short sum and a map."""

    def __init__(self, segment: Segment, stages: Sequence[Stage]) -> None:
        self._others = [stage for stage in stages if not any(stage.buffer.same_as(own) for own in segment.buffers)]
        self.shape = (segment.anchor.extents[0], 1, 1, segment.anchor.extents[-1])
        self.inlined: list[Stage] = []
        self.sums: list[Stage] = []

    def makes(self, load: Any) -> bool:
        """Whether a load is of what other stages of the function give."""
        return any(stage.buffer.same_as(load.source) for stage in self._others)

    def through(self, load: Any) -> Expr:
        """Reads through a stage that only moves elements."""
        stage = next((stage for stage in self._others if stage.plain and stage.buffer.same_as(load.source)), None)
        return load if stage is None else replaced(stage.value, stage.axes, load.indices)

    def value(self, load: Any, total: Expr) -> Expr:
        """Value of a load of a channel's number, the sum being `total`; other loads as they are."""
        stage = next((stage for stage in self._others if stage.buffer.same_as(load.source)), None)
        if stage is None:
            return load
        if not stage.plain:
            self.sums.append(stage)
            return total
        self.inlined.append(stage)
        return replaced(stage.value, stage.axes, load.indices, lambda found: self.value(found, total))

    def sum(self, segment: Segment, stages: Sequence[Stage]) -> Stage | None:
        """The sum, if the map reads nothing else of other segments, and nobody else reads that."""
        anchor = segment.anchor
        made = [load for load in loads(anchor.value) if self.makes(load)]
        if not made or not all(load.source.same_as(made[0].source) for load in made):
            return None
        if not all(_is_channel(load, anchor) for load in made):
            return None
        self.value(made[0], constant(0.0, "float32"))
        own = [*self.inlined, *self.sums]
        if not self.sums or not all(stage is self.sums[0] for stage in self.sums):
            return None
        if any(dims(stage.buffer) != self.shape for stage in own):
            return None
        readers = [
            stage
            for stage in stages
            if stage is not anchor and not any(stage is known for known in own)
            if any(load.source.same_as(known.buffer) for load in loads(stage.value) for known in own)
        ]
        return self.sums[0] if not readers and _is_short(self.sums[0]) else None


def _is_channel(load: Any, anchor: Stage) -> bool:
    """Whether a load is of the channel's number, (n, 0, 0, c)."""
    if len(load.indices) != 4:
        return False
    image, *middle, channel = load.indices
    first = image.same_as(anchor.axes[0]) or (anchor.extents[0] == 1 and _is_zero(image))
    return first and all(map(_is_zero, middle)) and bool(channel.same_as(anchor.axes[-1]))


def _is_zero(value: Expr) -> bool:
    return isinstance(value, tirx.IntImm | tirx.FloatImm) and float(value.value) == 0.0


def _is_short(stage: Stage) -> bool:
    if stage.start is None or not stage.straight or not isinstance(stage.value, tirx.Add) or not _is_zero(stage.start):
        return False
    held = stage.value.a
    itself = isinstance(held, ir.TensorLoad) and held.source.same_as(stage.buffer)
    terms = math.prod(extent for extent, reduced in zip(stage.extents, stage.reduced, strict=True) if reduced)
    return itself and terms <= _TERMS and not any(load.source.same_as(stage.buffer) for load in loads(stage.value.b))


def scaled(segment: Segment, stages: Sequence[Stage], device: Device) -> Kernel | None:
    """The kernel of such a segment and of what gives its channels their numbers; None for others."""
    anchor = segment.anchor
    if not anchor.plain or len(anchor.axes) != 4 or not segment.result.same_as(stages[-1].buffer):
        return None
    if not alike(anchor.value, anchor.axes[-1]) or str(segment.result.dtype) not in _FLOATS:
        return None
    numbers = _Numbers(segment, stages)
    total = numbers.sum(segment, stages)
    if total is None:
        return None
    return Kernel("scaled", _body(segment, numbers, total, device), replaces=(total.buffer,))


def _body(segment: Segment, numbers: _Numbers, stage: Stage, device: Device) -> Stmt:
    anchor = segment.anchor
    images, height, width, channels = anchor.extents
    dtype = str(stage.buffer.dtype)
    used = next(load for load in loads(anchor.value) if numbers.makes(load))
    narrow = any(str(buffer.dtype) == "float16" for buffer in segment.buffers)
    lanes = lanes_of(channels, "float32")
    row = _BYTES // (2 if narrow else 4)
    across, parts = row // lanes, _THREADS // row
    below = _THREADS // across
    rows = -(-channels // row)
    pixels = height * width
    passes = max(1, pixels * rows * images // (below * device.processors * _WAVES))
    chunks = -(-pixels // (below * passes))
    reduced = [axis for axis, summed in zip(stage.axes, stage.reduced, strict=True) if summed]
    kept = [axis for axis, summed in zip(stage.axes, stage.reduced, strict=True) if not summed]
    extents = [extent for extent, summed in zip(stage.extents, stage.reduced, strict=True) if summed]
    terms = math.prod(extents)
    sums = allocate([1], "float32", "sums")
    exchange = allocate([parts, row], "float32", "exchange", "shared")
    scales = allocate([row], str(used.ty.dtype), "scales", "shared")
    zero = [index(0)]

    def body(blocks: Sequence[Expr], thread: Expr) -> Stmt:
        image = blocks[2] if images > 1 else index(0)
        part, own = thread // row, thread % row
        first = blocks[0] * row
        # Threads beyond the last channel repeat it.
        channel = first + own if channels % row == 0 else tirx.min(first + own, index(channels - 1))
        place = [image, index(0), index(0), channel]

        def add(turn: Expr) -> Stmt:
            term = part + turn * parts
            value = replaced(stage.value.b, [*kept, *reduced], [*place, *unflattened(term, extents)], numbers.through)
            held = tirx.BufferLoad(sums, zero) + widened(value, "float32")
            return when(term < terms if terms % parts else None, tirx.BufferStore(sums, held, zero))

        def gather() -> Stmt:
            total: Expr = tirx.BufferLoad(exchange, [index(0), own])
            for other in range(1, parts):
                total = total + tirx.BufferLoad(exchange, [index(other), own])
            return tirx.BufferStore(sums, total, zero)

        def number() -> Expr:
            held = tirx.BufferLoad(sums, zero)
            total = held if dtype == "float32" else tirx.Cast(dtype, held)
            return numbers.value(replaced(used, anchor.axes, place), total)

        def scaled_row(turn: Expr) -> Stmt:
            pixel = (blocks[1] * passes + turn) * below + thread // across
            beside = thread % across * lanes
            conditions = []
            if pixels % (below * passes):
                conditions.append(pixel < pixels)
            if channels % row:
                conditions.append(first + beside < channels)

            def at(lane: Expr) -> list[Expr]:
                return [image, *unflattened(pixel, [height, width]), first + beside + lane]

            def value(lane: Expr) -> Expr:
                def load(read: Any) -> Expr:
                    return tirx.BufferLoad(scales, [beside + lane]) if numbers.makes(read) else read

                return replaced(anchor.value, anchor.axes, at(lane), load)

            statement = segment.finish(at, lanes, value)
            return when(tirx.all(*conditions) if conditions else None, statement)

        return scoped(
            [sums, exchange, scales],
            tirx.BufferStore(sums, constant(0.0, "float32"), zero),
            loop(-(-terms // parts), add),
            tirx.BufferStore(exchange, tirx.BufferLoad(sums, zero), [part, own]),
            when(part == 0, sequence(gather(), tirx.BufferStore(scales, number(), [own]))),
            loop(passes, scaled_row),
        )

    return kernel([rows, chunks, images] if images > 1 else [rows, chunks], _THREADS, body)


def unscaled(window: Window, stages: Sequence[Stage]) -> tuple[Window, Stage] | None:
    """The convolution of one pixel with the map and the numbers whose product it reads, and the stage that multiplies
    them for it alone; None for others."""
    stage = next((stage for stage in stages if stage.buffer.same_as(window.data)), None)
    if stage is None or not stage.plain or not isinstance(stage.value, tirx.Mul) or window.weight is None:
        return None
    if window.groups > 1 or (window.size, window.stride, window.padding) != ((1, 1), (1, 1), (0, 0)):
        return None
    factors = stage.value.a, stage.value.b
    if not all(isinstance(factor, ir.TensorLoad) for factor in factors):
        return None
    for whole, number in (factors, factors[::-1]):
        channels = (window.source[0], 1, 1, window.source[3])
        shapes = dims(whole.source) == window.source and dims(number.source) == channels
        if shapes and in_place(whole, stage) and _is_channel(number, stage):
            readers = [
                other for other in stages if any(load.source.same_as(stage.buffer) for load in loads(other.value))
            ]
            if len(readers) == 1:
                return replace(window, data=whole.source, scales=number.source), stage
    return None
