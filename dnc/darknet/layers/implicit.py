"""[implicit]: a learned constant of shape (filters, atoms, 1), whatever the input is (YOLOR, arXiv 2105.04206;
representation_layer.c). Other layers add or multiply it by [shortcut] and [scale_channels]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common


@layers.register
class Implicit(Layer):
    """A learned constant.

    Keys:
        filters: the channels of the constant.
        atoms: the rows of the constant.
    """

    name = "implicit"

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        filters, atoms = section.integer("filters", 128, low=1), section.integer("atoms", 1, low=1)
        return cls(**common(context, (filters, atoms, 1)))

    def weights(self) -> dict[str, Shape]:
        return {"weights": self.shape}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """The constant, repeated for the batch of the layer before."""
        batch = b.slice(b.op("Shape", inputs[0]), 0, 0, 1)
        dims = b.constant(np.array(self.shape, np.int64))
        return b.op("Expand", b.constant(arrays["weights"], "weights"), b.op("Concat", batch, dims, axis=0))

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        return np.broadcast_to(arrays["weights"], (len(inputs[0]), *self.shape))
