"""Convolutions of many channels: k x k, with strides, dilation, borders and groups.

A task is a row of the output and a group of vectors of output channels. Along the row go tiles, whose sums are in
registers:

    for ky in the rows of the window inside the tensor:
      for kx, i:                        the weights lie in this order, vector by vector
        sums[pixel, vector] += data[pixel + kx, i] * weight[ky, kx, i, vector]

where i may stand for several neighbouring inputs that are multiplied at once (dot.py).

Where the window leaves the tensor at the sides, the tile is written out for that place, without the pixels that a
column of the window does not reach; so nothing is compared in the inner loop and no border is stored. The last tile of
a row is narrower; the last vector of channels overlaps the one before.

Where there are many rows, each goes through all channels; else each group of channels goes through all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from dnc.targets.tvm.schedules.dot import Dot
from dnc.targets.tvm.schedules.kernel import Kernel, Packed
from dnc.targets.tvm.schedules.loops import (
    STACK,
    Expr,
    Stmt,
    allocate,
    constant,
    fetch,
    index,
    loop,
    parallel,
    sequence,
    unrolled,
    vector,
)
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.tiles import Band, Channels, choose
from dnc.targets.tvm.schedules.window import Span, Window, spans
from dnc.typing import Array

__all__ = ["LINE", "WORTH", "Convolution", "is_far", "item_size", "spatial"]

WORTH = 400_000
"""Multiplications from which on threads are woken: some 3 microseconds of one of them."""
_FEW, _MANY = 24, 64
"""Strips from which on each goes through all channels: enough to share them evenly among threads, and where the weights
are larger than the cache, so many that rather these are read again than the input."""
_SHORT = 256
"""Steps of a reduction up to which a tile is done before its lines come, if they are asked for when it is stored."""
LINE = 64
"""Bytes of a cache line."""
_UNROLL = 4
"""Numbers of the reduction up to which a loop over them is written out."""


def is_far(shape: Sequence[int], buffer: Any, machine: Machine) -> bool:
    """Whether a tensor (…, C) of a buffer's type is larger than the cache, and each of its pixels a line or more of it:
    then a tile's lines are not in a row, and the processor does not see which comes next."""
    size = item_size(buffer)
    return shape[-1] * size >= LINE and math.prod(shape) * size > machine.cache


def item_size(buffer: Any) -> int:
    """Bytes of a number."""
    return np.dtype(str(buffer.dtype)).itemsize


