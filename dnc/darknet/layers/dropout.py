"""[dropout], [empty] / [silence], [cost], [contrastive]: sections that do nothing at inference.

Dropout and DropBlock (arXiv 1810.12890) act in training only: Darknet scales there, not here. [cost] and
[contrastive] are losses; their output is flat, and is their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Array, Arrays, Builder, Context, Layer, States, Value, common


class _Nothing(Layer):
    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """A node that the pass eliminate-identity removes."""
        if self.shape != self.input_shape:
            return b.reshape(inputs[0], self.shape)
        return b.op("Dropout" if self.name == "dropout" else "Identity", inputs[0])

    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        return inputs[0].reshape(len(inputs[0]), *self.shape)


@layers.register
class Dropout(_Nothing):
    """Dropout and DropBlock."""

    name = "dropout"

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        """All options are for training."""
        return cls(**common(context, context.input))


@layers.register
class Empty(Dropout):
    """A placeholder."""

    name = "empty"
    aliases = ("silence",)


@layers.register
class Cost(_Nothing):
    """A training loss."""

    name = "cost"

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        """All options are for training."""
        return cls(**common(context, (int(np.prod(context.input)),)))


@layers.register
class Contrastive(Cost):
    """The contrastive loss of embedding networks.

    Keys:
        classes: nothing at inference; it is read so that a typing error in it shows.
    """

    name = "contrastive"

    @classmethod
    def parse(cls, section: Section, context: Context) -> Self:
        """All options are for training; classes is read so that a typing error in it shows."""
        section.integer("classes", 1000, low=1)
        return super().parse(section, context)
