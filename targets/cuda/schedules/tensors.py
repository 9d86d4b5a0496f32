"""The product of tiled.py on tensor cores: float16 in, or float32 rounded to TF32; sums in float32.

A warp multiplies 16 x 16 matrices, which CUDA calls fragments and spreads over its threads in an order that only the
hardware knows. So at the end each warp puts the sums of some fragments side by side into shared memory, where the
strip of data was, from where its threads take them row by row through what follows, and so on for its other fragments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import tirx

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.forms import Form, Kind, Tile, forms_of, ranked
from dnc.targets.cuda.schedules.helpers import barrier, multiply_tf32, pointer, store_fragment, warp_barrier
from dnc.targets.cuda.schedules.mma import MMA_RATE, mma_product, mma_tiles
from dnc.targets.cuda.schedules.tiled import Product
from dnc.targets.cuda.schedules.warpgroups import WGMMA_RATE, wgmma_product, wgmma_tiles
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, constant, loop, sequence, unrolled
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["tensor_product"]

_SIDE = 16
"""Rows and columns of a fragment."""
_WARP = 32
_PADDING = 8
"""Columns that nothing uses: fragments are read along columns of the strips, which must not be in one memory bank."""
_APART = 4
"""Numbers between the rows of sums in shared memory, for the same reason."""
_RATE = 1024.0
"""Multiplications of a multiprocessor in a cycle."""
_TILES = (
    Tile(128, 128, 256, 32, 1.2),
    Tile(128, 128, 128, 32, 1.1),
    Tile(128, 64, 128, 32, 1.3),
    Tile(64, 64, 128, 32, 1.5),
    Tile(64, 64, 128, 64, 1.4),
    Tile(128, 32, 128, 32, 1.7),
    Tile(64, 32, 128, 64, 2.0),
    Tile(128, 16, 128, 32, 2.5),
    Tile(32, 64, 128, 64, 2.0),
    Tile(32, 32, 128, 64, 3.0),
    Tile(64, 16, 128, 32, 3.5),
    Tile(16, 64, 128, 64, 3.5),
)
_TF32_RATE = 512.0
_TF32_DEEP = 8
"""k of a fragment."""
_TF32_HALF, _TF32_REST = np.uint32(1 << 12), np.uint32((1 << 13) - 1)
_TF32_TILES = tuple(replace(tile, depth=tile.depth // 2) for tile in _TILES)
"""Numbers twice as large: half as many of them in a step."""
_WARPS = {
    (128, 128, 256): (4, 2),
    (128, 128, 128): (2, 2),
    (128, 64, 128): (2, 2),
    (64, 64, 128): (2, 2),
    (128, 32, 128): (4, 1),
    (64, 32, 128): (2, 2),
    (128, 16, 128): (4, 1),
    (32, 64, 128): (1, 4),
    (32, 32, 128): (2, 2),
    (64, 16, 128): (4, 1),
    (16, 64, 128): (1, 4),
}
"""How the warps of a tile stand: below each other, and side by side."""


class _Tensor(Product):
    name = "tensor-product"
    multiplied = "float16"
    """The type of the strips."""

    def __init__(self, segment: Segment, window: Window, form: Form, device: Device) -> None:
        tile = form.tile
        down, self._side = _WARPS[tile.rows, tile.columns, tile.threads]
        self._tall, self._wide = tile.rows // down // _SIDE, tile.columns // self._side // _SIDE
        self._beside = 1
        self._left = allocate([self._tall * _SIDE * _SIDE], "float16", "left", "wmma.matrix_a")
        self._right = allocate([self._wide * _SIDE * _SIDE], "float16", "right", "wmma.matrix_b")
        self._sums = allocate([self._tall * self._wide * _SIDE * _SIDE], "float32", "sums", "wmma.accumulator")
        super().__init__(segment, window, form, device, self.multiplied)

    @property
    def data_stride(self) -> int:
        return self.depth + _PADDING

    @property
    def weight_stride(self) -> int:
        return self.tile.columns + _PADDING

    def exchanged(self, room: int) -> int:
        rows = self.tile.threads // _WARP * _SIDE
        wanted = {beside: rows * (beside * _SIDE + _APART) * 4 for beside in (self._wide, 2, 1)}
        self._beside = next((beside for beside, size in wanted.items() if size <= room), 1)
        return wanted[self._beside]

    @property
    def buffers(self) -> Sequence[Any]:
        return [self._left, self._right, self._sums]

    def clear(self, thread: Expr) -> Stmt:
        def one(number: Expr) -> Stmt:
            shape = (_SIDE, _SIDE, _SIDE if self.multiplied == "float16" else _TF32_DEEP)
            return _call("tvm_fill_fragment", self._sums.data, *shape, number, constant(0.0, "float32"))

        return unrolled(self._tall * self._wide, one)

    def _place(self, thread: Expr) -> tuple[Expr, Expr]:
        """Row and column of a warp's part of the tile."""
        warp = thread // _WARP
        return warp // self._side * (self._tall * _SIDE), warp % self._side * (self._wide * _SIDE)

    def multiply(self, thread: Expr, data: tuple[Any, Expr], weights: tuple[Any, Expr]) -> Stmt:
        row, column = self._place(thread)
        deep, broad = self.data_stride, self.weight_stride

        def step(number: Expr) -> Stmt:
            k = number * _SIDE

            def left(i: Expr) -> Stmt:
                return _load(self._left, i, data[0], data[1] + (row + i * _SIDE) * deep + k, deep)

            def right(j: Expr) -> Stmt:
                return _load(self._right, j, weights[0], weights[1] + k * broad + column + j * _SIDE, broad)

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
        lanes, stride, beside = self.finish_lanes, self._beside * _SIDE + _APART, self._beside
        own = thread // _WARP * (_SIDE * stride)
        across = beside * _SIDE // lanes

        def exchanged(offset: Expr) -> Expr:
            """Address of a sum, which takes the place of two numbers of the strip if these are float16."""
            return pointer(self.data, (own + offset) * (2 if self.strip_dtype == "float16" else 1))

        def some(i: Expr, j: Expr) -> Stmt:
            def put(other: Expr) -> Stmt:
                number = i * self._wide + j * beside + other
                return store_fragment(self._sums, number, exchanged(other * _SIDE), stride)

            def turn(number: Expr) -> Stmt:
                vectors = thread % _WARP + number * _WARP
                y, x = vectors // across, vectors % across * lanes
                pixel = first[0] + row + i * _SIDE + y
                channel = first[1] + column + j * (beside * _SIDE) + x
                return self.store_sums(group, pixel, channel, exchanged(y * stride + x))

            return sequence(
                warp_barrier(), unrolled(beside, put), warp_barrier(), loop(_SIDE * across // _WARP, turn, name="turn")
            )

        # Other warps may still read the strip.
        return sequence(barrier(), unrolled(self._tall, lambda i: unrolled(self._wide // beside, lambda j: some(i, j))))

    def put(self, thread: Expr, where: Callable[[Expr], Expr]) -> Stmt:
        row, column = self._place(thread)
        stride = self.tile.columns

        def fragment(number: Expr) -> Stmt:
            start = (row + number // self._wide * _SIDE) * stride + column + number % self._wide * _SIDE
            return store_fragment(self._sums, number, where(start), stride)

        return unrolled(self._tall * self._wide, fragment)


class _Tf32(_Tensor):
    """Float32 in, of which 11 bits are multiplied."""

    name = "tf32-product"
    multiplied = "float32"

    @property
    def data_stride(self) -> int:
        return self.depth + _PADDING // 2

    @property
    def buffers(self) -> Sequence[Any]:
        return [self._sums]

    def pack(self, weight: Array) -> Array:
        """Rounded, ties away from 0, as CUDA does it."""
        packed = super().pack(weight)
        return ((packed.view(np.uint32) + _TF32_HALF) & ~_TF32_REST).view(np.float32)

    def multiply(self, thread: Expr, data: tuple[Any, Expr], weights: tuple[Any, Expr]) -> Stmt:
        row, column = self._place(thread)
        deep, broad = self.data_stride, self.weight_stride

        def step(number: Expr) -> Stmt:
            k = number * _TF32_DEEP
            return multiply_tf32(
                self._sums,
                (self._tall, self._wide),
                (pointer(data[0], data[1] + row * deep + k), deep),
                (pointer(weights[0], weights[1] + k * broad + column), broad),
            )

        return unrolled(self.depth // _TF32_DEEP, step)


def _call(name: str, *arguments: Any) -> Stmt:
    """A call of one of CUDA's functions on fragments."""
    return tirx.Evaluate(tirx.call_intrin("handle", f"tirx.{name}", *arguments))


def _load(fragments: Any, number: Expr, source: Any, offset: Expr, stride: int) -> Stmt:
    shape = (_SIDE, _SIDE, _SIDE)
    return _call("tvm_load_matrix_sync", fragments.data, *shape, number, pointer(source, offset), stride, "row_major")


def tensor_product(segment: Segment, window: Window, device: Device) -> Kernel | None:
    """The kernel of a convolution or connected layer in float16, bfloat16, or if TF32 is allowed, float32; None for
    others."""
    if window.weight is None:
        return None
    dtypes = {str(window.data.dtype), str(segment.anchor.buffer.dtype)}
    # Of a bfloat16, held as uint16, nothing else knows what it is.
    small = min(window.output[3], window.source[3] * math.prod(window.size)) // window.groups < _SIDE // 2
    if small and "uint16" not in dtypes:
        return None
    kinds = []
    if dtypes == {"float16"}:
        forms = forms_of(window, _TILES, _RATE, device)
        kinds.append(Kind(lambda form: _Tensor(segment, window, form, device).kernel(), forms))
    # They scale nothing.
    if dtypes in ({"float16"}, {"uint16", "float32"}) and window.scales is None:
        # What multiplies bfloat16 has no kind that a GPU has run; then the one that more GPUs have.
        forms = []
        if device.new or dtypes == {"float16"}:
            forms = forms_of(window, wgmma_tiles(window, device), WGMMA_RATE, device)
        kinds.append(Kind(lambda form: wgmma_product(segment, window, form, device), forms, new=True))
        forms = forms_of(window, mma_tiles(window, device), MMA_RATE, device)
        kinds.append(Kind(lambda form: mma_product(segment, window, form, device), forms, new=True))
    if dtypes == {"float32"} and device.tf32 and device.copies:
        forms = forms_of(window, _TF32_TILES, _TF32_RATE, device)
        kinds.append(Kind(lambda form: _Tf32(segment, window, form, device).kernel(), forms))
    if not any(kind.forms for kind in kinds):
        return None
    kind, form = ranked(kinds, device)
    return kind.write(form)
