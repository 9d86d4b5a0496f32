"""The product of 8-bit numbers by mma.sync, which adds them up in 32 bits: mma.py's, with two numbers in place of one.

What an instruction takes are 32 bytes of each row and column in either case, in the same order, so that all that moves
numbers is as for float16: maps and weights are seen as half as many pairs. On Turing four smaller instructions do what
one does on later GPUs.

Numbers are held less 128, and what lies outside of the map is 0, for which nothing is added: what follows makes up for
both (`dnc.targets.tvm.emit.integers`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.forms import form_of
from dnc.targets.cuda.schedules.helpers import address, pairs
from dnc.targets.cuda.schedules.mma import MMA_RATE, Mma, mma_tiles
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, index
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["integer_product"]

_SUMS = 64
"""Sums of a thread, at most, where strips go by way of its registers: Turing."""


class _Integers(Mma):
    name = "int8-product"
    added = "int32"

    @property
    def word(self) -> str:
        """Of a pair."""
        return "int16"

    def data(self, group: Expr) -> Any:
        """The group's data, as pairs."""
        source = self.window.data
        return pairs(address(source, *[index(0)] * (len(source.shape) - 1), group * (2 * self.inputs)))

    def pack(self, weight: Array) -> Array:
        """(kh, kw, I, O) -> that of pairs, the first number in the lower bits."""
        tall, broad, inputs, outputs = weight.shape
        several = weight.reshape(tall, broad, inputs // 2, 2, outputs).swapaxes(3, 4)
        return super().pack(np.ascontiguousarray(several).view("<i2")[..., 0])


def integer_product(segment: Segment, window: Window, device: Device) -> Kernel | None:
    """The kernel of a convolution or connected layer of 8-bit numbers; None for others."""
    if window.weight is None or str(window.data.dtype) != "int8" or str(segment.anchor.buffer.dtype) != "int32":
        return None
    *sides, channels = window.source
    if channels // window.groups % 4:
        return None
    halved = replace(window, source=(sides[0], sides[1], sides[2], channels // 2))
    tiles = [
        replace(tile, depth=2 * tile.depth)
        for tile in mma_tiles(halved, replace(device, copies=True))
        if device.copies or tile.rows * tile.columns <= _SUMS * tile.threads
    ]
    if not tiles:
        return None
    form = form_of(window, tiles, 2 * MMA_RATE, device)
    tile = replace(form.tile, depth=form.tile.depth // 2)
    return _Integers(segment, halved, replace(form, tile=tile), device).kernel()
