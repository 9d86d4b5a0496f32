"""[detection]: the head of YOLOv1 (detection_layer.c).

The input is flat: classes of all side * side cells, then the confidences of their num boxes, then the boxes. softmax=1
takes the softmax of the classes of each cell; nothing else happens before decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common, layer_value
from dnc.darknet.layers.tree import softmax
from dnc.runtime.decoding import DetectionHead, Head


@layers.register
class Detection(Layer):
    """The head of YOLOv1.

    Keys:
        classes: how many.
        side: the cells along each axis.
        num: the boxes of a cell.
        coords: the numbers of a box, 4.
        softmax: 1 takes the softmax of the classes of each cell.
        sqrt: 1: width and height were trained as square roots, and are squared.
        reorg: nothing; Darknet reads it, and does nothing with it.
    """

    name = "detection"

    classes: int
    side: int
    count: int
    softmax: bool
    sqrt: bool

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        classes, side = section.integer("classes", 1, low=1), section.integer("side", 7, low=1)
        coords, count = section.integer("coords", 1), section.integer("num", 1, low=1)
        if coords != 4:
            section.fail(f"coords={coords} is not decoded by Darknet", "coords", "4 is possible")
        section.boolean("reorg")
        wanted, inputs = side * side * (classes + (1 + coords) * count), int(np.prod(context.input))
        if wanted != inputs:
            section.fail(
                f"the layer before has {inputs} outputs, side^2 * (classes + 5 * num) wants {wanted}",
                "classes",
                "make output= of the [connected] before equal to that",
            )
        return cls(
            **common(context, (inputs,)),
            classes=classes,
            side=side,
            count=count,
            softmax=section.boolean("softmax"),
            sqrt=section.boolean("sqrt"),
        )

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        x = b.reshape(inputs[0], self.shape)
        if not self.softmax:
            return x
        end = self.side * self.side * self.classes
        classes = b.reshape(b.slice(x, 1, 0, end), [self.side * self.side, self.classes])
        classes = b.reshape(b.op("Softmax", classes, axis=2), [end])
        return b.op("Concat", classes, b.slice(x, 1, end, self.shape[0]), axis=1)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        y = inputs[0].reshape(len(inputs[0]), -1).copy()
        if self.softmax:
            end = self.side * self.side * self.classes
            y[:, :end] = softmax(y[:, :end].reshape(len(y), -1, self.classes), -1).reshape(len(y), -1)
        return y

    def head(self) -> Head:
        output, where = layer_value(self.index), self.where.short
        return DetectionHead(output, where, self.classes, side=self.side, num=self.count, sqrt=self.sqrt)

    def describe(self) -> str:
        return f"{self.side} x {self.side} cells, {self.count} boxes, {self.classes} classes"
