"""[connected] / [conn]: weights x inputs, batch normalisation, bias, activation (connected_layer.c).

The .weights file has biases, weights, then the three arrays of batch normalisation: another order than
[convolutional]. The output is (output, 1, 1), so that a convolution may follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import activate, emit_activation, parse_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common
from dnc.darknet.layers.convolutional import batch_norm_shapes, emit_batch_norm, fold_batch_norm


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The arithmetic of one fully connected layer, in whichever layer it stands; x is (N, inputs)."""

    inputs: int
    outputs: int
    batch_normalize: bool
    activation: str
    prefix: str = ""

    def weights(self, dontloadscales: bool = False) -> dict[str, Shape]:
        """biases, weights, scales, mean, variance."""
        scales = self.batch_normalize and not dontloadscales
        return {
            self.prefix + "biases": (self.outputs,),
            self.prefix + "weights": (self.outputs, self.inputs),
            **(batch_norm_shapes(self.outputs, self.prefix) if scales else {}),
        }

    def emit(self, b: Builder, x: Value, arrays: Arrays) -> Value:
        """Gemm, BatchNormalization, activation."""
        weights = b.constant(arrays[self.prefix + "weights"], self.prefix + "weights")
        if self.batch_normalize:
            x = emit_batch_norm(b, b.op("Gemm", x, weights, transB=1), arrays, self.prefix)
        else:
            x = b.op("Gemm", x, weights, b.constant(arrays[self.prefix + "biases"], self.prefix + "biases"), transB=1)
        return emit_activation(b, x, self.activation)

    def reference(self, x: Array, arrays: Arrays) -> Array:
        """The product, with batch normalisation folded."""
        weights, bias = arrays[self.prefix + "weights"], arrays[self.prefix + "biases"]
        if self.batch_normalize:
            weights, bias = fold_batch_norm(weights, arrays, self.prefix)
        return activate(x @ weights.T + bias, self.activation)


def arrange_dense(name: str, stored: Array, shape: Shape, transposed: bool) -> Array:
    """Files with the transpose flag hold the matrices of fully connected layers as (inputs, outputs)."""
    if transposed and name.endswith("weights"):
        return stored.reshape(shape[::-1]).T
    return stored.reshape(shape)


@layers.register
class Connected(Layer):
    """A fully connected layer.

    Keys:
        output: how many numbers come out.
        batch_normalize: 1 normalises the result by the mean and variance in the .weights file.
        activation: what each number of the result goes through; [activation] has the list.
        dontloadscales: 1: the .weights file has no scales, means and variances of this layer.
    """

    name = "connected"
    aliases = ("conn",)
    placed = True

    dense: Dense
    dontloadscales: bool

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        dense = Dense(
            inputs=int(np.prod(context.input)),
            outputs=section.integer("output", 1, low=1),
            batch_normalize=section.boolean("batch_normalize"),
            activation=parse_activation(section, "logistic"),
        )
        fields = common(context, (dense.outputs, 1, 1))
        return cls(**fields, dense=dense, dontloadscales=section.boolean("dontloadscales"))

    def weights(self) -> dict[str, Shape]:
        return self.dense.weights(self.dontloadscales)

    def arrange(self, name: str, stored: Array, shape: Shape, transposed: bool) -> Array:
        return arrange_dense(name, stored, shape, transposed)

    def defaults(self) -> dict[str, float]:
        """Darknet's initial values of what dontloadscales=1 leaves unread."""
        unread = self.dontloadscales and self.dense.batch_normalize
        return {"scales": 1.0, "mean": 0.0, "variance": 0.0} if unread else {}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        y = self.dense.emit(b, b.reshape(inputs[0], [self.dense.inputs]), arrays)
        return b.reshape(y, self.shape)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        x = inputs[0].reshape(len(inputs[0]), -1)
        return self.dense.reference(x, arrays).reshape(len(x), *self.shape)

    def flops(self) -> float:
        return 2.0 * self.dense.inputs * self.dense.outputs

    def describe(self) -> str:
        return str(self.dense.outputs)
