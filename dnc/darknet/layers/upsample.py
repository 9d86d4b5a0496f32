"""[upsample]: repeats each pixel stride x stride times, times `scale` (upsample_layer.c).

A negative stride is the reverse: blocks of stride x stride are summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common


@layers.register
class Upsample(Layer):
    """Nearest-neighbour upsampling, or summing of blocks.

    Keys:
        stride: how often each pixel stands along each axis; negative: blocks of so many are summed.
        scale: a factor.
    """

    name = "upsample"

    stride: int
    """Negative for the reverse."""
    scale: float

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        channels, height, width = context.image()
        stride, scale = section.integer("stride", 2), section.number("scale", 1.0)
        if stride == 0:
            section.fail("stride=0 must not be 0", "stride")
        if stride > 0:
            shape = (channels, height * stride, width * stride)
        else:
            shape = (channels, height // -stride, width // -stride)
            if (height % -stride, width % -stride) != (0, 0):
                section.fail(f"stride={stride} does not divide {height} x {width}", "stride")
        return cls(**common(context, shape), stride=stride, scale=scale)

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """Resize, or a depthwise Conv of ones; then Mul."""
        x, stride = inputs[0], abs(self.stride)
        if self.stride > 0:
            scales = b.constant(np.array([1, 1, stride, stride], np.float32))
            where = "asymmetric"
            x = b.op(
                "Resize", x, None, scales, mode="nearest", coordinate_transformation_mode=where, nearest_mode="floor"
            )
            return x if self.scale == 1 else b.op("Mul", x, b.constant(self.scale))
        kernel = np.full((self.shape[0], 1, stride, stride), self.scale, np.float32)
        dims = [stride, stride]
        return b.op("Conv", x, b.constant(kernel, "sum"), kernel_shape=dims, strides=dims, group=self.shape[0])

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        x, stride, scale = inputs[0], abs(self.stride), np.float32(self.scale)
        if self.stride > 0:
            return x.repeat(stride, axis=2).repeat(stride, axis=3) * scale
        channels, height, width = self.shape
        total: Array = x.reshape(len(x), channels, height, stride, width, stride).sum(axis=(3, 5))
        return total * scale

    def describe(self) -> str:
        return f"{self.stride}x" if self.stride > 0 else f"1/{-self.stride}x"
