"""[lstm]: a long short-term memory of eight fully connected layers (lstm_layer.c).

    f = logistic(wf(h) + uf(x))      i = logistic(wi(h) + ui(x))
    g = tanh(wg(h) + ug(x))          o = logistic(wo(h) + uo(x))
    c = f * c + i * g
    h = o * tanh(c)

The eight are linear, each with its own biases and batch normalisation; the output is h, as (output, 1, 1). One call is
one time step, and h and c start at zero.
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

__all__ = ["Lstm"]

_ACTIVATIONS = ("logistic", "logistic", "tanh", "logistic")
"""Of f, i, g and o."""


@layers.register
class Lstm(Cell):
    """A long short-term memory.

    Keys:
        output: how many numbers come out; the memory has as many, twice.
        batch_normalize: 1 normalises the eight parts by the means and variances in the .weights file.
    """

    name = "lstm"

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        output, normalize = section.integer("output", 1, low=1), section.boolean("batch_normalize")
        parts = tuple(
            Dense(inputs=size, outputs=output, batch_normalize=normalize, activation="linear", prefix=f"{kind}{gate}.")
            for kind, size in (("w", output), ("u", math.prod(context.input)))
            for gate in "figo"
        )
        return cls(**common(context, (output, 1, 1)), parts=parts)

    def states(self) -> dict[str, Shape]:
        """h, the output, and c, the cell."""
        return {"h": self.shape[:1], "c": self.shape[:1]}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """Eight Gemms; ONNX's own LSTM knows no batch normalisation."""
        x, h, c = self.emit_flat(b, inputs[0]), b.states["h"], b.states["c"]
        f, i, g, o = (
            emit_activation(b, b.op("Add", w.emit(b, h, arrays), u.emit(b, x, arrays)), activation)
            for w, u, activation in zip(self.parts[:4], self.parts[4:], _ACTIVATIONS, strict=True)
        )
        c = b.op("Add", b.op("Mul", f, c), b.op("Mul", i, g))
        h = b.op("Mul", o, b.op("Tanh", c))
        b.next_states.update(h=h, c=c)
        return b.reshape(h, self.shape)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        x, h, c = inputs[0].reshape(len(inputs[0]), -1), states["h"], states["c"]
        f, i, g, o = (
            activate(w.reference(h, arrays) + u.reference(x, arrays), activation)
            for w, u, activation in zip(self.parts[:4], self.parts[4:], _ACTIVATIONS, strict=True)
        )
        states["c"] = f * c + i * g
        states["h"] = o * activate(states["c"], "tanh")
        return states["h"].reshape(len(x), *self.shape)
