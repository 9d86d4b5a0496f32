"""[scale_channels] and [sam]: multiplies an earlier layer by the previous one (squeeze-and-excitation, arXiv
1709.01507; spatial attention, arXiv 1807.06521).

[scale_channels] has one factor per channel in the previous layer, or with scale_wh=1 one per pixel; [sam] one per
element. The output has the shape of the layer `from`. Darknet computes zeros for swish and mish here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import activate, emit_activation, parse_activation
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, Shape, States, Value, common


class _Product(Layer):
    activation: str

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        """Reads from and activation, and checks that the factors fit."""
        sources = context.pair("from")
        if len(sources) != 2:
            section.fail(f"from= names {len(sources) - 1} layers", "from", "one is possible here")
        target = context.layers[sources[1]].shape
        wanted = cls._factors(section, target)
        if context.input != wanted:
            have, want, of = (" x ".join(map(str, shape)) for shape in (context.input, wanted, target))
            section.fail(f"the previous layer is {have}, but layer {sources[1]} of {of} wants {want}", "from")
        fields = common(context, target, sources)
        return cls(**fields, activation=parse_activation(section, "linear"))

    @staticmethod
    def _factors(section: Section, target: Shape) -> Shape:
        raise NotImplementedError

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        return emit_activation(b, b.op("Mul", inputs[1], inputs[0]), self.activation)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        return activate(inputs[1] * inputs[0], self.activation)

    def describe(self) -> str:
        return str(self.sources[1])


@layers.register
class ScaleChannels(_Product):
    """Multiplication by a factor per channel, or per pixel.

    Keys:
        from: the layer that is multiplied; negative counts back from here.
        scale_wh: 1: a factor for each pixel, not for each channel.
        activation: what each number of the result goes through; [activation] has the list.
    """

    name = "scale_channels"

    @staticmethod
    def _factors(section: Section, target: Shape) -> Shape:
        if len(target) != 3:
            section.fail("the layer to scale must be an image", "from")
        return (1, *target[1:]) if section.boolean("scale_wh") else (target[0], 1, 1)


@layers.register
class Sam(_Product):
    """Multiplication by a factor per element.

    Keys:
        from: the layer that is multiplied; negative counts back from here.
        activation: what each number of the result goes through; [activation] has the list.
    """

    name = "sam"

    @staticmethod
    def _factors(section: Section, target: Shape) -> Shape:
        return target
