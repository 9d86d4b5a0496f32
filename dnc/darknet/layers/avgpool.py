"""[avgpool] / [avg]: the mean of each channel over the whole map, as (C, 1, 1) (avgpool_layer.c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common


@layers.register
class AvgPool(Layer):
    """Global average pooling."""

    name = "avgpool"
    aliases = ("avg",)

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        return cls(**common(context, (context.image()[0], 1, 1)))

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        return b.op("GlobalAveragePool", inputs[0])

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        """The mean, summed in float64."""
        mean = inputs[0].mean(axis=(2, 3), keepdims=True, dtype=np.float64)
        return np.asarray(mean, np.float32)
