"""[crop]: the centre of the image, then 2x - 1 unless noadjust=1 (crop_layer.c; flips and shifts are for training)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common


@layers.register
class Crop(Layer):
    """A centre crop.

    Keys:
        crop_height, crop_width: the size of the part in the middle.
        noadjust: 1 leaves the numbers as they are; else x becomes 2x - 1.
    """

    name = "crop"

    noadjust: bool

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        channels, height, width = context.image()
        rows = section.integer("crop_height", 1, low=1, high=height)
        columns = section.integer("crop_width", 1, low=1, high=width)
        fields = common(context, (channels, rows, columns))
        return cls(**fields, noadjust=section.boolean("noadjust"))

    def _begin(self) -> tuple[int, int]:
        return (self.input_shape[1] - self.shape[1]) // 2, (self.input_shape[2] - self.shape[2]) // 2

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        top, left = self._begin()
        x = b.slice(inputs[0], 2, top, top + self.shape[1])
        x = b.slice(x, 3, left, left + self.shape[2])
        return x if self.noadjust else b.op("Sub", b.op("Mul", x, b.constant(2.0)), b.constant(1.0))

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        top, left = self._begin()
        x = inputs[0][:, :, top : top + self.shape[1], left : left + self.shape[2]]
        return x if self.noadjust else x * 2 - 1
