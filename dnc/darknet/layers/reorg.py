"""[reorg3d] and [reorg]: space to depth (reorg_layer.c, reorg_old_layer.c); reverse=1 is depth to space.

[reorg3d] is the plain one: pixel (i, j) of each s x s block becomes channel (i * s + j) * C + c.
[reorg] (YOLOv2) does that to memory which it takes to be (C / s^2, H * s, W * s), and reads the result as
(C * s^2, H / s, W / s). What comes out is a permutation that no framework has as an operator.

Darknet has one loop for all (reorg_cpu), which moves elements between a deep view (D, h, w) and a wide view
(D / s^2, h * s, w * s) of the same memory. The deep view is the output of [reorg3d], reversed or not, and the input of
[reorg]. So [reorg3d] with reverse=1 is not the inverse of [reorg3d], and needs a multiple of s^4 channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common


class _Reorg(Layer):
    stride: int
    reverse: bool

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        channels, height, width = context.image()
        stride = section.integer("stride", 1, low=1)
        reverse = section.boolean("reverse")
        square = stride * stride
        need = square * square if reverse and cls.name == "reorg3d" else square
        if channels % need and (reverse or cls.name == "reorg"):
            section.fail(f"stride={stride} needs a multiple of {need} channels, there are {channels}", "stride")
        if (height % stride or width % stride) and not reverse:
            section.fail(f"stride={stride} does not divide {height} x {width}", "stride")
        if reverse:
            shape = (channels // square, height * stride, width * stride)
        else:
            shape = (channels * square, height // stride, width // stride)
        return cls(**common(context, shape), stride=stride, reverse=reverse)

    @property
    def deep(self) -> tuple[int, int, int]:
        """The shape (D, h, w) of the deep view."""
        raise NotImplementedError

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        (depth, height, width), s = self.deep, self.stride
        wide = depth // (s * s)
        if self.reverse:
            view, order = [s, s, wide, height, width], [0, 3, 4, 1, 5, 2]
        else:
            view, order = [wide, height, s, width, s], [0, 3, 5, 1, 2, 4]
        return b.reshape(b.op("Transpose", b.reshape(inputs[0], view), perm=order), self.shape)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        """The index arithmetic of reorg_cpu, as one gather."""
        (depth, height, width), s = self.deep, self.stride
        wide = depth // (s * s)
        c, y, x = np.indices(self.deep)
        row, column = y * s + c // wide // s, x * s + c // wide % s
        spread = ((c % wide * height * s + row) * width * s + column).ravel()
        flat = inputs[0].reshape(len(inputs[0]), -1)
        result = np.empty_like(flat)
        if self.reverse:
            result[:, spread] = flat
        else:
            result = flat[:, spread]
        return result.reshape(len(flat), *self.shape)

    def describe(self) -> str:
        return f"/ {self.stride}"


@layers.register
class Reorg3d(_Reorg):
    """Space to depth, block offset before channel.

    Keys:
        stride: the side of the blocks.
        reverse: 1: depth to space.
    """

    name = "reorg3d"

    @property
    def deep(self) -> tuple[int, int, int]:
        """The output."""
        channels, height, width = self.shape
        return channels, height, width


@layers.register
class Reorg(_Reorg):
    """The legacy permutation of YOLOv2.

    Keys:
        stride: the side of the blocks.
        reverse: 1: depth to space.
    """

    name = "reorg"

    @property
    def deep(self) -> tuple[int, int, int]:
        channels, height, width = self.input_shape
        return channels, height, width
