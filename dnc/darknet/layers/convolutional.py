"""[convolutional] / [conv]: convolution, batch normalisation, activation (convolutional_layer.c).

    out = (in + 2*padding - size) / stride + 1, padding = size/2 with pad=1

Dilation d spreads the taps and multiplies the padding, while Darknet's output size ignores it; both agree for odd
sizes with pad=1, and anything else is refused, because Darknet's own im2col then writes another size than it reads.
Batch normalisation is (x - mean) / sqrt(variance + 1e-5) * scale + bias.

xnor=1 binarizes after batch normalisation was folded: weights become mean(|w|) of their filter with the sign of w,
inputs become +1 where positive, else -1, and so does the zero padding. groups count as 1 then. bin_output=1 makes the
activation linear, because the next xnor layer needs the signs alone (not if anything else reads this layer).
antialiasing=1 convolves with stride 1, then blurs each channel by [1 2 1]x[1 2 1]/16 with the stride; antialiasing=2
averages 2x2. share_index uses the weights, biases and batch normalisation of another layer. binary=1 binarizes the
weights alone.

All of this is what Darknet means. Its CPU build forgets binary=1, the padding and stride_y of 1x1 convolutions, and
under xnor=1 unequal strides (it convolves floats then), dilation and antialiasing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import activate, emit_activation, parse_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common
from dnc.darknet.layers.windows import Axis, windows
from dnc.graph.bits import pack, signs

__all__ = ["BATCH_NORM_EPSILON", "Convolution", "Convolutional", "blur", "fold_batch_norm"]

BATCH_NORM_EPSILON = 1e-5
"""Inside the square root, at inference, on CPU and GPU alike; the 1e-6 of other readers is Darknet's of 2016."""


def fold_batch_norm(weights: Array, arrays: Arrays, prefix: str = "") -> tuple[Array, Array]:
    """Weights (first axis: output channels) and biases with batch normalisation in them, computed in float64."""
    scale = arrays[prefix + "scales"] / np.sqrt(arrays[prefix + "variance"].astype(np.float64) + BATCH_NORM_EPSILON)
    bias = arrays[prefix + "biases"] - scale * arrays[prefix + "mean"]
    folded = weights * scale.reshape(-1, *[1] * (weights.ndim - 1))
    return folded.astype(np.float32), bias.astype(np.float32)


def batch_norm_shapes(channels: int, prefix: str = "") -> dict[str, Shape]:
    """The three arrays that batch normalisation adds, in the file's order."""
    return {prefix + name: (channels,) for name in ("scales", "mean", "variance")}


