"""The product of tiled.py on tensor cores: float16 in, sums in float32.

A warp multiplies 16 x 16 matrices, which CUDA calls fragments and spreads over its threads in an order that only the
hardware knows. So at the end each warp puts the sums of one fragment into shared memory, from where its threads take
them row by row through what follows, and so on for its other fragments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from dnc.tvm.gpu.device import Device
from dnc.tvm.gpu.schedules.tiled import Product, Tile, best_tile
from dnc.tvm.schedules.kernel import Kernel
from dnc.tvm.schedules.loops import Expr, Stmt, allocate, constant, sequence, unrolled, vector
from dnc.tvm.schedules.stages import Segment
from dnc.tvm.schedules.window import Window

__all__ = ["tensor_product"]

_SIDE = 16
"""Rows and columns of a fragment."""
_AREA = _SIDE * _SIDE
_WARP = 32
_PADDING = 8
"""Columns that nothing uses: fragments are read along columns of the strips, which must not be in one memory bank."""
_TILES = (
    Tile(128, 128, 256, 0.75),
    Tile(128, 64, 256, 0.9),
    Tile(64, 64, 128, 1.0),
    Tile(128, 32, 128, 1.1),
    Tile(64, 32, 128, 1.3),
    Tile(128, 16, 128, 1.5),
    Tile(32, 64, 128, 1.3),
    Tile(32, 32, 128, 1.7),
    Tile(64, 16, 128, 2.0),
    Tile(16, 64, 128, 2.0),
)
_WARPS = {
    (128, 128): (4, 2),
    (128, 64): (4, 2),
    (64, 64): (2, 2),
    (128, 32): (4, 1),
    (64, 32): (2, 2),
    (128, 16): (4, 1),
    (32, 64): (1, 4),
    (32, 32): (2, 2),
    (64, 16): (4, 1),
    (16, 64): (1, 4),
}
"""How the warps of a tile stand: below each other, and side by side."""


class _Tensor(Product):
    name = "tensor-product"
    depth = 32

    def __init__(self, segment: Segment, window: Window, tile: Tile) -> None:
        super().__init__(segment, window, tile)
        down, self._side = _WARPS[tile.rows, tile.columns]
        self._tall, self._wide = tile.rows // down // _SIDE, tile.columns // self._side // _SIDE
        # Flat: TVM would cut off columns that nothing uses.
        self._data = allocate([tile.rows * (self.depth + _PADDING)], "float16", "data", "shared")
        self._weight = allocate([self.depth * (tile.columns + _PADDING)], "float16", "weights", "shared")
        self._exchange = allocate([down * self._side * _AREA], "float32", "exchange", "shared")
        self._left = allocate([self._tall * _AREA], "float16", "left", "wmma.matrix_a")
        self._right = allocate([self._wide * _AREA], "float16", "right", "wmma.matrix_b")
        self._sums = allocate([self._tall * self._wide * _AREA], "float32", "sums", "wmma.accumulator")

    @property
    def buffers(self) -> Sequence[Any]:
        return [self._data, self._weight, self._exchange, self._left, self._right, self._sums]

    def clear(self, thread: Expr) -> Stmt:
        def one(number: Expr) -> Stmt:
            return _call("tvm_fill_fragment", self._sums.data, _SIDE, _SIDE, _SIDE, number, constant(0.0, "float32"))

        return unrolled(self._tall * self._wide, one)

    def keep_data(self, row: Expr, k: Expr, value: Any, lanes: int) -> Stmt:
        start = row * (self.depth + _PADDING) + k
        return vector(lanes, lambda lane: tirx.BufferStore(self._data, value(lane), [start + lane]))

    def keep_weight(self, k: Expr, column: Expr, value: Any, lanes: int) -> Stmt:
        start = k * (self.tile.columns + _PADDING) + column
        return vector(lanes, lambda lane: tirx.BufferStore(self._weight, value(lane), [start + lane]))

    def _place(self, thread: Expr) -> tuple[Expr, Expr]:
        """Row and column of a warp's part of the tile."""
        warp = thread // _WARP
        return warp // self._side * (self._tall * _SIDE), warp % self._side * (self._wide * _SIDE)

    def multiply(self, thread: Expr) -> Stmt:
        row, column = self._place(thread)
        deep, broad = self.depth + _PADDING, self.tile.columns + _PADDING

        def step(number: Expr) -> Stmt:
            k = number * _SIDE

            def left(i: Expr) -> Stmt:
                return _load(self._left, i, self._data, (row + i * _SIDE) * deep + k, deep)

            def right(j: Expr) -> Stmt:
                return _load(self._right, j, self._weight, k * broad + column + j * _SIDE, broad)

            def add(i: Expr, j: Expr) -> Stmt:
                sums = self._sums.data, i * self._wide + j
                return _call("tvm_mma_sync", *sums, self._left.data, i, self._right.data, j, *sums)

            return sequence(
                unrolled(self._tall, left),
                unrolled(self._wide, right),
                unrolled(self._tall, lambda i: unrolled(self._wide, lambda j: add(i, j))),
            )

        return unrolled(self.depth // _SIDE, step)

    def finish(self, thread: Expr, group: Expr, first: tuple[Expr, Expr]) -> Stmt:
        row, column = self._place(thread)
        warp, place = thread // _WARP, thread % _WARP
        lanes = self.finish_lanes
        across = _SIDE // lanes

        def fragment(number: Expr) -> Stmt:
            pixel = first[0] + row + number // self._wide * _SIDE
            channel = first[1] + column + number % self._wide * _SIDE

            def part(turn: Expr) -> Stmt:
                vectors = place + turn * _WARP
                y, x = vectors // across, vectors % across * lanes

                def value(lane: Expr) -> Expr:
                    held = tirx.BufferLoad(self._exchange, [warp * _AREA + y * _SIDE + x + lane])
                    return held if self.dtype == "float32" else tirx.Cast(self.dtype, held)

                return self.store(group, pixel + y, channel + x, lanes, value)

            return sequence(
                _call(
                    "tvm_store_matrix_sync",
                    self._sums.data,
                    _SIDE,
                    _SIDE,
                    _SIDE,
                    number,
                    _pointer(self._exchange, warp * _AREA, _SIDE, "w"),
                    _SIDE,
                    "row_major",
                ),
                unrolled(_AREA // lanes // _WARP, part),
            )

        return unrolled(self._tall * self._wide, fragment)


def _call(name: str, *arguments: Any) -> Stmt:
    """A call of one of CUDA's functions on fragments."""
    return tirx.Evaluate(tirx.call_intrin("handle", f"tirx.{name}", *arguments))


def _pointer(buffer: Any, offset: Expr, stride: int, mode: str) -> Expr:
    """The address of an element from which on a fragment is read or written."""
    return buffer.access_ptr(mode, offset=offset, extent=(_SIDE - 1) * stride + _SIDE)


def _load(fragments: Any, number: Expr, source: Any, offset: Expr, stride: int) -> Stmt:
    pointer = _pointer(source, offset, stride, "r")
    return _call("tvm_load_matrix_sync", fragments.data, _SIDE, _SIDE, _SIDE, number, pointer, stride, "row_major")


def tensor_product(segment: Segment, window: Window, device: Device) -> Kernel | None:
    """The kernel of a convolution or connected layer in float16; None for others."""
    if window.weight is None or str(window.data.dtype) != "float16" or str(segment.anchor.buffer.dtype) != "float16":
        return None
    outputs = window.output[3] // window.groups
    if outputs < _SIDE // 2 or window.source[3] // window.groups * window.size[0] * window.size[1] < _SIDE // 2:
        return None
    tile = best_tile(_TILES, math.prod(window.output[:3]), outputs, window.groups, device)
    return _Tensor(segment, window, tile).kernel()
