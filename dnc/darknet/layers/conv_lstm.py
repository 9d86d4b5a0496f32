"""[conv_lstm]: a long short-term memory of convolutions (conv_lstm_layer.c; arXiv 1506.04214, 1705.06368).

    f = logistic(wf(h) + uf(x) + vf(c))      i = logistic(wi(h) + ui(x) + vi(c))
    g = lstm_activation(wg(h) + ug(x))       c = f * c + i * g
    o = logistic(wo(h) + uo(x) + vo(c))      vo reads the new c
    h = o * lstm_activation(c)               the output
    c = min(max(c, -s), s), s = state_constrain; after h was computed, and not where s is 0

The v stand only with peephole=1. Every convolution has its own biases and batch normalisation and ends in the section's
`activation` (linear by default), before the sums above. One call is one time step, h and c start at zero, and s is 32
by default (Darknet: 32 * time_steps, with one time step at inference).

bottleneck=1 replaces the w by one convolution over h and x together, and what it gives takes the place of x:

    x = lstm_activation(wf([h, x]))

It needs as many input channels as filters. shortcut=1 adds the first half of this new x to the first half of the
output, but not to h; without bottleneck it does nothing.

This is the GPU build. The CPU build differs: it takes tanh for lstm_activation, whatever the section says, and crashes
with bottleneck. Both put 1/index in place of what is not finite; here it stays as it is. Darknet's GPU build handles
one image at a time with bottleneck and shortcut (it joins and halves whole batches); here every image is on its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import activate, emit_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Shape, States, Value, common
from dnc.darknet.layers.crnn import CellConvolution, ConvolutionalCell

__all__ = ["ConvLstm"]

_LSTM_ACTIVATIONS = ("tanh", "leaky", "linear")
"""Those that Darknet's GPU kernels know; it ends with any other."""


@layers.register
class ConvLstm(ConvolutionalCell):
    """A long short-term memory of convolutions.

    Keys:
        `CellConvolution`
        output: the channels of the output and of the memory.
        peephole: 1: the gates see the cell as well.
        bottleneck: 1 replaces four convolutions of the memory by one over memory and input together.
        shortcut: 1, with bottleneck=1, adds half of what the bottleneck gives to half of the output.
        lstm_activation: the function of the cell.
        state_constrain: the cell stays within this number and its negative; 0: no limit.
    """

    name = "conv_lstm"

    peephole: bool
    bottleneck: bool
    shortcut: bool
    lstm_activation: str
    state_constrain: float

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        """Reads the options above and what `Convolution.parse` reads; time_normalizer is for training."""
        image = context.image()
        read = CellConvolution.parse(section, image, "output", activation="linear")
        output, height, width = read.shape
        peephole, bottleneck = section.boolean("peephole"), section.boolean("bottleneck")
        if bottleneck and output != image[0]:
            section.fail(
                f"bottleneck=1 with output={output} and {image[0]} input channels: they must be equal",
                "bottleneck",
                f"use output={image[0]}; Darknet would read past the bottleneck's output",
            )
        recur = dataclasses.replace(read, input_shape=read.shape)
        join = dataclasses.replace(read, input_shape=(2 * output, height, width))
        parts = {name: recur for name in ("vf", "vi", "vo") if peephole}
        parts.update({"wf": join} if bottleneck else dict.fromkeys(("wf", "wi", "wg", "wo"), recur))
        parts.update(dict.fromkeys(("uf", "ui", "ug", "uo"), read))
        recur.validate(section, "output")
        return cls(
            **common(context, read.shape),
            parts=tuple(dataclasses.replace(part, prefix=f"{name}.") for name, part in parts.items()),
            peephole=peephole,
            bottleneck=bottleneck,
            shortcut=section.boolean("shortcut"),
            lstm_activation=section.choice("lstm_activation", "tanh", _LSTM_ACTIVATIONS),
            state_constrain=float(section.integer("state_constrain", 32, low=0)),
        )

    def flops(self) -> float:
        """Counts the convolutions, and the gates as Darknet does."""
        return super().flops() + (12 if self.peephole else 9) * math.prod(self.shape)

    def states(self) -> dict[str, Shape]:
        """h, the output before the shortcut, and c, the cell."""
        return {"h": self.shape, "c": self.shape}

    def _named(self) -> dict[str, CellConvolution]:
        return {part.prefix.removesuffix("."): part for part in self.parts}

    def _half(self) -> Array:
        """Mask of the first half of an image's values; it ends within a channel where their number is odd."""
        count = math.prod(self.shape)
        return (np.arange(count) < count // 2).astype(np.float32).reshape(1, *self.shape)

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        parts, x, h, c = self._named(), inputs[0], b.states["h"], b.states["c"]
        if self.bottleneck:
            x = emit_activation(b, parts["wf"].emit(b, b.op("Concat", h, x, axis=1), arrays), self.lstm_activation)

        def gate(name: str, activation: str, cell: Value | None = None) -> Value:
            total = parts[f"u{name}"].emit(b, x, arrays)
            if not self.bottleneck:
                total = b.op("Add", parts[f"w{name}"].emit(b, h, arrays), total)
            if self.peephole and cell is not None:
                total = b.op("Add", total, parts[f"v{name}"].emit(b, cell, arrays))
            return emit_activation(b, total, activation)

        kept = b.op("Mul", gate("f", "logistic", c), c)
        new = b.op("Mul", gate("i", "logistic", c), gate("g", self.lstm_activation))
        cell = b.op("Add", kept, new)
        y = b.op("Mul", gate("o", "logistic", cell), emit_activation(b, cell, self.lstm_activation))
        bound = self.state_constrain
        b.next_states["h"] = y
        b.next_states["c"] = b.op("Clip", cell, b.constant(-bound), b.constant(bound)) if bound else cell
        if self.shortcut and self.bottleneck:
            y = b.op("Add", y, b.op("Mul", x, b.constant(self._half(), "half")))
        return y

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        parts, x, h, c = self._named(), inputs[0], states["h"], states["c"]
        if self.bottleneck:
            x = activate(parts["wf"].reference(np.concatenate([h, x], axis=1), arrays), self.lstm_activation)

        def gate(name: str, activation: str, cell: Array | None = None) -> Array:
            total = parts[f"u{name}"].reference(x, arrays)
            if not self.bottleneck:
                total = parts[f"w{name}"].reference(h, arrays) + total
            if self.peephole and cell is not None:
                total = total + parts[f"v{name}"].reference(cell, arrays)
            return activate(total, activation)

        cell = gate("f", "logistic", c) * c + gate("i", "logistic", c) * gate("g", self.lstm_activation)
        y = gate("o", "logistic", cell) * activate(cell, self.lstm_activation)
        bound = self.state_constrain
        states["h"] = y
        states["c"] = np.clip(cell, -bound, bound).astype(np.float32, copy=False) if bound else cell
        return y + x * self._half() if self.shortcut and self.bottleneck else y
