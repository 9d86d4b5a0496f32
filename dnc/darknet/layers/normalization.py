"""[normalization] / [lrn]: local response normalisation across channels, with an off-by-one of Darknet
(normalization_layer.c).

    out[k] = x[k] * (kappa + alpha * (S[k] - x[h]^2))^-beta,  h = size/2
    S[k] = sum of x[j]^2 for j from max(0, k - (size-1)/2) to min(C-1, k + h)

The square of channel h is never added to the running sum but is subtracted when it leaves, so it is missing from every
window. alpha is not divided by size, as it is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common


@layers.register
class Normalization(Layer):
    """Local response normalisation as Darknet computes it.

    Keys:
        size: how many channels a window has.
        alpha, beta, kappa: the numbers of the formula.
    """

    name = "normalization"
    aliases = ("lrn",)

    size: int
    alpha: float
    beta: float
    kappa: float

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        channels = context.image()[0]
        size = section.integer("size", 5, low=1)
        if channels > 8192:
            section.fail(f"{channels} channels are too many for a matrix of all with all", hint="at most 8192")
        if size // 2 >= channels:
            section.fail(f"size={size} needs more than {size // 2} channels, there are {channels}", "size")
        return cls(
            **common(context, context.input),
            size=size,
            alpha=section.number("alpha", 0.0001),
            beta=section.number("beta", 0.75),
            kappa=section.number("kappa", 1.0),
        )

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """Window sums of squares as a 1 x 1 convolution over the channels, then Pow and Mul."""
        x = inputs[0]
        square = b.op("Mul", x, x)
        channels = self.shape[0]
        row, column = np.indices((channels, channels))
        window = (column >= row - (self.size - 1) // 2) & (column <= row + self.size // 2)
        # alpha and the missing channel are part of the matrix: one product gives the whole bracket but kappa.
        matrix = window.astype(np.float32) - (column == self.size // 2)
        kernel = (self.alpha * matrix).astype(np.float32).reshape(channels, channels, 1, 1)
        total = b.op("Conv", square, b.constant(kernel, "window"), kernel_shape=[1, 1])
        norms = b.op("Add", total, b.constant(self.kappa))
        return b.op("Mul", x, b.op("Pow", norms, b.constant(-self.beta)))

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        x = inputs[0]
        square = x * x
        half = self.size // 2
        norms = np.empty_like(x)
        for k in range(x.shape[1]):
            window = square[:, max(0, k - (self.size - 1) // 2) : k + half + 1].sum(axis=1)
            norms[:, k] = self.kappa + self.alpha * (window - square[:, half])
        return x * norms**-self.beta

    def describe(self) -> str:
        return f"{self.size}"
