"""Products by mma.sync of numbers that are no halves, which it adds up in 32 bits: 8-bit ones, and words of bits.

What an instruction takes are 32 bytes of each row and column in any case, in the same order, so that all that moves
numbers is as for float16 (mma.py): maps and weights are seen as pairs of bytes. On Turing four smaller instructions do
what one does on later GPUs.

8-bit numbers are held less 128, and what lies outside of the map is 0, for which nothing is added: what follows makes
up for both (`dnc.targets.tvm.emit.integers`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.forms import Form, Tile, form_of
from dnc.targets.cuda.schedules.helpers import address, pairs
from dnc.targets.cuda.schedules.mma import MMA_RATE, Mma, mma_tiles
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, index
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["Pairs", "integer_product", "pair_tiles"]

_SUMS = 64
"""Sums of a thread, at most, where strips go by way of its registers: Turing."""
_PAIR = 2


class Pairs(Mma):
    """Writer of one kernel; windows, forms and tiles count numbers as they are, the kernel pairs of their bytes."""

    def __init__(self, segment: Segment, window: Window, form: Form, device: Device) -> None:
        self._inputs = window.source[3] // window.groups
        tile = replace(form.tile, depth=form.tile.depth * _size(window) // _PAIR)
        super().__init__(segment, _in_pairs(window), replace(form, tile=tile), device)

    @property
    def word(self) -> str:
        """Of a pair."""
        return "int16"

    def data(self, group: Expr) -> Any:
        """The group's data, as pairs."""
        source = self.window.data
        return pairs(address(source, *[index(0)] * (len(source.shape) - 1), group * self._inputs))

    def pack(self, weight: Array) -> Array:
        """(kh, kw, I, O) -> that of pairs, the first byte in the lower bits."""
        several = np.ascontiguousarray(weight.swapaxes(2, 3)).view("<i2")
        return super().pack(several.swapaxes(2, 3))


def _size(window: Window) -> int:
    """Bytes of a number."""
    return np.dtype(str(window.data.dtype)).itemsize


def _in_pairs(window: Window) -> Window:
    *sides, channels = window.source
    return replace(window, source=(sides[0], sides[1], sides[2], channels * _size(window) // _PAIR))


def pair_tiles(window: Window, device: Device) -> list[Tile]:
    """The tiles of `MMA_TILES` for a convolution; none where it cannot be computed so."""
    if window.source[3] // window.groups * _size(window) % (2 * _PAIR):
        return []
    return [
        replace(tile, depth=tile.depth * _PAIR // _size(window))
        for tile in mma_tiles(_in_pairs(window), replace(device, copies=True))
        if device.copies or tile.rows * tile.columns <= _SUMS * tile.threads
    ]


class _Integers(Pairs):
    name = "int8-product"
    added = "int32"


def integer_product(segment: Segment, window: Window, device: Device) -> Kernel | None:
    """The kernel of a convolution or connected layer of 8-bit numbers; None for others."""
    if window.weight is None or str(window.data.dtype) != "int8" or str(segment.anchor.buffer.dtype) != "int32":
        return None
    tiles = pair_tiles(window, device)
    if not tiles:
        return None
    return _Integers(segment, window, form_of(window, tiles, 2 * MMA_RATE, device), device).kernel()
