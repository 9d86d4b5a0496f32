"""[gru]: a gated recurrent unit of six fully connected layers (gru_layer.c).

    z = logistic(input_z(x) + state_z(h))
    r = logistic(input_r(x) + state_r(h))
    n = logistic(input_h(x) + state_h(r * h))
    h = z * h + (1 - z) * n

The six are linear, each with its own biases and batch normalisation; the output is h. n is logistic where every other
GRU has tanh: Darknet takes tanh only where the macro USET is defined, and gru_layer.c includes no header that does.
One call is one time step, and h starts at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import activate, emit_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Shape, States, Value, common
from dnc.darknet.layers.connected import Dense
from dnc.darknet.layers.rnn import Cell

__all__ = ["Gru"]


@layers.register
class Gru(Cell):
    """A gated recurrent unit.

    Keys:
        output: how many numbers come out; the memory has as many.
        batch_normalize: 1 normalises the six parts by the means and variances in the .weights file.
    """

    name = "gru"

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        output, normalize = section.integer("output", 1, low=1), section.boolean("batch_normalize")
        parts = tuple(
            Dense(inputs=size, outputs=output, batch_normalize=normalize, activation="linear", prefix=f"{kind}_{gate}.")
            for kind, size in (("input", math.prod(context.input)), ("state", output))
            for gate in "zrh"
        )
        return cls(**common(context, (output,)), parts=parts)

    def states(self) -> dict[str, Shape]:
        """h, the output."""
        return {"h": self.shape}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """Six Gemms; ONNX's own GRU knows no batch normalisation."""
        x, h = self.emit_flat(b, inputs[0]), b.states["h"]
        input_z, input_r, input_h, state_z, state_r, state_h = self.parts

        def gate(read: Dense, recur: Dense, state: Value) -> Value:
            return emit_activation(b, b.op("Add", read.emit(b, x, arrays), recur.emit(b, state, arrays)), "logistic")

        z, r = gate(input_z, state_z, h), gate(input_r, state_r, h)
        n = gate(input_h, state_h, b.op("Mul", r, h))
        kept, new = b.op("Mul", z, h), b.op("Mul", b.op("Sub", b.constant(1.0), z), n)
        b.next_states["h"] = b.op("Add", kept, new)
        return b.next_states["h"]

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        x, h = inputs[0].reshape(len(inputs[0]), -1), states["h"]
        input_z, input_r, input_h, state_z, state_r, state_h = self.parts
        z = activate(input_z.reference(x, arrays) + state_z.reference(h, arrays), "logistic")
        r = activate(input_r.reference(x, arrays) + state_r.reference(h, arrays), "logistic")
        n = activate(input_h.reference(x, arrays) + state_h.reference(r * h, arrays), "logistic")
        states["h"] = z * h + (1 - z) * n
        return states["h"]
