"""[softmax] / [soft]: softmax of x / temperature over all inputs, over each of `groups` equal parts, or over the groups
of a class tree (softmax_layer.c).

A tree goes before groups and spatial. spatial=1 takes the softmax across the channels of each pixel and leaves the
temperature out, as the GPU build is meant to; the CPU build ignores it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common, layer_value
from dnc.darknet.layers.tree import emit_tree_softmax, parse_tree, softmax, tree_softmax
from dnc.runtime.decoding import ClassifierHead, Head


@layers.register
class Softmax(Layer):
    """The head of classifiers.

    Keys:
        groups: equal parts, with a softmax each.
        temperature: what the numbers are divided by before.
        spatial: 1 takes the softmax over the channels of each pixel.
        tree: a file with a class tree: a softmax for each group of it.
    """

    name = "softmax"
    aliases = ("soft",)

    groups: int
    temperature: float
    spatial: bool
    tree: tuple[int, ...]

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        inputs = int(np.prod(context.input))
        groups = section.integer("groups", 1, low=1)
        if inputs % groups:
            section.fail(f"groups={groups} does not divide {inputs} inputs", "groups")
        temperature = section.number("temperature", 1.0)
        if temperature == 0:
            section.fail("temperature=0 divides by zero", "temperature")
        tree = parse_tree(section, inputs)
        spatial = section.number("spatial", 0.0) != 0 and not tree
        if spatial:
            context.image()
        return cls(**common(context, (inputs,)), groups=groups, temperature=temperature, spatial=spatial, tree=tree)

    def _view(self) -> tuple[list[int], int]:
        """(shape without the batch axis, axis of the softmax)."""
        if self.spatial:
            return [self.input_shape[0], int(np.prod(self.input_shape[1:]))], 1
        if self.groups > 1 and not self.tree:
            return [self.groups, self.shape[0] // self.groups], 2
        return [self.shape[0]], 1

    @property
    def _temperature(self) -> float:
        return 1.0 if self.spatial else self.temperature

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        view, axis = self._view()
        x = b.reshape(inputs[0], view)
        if self._temperature != 1:
            x = b.op("Div", x, b.constant(self._temperature))
        y = emit_tree_softmax(b, x, self.tree, axis) if self.tree else b.op("Softmax", x, axis=axis)
        return y if len(view) == 1 else b.reshape(y, self.shape)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        view, axis = self._view()
        x = inputs[0].reshape(len(inputs[0]), *view)
        if self.tree:
            return tree_softmax(x, self.tree, self._temperature)
        return softmax(x, axis, self._temperature).reshape(len(x), -1)

    def head(self) -> Head:
        output = layer_value(self.index)
        return ClassifierHead(output=output, where=self.where.short, classes=self.shape[0], tree=self.tree)
