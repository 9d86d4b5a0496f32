"""What kernels have in common that multiply strips by instructions of which it is known who has which sum: a warp's are
pieces of 16 rows, of which lane l has the rows l / 4 and l / 4 + 8, and of each 8 columns the two from l % 4 * 2 on.

The loops are in mma.cuh and warpgroups.cuh. Which data a thread brings, and where it is, is in lanes.cuh, for both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from tvm import tirx

from dnc.targets.cuda.schedules.forms import Form
from dnc.targets.cuda.schedules.helpers import address, barrier, pointer, put_sums, warp_barrier
from dnc.targets.cuda.schedules.summing import Tiles
from dnc.targets.cuda.schedules.threads import kernel, lanes_of, scoped
from dnc.targets.tvm.schedules.kernel import Kernel, Packed
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, index, loop, sequence, unrolled
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["PIECE", "WARP", "LanesProduct", "fits", "together"]

WARP = 32
PIECE = 16
"""Rows that a warp has together."""
_APART = 8
"""Numbers between the rows of sums in shared memory, so that what a warp writes at once is in all memory banks."""
_WINDOW = 15
"""Rows and columns of a window, at most: bits of a number."""


def together(window: Window) -> int:
    """How many numbers of a pixel, two bytes each, are copied at once."""
    return lanes_of(window.source[3] // window.groups, "float16")


def fits(window: Window) -> bool:
    """Whether lanes.cuh can bring the data of a convolution: two numbers or more at once."""
    return together(window) >= 2 and max(window.size) <= _WINDOW


class LanesProduct(Tiles):
    """Writer of one kernel."""

    def __init__(
        self, segment: Segment, window: Window, form: Form, *, broad: int, stages: int, spare: int, aligned: int = 64
    ) -> None:
        """What a block holds.

        Args:
            broad: columns of a warp.
            stages: how many steps' strips, at most.
            spare: how many more there are in use than steps are left, at most.
            aligned: of how many bytes the strips begin on a multiple.
        """
        super().__init__(segment, window, form)
        tile = form.tile
        self.broad, self.stages = broad, min(stages, max(3, self.steps + spare))
        self._pieces = self.area // (tile.threads // WARP) // (PIECE * broad)
        self._stride = broad + _APART
        exchanged = tile.threads // WARP * PIECE * self._stride * 2
        room = max(self.stages * (tile.rows + tile.columns) * tile.depth, exchanged)
        # What is declared so has one type wherever a name is used.
        self.strips = tirx.decl_buffer(
            [index(room)], self.word, name=f"strips_{self.word}", scope="shared.dyn", data_alignment=aligned
        )
        self.sums = allocate([self.area // tile.threads], self.added, "sums")
        packed = (self.groups, self.tiles, self.parts * self.steps, tile.depth * tile.columns)
        self.packed = tirx.decl_buffer([index(side) for side in packed], self.word, "weight")

    @property
    def word(self) -> str:
        """The type of 16 bits of what lies in the strips."""
        return self.dtype

    def data(self, group: Expr) -> Any:
        """Where the data of a group begins."""
        return address(self.window.data, *[index(0)] * (len(self.window.data.shape) - 1), group * self.inputs)

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What lanes.cuh's `dnc_window` and `dnc_pixels` say."""
        window = self.window
        plain = window.size == window.stride == (1, 1) and window.source[:3] == window.output[:3]
        return (
            (*window.source[1:], self.inputs, *window.size, *window.dilation, together(window)),
            (self.pixels, *window.output[1:3], *window.stride, *window.padding, int(plain)),
        )

    @abstractmethod
    def pack(self, weight: Array) -> Array:
        """(kh, kw, I, O) -> (group, tile, step, k and o in it), with zeros."""

    @abstractmethod
    def multiply(self, data: Expr, weights: Expr, begin: tuple[Expr, Expr]) -> Stmt:
        """All steps of a block; `begin` has the first pixel and the first step."""

    @abstractmethod
    def place(self, thread: Expr, piece: Expr) -> tuple[Expr, Expr]:
        """Row and column of a warp's piece of the tile."""

    def kernel(self) -> Kernel:
        """Writes all blocks: those of the same pixels side by side, so that the data comes from memory once."""
        rows = -(-self.pixels // self.tile.rows)
        last = self.groups * self.parts
        grid = (rows * self.tiles, 1, last) if last > 1 else (rows * self.tiles,)
        body = kernel(grid, self.tile.threads, self._block)
        border = () if self.window.border is None else (self.window.border.buffer,)
        return Kernel(self.name, body, (Packed(self.window.weight, self.packed, self.pack),), border)

    def _block(self, blocks: Any, thread: Expr) -> Stmt:
        tile, last = self.tile, blocks[2] if len(blocks) > 2 else index(0)
        group, part = last // self.parts, last % self.parts
        row, column = blocks[0] // self.tiles, blocks[0] % self.tiles
        first = row * tile.rows, column * tile.columns
        weights = address(self.packed, group, column, part * self.steps, index(0))
        return scoped(
            [self.strips, self.sums],
            self.multiply(self.data(group), weights, (first[0], part * self.steps)),
            self._finish(thread, group, first)
            if self.parts == 1
            else self.share(thread, (row, column), group, part, first),
        )

    def _own(self, thread: Expr, stride: int) -> Expr:
        """Where a lane's first two sums are among those of a piece."""
        return thread % WARP // 4 * stride + thread % 4 * 2

    def _piece(self, piece: Expr) -> Expr:
        return address(self.sums, piece * (PIECE * self.broad // WARP))

    def _finish(self, thread: Expr, group: Expr, first: tuple[Expr, Expr]) -> Stmt:
        """Hands the sums to `store`, piece by piece, which go by way of the strips."""
        lanes, stride = self.finish_lanes, self._stride
        own, across = thread // WARP * (PIECE * stride), self.broad // lanes

        def exchanged(offset: Expr) -> Expr:
            # A sum takes the place of two numbers.
            return pointer(self.strips, (own + offset) * 2)

        def some(piece: Expr) -> Stmt:
            row, column = self.place(thread, piece)

            def turn(number: Expr) -> Stmt:
                vectors = thread % WARP + number * WARP
                y, x = vectors // across, vectors % across * lanes
                return self.store_sums(group, first[0] + row + y, first[1] + column + x, exchanged(y * stride + x))

            return sequence(
                warp_barrier(),
                put_sums(exchanged(self._own(thread, stride)), self._piece(piece), self.broad, stride),
                warp_barrier(),
                loop(PIECE * across // WARP, turn, name="turn"),
            )

        # Other warps may still read the strips.
        return sequence(barrier(), unrolled(self._pieces, some))

    def put(self, thread: Expr, where: Callable[[Expr], Expr]) -> Stmt:
        stride = self.tile.columns

        def some(piece: Expr) -> Stmt:
            row, column = self.place(thread, piece)
            start = row * stride + column + self._own(thread, stride)
            return put_sums(where(start), self._piece(piece), self.broad, stride)

        return unrolled(self._pieces, some)
