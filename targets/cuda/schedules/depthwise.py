"""Convolutions of single channels, and pools: each channel by itself.

A thread computes some channels that lie side by side, in one column and some rows below each other; its neighbours
compute the next channels, so that together they read and write long pieces of memory. Each number of the input is read
once for all rows of the thread that it belongs to:

    for each row and column of the input that the thread's windows cover:
      number = data[row, column]
      sums[r] += number * weight[row - r stride, column]          for all r whose window has that row

The weights are in registers where there are few. Large pools have a thread for each row, and ordinary loops.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.threads import kernel, lanes_of, scoped, when
from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, index, loop, sequence, vector
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window

__all__ = ["Depthwise", "depthwise", "is_depthwise"]

_THREADS = 128
_ROWS = 4
_OTHER_THREADS = (64, 256)
_OTHER_ROWS = (1, 2, 8)
_REGISTERS = 64
"""Weights that a thread may keep."""
_TAPS = 49
"""Windows up to which everything is written out."""
_WAVES = 512
"""Threads that keep a multiprocessor busy."""


@dataclass(frozen=True)
class _Form:
    """Division of a kernel among threads."""

    threads: int
    """Of a block."""
    rows: int
    """Of the output, in a thread."""
    lanes: int
    """Channels of a thread."""

    def distance(self, other: _Form) -> float:
        """Distance to another form, in powers of two."""
        ratios = (self.threads / other.threads, self.rows / other.rows, self.lanes / other.lanes)
        return sum(abs(math.log2(ratio)) for ratio in ratios)


def _multiplier(window: Window) -> int:
    """Channels of the output for each of the input."""
    return window.output[3] // window.source[3]


def _form(window: Window, dtype: str, device: Device) -> _Form:
    """The form of the device's rank: the usual one, then others, those that are most like it first."""
    taps = math.prod(window.size)
    widest = 1 if _multiplier(window) > 1 else lanes_of(window.output[3], dtype, 8 if dtype == "float16" else 16)
    while widest > 1 and window.weight is not None and taps * widest > _REGISTERS:
        widest //= 2
    images, rows, columns, channels = window.output
    highest = rows if taps <= _TAPS else 1
    high = min(_ROWS, highest)
    while high > 1 and images * -(-rows // high) * columns * channels // widest < device.processors * _WAVES:
        high //= 2
    usual = _Form(_THREADS, high, widest)
    narrower = [widest >> turn for turn in range(widest.bit_length())]
    heights = [height for height in (_ROWS, *_OTHER_ROWS) if height <= highest]
    forms = [_Form(*sizes) for sizes in itertools.product((_THREADS, *_OTHER_THREADS), heights, narrower)]
    others = sorted((form for form in forms if form != usual), key=usual.distance)
    return [usual, *others][min(device.rank, len(others))]


class Depthwise:
    """Writer of one kernel."""

    def __init__(self, segment: Segment, window: Window, device: Device) -> None:
        self.segment, self.window = segment, window
        self.dtype = str(segment.anchor.buffer.dtype)
        # Sums of float16 are kept in float32; the largest of some numbers is one of them.
        self.sum_dtype = self.dtype if window.maximum else "float32"
        taps = math.prod(window.size)
        form = _form(window, self.dtype, device)
        self.threads, self.rows, self.lanes = form.threads, form.rows, form.lanes
        self.multiplier = _multiplier(window)
        self.written_out = taps <= _TAPS
        self.strips = -(-window.output[1] // self.rows)
        self.keeps = window.weight is not None and self.written_out and taps * self.lanes <= _REGISTERS
        self._sums = allocate([self.rows * self.lanes], self.sum_dtype, "sums")
        self._number = allocate([self.lanes], self.sum_dtype, "number")
        self._weights = allocate([taps * self.lanes], self.sum_dtype, "weights")

    def kernel(self) -> Kernel:
        """Writes all blocks."""
        images, _, columns, channels = self.window.output
        dims = [images, self.strips, columns, channels // self.lanes]
        total = math.prod(dims)

        def body(blocks: Any, thread: Expr) -> Stmt:
            number = blocks[0] * self.threads + thread
            image, strip, x, channel = unflattened(number, dims)
            statement = self.thread(image, strip * self.rows, x, channel * self.lanes)
            return when(number < total if total % self.threads else None, statement)

        border = () if self.window.border is None else (self.window.border.buffer,)
        name = "pool" if self.window.weight is None else "depthwise"
        return Kernel(name, kernel([-(-total // self.threads)], self.threads, body), (), border)

    def thread(self, image: Expr, y: Expr, x: Expr, channel: Expr) -> Stmt:
        """Writes what a thread does, for its rows from y on, and its channels."""
        stage = self.segment.anchor
        assert stage.start is not None
        start = tirx.const(float(stage.start.value), self.sum_dtype)
        taps = math.prod(self.window.size)
        buffers = [self._sums, self._number, *([self._weights] if self.keeps else [])]
        return scoped(
            buffers,
            *(self._each(lambda lane, r=r: self._put(r, start, lane)) for r in range(self.rows)),
            *(self._keep(tap, channel) for tap in range(taps) if self.keeps),
            self._written_out(image, y, x, channel) if self.written_out else self._loops(image, y, x, channel),
            *(self.finish(r, image, y + r, x, channel) for r in range(self.rows)),
        )

    def _each(self, body: Any) -> Stmt:
        return vector(self.lanes, body)

    def _put(self, row: int, value: Expr, lane: Expr) -> Stmt:
        return tirx.BufferStore(self._sums, value, [index(row * self.lanes) + lane])

    def _keep(self, tap: int, channel: Expr) -> Stmt:
        def one(lane: Expr) -> Stmt:
            return tirx.BufferStore(
                self._weights, self._weight(index(tap), channel + lane), [index(tap * self.lanes) + lane]
            )

        return self._each(one)

    def _weight(self, tap: Expr, channel: Expr) -> Expr:
        across = self.window.size[1]
        return self._as_sum(tirx.BufferLoad(self.window.weight, [tap // across, tap % across, index(0), channel]))

    def _as_sum(self, value: Expr) -> Expr:
        return value if self.dtype == self.sum_dtype else tirx.Cast(self.sum_dtype, value)

    def _read(self, image: Expr, row: Expr, column: Expr, channel: Expr) -> Stmt:
        window = self.window
        stage = self.segment.anchor
        assert stage.start is not None
        outside = tirx.const(float(stage.start.value), self.sum_dtype)
        inside = tirx.all(row >= 0, row < window.source[1], column >= 0, column < window.source[2])

        def one(lane: Expr) -> Stmt:
            source = (channel + lane) // self.multiplier if self.multiplier > 1 else channel + lane
            value = self._as_sum(tirx.BufferLoad(window.data, [image, row, column, source]))
            return tirx.BufferStore(self._number, tirx.if_then_else(inside, value, outside), [lane])

        return self._each(one)

    def _add(self, row: int, tap: Expr, channel: Expr) -> Stmt:
        def one(lane: Expr) -> Stmt:
            held = tirx.BufferLoad(self._sums, [index(row * self.lanes) + lane])
            number = tirx.BufferLoad(self._number, [lane])
            if self.window.maximum:
                return self._put(row, tirx.max(held, number), lane)
            if self.window.weight is not None:
                kept = tirx.BufferLoad(self._weights, [tap * self.lanes + lane])
                number = number * (kept if self.keeps else self._weight(tap, channel + lane))
            return self._put(row, held + number, lane)

        return self._each(one)

    def _written_out(self, image: Expr, y: Expr, x: Expr, channel: Expr) -> Stmt:
        window = self.window
        stride, dilation, size = window.stride, window.dilation, window.size
        users: dict[int, list[tuple[int, int]]] = {}
        for r in range(self.rows):
            for ky in range(size[0]):
                users.setdefault(r * stride[0] + ky * dilation[0], []).append((r, ky))
        statements = []
        for offset, pairs in sorted(users.items()):
            row = y * stride[0] + (offset - window.padding[0])
            for kx in range(size[1]):
                column = x * stride[1] + (kx * dilation[1] - window.padding[1])
                statements.append(self._read(image, row, column, channel))
                statements += [self._add(r, index(ky * size[1] + kx), channel) for r, ky in pairs]
        return sequence(*statements)

    def _loops(self, image: Expr, y: Expr, x: Expr, channel: Expr) -> Stmt:
        window = self.window

        def tap(ky: Expr, kx: Expr) -> Stmt:
            row = y * window.stride[0] + ky * window.dilation[0] - window.padding[0]
            column = x * window.stride[1] + kx * window.dilation[1] - window.padding[1]
            return sequence(self._read(image, row, column, channel), self._add(0, ky * window.size[1] + kx, channel))

        return loop(window.size[0], lambda ky: loop(window.size[1], lambda kx: tap(ky, kx)))

    def finish(self, r: int, image: Expr, y: Expr, x: Expr, channel: Expr, into: Any = None) -> Stmt:
        """Writes what follows the sums of a row, and where `into` is a buffer, the results into that, too."""

        def value(lane: Expr) -> Expr:
            held = tirx.BufferLoad(self._sums, [index(r * self.lanes) + lane])
            return held if self.sum_dtype == self.dtype else tirx.Cast(self.dtype, held)

        statement = self.segment.finish(lambda lane: [image, y, x, channel + lane], self.lanes, value, into)
        return when(y < self.window.output[1] if self.window.output[1] % self.rows else None, statement)


def is_depthwise(window: Window) -> bool:
    """Whether a convolution is of single channels; one channel, of which many are made, is a product."""
    return window.groups == window.source[3] and (window.groups > 1 or window.output[3] == 1)


def depthwise(segment: Segment, window: Window, device: Device) -> Kernel | None:
    """The kernel of a convolution of single channels or of a pool; None for others."""
    return (
        None if window.weight is not None and not is_depthwise(window) else Depthwise(segment, window, device).kernel()
    )
