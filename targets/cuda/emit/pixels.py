"""Preprocessing of images of any size on a GPU: the arithmetic of `dnc.runtime.preprocessing`, to the bit.

    bilinear    one kernel: a block makes 32 columns and 8 rows; what these are sampled at, it computes once
    bicubic     the weights of all columns and rows; the columns of the rows that are needed, as bytes; the rows

Each operation is rounded by itself, which CUDA C++ can say and TIR cannot. The result is (N, height, width, C).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from dnc.graph.preprocessing import Preprocess
from dnc.runtime.preprocessing import CUBIC_ONE
from dnc.targets.cuda.emit.kernels import buffer, real, source, whole, whole_number
from dnc.targets.tvm.emit.builder import RelaxBuilder, Tensor
from dnc.targets.tvm.schedules.loops import Expr

__all__ = ["PREPROCESSING", "preprocessed"]

PREPROCESSING = "preprocessing"
"""The rule of these functions, for a report."""
_MODES = ("resize", "resize-half-pixel", "letterbox", "center-crop")
"""By their numbers in pixels.cuh."""
_THREADS = 256
_COLUMNS, _ROWS = 32, 8
"""Of a block."""
_TALL = 256
"""Blocks below each other for the columns of a bicubic interpolation: images may have more rows than a grid."""
_SOURCE = source("pixels")


def preprocessed(b: RelaxBuilder, p: Preprocess, image: Any) -> Tensor:
    """The network's input of pixels (N, height, width, C) uint8, a variable of Relax."""
    kernels = _Kernels(p, int(image.ty.shape[0]))
    numbers = Tensor(b.relax.const(kernels.numbers()), (3, p.channels), "float32")
    pixels = Tensor(image, (-1,) * 4, "uint8")
    height, width = image.ty.shape[1], image.ty.shape[2]
    if p.interpolation != "bicubic":
        return b.call(kernels.bilinear(), [pixels, numbers], "pixels", last=True)
    room = kernels.room(height, width)
    weights = b.call(kernels.weights(), [pixels], "weights", shape=[p.width + p.height, room])
    part = b.call(kernels.columns(), [pixels, weights], "columns", shape=[kernels.count, height, p.width, p.channels])
    return b.call(kernels.rows(), [part, weights, numbers], "rows", last=True)


class _Kernels:
    """The functions for a batch of `count` images."""

    def __init__(self, p: Preprocess, count: int) -> None:
        self._p, self.count = p, count
        sides = [tirx.Var(name, "int64") for name in ("height", "width")]
        self._room = tirx.Var("room", "int64")
        self._image = buffer("image", (count, *sides, p.channels), "uint8")
        self._weights = buffer("weights", (p.width + p.height, self._room), "int32")
        self._part = buffer("part", (count, sides[0], p.width, p.channels), "uint8")
        self._numbers = buffer("numbers", (3, p.channels))
        self._result = buffer("result", (count, p.height, p.width, p.channels))
        self._height, self._width = map(whole_number, sides)
        self._swap = "true" if p.color == "bgr" else "false"
        self._across = -(-p.width * p.channels // _THREADS)
        bits = int(np.log2(CUBIC_ONE))
        self._bits = whole_number(bits)

    def numbers(self) -> Any:
        """(3, C): what is taken off each channel, what it is divided by, and what it is multiplied by."""
        p = self._p
        rows = [np.resize(np.array(numbers, np.float32), p.channels) for numbers in (p.mean, p.std)]
        return np.stack([*rows, p.gain.reshape(-1)])

    @property
    def _plain(self) -> str:
        means, deviations, gain = self.numbers()
        return "false" if means.any() or (deviations != 1).any() or (gain != 1).any() else "true"

    def room(self, height: Expr, width: Expr) -> Expr:
        """Numbers of a row of weights: less than 8 for each pixel of the image's short side by one of the input's."""
        return tirx.floordiv(tirx.min(height, width) * 8, tirx.IntImm("int64", self._p.short_side)) + 16

    def _whole(self, name: str, parameters: Any, given: Any, grid: Any, threads: int = _THREADS) -> Any:
        return whole(f"dnc_{name}", _SOURCE, parameters, given, grid, threads, PREPROCESSING)

    def bilinear(self) -> Any:
        """(image, numbers, result)"""
        p = self._p
        name = f"bilinear<{_MODES.index(p.mode)}, {self._plain}, {self._swap}>"
        numbers = [*map(whole_number, (p.height, p.width, p.short_side, p.channels))]
        given = [self._result, self._image, self._numbers, real(p.divisor), self._height, self._width, *numbers]
        grid = [-(-p.width // _COLUMNS), -(-p.height // _ROWS), self.count]
        return self._whole(name, [self._image, self._numbers, self._result], given, grid)

    def weights(self) -> Any:
        """(image, weights), the image for its size alone."""
        p = self._p
        sides = [self._height, self._width, *map(whole_number, (p.height, p.width, p.short_side, self._room))]
        given = [self._weights, real(CUBIC_ONE, "float64"), *sides]
        return self._whole("cubic_weights", [self._image, self._weights], given, [p.width + p.height], 128)

    def columns(self) -> Any:
        """(image, weights, part)"""
        p = self._p
        sides = [*map(whole_number, (p.height, p.width, p.channels, self._room, _TALL))]
        given = [self._part, self._image, self._weights, self._bits, self._height, self._width, *sides]
        grid = [self._across, _TALL, self.count]
        return self._whole(f"cubic_columns<{self._swap}>", [self._image, self._weights, self._part], given, grid)

    def rows(self) -> Any:
        """(part, weights, numbers, result)"""
        p = self._p
        sides = [self._height, *map(whole_number, (p.height, p.width, p.channels, self._room))]
        given = [self._result, self._part, self._weights, self._numbers, real(p.divisor), self._bits, *sides]
        parameters = [self._part, self._weights, self._numbers, self._result]
        return self._whole(f"cubic_rows<{self._plain}>", parameters, given, [self._across, p.height, self.count])
