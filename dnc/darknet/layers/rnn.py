"""[rnn]: three fully connected layers, the middle one fed back (rnn_layer.c).

    h = input(x) + self(h)        + h as well with shortcut=1
    y = output(h)

Each of the three has its own biases, batch normalisation and activation; that of self is logistic with logistic=1 and
loggy with logistic=2. h has `hidden` values and y is (output, 1, 1). One call is one time step, and h starts at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import parse_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common
from dnc.darknet.layers.connected import Dense, arrange_dense

__all__ = ["Cell", "Rnn"]


class Cell(Layer):
    """Base of [rnn], [gru] and [lstm]: their fully connected parts, in the order of the .weights file.

    Darknet's dontloadscales does not reach the parts.
    """

    placed = True

    parts: tuple[Dense, ...]

    def weights(self) -> dict[str, Shape]:
        return {name: shape for part in self.parts for name, shape in part.weights().items()}

    def arrange(self, name: str, stored: Array, shape: Shape, transposed: bool) -> Array:
        return arrange_dense(name, stored, shape, transposed)

    def flops(self) -> float:
        return sum(2.0 * part.inputs * part.outputs for part in self.parts)

    def describe(self) -> str:
        return f"{math.prod(self.input_shape)} -> {self.shape[0]}"

    def emit_flat(self, b: Builder, x: Value) -> Value:
        """The layer's input as (N, inputs)."""
        return b.reshape(x, [math.prod(self.input_shape)])


@layers.register
class Rnn(Cell):
    """A plain recurrent layer.

    Keys:
        output: how many numbers come out.
        hidden: the numbers of the memory.
        activation: what each number of each part goes through; [activation] has the list.
        logistic: 1 or 2: what is fed back goes through logistic, or loggy, in place of the activation.
        batch_normalize: 1 normalises the three parts by the means and variances in the .weights file.
        shortcut: 1 adds the memory to what becomes of it.
    """

    name = "rnn"

    shortcut: bool

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        inputs, output = math.prod(context.input), section.integer("output", 1, low=1)
        hidden = section.integer("hidden", 1, low=1)
        context.check_size((hidden,), "hidden")
        activation = parse_activation(section, "logistic")
        recurrent = {1: "logistic", 2: "loggy"}.get(section.integer("logistic", 0), activation)
        normalize = section.boolean("batch_normalize")
        parts = (
            Dense(inputs=inputs, outputs=hidden, batch_normalize=normalize, activation=activation, prefix="input."),
            Dense(inputs=hidden, outputs=hidden, batch_normalize=normalize, activation=recurrent, prefix="self."),
            Dense(inputs=hidden, outputs=output, batch_normalize=normalize, activation=activation, prefix="output."),
        )
        fields = common(context, (output, 1, 1))
        return cls(**fields, parts=parts, shortcut=section.boolean("shortcut"))

    def states(self) -> dict[str, Shape]:
        """h, of `hidden` values."""
        return {"h": (self.parts[0].outputs,)}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        read, recur, write = self.parts
        old = b.states["h"]
        h = b.op("Add", read.emit(b, self.emit_flat(b, inputs[0]), arrays), recur.emit(b, old, arrays))
        if self.shortcut:
            h = b.op("Add", h, old)
        b.next_states["h"] = h
        return b.reshape(write.emit(b, h, arrays), self.shape)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        read, recur, write = self.parts
        x, old = inputs[0].reshape(len(inputs[0]), -1), states["h"]
        h = read.reference(x, arrays) + recur.reference(old, arrays)
        states["h"] = h + old if self.shortcut else h
        return write.reference(states["h"], arrays).reshape(len(x), *self.shape)
