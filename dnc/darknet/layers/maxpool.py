"""[maxpool] / [max] and [local_avgpool] / [local_avg]: pooling over windows (maxpool_layer.c).

    out = (in + padding - size) / stride + 1, the first window at -padding/2; padding is size-1 by default

`padding` is a total, so 2x2 windows with stride 2 round an odd side up, and with stride 1 keep the size by reaching
over the right and bottom edge alone. Outside counts as -FLT_MAX for the maximum and not at all for the average.

maxpool_depth=1 takes the maximum over the channels that are equal modulo out_channels. antialiasing runs the pool
with stride 1 and then blurs with the stride, as [convolutional] does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common
from dnc.darknet.layers.convolutional import blur
from dnc.darknet.layers.windows import Axis, windows

_LOWEST = float(np.finfo(np.float32).min)
_LARGE = 32 * 32
"""Pixels of a window, far above those of networks that anybody trains."""


def _each(length: int) -> Axis:
    """The windows of one pixel."""
    return Axis(length, length, 1, 1, 0)


def _emit_windows(b: Builder, op_type: str, x: Value, vertical: Axis, horizontal: Axis, **attributes: Any) -> Value:
    """A pool; of large windows, whose area engines would spend on each pixel, along one axis after the other."""
    apart = [(vertical, _each(horizontal.length)), (_each(vertical.count), horizontal)]
    for down, across in [(vertical, horizontal)] if vertical.size * horizontal.size <= _LARGE else apart:
        x = b.op(
            op_type,
            x,
            kernel_shape=[down.size, across.size],
            strides=[down.stride, across.stride],
            pads=[down.begin, across.begin, down.end, across.end],
            **attributes,
        )
    return x


class Pool(Layer):
    """Base of both kinds of pool.

    Keys:
        size: the height and width of the windows; else the stride.
        stride: how far a window is from the next, along both axes.
        stride_x, stride_y: the stride along one axis; else stride.
        padding: how much the map is made larger, on both sides together; else size - 1.
    """

    axes: tuple[Axis, Axis]
    """The windows along height and width."""

    @staticmethod
    def parse_axes(section: Section, context: Context) -> tuple[Axis, Axis]:
        """Reads size, stride and padding."""
        _, height, width = context.image()
        stride = section.integer("stride", 1)
        strides = [section.integer(key, stride) for key in ("stride_y", "stride_x")]
        if min(strides) < 1:
            section.fail(f"stride={min(strides)} must be at least 1", "stride", "Darknet would divide by zero")
        size = section.integer("size", stride, low=1)
        padding = section.integer("padding", size - 1, low=0)
        vertical, horizontal = (
            Axis(length, (length + padding - size) // step + 1, size, step, padding // 2)
            for length, step in zip((height, width), strides, strict=True)
        )
        return vertical, horizontal

    def describe(self) -> str:
        vertical, horizontal = self.axes
        strides = dict.fromkeys((horizontal.stride, vertical.stride))
        return f"{vertical.size} x {vertical.size} / {'x'.join(map(str, strides))}"

    def flops(self) -> float:
        """Darknet counts size * size per pixel of the pooled map and input channel; it does not count the blur."""
        vertical, horizontal = self.axes
        return float(self.input_shape[0] * vertical.count * horizontal.count * vertical.size**2)


@layers.register
class MaxPool(Pool):
    """The maximum of each window, or of groups of channels.

    Keys:
        `Pool`
        maxpool_depth: 1 takes the maximum over channels, not over windows.
        out_channels: with maxpool_depth=1, the channels of the output.
        antialiasing: 1 or 2 blurs before it takes every stride-th pixel.
    """

    name = "maxpool"
    aliases = ("max",)

    depth: bool = False
    antialiasing: int = 0
    blur_stride: tuple[int, int] = (1, 1)
    """Along x and y."""

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        vertical, horizontal = cls.parse_axes(section, context)
        channels, height, width = context.image()
        depth = section.boolean("maxpool_depth")
        out_channels = section.integer("out_channels", 1, low=1)
        antialiasing = section.integer("antialiasing", 0, low=0)
        if depth:
            if out_channels > channels:
                section.fail(f"out_channels={out_channels} of {channels} channels", "out_channels", "at most all")
            fields = common(context, (out_channels, height, width))
            return cls(**fields, axes=(vertical, horizontal), depth=True)
        strides = (horizontal.stride, vertical.stride)
        if antialiasing:
            padding = section.integer("padding", vertical.size - 1, low=0)
            vertical, horizontal = (
                replace(axis, stride=1, count=axis.length + padding - axis.size + 1) for axis in (vertical, horizontal)
            )
        shape = context.check_size((channels, vertical.count, horizontal.count))
        if antialiasing:
            shape = blur((channels, vertical.count, horizontal.count), antialiasing, *strides)[0].shape
        return cls(
            **common(context, shape), axes=(vertical, horizontal), antialiasing=antialiasing, blur_stride=strides
        )

    def flops(self) -> float:
        """Darknet counts size * size for maxpool_depth=1 too, though it does not read it then."""
        return float(np.prod(self.input_shape)) * self.axes[0].size ** 2 if self.depth else super().flops()

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """MaxPool (after a Pad where ONNX's own padding is too narrow), or Reshape and ReduceMax."""
        x = inputs[0]
        if self.depth:
            return self._emit_depth(b, x)
        vertical, horizontal = axes = [axis.within() for axis in self.axes]
        if any(max(axis.begin, axis.end) >= axis.size for axis in axes):
            # ONNX Runtime wants every padding smaller than the window.
            pads = [0, 0, vertical.begin, horizontal.begin, 0, 0, vertical.end, horizontal.end]
            x = b.op("Pad", x, b.constant(np.array(pads, np.int64)), b.constant(_LOWEST))
            axes = [replace(axis, length=axis.begin + axis.length + axis.end, begin=0) for axis in axes]
        x = _emit_windows(b, "MaxPool", x, *axes)
        if not self.antialiasing:
            return x
        pooled = self.shape[0], vertical.count, horizontal.count
        convolution, kernel = blur(pooled, self.antialiasing, *self.blur_stride)
        return convolution.emit(b, x, kernel)

    def _emit_depth(self, b: Builder, x: Value) -> Value:
        channels, height, width = self.input_shape
        groups = self.shape[0]
        missing = -channels % groups
        if missing:
            pads = b.constant(np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64))
            x = b.op("Pad", x, pads, b.constant(_LOWEST))
        x = b.reshape(x, [(channels + missing) // groups, groups, height, width])
        return b.op("ReduceMax", x, axes=[1], keepdims=0)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        """The maximum over views of all windows, along one axis after the other."""
        x = inputs[0]
        if self.depth:
            groups = self.shape[0]
            return np.stack([x[:, group::groups].max(axis=1) for group in range(groups)], axis=1)
        vertical, horizontal = self.axes
        y: Array = windows(x, vertical.within(), _each(horizontal.length), _LOWEST).max(axis=(4, 5))
        y = windows(y, _each(vertical.count), horizontal.within(), _LOWEST).max(axis=(4, 5))
        if not self.antialiasing:
            return y
        pooled = self.shape[0], vertical.count, horizontal.count
        convolution, kernel = blur(pooled, self.antialiasing, *self.blur_stride)
        return convolution.reference(y, kernel)


@layers.register
class LocalAvgPool(Pool):
    """The mean of the part of each window that lies inside the map.

    Keys:
        `Pool`
    """

    name = "local_avgpool"
    aliases = ("local_avg",)

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        vertical, horizontal = cls.parse_axes(section, context)
        if max(vertical.begin, vertical.end, horizontal.begin, horizontal.end) >= vertical.size:
            section.fail("a window would lie outside the map, and have no mean", "padding", "make it smaller than size")
        shape = (context.input[0], vertical.count, horizontal.count)
        return cls(**common(context, shape), axes=(vertical, horizontal))

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """AveragePool that leaves the padding out of the count."""
        return _emit_windows(b, "AveragePool", inputs[0], *(axis.within() for axis in self.axes), count_include_pad=0)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        """The sum of each window over the count of its pixels inside."""
        inside = np.ones((1, 1, *inputs[0].shape[2:]), np.float32)
        return self._sums(inputs[0]) / self._sums(inside)

    def _sums(self, x: Array) -> Array:
        vertical, horizontal = self.axes
        y = windows(x, vertical.within(), _each(horizontal.length), 0.0).sum(axis=(4, 5))
        total: Array = windows(y, _each(vertical.count), horizontal.within(), 0.0).sum(axis=(4, 5))
        return total
