"""[shortcut]: adds layers to the previous one, with optional learned weights (shortcut_layer.c, blas.c).

The output has the previous layer's shape. Of a layer with more channels the first ones are added; one with fewer is
added to the first channels. Darknet's parser of 2025 refuses other widths and heights; the old ResNets rely on the
older meaning, in which a map that is twice as large gives every other pixel, and that is kept here.

weights_type=per_feature (per_layer) has one scalar per input, per_channel one per input and channel, in the order
(previous layer, from...). They are normalised before use:

    relu:     w+ / (sum of w+ + 1e-4), w+ = max(w, 0.001)
    softmax:  e^(w - max) / (sum of e^(w - max) + 1e-4)

That is fuse_conv_batchnorm, which every front end of Darknet runs before it infers. (shortcut_multilayer_cpu, which a
network that is not fused would reach, has max(w, 0).)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import activate, emit_activation, parse_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common

_EPSILON = np.float32(1e-4)
_SMALLEST = np.float32(1e-3)


@layers.register
class Shortcut(Layer):
    """A (weighted) sum of layers, then an activation.

    Keys:
        from: the layers that are added, separated by commas; negative counts back from here.
        activation: what each number of the sum goes through; [activation] has the list.
        weights_type: which learned factors the layers have.
        weights_normalization: how these factors are made to add up to one.
    """

    name = "shortcut"

    activation: str
    weights_type: str
    normalization: str
    source_shapes: tuple[Shape, ...]

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        sources = context.pair("from")
        shapes = (context.input, *(context.layers[source].shape for source in sources[1:]))
        kinds = ("none", "per_feature", "per_layer", "per_channel")
        weights_type = section.choice("weights_type", "none", kinds).replace("per_layer", "per_feature")
        normalization = section.choice("weights_normalization", "none", ("none", "relu", "avg_relu", "softmax"))
        if weights_type != "none" and normalization == "none":
            section.fail(
                f"weights_type={weights_type} needs weights_normalization=relu or softmax",
                "weights_type",
                "Darknet ends here too",
            )
        for source, shape in zip(sources, shapes, strict=True):
            if _stride(context.input, shape) is None or (weights_type != "none" and shape[1:] != context.input[1:]):
                here, there = (" x ".join(map(str, s)) for s in (context.input, shape))
                section.fail(
                    f"layer {source} of {there} cannot be added to the previous layer of {here}",
                    "from",
                    "width and height must be equal (or one a multiple of the other, as in the old ResNets)",
                )
        return cls(
            **common(context, context.input, sources),
            activation=parse_activation(section, "linear"),
            weights_type=weights_type,
            normalization="relu" if normalization == "avg_relu" else normalization,
            source_shapes=shapes,
        )

    def weights(self) -> dict[str, Shape]:
        """Lists one scalar, or one vector over the channels, per input."""
        if self.weights_type == "none":
            return {}
        return {"weights": (len(self.sources), self.shape[0] if self.weights_type == "per_channel" else 1)}

    def _normalized(self, arrays: Arrays) -> Array:
        weights = arrays["weights"]
        soft = self.normalization == "softmax"
        weights = np.exp(weights - weights.max(axis=0)) if soft else np.maximum(weights, _SMALLEST)
        normalized: Array = (weights / (weights.sum(axis=0) + _EPSILON)).astype(np.float32)
        return normalized

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """Slices and pads to the previous layer's shape, Mul by the weights, Add, activation."""
        terms = [self._emit_fit(b, x, shape) for x, shape in zip(inputs, self.source_shapes, strict=True)]
        if self.weights_type != "none":
            scales = self._normalized(arrays).reshape(len(terms), 1, -1, *[1] * (len(self.shape) - 1))
            terms = [b.op("Mul", x, b.constant(scale, "weights")) for x, scale in zip(terms, scales, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = b.op("Add", total, term)
        return emit_activation(b, total, self.activation)

    def _emit_fit(self, b: Builder, x: Value, shape: Shape) -> Value:
        if shape == self.shape:
            return x
        stride, sample = _stride(self.shape, shape) or (1, 1)
        if stride > 1:
            for axis, length in ((2, shape[1]), (3, shape[2])):
                x = b.slice(x, axis, 0, length, stride)
        if shape[0] > self.shape[0]:
            x = b.slice(x, 1, 0, self.shape[0])
        rank = len(shape) + 1
        missing = max(0, self.shape[0] - shape[0])
        if sample > 1:
            # The smaller map lands on every `sample`-th pixel: zeros are put between by a transposed, depthwise kernel.
            channels = min(shape[0], self.shape[0])
            kernel = b.constant(np.ones((channels, 1, 1, 1), np.float32), "sample")
            rest = [sample - 1, sample - 1]
            x = b.op("ConvTranspose", x, kernel, group=channels, strides=[sample, sample], output_padding=rest)
        if missing:
            pads = [0] * rank + [0, missing] + [0] * (rank - 2)
            x = b.op("Pad", x, b.constant(np.array(pads, np.int64)), b.constant(0.0))
        return x

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        """The sum over the channels and pixels that both have."""
        scales = self._normalized(arrays) if self.weights_type != "none" else np.ones((len(inputs), 1), np.float32)
        total = np.zeros((len(inputs[0]), *self.shape), np.float32)
        for x, scale in zip(inputs, scales, strict=True):
            stride, sample = _stride(self.shape, x.shape[1:]) or (1, 1)
            channels = min(x.shape[1], self.shape[0])
            weight = (scale[:channels] if len(scale) > 1 else scale).reshape(1, -1, *[1] * (len(self.shape) - 1))
            part = x[:, :channels]
            if len(self.shape) == 3:
                total[:, :channels, ::sample, ::sample] += part[:, :, ::stride, ::stride] * weight
            else:
                total[:, :channels] += part * weight
        return activate(total, self.activation)

    def flops(self) -> float:
        """Counts an addition per element and source, and a product where the sources are weighted."""
        return float(np.prod(self.shape) * (len(self.sources) - 1) * (1 if self.weights_type == "none" else 2))

    def describe(self) -> str:
        weighted = f"  {self.weights_type} {self.normalization}" if self.weights_type != "none" else ""
        return " ".join(map(str, self.sources[1:])) + weighted


def _stride(target: Shape, source: Shape) -> tuple[int, int] | None:
    """Steps in which the source is read and the target written, one of them 1; None where they do not fit."""
    if target[1:] == source[1:]:
        return 1, 1
    if len(target) != 3 or len(source) != 3:
        return None
    (_, th, tw), (_, sh, sw) = target, source
    stride, sample = sw // tw, tw // sw
    if (sw, sh) == (stride * tw, stride * th):
        return stride, 1
    if (tw, th) == (sample * sw, sample * sh):
        return 1, sample
    return None
