"""The product of float16 or bfloat16 by mma.sync: what tensors.py does by fragments, with all that is known of where
numbers stand.

The loop is in mma.cuh. As in tiled.py, a block brings strips of both matrices into shared memory, step by step, some
steps ahead; a warp loads 16 x 16 numbers of either while it multiplies the 16 before, also from one step to the next,
so that there is one barrier in a step, and the loads behind it have the products of 16 k to hide in.

Of the data, a row of the strip is a pixel, 32 or 64 numbers long. Its vectors of 8 are exchanged among each other from
row to row, so that 8 pixels' vectors of the same k, which are read at once, are in different memory banks. Where the
pixels begin, and which rows and columns of their windows lie outside, a thread finds once; for a step, one sum and one
comparison are left for each vector.

The weights are stored as the lanes of a warp want them: a warp reads 512 bytes in a row, each lane 16 of them.

The strips take more shared memory than a kernel has without asking: `Device.large`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.forms import Form, Tile
from dnc.targets.cuda.schedules.helpers import address, barrier, multiply_strips, pointer, put_sums, warp_barrier
from dnc.targets.cuda.schedules.summing import Tiles
from dnc.targets.cuda.schedules.threads import kernel, lanes_of, scoped
from dnc.targets.tvm.schedules.kernel import Kernel, Packed
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, index, loop, sequence, unrolled
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["MMA_RATE", "MMA_TILES", "Mma", "mma_product", "mma_tiles"]

_WARP = 32
_STAGES = (5, 4, 3)
_APART = 8
"""Numbers between the rows of sums in shared memory, so that what a warp writes at once is in all memory banks."""
_WINDOW = 15
"""Rows and columns of a window, at most: bits of a number."""
_OTHERS = 64
"""Bytes for what the blocks of a tile tell each other."""
MMA_RATE = 1024.0
"""Multiplications of a multiprocessor in a cycle."""
_WARPS = {
    (128, 256, 256): (2, 4),
    (256, 128, 256): (4, 2),
    (128, 128, 256): (2, 4),
    (128, 128, 128): (2, 2),
    (64, 256, 128): (1, 4),
    (256, 64, 128): (4, 1),
    (64, 128, 128): (2, 2),
    (128, 64, 128): (2, 2),
    (64, 64, 128): (2, 2),
    (32, 128, 128): (1, 4),
    (128, 32, 128): (4, 1),
    (32, 64, 128): (1, 4),
    (64, 32, 128): (2, 2),
    (128, 16, 128): (4, 1),
    (16, 64, 128): (1, 4),
}
"""How the warps of a tile stand: below each other, and side by side."""
MMA_TILES = (
    # A warp that computes 64 x 64 loads 16 numbers for each 512 products of a lane; smaller ones load more.
    Tile(128, 256, 256, 64, 1.0),
    Tile(256, 128, 256, 64, 1.0),
    Tile(128, 256, 256, 32, 1.08),
    Tile(256, 128, 256, 32, 1.08),
    Tile(128, 128, 128, 64, 1.05),
    Tile(128, 128, 128, 32, 1.1),
    Tile(128, 128, 256, 64, 1.15),
    Tile(64, 256, 128, 32, 1.1),
    Tile(256, 64, 128, 32, 1.1),
    Tile(64, 128, 128, 64, 1.25),
    Tile(128, 64, 128, 64, 1.25),
    Tile(64, 64, 128, 64, 1.4),
    Tile(64, 64, 128, 32, 1.5),
    Tile(32, 128, 128, 64, 1.6),
    Tile(128, 32, 128, 32, 1.6),
    Tile(32, 64, 128, 64, 2.0),
    Tile(64, 32, 128, 64, 2.0),
    Tile(128, 16, 128, 32, 2.4),
    Tile(16, 64, 128, 64, 3.0),
)


def mma_tiles(window: Window, device: Device) -> list[Tile]:
    """The tiles of `MMA_TILES` for a convolution of float16 or bfloat16; none where it cannot be computed so.

    Numbers of a pixel are copied two or more at once; sm_80 has such copies.
    """
    lanes = _lanes(window)
    if not device.copies or lanes < 2 or max(window.size) > _WINDOW:
        return []
    # Each thread brings as many vectors as the others.
    return [
        tile
        for tile in MMA_TILES
        if tile.rows * tile.depth // lanes % tile.threads == 0 and _stages(tile, device) is not None
    ]


def _lanes(window: Window) -> int:
    return lanes_of(window.source[3] // window.groups, "float16")


def _stages(tile: Tile, device: Device) -> int | None:
    room = device.large - _OTHERS
    return next((count for count in _STAGES if count * (tile.rows + tile.columns) * tile.depth * 2 <= room), None)


def mma_product(segment: Segment, window: Window, form: Form, device: Device) -> Kernel:
    """The kernel of a convolution or connected layer; the form's tile is one of `mma_tiles`."""
    return Mma(segment, window, form, device).kernel()


