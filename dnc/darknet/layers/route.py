"""[route]: concatenates layers along the channels; with groups, only part `group_id` of each input's channels.

Darknet gives the output no width and height if those of the inputs differ, and flattens them one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common


@layers.register
class Route(Layer):
    """Concatenation of (slices of) earlier layers.

    Keys:
        layers: which, separated by commas; negative counts back from here.
        groups: in how many parts the channels of each are cut.
        group_id: which of these parts is taken, from 0.
    """

    name = "route"

    groups: int = 1
    group_id: int = 0
    source_channels: tuple[int, ...] = ()
    """Channels of each input; empty where the output is flat."""

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        sources = context.sources("layers")
        groups = section.integer("groups", 1, low=1)
        group_id = section.integer("group_id", 0, low=0, high=groups - 1)
        shapes = [context.layers[source].shape for source in sources]
        if len({shape[1:] for shape in shapes}) > 1 or len(shapes[0]) != 3:
            if any(len(shape) == 3 for shape in shapes):
                sizes = ", ".join(" x ".join(map(str, shape)) for shape in shapes)
                hint = "Darknet flattens them"
                sides = zip(*(shape[1:] for shape in shapes), strict=False)
                if all(len(shape) == 3 for shape in shapes) and all(max(each) - min(each) <= 1 for each in sides):
                    hint += "; a difference of 1 comes of a width= or height= that the strides do not divide"
                section.guess(f"the layers have different sizes: {sizes}", "layers", hint)
            if groups > 1:
                section.fail("groups need inputs of one width and height", "groups")
            flat = (sum(math.prod(shape) for shape in shapes),)
            return cls(**common(context, flat, sources))
        channels = tuple(shape[0] for shape in shapes)
        for source, count in zip(sources, channels, strict=True):
            if count % groups:
                section.fail(f"groups={groups} does not divide the {count} channels of layer {source}", "groups")
        shape = (sum(channels) // groups, *shapes[0][1:])
        fields = common(context, shape, sources)
        return cls(**fields, groups=groups, group_id=group_id, source_channels=channels)

    def _part(self, channels: int) -> tuple[int, int]:
        size = channels // self.groups
        return self.group_id * size, (self.group_id + 1) * size

    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        parts = list(inputs)
        if self.groups > 1:
            parts = [b.slice(x, 1, *self._part(c)) for x, c in zip(inputs, self.source_channels, strict=True)]
        elif not self.source_channels:
            parts = [b.reshape(x, [-1]) for x in inputs]
        return parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=1)

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        if not self.source_channels:
            return np.concatenate([x.reshape(len(x), -1) for x in inputs], axis=1)
        return np.concatenate([x[:, slice(*self._part(x.shape[1]))] for x in inputs], axis=1)

    def describe(self) -> str:
        part = f"  {self.group_id}/{self.groups}" if self.groups > 1 else ""
        return " ".join(map(str, self.sources)) + part
