"""The product of float16 or bfloat16 by wgmma, which is Hopper's alone (sm_90a): a warpgroup, 128 threads, multiplies
64 rows by up to 256 columns at once. Both matrices stay in shared memory, where the tensor cores read them while the
threads go on.

The loop is in warpgroups.cuh. A block of one to three warpgroups brings strips of both matrices step by step, each 64
numbers of a row:

    begin to bring the strips 0 to stages - 3
    for each step:
      wait for its strips;  barrier
      begin to multiply them
      begin to bring the strips of step + stages - 2, where those of step - 2 were
      wait until those of step - 1 are multiplied

So tensor cores have work while the threads find the next data, and wait for each other. The data is copied by all
threads, up to 16 bytes at once; the weights, which are stored as they stand in shared memory, by one instruction of one
thread, and a place in shared memory (an mbarrier) tells when they are there.

Rows are 128 bytes. The eight vectors of a row are exchanged among each other by the number of the row, as wgmma wants
it (its 128-byte swizzle): vector v of row r stands where v ^ (r % 8) would.

What is read of shared memory by the tensor cores, and written by the engine that copies the weights, is of another
proxy than what threads read and write: `dnc_fence` stands between.
"""

from __future__ import annotations

import math

import numpy as np

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.forms import Form, Tile
from dnc.targets.cuda.schedules.helpers import multiply_grouped, pointer
from dnc.targets.cuda.schedules.lanes import PIECE, WARP, LanesProduct, fits
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, index
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["WGMMA_RATE", "WGMMA_TILES", "wgmma_product", "wgmma_tiles"]

_GROUP = 128
"""Threads of a warpgroup."""
_ROWS = 64
"""Rows that it multiplies at once."""
_DEPTH = 64
"""Numbers of a row in a step."""
_STAGES = (6, 5, 4, 3)
_ALIGNED = 1024
"""Bytes of which the strips begin on a multiple: the exchange of vectors goes by addresses."""
_OTHERS = 1024
"""Bytes for what waits for the weights, and for what the blocks of a tile tell each other."""
WGMMA_RATE = 2048.0
"""Multiplications of a multiprocessor in a cycle."""
WGMMA_TILES = (
    # The larger a tile, the less is brought for it: what a multiprocessor gets of a cache is half of what it could use.
    Tile(192, 256, 384, _DEPTH, 1.1),
    Tile(128, 256, 256, _DEPTH, 1.1),
    Tile(256, 128, 256, _DEPTH, 1.15),
    Tile(128, 128, 256, _DEPTH, 1.25),
    Tile(64, 256, 128, _DEPTH, 1.3),
    Tile(128, 128, 128, _DEPTH, 1.25),
    Tile(128, 64, 256, _DEPTH, 1.7),
    Tile(64, 128, 128, _DEPTH, 1.7),
    Tile(64, 64, 128, _DEPTH, 2.2),
)


def wgmma_tiles(window: Window, device: Device) -> list[Tile]:
    """The tiles of `WGMMA_TILES` for a convolution of float16 or bfloat16; none where it cannot be computed so."""
    return list(WGMMA_TILES) if device.warpgroups and fits(window) else []


def wgmma_product(segment: Segment, window: Window, form: Form, device: Device) -> Kernel:
    """The kernel of a convolution or connected layer; the form's tile is one of `wgmma_tiles`."""
    return _Grouped(segment, window, form, device).kernel()


def _stages(window: Window, form: Form, device: Device) -> int:
    """As many as fit, three at least; into half of the room where a multiprocessor is to have two blocks."""
    tile = form.tile
    blocks = form.parts * -(-math.prod(window.output[:3]) // tile.rows) * -(-window.output[3] // tile.columns)
    rooms = (device.large // 2, device.large) if blocks > device.processors else (device.large,)
    stage = (tile.rows + tile.columns) * _DEPTH * 2
    return next(count for room in rooms for count in _STAGES if count * stage <= room - _OTHERS)


class _Grouped(LanesProduct):
    name = "wgmma-product"

    def __init__(self, segment: Segment, window: Window, form: Form, device: Device) -> None:
        tile = form.tile
        stages = _stages(window, form, device)
        super().__init__(segment, window, form, broad=tile.columns, stages=stages, spare=2, aligned=_ALIGNED)
        self._groups = tile.threads // _GROUP
        self._tall = tile.rows // self._groups // _ROWS

    def pack(self, weight: Array) -> Array:
        """As it stands in shared memory: row by row of a step, one for each output."""
        columns, steps = self.tile.columns, self.parts * self.steps
        groups = weight.reshape(self.terms, self.groups, self.outputs).transpose(1, 0, 2)
        padding = [(0, 0), (0, steps * _DEPTH - self.terms), (0, self.tiles * columns - self.outputs)]
        parts = (self.groups, steps, _DEPTH // 8, 8, self.tiles, columns // 8, 8)
        rows = np.pad(groups, padding).reshape(parts).transpose(0, 4, 1, 5, 6, 2, 3)
        exchanged = np.empty(rows.shape, self.dtype)
        for row in range(8):
            exchanged[..., row, np.arange(8) ^ row, :] = rows[..., row, :, :]
        return exchanged.reshape([int(side) for side in self.packed.shape])

    def multiply(self, data: Expr, weights: Expr, begin: tuple[Expr, Expr]) -> Stmt:
        tile = (self._groups, self._tall, self.tile.columns, self.stages)
        strips, bfloat16 = pointer(self.strips, index(0)), self.dtype == "uint16"
        return multiply_grouped(self.sums, strips, (data, weights), (tile, *self.geometry), self.steps, begin, bfloat16)

    def place(self, thread: Expr, piece: Expr) -> tuple[Expr, Expr]:
        # A warpgroup's warps have 16 rows each of the 64 that it multiplies at once.
        warp = thread // WARP
        return warp // 4 * (self._tall * _ROWS) + piece * _ROWS + warp % 4 * PIECE, index(0)
