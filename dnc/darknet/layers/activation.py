"""[activation]: applies an activation to the previous layer (activation_layer.c).

Darknet gives zeros for swish, mish, hard_mish and relu6 here; the intended formulas are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import activate, emit_activation, parse_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common


@layers.register
class Activation(Layer):
    """An activation that stands alone.

    Keys:
        activation: the function.
    """

    name = "activation"

    activation: str

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        fields = common(context, context.input)
        return cls(**fields, activation=parse_activation(section, "linear"))

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        return emit_activation(b, inputs[0], self.activation)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        return activate(inputs[0], self.activation)

    def describe(self) -> str:
        return self.activation
