"""[crnn]: three convolutions, the middle one fed back (crnn_layer.c).

    h = input(x) + self(h)        + h as well with shortcut=1
    y = output(h)

All three have the section's size, padding, dilation, groups, batch normalisation and activation. h has `hidden`
channels and y has `output`, at the width and height of the input: what is fed back must keep its size, and Darknet
asserts it. One call is one time step, and h starts at zero.

xnor=1 is not that of [convolutional]: Darknet prepares its bit-wise product for that section alone. Here its CPU build
reads past the weights, and its GPU build multiplies mean(|w|) with the sign of w by inputs of +1 where x >= 0 and -1
elsewhere, with a padding of 0; so does dnc. groups count as 1 then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common
from dnc.darknet.layers.convolutional import Convolution

__all__ = ["CellConvolution", "ConvolutionalCell", "Crnn"]


@dataclass(frozen=True, kw_only=True)
class CellConvolution(Convolution):
    """A convolution inside of [crnn] or [conv_lstm]: it keeps the size, knows no stride_x and stride_y, and xnor is as
    said above.

    Keys:
        `Convolution`
        xnor: 1 multiplies signs, of weights and of inputs, otherwise than in [convolutional]; see below.
    """

    usual_size: ClassVar[int] = 3
    stride_keys: ClassVar[tuple[str, ...]] = ()

    def validate(self, section: Section, filters: str) -> None:
        """Refuses also what would change the size: Darknet asserts, or reads past its state."""
        super().validate(section, filters)
        if self.shape[1:] != self.input_shape[1:]:
            before, after = ("{1} x {0}".format(*shape[1:]) for shape in (self.input_shape, self.shape))
            options = f"size={self.size}, stride={self.stride_x}, padding={self.padding}"
            section.fail(
                f"{options} would make {after} of {before}, but a recurrent convolution must keep its size",
                "stride" if self.stride_x > 1 else "size",
                "use stride=1, pad=1 and an odd size; a [convolutional] or [maxpool] before can reduce the size",
            )

    def _signs(self) -> Convolution:
        # The weights of `binary` are those of xnor; it leaves the inputs alone and pads with 0.
        return dataclasses.replace(self, xnor=False, binary=True)

    def emit(self, b: Builder, x: Value, arrays: Arrays) -> Value:
        if not self.xnor:
            return super().emit(b, x, arrays)
        signs = b.op("Where", b.op("Less", x, b.constant(0.0)), b.constant(-1.0), b.constant(1.0))
        return self._signs().emit(b, signs, arrays)

    def reference(self, x: Array, arrays: Arrays) -> Array:
        if not self.xnor:
            return super().reference(x, arrays)
        return self._signs().reference(np.where(x < 0, np.float32(-1), np.float32(1)), arrays)


class ConvolutionalCell(Layer):
    """Base of [crnn] and [conv_lstm]: their convolutions, in the order of the .weights file.

    Darknet's dontloadscales does not reach them.
    """

    parts: tuple[CellConvolution, ...]

    def weights(self) -> dict[str, Shape]:
        return {name: shape for part in self.parts for name, shape in part.weights().items()}

    def flops(self) -> float:
        return sum(part.flops() for part in self.parts)

    def bit_operations(self) -> float:
        return sum(part.bit_operations() for part in self.parts)

    def describe(self) -> str:
        part = self.parts[-1]
        return f"{part.filters}  {part.size} x {part.size} / {part.stride_x}"


@layers.register
class Crnn(ConvolutionalCell):
    """A plain recurrent layer of convolutions.

    Keys:
        `CellConvolution`
        output: the channels of the output.
        hidden: the channels of the memory.
        shortcut: 1 adds the memory to what becomes of it.
    """

    name = "crnn"

    shortcut: bool

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        """Reads output, hidden and shortcut, and what `Convolution.parse` reads."""
        read = CellConvolution.parse(section, context.image(), "hidden")
        context.check_size(read.shape, "hidden")
        recur = dataclasses.replace(read, input_shape=read.shape)
        write = dataclasses.replace(recur, filters=section.integer("output", 1, low=1))
        recur.validate(section, "hidden")
        write.validate(section, "output")
        named = {"input.": read, "self.": recur, "output.": write}
        parts = tuple(dataclasses.replace(part, prefix=prefix) for prefix, part in named.items())
        return cls(**common(context, write.shape), parts=parts, shortcut=section.boolean("shortcut"))

    def states(self) -> dict[str, Shape]:
        """h, of `hidden` channels."""
        return {"h": self.parts[0].shape}

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        read, recur, write = self.parts
        old = b.states["h"]
        h = b.op("Add", read.emit(b, inputs[0], arrays), recur.emit(b, old, arrays))
        if self.shortcut:
            h = b.op("Add", h, old)
        b.next_states["h"] = h
        return write.emit(b, h, arrays)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        read, recur, write = self.parts
        old = states["h"]
        h = read.reference(inputs[0], arrays) + recur.reference(old, arrays)
        states["h"] = h + old if self.shortcut else h
        return write.reference(states["h"], arrays)