class Convolution:
    """Writer of one kernel."""

    even: ClassVar[bool] = False
    """Whether all tiles are of one width."""

    def __init__(self, segment: Segment, window: Window, machine: Machine) -> None:
        self.segment, self.window = segment, window
        self.dtype = segment.anchor.buffer.dtype
        self.channels = Channels.of(window.output[3] // window.groups, machine)
        inputs = window.source[3] // window.groups
        self.dot = Dot.of(window.data, window.weight, str(self.dtype), inputs, self.channels.lanes, machine)
        self.inputs = inputs // self.dot.group
        self.depth = window.size[0] * window.size[1] * self.inputs
        vectors, spare = self.channels.vectors, self.dot.spare
        self.tiling = choose(window.output[2], vectors, machine, spare, self.even, self.depth)
        length = window.groups * self.depth * self.channels.lanes * self.channels.vectors
        self.weight = tirx.decl_buffer([index(length)], self.dot.stored, name="weight")
        self.cached = length * 4 <= machine.cache
        self._far = self.depth <= _SHORT and segment.stored and is_far(window.output, segment.result, machine)
        self.worth = window.work // self.dot.group >= WORTH

    def pack(self, weight: Array) -> Array:
        """(kh, kw, I, O) -> (group, band, group of vectors, kh kw I, vector, lane), I counted as the dot does."""
        rows = self.dot.joined(weight.reshape(-1, weight.shape[-1]))
        groups = rows.reshape(self.depth, self.window.groups, -1).transpose(1, 0, 2)
        return self.channels.pack(np.ascontiguousarray(groups), self.tiling.bands)

    def body(self) -> Stmt:
        """Writes all strips and all channels."""
        return self.dot.around(self._loops(), self.channels.lanes)

    def _loops(self) -> Stmt:
        if self.by_strips:
            return parallel(self.strips, self._all_channels, self.worth)
        count = sum(band.count for band in self.tiling.bands)

        def task(number: Expr) -> Stmt:
            group = number // self.strips
            return self._choose_band(group // count, group % count, number % self.strips)

        return parallel(self.window.groups * count * self.strips, task, self.worth)

    def _choose_band(self, group: Expr, place: Expr, strip: Expr) -> Stmt:
        first, *others = self.tiling.bands
        statement = self.strip(group, first, place, strip)
        if others:
            other = self.strip(group, others[0], index(0), strip)
            return tirx.IfThenElse(place < first.count, statement, other)
        return statement

    def _all_channels(self, strip: Expr) -> Stmt:
        def group(number: Expr) -> Stmt:
            return sequence(
                *(loop(band.count, partial(self._in_band, number, band, strip)) for band in self.tiling.bands)
            )

        return loop(self.window.groups, group, name="group")

    def _in_band(self, group: Expr, band: Band, strip: Expr, place: Expr) -> Stmt:
        return self.strip(group, band, place, strip)

    @property
    def strips(self) -> int:
        """Number of strips of tiles: here, rows."""
        return self.window.output[0] * self.window.output[1]

    @property
    def by_strips(self) -> bool:
        """Whether each strip goes through all channels, before the next."""
        return self.strips >= (_FEW if self.cached else _MANY)

    def strip(self, group: Expr, band: Band, place: Expr, strip: Expr) -> Stmt:
        """Writes one strip, for one group of vectors of channels."""
        rows = self.window.output[1]

        def tiles(span: Span) -> Stmt:
            def tile(number: Expr) -> Stmt:
                return self.tile(group, band, place, (strip // rows, strip % rows, span.column(number)), span)

            return loop(span.count, tile)

        return sequence(*(tiles(span) for span in spans(self.window, self.tiling.width, self.tiling.first)))

    def place(self, image: Expr, row: Expr, column: Expr) -> list[Expr]:
        """The indices of a pixel."""
        return [image, row, column]

    def ahead(self, band: Band, place: Expr, column: Expr) -> Stmt | None:
        """Asks for what the tiles after the one at `column` read: the rows of a window are in the cache in any case."""
        return None

    def tile(self, group: Expr, band: Band, place: Expr, at: tuple[Expr, Expr, Expr], span: Span) -> Stmt:
        """Writes one tile, from the pixel `at` on, for one group of vectors."""
        image, y, x = at
        lanes = self.channels.lanes
        width, blocks = span.width, band.blocks
        sums = [allocate([width * lanes], self.dtype, f"sum{block}", STACK) for block in range(blocks)]
        before = sum(other.count * other.blocks for other in self.tiling.bands if other.first < band.first)
        start = (group * self.channels.vectors + before + place * blocks) * (self.depth * lanes)

        def clear(pixel: Expr) -> Stmt:
            zero = constant(0, self.dtype)
            return sequence(*(vector(lanes, partial(put, held, zero, pixel)) for held in sums))

        def put(buffer: Any, value: Expr, pixel: Expr, lane: Expr) -> Stmt:
            return tirx.BufferStore(buffer, value, [pixel * lanes + lane])

        def multiply(offset: Expr, source: Callable[[Expr], list[Expr]], pixel: Expr) -> Stmt:
            number = self.dot.number(self.window.data, source(pixel))

            def add(block: int) -> Stmt:
                place = start + offset * (blocks * lanes) + block * lanes
                return self.dot.add(sums[block], pixel * lanes, lanes, number, self.weight, place)

            return sequence(*map(add, range(blocks)))

        first, count = self.window.rows(y)
        size, stride, dilation = self.window.size, self.window.stride, self.window.dilation
        padding = self.window.padding
        inputs, several = self.inputs, self.dot.group

        def source(ky: Expr, kx: Expr, i: Expr) -> Callable[[Expr], list[Expr]]:
            row = y * stride[0] + ky * dilation[0] - padding[0]

            def number(pixel: Expr) -> list[Expr]:
                column = (x + pixel) * stride[1] + (kx * dilation[1] - padding[1])
                return [*self.place(image, row, column), (group * inputs + i) * several]

            return number

        def steps(ky: Expr, kx: Expr, extent: int, split: bool, pixels: range) -> Stmt:
            """The reduction over `extent` numbers that lie one after the other."""

            def step(i: Expr) -> Stmt:
                column, channel = (i // inputs, i % inputs) if split else (kx, i)
                offset = (ky * size[1] + kx) * inputs + i
                at = source(ky, column, channel)
                return unrolled(len(pixels), lambda pixel: multiply(offset, at, pixel), pixels.start)

            return unrolled(extent, step) if extent <= _UNROLL else loop(extent, step)

        def window_row(ky: Expr) -> Stmt:
            if span.inside:
                if dilation[1] == 1 and self.window.groups == 1:
                    return steps(ky, index(0), size[1] * inputs, True, range(width))
                return loop(size[1], lambda kx: steps(ky, kx, inputs, False, range(width)))
            columns = [self.window.columns(span.start + pixel) for pixel in range(width)]
            parts = []
            for kx in range(size[1]):
                reached = [pixel for pixel in range(width) if columns[pixel][kx]]
                if reached:
                    parts.append(steps(ky, index(kx), inputs, False, range(reached[0], reached[-1] + 1)))
            return sequence(*parts)

        def place_of(pixel: Expr, block: int) -> Callable[[Expr], list[Expr]]:
            channel = group * self.channels.count + self.channels.start(band.first + place * blocks + block)
            return lambda lane: [*self.place(image, y, x + pixel), channel + lane]

        def fetch_result(pixel: Expr) -> Stmt:
            return sequence(
                *(fetch(self.segment.result, place_of(pixel, block)(index(0)), True) for block in range(blocks))
            )

        return sequence(
            unrolled(width, fetch_result) if self._far else None,
            self.ahead(band, place, x),
            *(tirx.AllocBuffer(buffer) for buffer in sums),
            unrolled(width, clear),
            loop(count, window_row, start=first, name="ky"),
            self.segment.finish_tile(sums, place_of, width, lanes),
        )


def spatial(segment: Segment, window: Window, machine: Machine) -> Kernel | None:
    """The kernel of a convolution; None for a pool."""
    if window.weight is None:
        return None
    kernel = Convolution(segment, window, machine)
    packed = Packed(window.weight, kernel.weight, kernel.pack)
    border = () if window.border is None else (window.border.buffer,)
    return Kernel("spatial", kernel.body(), (packed,), border)
