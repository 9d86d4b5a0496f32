"""Convolutions and connected layers as products of matrices whose first one is never stored.

    out[pixel, o] = sum over k of data(pixel, k) * weight[k, o],    k = (ky, kx, i)

data(pixel, k) is read where the window lies for that pixel, and 0 outside of the tensor. A block computes a tile of
`rows` pixels by `columns` channels. In steps of `depth` it brings a strip of either matrix into shared memory, and
multiplies the two; what the next step needs is on its way to registers meanwhile:

    fetch strip 0
    for each step:
      put what was fetched into shared memory;  barrier
      fetch the next strip
      multiply;  barrier

The weights are stored (group, k, o), with zeros up to whole steps and tiles. What multiplies is a subclass's matter:
`_Scalar` does it in float32 with the ordinary units, a tile of 4 x 4 or more in the registers of each thread; in
tensors.py it is the tensor cores.

Of the tiles that are listed, that one is taken whose blocks keep the GPU busy for the shortest time, by a formula.
Threads, registers and shared memory of each are within the limits of all GPUs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from dnc.tvm.gpu.device import Device
from dnc.tvm.gpu.schedules.threads import kernel, lanes_of, scoped, when
from dnc.tvm.schedules.injective import unflattened
from dnc.tvm.schedules.kernel import Kernel, Packed
from dnc.tvm.schedules.loops import Expr, Stmt, allocate, constant, index, loop, sequence, unrolled, vector
from dnc.tvm.schedules.stages import Segment, sides
from dnc.tvm.schedules.window import Window

__all__ = ["Product", "Tile", "best_tile", "scalar_product"]


@dataclass(frozen=True)
class Tile:
    """What one block computes, and with how many threads."""

    rows: int
    columns: int
    threads: int
    cost: float
    """How long one number of the tile takes, compared to those of the other tiles of the list."""


def best_tile(tiles: Sequence[Tile], pixels: int, channels: int, groups: int, device: Device) -> Tile:
    """The tile with which all blocks are done first."""

    def time(tile: Tile) -> float:
        blocks = -(-pixels // tile.rows) * -(-channels // tile.columns) * groups
        return -(-blocks // device.processors) * tile.rows * tile.columns * tile.cost

    return min(tiles, key=time)


class Product(ABC):
    """One kernel while it is written."""

    name: str
    depth: int
    """How many k there are in a step."""

    def __init__(self, segment: Segment, window: Window, tile: Tile) -> None:
        self.segment, self.window, self.tile = segment, window, tile
        self.dtype = str(window.data.dtype)
        self.groups = window.groups
        self.inputs, self.outputs = window.source[3] // self.groups, window.output[3] // self.groups
        self.pixels = math.prod(window.output[:3])
        self.terms = window.size[0] * window.size[1] * self.inputs
        self.steps = -(-self.terms // self.depth)
        self._tiles = -(-self.outputs // tile.columns)
        self._lanes = lanes_of(self.inputs, self.dtype)
        self._weight_lanes = 8 if self.dtype == "float16" else 4
        shape = (self.groups, self.steps * self.depth, self._tiles * tile.columns)
        self.weight = tirx.decl_buffer([index(side) for side in shape], self.dtype, "weight")
        # TVM writes no vectors of more than four truths, which activations compare by.
        self.finish_lanes = lanes_of(self.outputs, "float32")
        self._data_strip = [tile.rows * self.depth // self._lanes, self._lanes]
        self._weight_strip = [self.depth * tile.columns // self._weight_lanes, self._weight_lanes]
        self.fetched = [
            allocate([-(-count // tile.threads) * lanes], self.dtype, name)
            for (count, lanes), name in ((self._data_strip, "fetched_data"), (self._weight_strip, "fetched_weight"))
        ]

    def pack(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(kh, kw, I, O) -> (group, k, o), with zeros."""
        groups = weight.reshape(self.terms, self.groups, self.outputs).transpose(1, 0, 2)
        padding = [(0, 0), (0, self.steps * self.depth - self.terms)]
        padding.append((0, self._tiles * self.tile.columns - self.outputs))
        return np.ascontiguousarray(np.pad(groups, padding))

    def kernel(self) -> Kernel:
        """All blocks."""
        grid = (-(-self.pixels // self.tile.rows), self._tiles, self.groups)
        body = kernel(grid if self.groups > 1 else grid[:2], self.tile.threads, self._block)
        border = () if self.window.border is None else (self.window.border.buffer,)
        return Kernel(self.name, body, (Packed(self.window.weight, self.weight, self.pack),), border)

    @property
    @abstractmethod
    def buffers(self) -> Sequence[Any]:
        """What the subclass needs, the strips in shared memory among them."""

    @abstractmethod
    def clear(self, thread: Expr) -> Stmt:
        """Sets the sums to 0."""

    @abstractmethod
    def keep_data(self, row: Expr, k: Expr, value: Expr, lanes: int) -> Stmt:
        """Puts numbers of a row of the strip into shared memory: `value` of a lane, from k on."""

    @abstractmethod
    def keep_weight(self, k: Expr, column: Expr, value: Expr, lanes: int) -> Stmt:
        """The same for weights, from a column on."""

    @abstractmethod
    def multiply(self, thread: Expr) -> Stmt:
        """Adds the product of the strips to the sums."""

    @abstractmethod
    def finish(self, thread: Expr, group: Expr, first: tuple[Expr, Expr]) -> Stmt:
        """Hands the sums of a tile, which begins at a pixel and a channel, to `store`."""

    def _block(self, blocks: Sequence[Expr], thread: Expr) -> Stmt:
        group = blocks[2] if self.groups > 1 else index(0)
        first = blocks[0] * self.tile.rows, blocks[1] * self.tile.columns

        def step(number: Expr) -> Stmt:
            fetch = self._fetch(thread, group, first, number + 1)
            more = fetch if self.steps == 1 else when(number + 1 < self.steps, fetch)
            return sequence(self._keep(thread), more if self.steps > 1 else None, self.multiply(thread))

        return scoped(
            [*self.buffers, *self.fetched],
            self.clear(thread),
            self._fetch(thread, group, first, index(0)),
            loop(self.steps, step, name="step"),
            self.finish(thread, group, first),
        )

    def _share(self, strip: Sequence[int], thread: Expr, body: Any) -> Stmt:
        """A thread's part of a strip: `body` is given the number of a vector in the strip, and among the thread's."""
        count, _ = strip
        turns = -(-count // self.tile.threads)

        def turn(number: Expr) -> Stmt:
            place = thread + number * self.tile.threads
            return when(None if count % self.tile.threads == 0 else place < count, body(place, number))

        return unrolled(turns, turn)

    def _fetch(self, thread: Expr, group: Expr, first: tuple[Expr, Expr], step: Expr) -> Stmt:
        window, inputs, lanes = self.window, self.inputs, self._lanes
        (height, width), zero = window.source[1:3], constant(0.0, self.dtype)
        local_data, local_weight = self.fetched
        across = self.depth // lanes

        def data(place: Expr, number: Expr) -> Stmt:
            pixel = first[0] + place // across
            k = step * self.depth + place % across * lanes
            tap, channel = k // inputs, group * inputs + k % inputs
            image, y, x = unflattened(pixel, window.output[:3])
            row = y * window.stride[0] + tap // window.size[1] * window.dilation[0] - window.padding[0]
            column = x * window.stride[1] + tap % window.size[1] * window.dilation[1] - window.padding[1]
            conditions = []
            if self.pixels % self.tile.rows:
                conditions.append(pixel < self.pixels)
            if self.terms % self.depth:
                conditions.append(k < self.terms)
            if not self._straight:
                conditions += [row >= 0, row < height, column >= 0, column < width]

            def one(lane: Expr) -> Stmt:
                if self._straight:
                    where = [*unflattened(pixel, sides(window.data)[:-1]), k + lane]
                else:
                    where = [image, row, column, channel + lane]
                value = tirx.BufferLoad(window.data, where)
                if conditions:
                    value = tirx.if_then_else(tirx.all(*conditions), value, zero)
                return tirx.BufferStore(local_data, value, [number * lanes + lane])

            return vector(lanes, one)

        each = self._weight_lanes
        wide = self.tile.columns // each

        def weight(place: Expr, number: Expr) -> Stmt:
            def one(lane: Expr) -> Stmt:
                where = [group, step * self.depth + place // wide, first[1] + place % wide * each + lane]
                return tirx.BufferStore(local_weight, tirx.BufferLoad(self.weight, where), [number * each + lane])

            return vector(each, one)

        return sequence(self._share(self._data_strip, thread, data), self._share(self._weight_strip, thread, weight))

    @property
    def _straight(self) -> bool:
        """Whether each pixel's window is that pixel of the tensor."""
        window = self.window
        plain = window.size == (1, 1) and window.stride == (1, 1) and window.padding == (0, 0)
        return plain and window.source[:3] == window.output[:3] and self.groups == 1

    def _keep(self, thread: Expr) -> Stmt:
        local_data, local_weight = self.fetched
        lanes, each = self._lanes, self._weight_lanes
        across, wide = self.depth // lanes, self.tile.columns // each

        def data(place: Expr, number: Expr) -> Stmt:
            return self.keep_data(place // across, place % across * lanes, _lane_of(local_data, number * lanes), lanes)

        def weight(place: Expr, number: Expr) -> Stmt:
            return self.keep_weight(place // wide, place % wide * each, _lane_of(local_weight, number * each), each)

        return sequence(self._share(self._data_strip, thread, data), self._share(self._weight_strip, thread, weight))

    def store(self, group: Expr, pixel: Expr, channel: Expr, lanes: int, value: Any) -> Stmt:
        """What follows the product, for `lanes` channels of a pixel, where these exist."""
        outer = sides(self.segment.result)[:-1]
        conditions = []
        if self.pixels % self.tile.rows:
            conditions.append(pixel < self.pixels)
        if self.outputs % self.tile.columns:
            conditions.append(channel < self.outputs)

        def at(lane: Expr) -> list[Expr]:
            return [*unflattened(pixel, outer), group * self.outputs + channel + lane]

        statement = self.segment.finish(at, lanes, value)
        return when(tirx.all(*conditions) if conditions else None, statement)


def _lane_of(buffer: Any, start: Expr) -> Any:
    return lambda lane: tirx.BufferLoad(buffer, [start + lane])


_WIDTH = 4
"""Numbers that one instruction loads from shared memory."""
_PADDING = 4
"""Columns that nothing uses, so that threads that write into one column of a strip do not all hit one memory bank."""
_SCALAR_TILES = (
    # Of a tile of r x c in registers, r + c numbers are loaded for r c multiplications.
    Tile(128, 128, 256, 0.80),
    Tile(128, 64, 256, 0.90),
    Tile(64, 64, 256, 1.0),
    Tile(64, 64, 128, 0.95),
    Tile(128, 32, 128, 0.95),
    Tile(128, 16, 128, 1.05),
    Tile(64, 32, 128, 1.1),
    Tile(32, 64, 128, 1.1),
    Tile(32, 32, 64, 1.3),
    Tile(64, 16, 64, 1.4),
    Tile(16, 64, 64, 1.4),
)


class _Scalar(Product):
    name = "product"
    depth = 16

    def __init__(self, segment: Segment, window: Window, tile: Tile) -> None:
        super().__init__(segment, window, tile)
        numbers = tile.rows * tile.columns // tile.threads
        # 4 x 4, 8 x 4 or 8 x 8.
        self._tall, self._wide = {16: (4, 4), 32: (8, 4), 64: (8, 8)}[numbers]
        self._across = tile.columns // self._wide
        # Flat: TVM would cut off columns that nothing uses.
        self._stride = tile.rows + _PADDING
        self._data = allocate([self.depth * self._stride], "float32", "data", "shared")
        self._weight = allocate([self.depth * tile.columns], "float32", "weights", "shared")
        self._sums = allocate([numbers], "float32", "sums")
        self._left = allocate([self._tall], "float32", "left")
        self._right = allocate([self._wide], "float32", "right")

    @property
    def buffers(self) -> Sequence[Any]:
        return [self._data, self._weight, self._sums, self._left, self._right]

    def clear(self, thread: Expr) -> Stmt:
        zero = constant(0.0, "float32")
        return unrolled(self._tall * self._wide, lambda i: tirx.BufferStore(self._sums, zero, [i]))

    def keep_data(self, row: Expr, k: Expr, value: Any, lanes: int) -> Stmt:
        stride = self._stride
        return unrolled(lanes, lambda i: tirx.BufferStore(self._data, _single(value(i)), [(k + i) * stride + row]))

    def keep_weight(self, k: Expr, column: Expr, value: Any, lanes: int) -> Stmt:
        start = k * self.tile.columns + column

        def one(part: Expr, lane: Expr) -> Stmt:
            at = part * _WIDTH + lane
            return tirx.BufferStore(self._weight, _single(value(at)), [start + at])

        return unrolled(lanes // _WIDTH, lambda part: vector(_WIDTH, lambda lane: one(part, lane)))

    def _row(self, thread: Expr) -> Expr:
        """The first of a thread's rows in the tile; the others follow."""
        return thread // self._across * self._tall

    def _column(self, thread: Expr, part: Expr) -> Expr:
        """The first of four of a thread's columns. Neighbours have the next four, so that together they read and write
        long pieces of memory."""
        return (part * self._across + thread % self._across) * _WIDTH

    def multiply(self, thread: Expr) -> Stmt:
        row = self._row(thread)

        def copy(local: Any, part: Expr, source: Any, start: Expr) -> Stmt:
            def one(lane: Expr) -> Stmt:
                return tirx.BufferStore(local, tirx.BufferLoad(source, [start + lane]), [part * _WIDTH + lane])

            return vector(_WIDTH, one)

        def add(i: Expr, j: Expr) -> Stmt:
            at = [i * self._wide + j]
            term = tirx.BufferLoad(self._left, [i]) * tirx.BufferLoad(self._right, [j])
            return tirx.BufferStore(self._sums, tirx.BufferLoad(self._sums, at) + term, at)

        def step(k: Expr) -> Stmt:
            def left(part: Expr) -> Stmt:
                return copy(self._left, part, self._data, k * self._stride + row + part * _WIDTH)

            def right(part: Expr) -> Stmt:
                return copy(self._right, part, self._weight, k * self.tile.columns + self._column(thread, part))

            return sequence(
                unrolled(self._tall // _WIDTH, left),
                unrolled(self._wide // _WIDTH, right),
                unrolled(self._tall, lambda i: unrolled(self._wide, lambda j: add(i, j))),
            )

        return loop(self.depth, step, tirx.ForKind.UNROLLED)

    def finish(self, thread: Expr, group: Expr, first: tuple[Expr, Expr]) -> Stmt:
        row, lanes = self._row(thread), self.finish_lanes

        def part(i: Expr, j: Expr) -> Stmt:
            number = j * lanes
            column = self._column(thread, number // _WIDTH) + number % _WIDTH

            def value(lane: Expr) -> Expr:
                held = tirx.BufferLoad(self._sums, [i * self._wide + number + lane])
                return held if self.dtype == "float32" else tirx.Cast(self.dtype, held)

            return self.store(group, first[0] + row + i, first[1] + column, lanes, value)

        return unrolled(self._tall, lambda i: unrolled(self._wide // lanes, lambda j: part(i, j)))


def _single(value: Expr) -> Expr:
    return value if value.ty.dtype == "float32" else tirx.Cast("float32", value)


def scalar_product(segment: Segment, window: Window, device: Device) -> Kernel | None:
    """The kernel of a convolution or connected layer, by the ordinary units; None for pools."""
    if window.weight is None:
        return None
    outputs = window.output[3] // window.groups
    tile = best_tile(_SCALAR_TILES, math.prod(window.output[:3]), outputs, window.groups, device)
    return _Scalar(segment, window, tile).kernel()
