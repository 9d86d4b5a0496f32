"""Convolutions of single channels, and pools: each channel by itself, vectors along the channels.

A tile is some pixels of a row by one vector of channels:

    for ky in the rows of the window inside the tensor:
      for kx and each pixel:
        sums[pixel] += data[pixel + kx] * weight[ky, kx]

written out, so that LLVM loads each vector once for a row of the window. At the sides the tile is written out for its
place, as in spatial.py. A maximum starts from the lowest number and multiplies nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import tirx

from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import (
    STACK,
    Expr,
    Stmt,
    allocate,
    fetch,
    index,
    loop,
    parallel,
    sequence,
    unrolled,
    vector,
)
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.spatial import LINE, is_far, item_size
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.tiles import Channels
from dnc.targets.tvm.schedules.window import Span, Window, spans

__all__ = ["depthwise"]

_WORTH = 60_000
"""Multiplications from which on threads are woken; one waits for memory more than it multiplies."""
_MOST = 8
"""Columns of a tile. More would not be held in 16 registers with what they share, fewer share less."""
_LARGE = 7
"""Columns of a window up to which they are written out."""
_TASKS = 16
"""Tasks from which on channels are not shared among tasks."""


class _Depthwise:
    """Writer of one kernel."""

    def __init__(self, segment: Segment, window: Window, machine: Machine) -> None:
        self.segment, self.window = segment, window
        self.dtype = segment.anchor.buffer.dtype
        self.channels = Channels.of(window.output[3], machine)
        self._read_far = is_far(window.source, window.data, machine)
        self._far = segment.stored and is_far(window.output, segment.result, machine)
        columns = window.output[2]
        # Sums, weights and one vector of the input are in registers.
        widest = max(machine.registers - 2 - min(window.size[1], _LARGE), 1)
        most = min(columns, widest, _MOST)
        tiles = -(-columns // max(most - machine.rank, 1))
        self.width = -(-columns // tiles)

    def body(self) -> Stmt:
        """Writes all rows."""
        images, rows = self.window.output[:2]
        vectors = self.channels.vectors
        parts = min(vectors, -(-_TASKS // (images * rows)))
        per_part = -(-vectors // parts)
        parts = -(-vectors // per_part)

        def task(number: Expr) -> Stmt:
            row, part = number // parts, number % parts
            first = part * per_part
            count = per_part if parts * per_part == vectors else tirx.min(index(per_part), vectors - first)
            return sequence(
                *(self._span(row // rows, row % rows, first, count, span) for span in spans(self.window, self.width))
            )

        return parallel(images * rows * parts, task, self.window.work >= _WORTH)

    def _span(self, image: Expr, y: Expr, first: Expr, count: Any, span: Span) -> Stmt:
        def tile(number: Expr) -> Stmt:
            def block(place: Expr) -> Stmt:
                x = span.column(number)
                ahead = self._ahead(image, y, x, span.width, place)
                return sequence(*ahead, self._tile(image, y, span, x, self.channels.start(place)))

            return loop(count, block, start=first)

        return loop(span.count, tile)

    def _ahead(self, image: Expr, y: Expr, x: Expr, width: int, vector: Expr) -> list[Stmt]:
        """Asks for what the next tile reads that none has read yet, and for what it writes; each vector of channels for
        as many lines as a vector of a tile has."""
        window = self.window

        def lines(buffer: Any, at: list[Expr], pixels: int, written: bool) -> Stmt:
            """A vector's part of the lines of `pixels` that lie one after the other."""
            numbers = LINE // item_size(buffer)
            part = -(-pixels * self.channels.lanes // numbers)
            return unrolled(part, lambda line: fetch(buffer, [*at, (vector * part + line) * numbers], written))

        found = []
        if self._read_far:
            last = y * window.stride[0] + (window.size[0] - 1) * window.dilation[0] - window.padding[0]
            column = (x + width) * window.stride[1]
            for row in range(window.stride[0]):
                found.append(lines(window.data, [image, last - row, column], width * window.stride[1], False))
        if self._far:
            found.append(lines(self.segment.result, [image, y, x + width], width, True))
        return found

    def _tile(self, image: Expr, y: Expr, span: Span, x: Expr, channel: Expr) -> Stmt:
        lanes, width = self.channels.lanes, span.width
        window = self.window
        kernel, stride, dilation = window.size[1], window.stride[1], window.dilation[1]
        sums = allocate([width * lanes], self.dtype, "sums", STACK)
        start = self.segment.anchor.start
        columns = [window.columns(span.start + pixel) for pixel in range(width)]

        def clear(pixel: Expr) -> Stmt:
            return vector(lanes, lambda lane: tirx.BufferStore(sums, start, [pixel * lanes + lane]))

        def add(row: Expr, ky: Expr, kx: Expr, pixel: Expr) -> Stmt:
            def one(lane: Expr) -> Stmt:
                column = (x + pixel) * stride + kx * dilation - window.padding[1]
                number = tirx.BufferLoad(window.data, [image, row, column, channel + lane])
                held = tirx.BufferLoad(sums, [pixel * lanes + lane])
                if window.maximum:
                    value = tirx.max(held, number)
                elif window.weight is None:
                    value = held + number
                else:
                    value = held + number * tirx.BufferLoad(window.weight, [ky, kx, index(0), channel + lane])
                return tirx.BufferStore(sums, value, [pixel * lanes + lane])

            return vector(lanes, one)

        def window_row(ky: Expr) -> Stmt:
            row = y * window.stride[0] + ky * window.dilation[0] - window.padding[0]
            if span.inside:
                kind = loop if kernel > _LARGE else unrolled
                return kind(kernel, lambda kx: unrolled(width, partial(add, row, ky, kx)))
            parts = []
            for kx in range(kernel):
                reached = [pixel for pixel in range(width) if columns[pixel][kx]]
                if reached:
                    parts.append(unrolled(len(reached), partial(add, row, ky, index(kx)), reached[0]))
            return sequence(*parts)

        def at(pixel: Expr, block: int) -> Callable[[Expr], list[Expr]]:
            return lambda lane: [image, y, x + pixel, channel + lane]

        first, count = window.rows(y)
        return sequence(
            tirx.AllocBuffer(sums),
            unrolled(width, clear),
            loop(count, window_row, start=first, name="ky"),
            self.segment.finish_tile([sums], at, width, lanes),
        )


def depthwise(segment: Segment, window: Window, machine: Machine) -> Kernel | None:
    """The kernel of a pool, or of a convolution with as many groups as it has input and output channels."""
    if window.weight is not None and not window.groups == window.source[3] == window.output[3]:
        return None
    border = () if window.border is None else (window.border.buffer,)
    name = "depthwise" if window.weight is not None else "pool"
    return Kernel(name, _Depthwise(segment, window, machine).body(), (), border)