class Mma(Tiles):
    """Writer of one kernel."""

    name = "mma-product"

    @property
    def word(self) -> str:
        """The type of 16 bits of what lies in the strips."""
        return self.dtype

    def __init__(self, segment: Segment, window: Window, form: Form, device: Device) -> None:
        super().__init__(segment, window, form)
        tile, stages = form.tile, _stages(form.tile, device)
        assert stages is not None
        down, self._side = _WARPS[tile.rows, tile.columns, tile.threads]
        self._tall, self._broad = tile.rows // down, tile.columns // self._side
        """Rows and columns of a warp."""
        self._stages = min(stages, max(3, self.steps + 1))
        self._stride = self._broad + _APART
        room = self._stages * (tile.rows + tile.columns) * tile.depth
        room = max(room, tile.threads // _WARP * 16 * self._stride * 2)
        # What is declared so has one type wherever a name is used.
        self._strips = allocate([room], self.word, f"strips_{self.word}", "shared.dyn")
        self._sums = allocate([self.area // tile.threads], self.added, "sums")
        packed = (self.groups, self.tiles, self.parts * self.steps, tile.depth * tile.columns)
        self._packed = tirx.decl_buffer([index(side) for side in packed], self.word, "weight")
        plain = window.size == window.stride == (1, 1) and window.source[:3] == window.output[:3]
        self._geometry = (
            (tile.rows, tile.columns, down, self._side, tile.depth, self._stages),
            (*window.source[1:], self.inputs, *window.size, *window.dilation, _lanes(window)),
            (self.pixels, *window.output[1:3], *window.stride, *window.padding, int(plain)),
        )

    def pack(self, weight: Array) -> Array:
        """(kh, kw, I, O) -> (group, tile, step, k and o in it), with zeros, as the lanes of a warp want them."""
        columns, depth = self.tile.columns, self.depth
        steps = self.parts * self.steps
        groups = weight.reshape(self.terms, self.groups, self.outputs).transpose(1, 0, 2)
        padding = [(0, 0), (0, steps * depth - self.terms), (0, self.tiles * columns - self.outputs)]
        # Lane 4 n + k / 2 has the numbers k, k + 1, k + 8, k + 9 of the columns n and n + 8 of each 16 x 16.
        parts = (self.groups, steps, depth // 16, 2, 4, 2, self.tiles, columns // 16, 2, 8)
        order = np.pad(groups, padding).reshape(parts).transpose(0, 6, 1, 2, 7, 9, 4, 8, 3, 5)
        return np.ascontiguousarray(order.reshape([int(side) for side in self._packed.shape]), self.word)

    def data(self, group: Expr) -> Any:
        """Where the data of a group begins."""
        return address(self.window.data, *[index(0)] * (len(self.window.data.shape) - 1), group * self.inputs)

    def kernel(self) -> Kernel:
        """Writes all blocks: those of the same pixels side by side, so that the data comes from memory once."""
        rows = -(-self.pixels // self.tile.rows)
        last = self.groups * self.parts
        grid = (rows * self.tiles, 1, last) if last > 1 else (rows * self.tiles,)
        body = kernel(grid, self.tile.threads, lambda blocks, thread: self._block(blocks, thread))
        border = () if self.window.border is None else (self.window.border.buffer,)
        return Kernel(self.name, body, (Packed(self.window.weight, self._packed, self.pack),), border)

    def _block(self, blocks: Any, thread: Expr) -> Stmt:
        tile, last = self.tile, blocks[2] if len(blocks) > 2 else index(0)
        group, part = last // self.parts, last % self.parts
        row, column = blocks[0] // self.tiles, blocks[0] % self.tiles
        first = row * tile.rows, column * tile.columns
        weights = address(self._packed, group, column, part * self.steps, index(0))
        return scoped(
            [self._strips, self._sums],
            multiply_strips(
                self._sums,
                pointer(self._strips, index(0)),
                (self.data(group), weights),
                self._geometry,
                self.steps,
                (first[0], part * self.steps),
                self.dtype == "uint16",
            ),
            self._finish(thread, group, first)
            if self.parts == 1
            else self.share(thread, (row, column), group, part, first),
        )

    def _place(self, thread: Expr) -> tuple[Expr, Expr]:
        """Row and column of a warp's part of the tile."""
        warp = thread // _WARP
        return warp // self._side * self._tall, warp % self._side * self._broad

    def _own(self, thread: Expr, stride: int) -> Expr:
        """Where a lane's first two sums are among those of 16 rows."""
        return thread % _WARP // 4 * stride + thread % 4 * 2

    def _finish(self, thread: Expr, group: Expr, first: tuple[Expr, Expr]) -> Stmt:
        """Hands the sums to `store`, 16 rows of a warp at once, which go by way of the strips."""
        row, column = self._place(thread)
        lanes, stride = self.finish_lanes, self._stride
        own, across = thread // _WARP * (16 * stride), self._broad // lanes

        def exchanged(offset: Expr) -> Expr:
            # A sum takes the place of two numbers.
            return pointer(self._strips, (own + offset) * 2)

        def some(i: Expr) -> Stmt:
            def turn(number: Expr) -> Stmt:
                vectors = thread % _WARP + number * _WARP
                y, x = vectors // across, vectors % across * lanes
                start = exchanged(y * stride + x)
                return self.store_sums(group, first[0] + row + i * 16 + y, first[1] + column + x, start)

            return sequence(
                warp_barrier(),
                put_sums(exchanged(self._own(thread, stride)), self._warp_sums(i), self._broad, stride),
                warp_barrier(),
                loop(16 * across // _WARP, turn, name="turn"),
            )

        # Other warps may still read the strips.
        return sequence(barrier(), unrolled(self._tall // 16, some))

    def _warp_sums(self, i: Expr) -> Expr:
        return address(self._sums, i * (self._broad // 2))

    def put(self, thread: Expr, where: Callable[[Expr], Expr]) -> Stmt:
        row, column = self._place(thread)
        stride = self.tile.columns

        def some(i: Expr) -> Stmt:
            start = (row + i * 16) * stride + column + self._own(thread, stride)
            return put_sums(where(start), self._warp_sums(i), self._broad, stride)

        return unrolled(self._tall // 16, some)
