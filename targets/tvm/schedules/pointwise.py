"""Convolutions of one pixel, 1 x 1 with stride 1, and products of matrices: one row of pixels, cut into tiles.

The rows of the image lie one after the other, so that tiles need not end where a row ends: a map of 10 x 10 is 100
pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tvm import tirx

from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel, Packed
from dnc.targets.tvm.schedules.loops import Expr, Stmt, fetch, index, loop, unrolled
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.spatial import LINE, Convolution, is_far, item_size
from dnc.targets.tvm.schedules.stages import Segment, dims
from dnc.targets.tvm.schedules.tiles import Band
from dnc.targets.tvm.schedules.window import Span, Window

__all__ = ["pointwise"]

_UNROLL = 16
"""Cache lines up to which asking for them is written out."""


class _Pointwise(Convolution):
    even: ClassVar[bool] = True

    def __init__(self, segment: Segment, window: Window, machine: Machine) -> None:
        images, rows, columns, outputs = window.output
        self._shape = dims(segment.anchor.buffer)[:-1]
        pixels = images * rows * columns
        flat = replace(window, source=(1, 1, pixels, window.source[3]), output=(1, 1, pixels, outputs))
        self._read_far = is_far(flat.source, window.data, machine)
        super().__init__(segment, flat, machine)

    @property
    def strips(self) -> int:
        return -(-self.window.output[2] // self.tiling.width)

    def strip(self, group: Expr, band: Band, place: Expr, strip: Expr) -> Stmt:
        width, pixels = self.tiling.width, self.window.output[2]
        first = strip * width
        if pixels % width:
            first = tirx.min(first, index(pixels - width))
        return self.tile(group, band, place, (index(0), index(0), first), Span(0, width, 1, True))

    def ahead(self, band: Band, place: Expr, column: Expr) -> Stmt | None:
        """The pixels of the next tile, each group of channels a part of their lines."""
        if not (self._read_far and self.by_strips):
            return None
        inputs = self.window.source[3]
        numbers = LINE // item_size(self.window.data)
        lines = -(-self.tiling.width * inputs // numbers)
        part = -(-lines // sum(other.count for other in self.tiling.bands))
        before = 0 if band is self.tiling.bands[0] else self.tiling.bands[0].count

        def line(number: Expr) -> Stmt:
            element = ((before + place) * part + number) * numbers
            pixel = column + self.tiling.width + element // inputs
            return fetch(self.window.data, [*self.place(index(0), index(0), pixel), element % inputs])

        return (unrolled if part <= _UNROLL else loop)(part, line)

    def place(self, image: Expr, row: Expr, column: Expr) -> list[Expr]:
        return unflattened(column, self._shape)


def pointwise(segment: Segment, window: Window, machine: Machine) -> Kernel | None:
    """The kernel of a convolution of one pixel; None for others."""
    if window.weight is None or window.size != (1, 1) or window.stride != (1, 1) or window.padding != (0, 0):
        return None
    if window.source[:3] != window.output[:3]:
        return None
    kernel = _Pointwise(segment, window, machine)
    packed = Packed(window.weight, kernel.weight, kernel.pack)
    border = () if window.border is None else (window.border.buffer,)
    return Kernel("pointwise", kernel.body(), (packed,), border)