def emit_batch_norm(b: Builder, x: Value, arrays: Arrays, prefix: str = "") -> Value:
    """A BatchNormalization node with Darknet's epsilon."""
    own = {name: arrays[prefix + name] for name in ("scales", "biases", "mean", "variance")}
    if (own["variance"] < 0).any():
        # An engine adds its own epsilon, a float32 or a half, of which such a variance may leave nothing.
        total = own["variance"].astype(np.float64) + BATCH_NORM_EPSILON
        with np.errstate(invalid="ignore", divide="ignore"):
            scales = np.where(own["variance"] < 0, own["scales"] * np.sqrt(BATCH_NORM_EPSILON / total), own["scales"])
        own |= {"scales": scales.astype(np.float32), "variance": np.maximum(own["variance"], np.float32(0))}
    parameters = [b.constant(array, prefix + name) for name, array in own.items()]
    return b.op("BatchNormalization", x, *parameters, epsilon=BATCH_NORM_EPSILON)


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """The arithmetic of one convolution with batch normalisation and activation, in whichever layer it stands.

    Keys:
        size: the height and width of the kernel.
        stride: how far a window is from the next, along both axes.
        pad: 1 pads by size/2, whatever padding says.
        padding: pixels of 0 around the input.
        dilation: the distance of the taps.
        groups: parts of the channels that are convolved apart; as many as channels: depthwise. With xnor=1 it counts as
            1.
        batch_normalize: 1 normalises the result by the mean and variance in the .weights file.
        activation: what each number of the result goes through; [activation] has the list.
        xnor: 1 multiplies signs, of weights and of inputs.
    """

    input_shape: tuple[int, int, int]
    filters: int
    size: int = 1
    stride_x: int = 1
    stride_y: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    batch_normalize: bool = False
    activation: str = "logistic"
    xnor: bool = False
    binary: bool = False
    prefix: str = ""
    """Stands before the names of the arrays, where a layer has several convolutions."""

    usual_size: ClassVar[int] = 1
    stride_keys: ClassVar[tuple[str, ...]] = ("stride_x", "stride_y")
    """Options that replace `stride`."""

    @classmethod
    def parse(
        cls, section: Section, input_shape: tuple[int, int, int], filters: str, activation: str = "logistic"
    ) -> Self:
        """Reads the options that all of Darknet's convolutional sections share.

        Args:
            input_shape: (C, H, W) of what is convolved.
            filters: the key of the number of filters.
        """
        size = section.integer("size", cls.usual_size, low=1)
        stride = section.integer("stride", 1)
        stride_x, stride_y = [section.integer(key, -1) for key in cls.stride_keys] or [-1, -1]
        if stride < 1 and (stride_x < 1 or stride_y < 1):
            section.fail(f"stride={stride} must be at least 1", "stride", "Darknet would divide by zero")
        pad, padding = section.boolean("pad"), section.integer("padding", 0, low=0)
        dilation = section.integer("dilation", 1, low=1)
        xnor = section.boolean("xnor")
        convolution = cls(
            input_shape=input_shape,
            filters=section.integer(filters, 1, low=1),
            size=size,
            stride_x=stride_x if stride_x >= 1 else stride,
            stride_y=stride_y if stride_y >= 1 else stride,
            padding=size // 2 if pad else padding,
            dilation=1 if size == 1 else dilation,
            groups=1 if xnor else section.integer("groups", 1, low=1),
            batch_normalize=section.boolean("batch_normalize"),
            activation=parse_activation(section, activation),
            xnor=xnor,
        )
        section.text("groups")
        convolution.validate(section, filters)
        return convolution

    def validate(self, section: Section, filters: str) -> None:
        """Refuses what Darknet computes wrongly or not at all."""
        channels = self.input_shape[0]
        if channels % self.groups or self.filters % self.groups:
            section.fail(
                f"groups={self.groups} does not divide {channels} input channels and {self.filters} filters",
                "groups" if "groups" in section.options else filters,
                "groups must divide both",
            )
        if self.dilation > 1 and 2 * self.padding != self.size - 1:
            section.fail(
                f"dilation={self.dilation} with size={self.size} and padding={self.padding} has no defined output",
                "dilation",
                "Darknet's own sizes disagree here; use an odd size and pad=1",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(filters, rows, columns)."""
        vertical, horizontal = self.axes
        return self.filters, vertical.count, horizontal.count

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The windows along height and width."""
        _, height, width = self.input_shape
        return self._axis(height, self.stride_y), self._axis(width, self.stride_x)

    def _axis(self, length: int, stride: int) -> Axis:
        count = (length + 2 * self.padding - self.size) // stride + 1
        return Axis(length, count, self.size, stride, self.padding * self.dilation, self.dilation)

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        """The shape of the weights: (filters, channels of a group, size, size)."""
        return self.filters, self.input_shape[0] // self.groups, self.size, self.size

    def weights(self, dontloadscales: bool = False) -> dict[str, Shape]:
        """The arrays in the file's order: biases, scales, mean, variance, weights."""
        scales = self.batch_normalize and not dontloadscales
        return {
            self.prefix + "biases": (self.filters,),
            **(batch_norm_shapes(self.filters, self.prefix) if scales else {}),
            self.prefix + "weights": self.kernel,
        }

    def flops(self) -> float:
        """Counts two for each multiply-add; Darknet divides those of xnor by 32."""
        return self._operations() / (32 if self.xnor else 1)

    def bit_operations(self) -> float:
        return self._operations() if self.xnor else 0.0

    def _operations(self) -> float:
        _, rows, columns = self.shape
        return 2.0 * math.prod(self.kernel) * rows * columns

    def _binarized(self, arrays: Arrays) -> tuple[Array, Array, Array]:
        """The signs of the weights, the mean magnitude of each filter as (filters, 1, 1, 1), and the biases."""
        weights, bias = arrays[self.prefix + "weights"], arrays[self.prefix + "biases"]
        if self.batch_normalize:
            weights, bias = fold_batch_norm(weights, arrays, self.prefix)
        mean = np.abs(weights).mean(axis=(1, 2, 3), keepdims=True, dtype=np.float32)
        return signs(weights > 0), mean, bias

    def emit(self, b: Builder, x: Value, arrays: Arrays) -> Value:
        """Conv and BatchNormalization, or with xnor BinaryConvolution; activation."""
        vertical, horizontal = self.axes
        spatial: dict[str, Any] = {
            "strides": [self.stride_y, self.stride_x],
            "pads": [vertical.begin, horizontal.begin, vertical.end, horizontal.end],
            "dilations": [self.dilation, self.dilation],
        }
        name = self.prefix
        if self.xnor or self.binary:
            weights, mean, bias = self._binarized(arrays)
        else:
            weights, bias = arrays[name + "weights"], arrays[name + "biases"]
        if self.xnor:
            packed, scale = b.constant(pack(weights), name + "weights"), b.constant(mean.reshape(-1), name + "mean")
            x = b.binary_convolution(x, packed, scale, b.constant(bias, name + "biases"), **spatial)
            return emit_activation(b, x, self.activation)
        if self.binary:
            weights = weights * mean
        parameters = [b.constant(weights, name + "weights")]
        if self.binary or not self.batch_normalize:
            parameters.append(b.constant(bias, name + "biases"))
        x = b.op("Conv", x, *parameters, kernel_shape=[self.size, self.size], group=self.groups, **spatial)
        if self.batch_normalize and not self.binary:
            x = emit_batch_norm(b, x, arrays, name)
        return emit_activation(b, x, self.activation)

    def reference(self, x: Array, arrays: Arrays) -> Array:
        """The same as one matrix product per group over the unrolled windows."""
        weights, bias = arrays[self.prefix + "weights"], arrays[self.prefix + "biases"]
        if self.xnor or self.binary:
            weights, mean, bias = self._binarized(arrays)
        elif self.batch_normalize:
            weights, bias = fold_batch_norm(weights, arrays, self.prefix)
        if self.xnor:
            x = signs(x > 0)
        count, (_, rows, columns) = len(x), self.shape
        taps = windows(x, *self.axes, fill=-1.0 if self.xnor else 0.0)
        per_group = self.filters // self.groups
        if self.groups == self.input_shape[0] == self.filters:
            y = np.einsum("nchwij,cij->nchw", taps, weights[:, 0], optimize=False)
        else:
            # (N, groups, C/groups * size * size, rows * columns), the columns of Darknet's im2col.
            unrolled = taps.reshape(count, self.groups, -1, rows, columns, self.size, self.size)
            unrolled = unrolled.transpose(0, 1, 2, 5, 6, 3, 4).reshape(count, self.groups, -1, rows * columns)
            y = np.matmul(weights.reshape(self.groups, per_group, -1), unrolled)
        y = y.reshape(count, self.filters, rows, columns)
        if self.xnor or self.binary:
            y = y * mean.reshape(-1, 1, 1)
        y = y + bias.reshape(-1, 1, 1)
        return activate(y.astype(np.float32, copy=False), self.activation)


def blur(shape: tuple[int, int, int], antialiasing: int, stride_x: int, stride_y: int) -> tuple[Convolution, Arrays]:
    """The depthwise blur of antialiasing=1 (3x3) or 2 (2x2, no padding) and its weights (arXiv 1904.11486)."""
    channels = shape[0]
    line = np.array([0.5, 0.5] if antialiasing == 2 else [0.25, 0.5, 0.25], np.float32)
    convolution = Convolution(
        input_shape=shape,
        filters=channels,
        size=len(line),
        stride_x=stride_x,
        stride_y=stride_y,
        padding=0 if antialiasing == 2 else 1,
        groups=channels,
        activation="linear",
        prefix="blur.",
    )
    kernel = np.broadcast_to(np.outer(line, line), convolution.kernel)
    return convolution, {"blur.weights": np.ascontiguousarray(kernel), "blur.biases": np.zeros(channels, np.float32)}


@layers.register
class Convolutional(Layer):
    """A convolution, batch normalisation and an activation.

    Keys:
        filters: how many, the channels of the output.
        `Convolution`
        stride_x, stride_y: the stride along one axis, in place of `stride`.
        cbn: 1 is batch_normalize=1, with what is for training besides.
        binary: 1 takes of weights the sign, times the mean magnitude of their filter.
        bin_output: 1 leaves the activation out, before a layer with xnor=1; not if another layer reads this one by
            index.
        antialiasing: 1 or 2 blurs before it takes every stride-th pixel.
        share_index: the layer whose weights this one uses; negative counts back.
        dontloadscales: 1: the .weights file has no scales, means and variances of this layer.
        flipped: 1: the .weights file holds the transpose.
    """

    name = "convolutional"
    aliases = ("conv",)

    convolution: Convolution
    antialiasing: int = 0
    blur_stride: tuple[int, int] = (1, 1)
    bin_output: bool = False
    dontloadscales: bool = False
    flipped: bool = False

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        """Reads the section. cbn=1 is batch normalisation at inference; assisted_excitation is nothing then."""
        image = context.image()
        convolution = Convolution.parse(section, image, "filters")
        if section.boolean("cbn"):
            convolution = dataclasses.replace(convolution, batch_normalize=True)
        convolution = dataclasses.replace(convolution, binary=section.boolean("binary"))
        antialiasing = section.integer("antialiasing", 0, low=0)
        strides = (convolution.stride_x, convolution.stride_y)
        if antialiasing:
            convolution = dataclasses.replace(convolution, stride_x=1, stride_y=1)
        context.check_size(convolution.shape)
        shape = blur(convolution.shape, antialiasing, *strides)[0].shape if antialiasing else convolution.shape
        weights_of = context.index
        if "share_index" in section.options:
            master = context.resolve("share_index", section.integer("share_index", 0))
            owner = context.layers[master]
            if not isinstance(owner, Convolutional):
                section.fail(f"share_index={master} is a [{owner.name}], not a [convolutional]", "share_index")
            if owner.convolution.kernel != convolution.kernel:
                section.fail(
                    f"the weights {owner.convolution.kernel} of layer {master} do not fit {convolution.kernel}",
                    "share_index",
                    "filters, size, groups and input channels must be equal",
                )
            weights_of = owner.weights_of
            convolution = dataclasses.replace(convolution, batch_normalize=owner.convolution.batch_normalize)
        return cls(
            **{**common(context, shape), "weights_of": weights_of},
            convolution=convolution,
            antialiasing=antialiasing,
            blur_stride=strides,
            bin_output=section.boolean("bin_output"),
            dontloadscales=section.boolean("dontloadscales"),
            flipped=section.boolean("flipped"),
        )

    def routed(self) -> Self:
        """A layer that others read by index keeps its activation: Darknet then drops bin_output."""
        return dataclasses.replace(self, bin_output=False)

    def weights(self) -> dict[str, Shape]:
        """Lists no arrays where the weights are another layer's."""
        return self.convolution.weights(self.dontloadscales) if self.weights_of == self.index else {}

    def arrange(self, name: str, stored: Array, shape: Shape, transposed: bool) -> Array:
        """flipped=1: the file holds the transpose, (channels * size * size, filters)."""
        if self.flipped and name == "weights":
            return stored.reshape(-1, shape[0]).T.reshape(shape)
        return super().arrange(name, stored, shape, transposed)

    def defaults(self) -> dict[str, float]:
        """Darknet's initial values of what dontloadscales=1 leaves unread: variance 0 among them."""
        unread = self.dontloadscales and self.convolution.batch_normalize
        return {"scales": 1.0, "mean": 0.0, "variance": 0.0} if unread else {}

    @property
    def _convolution(self) -> Convolution:
        if self.bin_output and self.convolution.xnor:
            return dataclasses.replace(self.convolution, activation="linear")
        return self.convolution

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        y = self._convolution.emit(b, inputs[0], arrays)
        if not self.antialiasing:
            return y
        convolution, kernel = blur(self.convolution.shape, self.antialiasing, *self.blur_stride)
        return convolution.emit(b, y, kernel)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        y = self._convolution.reference(inputs[0], arrays)
        if not self.antialiasing:
            return y
        convolution, kernel = blur(self.convolution.shape, self.antialiasing, *self.blur_stride)
        return convolution.reference(y, kernel)

    def flops(self) -> float:
        """Counts the convolution alone; Darknet does not count the blur."""
        return self.convolution.flops()

    def bit_operations(self) -> float:
        return self.convolution.bit_operations()

    def describe(self) -> str:
        c = self.convolution
        strides = self.blur_stride if self.antialiasing else (c.stride_x, c.stride_y)
        stride = f"{strides[0]}" if strides[0] == strides[1] else f"{strides[0]}x{strides[1]}"
        groups = f"/{c.groups}" if c.groups > 1 else ""
        dilation = f" ({c.dilation})" if c.dilation > 1 else ""
        return f"{c.filters}{groups}  {c.size} x {c.size} / {stride}{dilation}"
