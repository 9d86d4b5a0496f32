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

import numpy as np

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.forms import Form, Tile
from dnc.targets.cuda.schedules.helpers import multiply_strips, pointer
from dnc.targets.cuda.schedules.lanes import PIECE, WARP, LanesProduct, fits, together
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, index
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["MMA_RATE", "MMA_TILES", "Mma", "mma_product", "mma_tiles"]

_STAGES = (5, 4, 3)
_OTHERS = 64
"""Bytes for what the blocks of a tile tell each other."""
_RESERVED = 1024
"""Bytes of shared memory that each block costs a multiprocessor besides."""
_MANY_SUMS = 64
"""Of a thread: with fewer, its registers are few enough for three blocks of 128 threads at a time, else for two."""
MMA_RATE = 1024.0
"""Multiplications of a multiprocessor in a cycle."""
_WARPS = {
    (128, 256, 256): (2, 4),
    (256, 128, 256): (4, 2),
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
    Tile(64, 256, 128, 32, 1.1),
    Tile(256, 64, 128, 32, 1.1),
    Tile(64, 128, 128, 64, 1.25),
    Tile(128, 64, 128, 64, 1.25),
    Tile(64, 128, 128, 32, 1.35),
    Tile(128, 64, 128, 32, 1.35),
    Tile(64, 64, 128, 64, 1.4),
    Tile(64, 64, 128, 32, 1.5),
    Tile(32, 128, 128, 64, 1.6),
    Tile(32, 128, 128, 32, 1.7),
    Tile(128, 32, 128, 32, 1.6),
    Tile(32, 64, 128, 64, 2.0),
    Tile(32, 64, 128, 32, 2.1),
    Tile(64, 32, 128, 64, 2.0),
    Tile(64, 32, 128, 32, 2.1),
    Tile(128, 16, 128, 32, 2.4),
    Tile(16, 64, 128, 64, 3.0),
)


def mma_tiles(window: Window, device: Device) -> list[Tile]:
    """The tiles of `MMA_TILES` for a convolution of float16 or bfloat16; none where it cannot be computed so."""
    if not device.copies or not fits(window):
        return []
    # Each thread brings as many vectors as the others.
    return [
        tile
        for tile in MMA_TILES
        if tile.rows * tile.depth // together(window) % tile.threads == 0 and _stages(tile, device) is not None
    ]


def _stages(tile: Tile, device: Device) -> int | None:
    """As many as a block has room for that shares a multiprocessor with others; None if these are too few."""
    blocks = 1 if tile.threads > 128 else 2 if tile.rows * tile.columns // tile.threads >= _MANY_SUMS else 3
    room = (device.large + _RESERVED) // blocks - _RESERVED - _OTHERS
    return next((count for count in _STAGES if count * (tile.rows + tile.columns) * tile.depth * 2 <= room), None)


def mma_product(segment: Segment, window: Window, form: Form, device: Device) -> Kernel:
    """The kernel of a convolution or connected layer; the form's tile is one of `mma_tiles`."""
    return Mma(segment, window, form, device).kernel()


class Mma(LanesProduct):
    """Writer of one kernel."""

    name = "mma-product"

    def __init__(self, segment: Segment, window: Window, form: Form, device: Device) -> None:
        tile, stages = form.tile, _stages(form.tile, device)
        assert stages is not None
        self._down, self._side = _WARPS[tile.rows, tile.columns, tile.threads]
        super().__init__(segment, window, form, broad=tile.columns // self._side, stages=stages, spare=1)

    def pack(self, weight: Array) -> Array:
        """As the lanes of a warp want them."""
        columns, depth = self.tile.columns, self.depth
        steps = self.parts * self.steps
        groups = weight.reshape(self.terms, self.groups, self.outputs).transpose(1, 0, 2)
        padding = [(0, 0), (0, steps * depth - self.terms), (0, self.tiles * columns - self.outputs)]
        # Lane 4 n + k / 2 has the numbers k, k + 1, k + 8, k + 9 of the columns n and n + 8 of each 16 x 16.
        parts = (self.groups, steps, depth // 16, 2, 4, 2, self.tiles, columns // 16, 2, 8)
        order = np.pad(groups, padding).reshape(parts).transpose(0, 6, 1, 2, 7, 9, 4, 8, 3, 5)
        return np.ascontiguousarray(order.reshape([int(side) for side in self.packed.shape]), self.word)

    def multiply(self, data: Expr, weights: Expr, begin: tuple[Expr, Expr]) -> Stmt:
        tile = self.tile
        kind = (tile.rows, tile.columns, self._down, self._side, tile.depth, self.stages)
        strips, bfloat16 = pointer(self.strips, index(0)), self.dtype == "uint16"
        return multiply_strips(self.sums, strips, (data, weights), (kind, *self.geometry), self.steps, begin, bfloat16)

    def place(self, thread: Expr, piece: Expr) -> tuple[Expr, Expr]:
        warp, tall = thread // WARP, self.tile.rows // self._down
        return warp // self._side * tall + piece * PIECE, warp % self._side * self.broad
