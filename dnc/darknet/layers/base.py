"""What every layer is: a frozen record of one section that knows its shape, its weights and its arithmetic twice.

`emit` says it in ONNX operators, for the engines; `reference` says it in numpy, as the oracle that the engines are
held against. Both follow Darknet's own formulas, and nothing outside these classes knows them.

Shapes are without the batch axis: (C, H, W) for maps, (N,) for what Darknet keeps flat. Arrays and values are batch
first, float32, NCHW.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypeAlias, dataclass_transform

import numpy as np
import numpy.typing as npt

from dnc.darknet.cfg import Section
from dnc.errors import CfgError, Where

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.graph import builder
    from dnc.runtime.decoding import Head

__all__ = [
    "MAX_ELEMENTS",
    "Array",
    "Arrays",
    "Builder",
    "Context",
    "Layer",
    "Shape",
    "States",
    "Value",
    "common",
    "layer_value",
]

Shape = tuple[int, ...]
Array = npt.NDArray[np.float32]
Arrays = Mapping[str, Array]
States = dict[str, Array]

# Names alone: importing onnx_ir takes a second, which reading a cfg does not need.
Builder: TypeAlias = "builder.Builder"
Value: TypeAlias = "ir.Value"

MAX_ELEMENTS = 2**31 - 1
"""Darknet counts a layer's elements in an int; anything larger is a typing error, refused before memory is taken."""


def layer_value(index: int) -> str:
    """The name of the value that holds the output of a Darknet layer, from lowering to the engine."""
    return f"layer{index:03d}"


@dataclass
class Context:
    """The network as a section sees it while it is parsed: the layers before it."""

    section: Section
    index: int
    input: Shape
    layers: Sequence[Layer]
    net: Section
    read: set[int] = field(default_factory=set)
    """The layers that some section reads by index, for `Layer.routed`."""

    def image(self) -> tuple[int, int, int]:
        """The previous layer's (C, H, W); an error where its output is flat."""
        if len(self.input) != 3:
            self.section.fail(
                f"[{self.section.name}] needs an image, but the layer before it has a flat output of {self.input[0]}",
                hint="place it before the [softmax] or [cost], or set width, height and channels in [net]",
            )
        channels, height, width = self.input
        return channels, height, width

    def resolve(self, key: str, index: int) -> int:
        """Darknet's layer index: negative counts back from this layer, else absolute. It must lie before this one."""
        absolute = self.index + index if index < 0 else index
        if not 0 <= absolute < self.index:
            where = "the first layer" if self.index == 0 else f"one of layers 0 to {self.index - 1}"
            self.section.fail(f"{key}={index} is layer {absolute}, which is not {where}", key, "only earlier layers")
        return absolute

    def sources(self, key: str, marked: int | None = None) -> tuple[int, ...]:
        """The layers that a comma-separated option names; at least one. The first `marked` of them are `read`."""
        indices = self.section.integers(key, whole=True)
        if not indices:
            self.section.fail(f"[{self.section.name}] must say {key}=", key, f"for instance {key}=-2")
        sources = tuple(self.resolve(key, index) for index in indices)
        self.read.update(sources[:marked])
        return sources

    def pair(self, key: str) -> tuple[int, ...]:
        """The previous layer and those that `key` names, as [shortcut], [sam] and [scale_channels] read them.

        Of several that are named, Darknet counts the first alone as read.
        """
        sources = (self.index - 1, *self.sources(key, marked=1))
        self.read.add(self.index - 1)
        return sources

    def check_size(self, shape: Shape, key: str | None = None) -> Shape:
        """Returns `shape` if every side is positive and the count fits Darknet's int."""
        if min(shape) < 1:
            text = " x ".join(map(str, shape))
            self.section.fail(f"the output would be empty: {text}", key, "the input is too small for this layer")
        if math.prod(shape) > MAX_ELEMENTS:
            text = " x ".join(map(str, shape))
            self.section.fail(f"the output would have {text} elements", key, f"at most {MAX_ELEMENTS} are possible")
        return shape


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Layer(ABC):
    """A section of a .cfg, with what inference needs of it. Every class of layers is a frozen dataclass, as this is."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    name: ClassVar[str]
    """The section's name; `aliases` are other spellings that Darknet takes."""
    aliases: ClassVar[tuple[str, ...]] = ()
    placed: ClassVar[bool] = False
    """Whether each place of the input has weights of its own, which fit no other size of the network."""

    where: Where
    index: int
    input_shape: Shape
    """The shape of the layer before this one (of the network's input for layer 0)."""
    shape: Shape
    sources: tuple[int, ...]
    """The layers whose outputs `emit` and `reference` get, in order; -1 is the network's input."""
    weights_of: int
    """The layer that owns the weights: this one, but for share_index."""

    @classmethod
    @abstractmethod
    def parse(cls, section: Section, context: Context) -> Self:
        """Reads the section's options, those below `Keys:` in the docstring of the class; raises CfgError."""

    def weights(self) -> dict[str, Shape]:
        """Names and shapes of the arrays that the .weights file holds for this layer, in the file's order."""
        return {}

    def arrange(self, name: str, stored: Array, shape: Shape, transposed: bool) -> Array:
        """A stored, flat array in the shape that `weights` gives; `transposed` is the file's flag (old formats)."""
        return stored.reshape(shape)

    def defaults(self) -> dict[str, float]:
        """Values of arrays that `emit` needs and the file does not hold (dontloadscales)."""
        return {}

    def states(self) -> dict[str, Shape]:
        """Names and shapes of what a recurrent layer carries from one step to the next; zero at first."""
        return {}

    @abstractmethod
    def emit(self, b: Builder, inputs: Sequence[Value], arrays: Arrays) -> Value:
        """Adds this layer's ONNX nodes and returns the output value, of shape (N, *shape)."""

    @abstractmethod
    def reference(self, inputs: Sequence[Array], arrays: Arrays, states: States) -> Array:
        """Computes the output with numpy; a recurrent layer replaces its entries of `states`."""

    def routed(self) -> Self:
        """Returns the layer as it is once a later one reads it by index (route, shortcut, ...)."""
        return self

    def head(self) -> Head | None:
        """Decoder of this layer's output into boxes or classes on the host; None for anything but a head."""
        return None

    def flops(self) -> float:
        """Floating-point operations of one image as Darknet counts them (2 per multiply-add)."""
        return 0.0

    def bit_operations(self) -> float:
        """Operations on single bits of one image, two for each XNOR and count; `flops` has 1/32 of them, as Darknet."""
        return 0.0

    def describe(self) -> str:
        """The layer's own settings for the table of `dnc info`, as Darknet prints them: `3 x 3/ 2`."""
        return ""

    def fail(self, message: str, hint: str = "") -> NoReturn:
        """Raises a CfgError at this layer's section."""
        raise CfgError(message, self.where, hint)


def common(context: Context, shape: Shape, sources: tuple[int, ...] | None = None) -> dict[str, Any]:
    """The fields that every layer has, for its constructor: `cls(**common(context, shape), ...)`."""
    return {
        "where": context.section.where,
        "index": context.index,
        "input_shape": context.input,
        "shape": context.check_size(shape),
        "sources": (context.index - 1,) if sources is None else sources,
        "weights_of": context.index,
    }
