"""[batchnorm]: (x - mean) / sqrt(variance + 1e-5) * scale + bias per channel (batchnorm_layer.c).

The .weights file has biases, scales, mean, variance. Those of pjreddie/darknet have no biases here, and do not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common
from dnc.darknet.layers.convolutional import BATCH_NORM_EPSILON, batch_norm_shapes, emit_batch_norm


@layers.register
class BatchNorm(Layer):
    """Batch normalisation that stands alone."""

    name = "batchnorm"

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        return cls(**common(context, context.image()))

    def weights(self) -> dict[str, Shape]:
        return {"biases": (self.shape[0],), **batch_norm_shapes(self.shape[0])}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        return emit_batch_norm(b, inputs[0], arrays)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        scale, bias, mean, variance = (
            arrays[name].astype(np.float64).reshape(-1, 1, 1) for name in ("scales", "biases", "mean", "variance")
        )
        return ((inputs[0] - mean) / np.sqrt(variance + BATCH_NORM_EPSILON) * scale + bias).astype(np.float32)
