"""A Darknet network: its layers with their shapes, and the arrays that belong to them. Nothing in it changes.

This is the first of the two representations: it speaks Darknet's language, and all of Darknet's arithmetic is in the
`Layer` classes. The second is the ONNX graph that `dnc.darknet.lower` makes of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dnc.darknet.cfg import Section, find_cfg, parse_cfg, read_cfg, with_net
from dnc.darknet.layers import Context, Layer, Shape, layers
from dnc.darknet.layers.base import MAX_ELEMENTS, Arrays
from dnc.darknet.sizing import MAX_SIDE, build_sized
from dnc.darknet.weights import count, random_arrays, read_weights
from dnc.errors import CfgError, WeightsError, Where, close_match, listening
from dnc.files.reading import open_regular

__all__ = ["MAX_PARAMETERS", "Network"]

_MEANT = {
    **dict.fromkeys(("concat", "concatenate", "concatenation"), "[route] joins layers"),
    **dict.fromkeys(("add", "residual", "eltwise"), "[shortcut] adds layers"),
    **dict.fromkeys(("dense", "fc", "fullyconnected", "linear"), "[connected] is fully connected"),
    **dict.fromkeys(("gap", "globalavgpool", "globalaveragepooling"), "[avgpool] is over all of a map"),
    **dict.fromkeys(("depthwise", "depthwiseconvolutional"), "[convolutional] with groups= as many as channels"),
    **dict.fromkeys(("deconvolutional", "deconv", "transposedconvolutional"), "Darknet has no transposed convolution"),
}
"""What other frameworks call a section."""

MAX_PARAMETERS = 2**29
"""2 GiB of weights, which is what one ONNX file holds; more is a typing error, refused before memory is taken."""
_RANDOM = 2
"""Of the rule that random weights are drawn by: other numbers have another digest."""


@dataclass(frozen=True)
class Network:
    """Layers, input shape and, once weights are given, arrays.

    `arrays[i]` belongs to `layers[i]`; it is empty for a network without weights.
    """

    file: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    letter_box: bool = False
    arrays: tuple[Arrays, ...] = ()
    weights: str = ""
    """Where the arrays are from: the .weights file, or "random"; empty for a network without."""
    training: str = ""
    """Options of layers that act in training only, in words; empty if there are none. Those of [net], of heads and of
    losses are not among them: nobody takes them for a part of the network."""
    digest: str = ""
    """sha256 of the cfg's and the weights' bytes, whatever the size of the input: what calibrations are bound to."""

    @classmethod
    def load(
        cls,
        cfg: str | Path,
        weights: str | Path | None = None,
        *,
        lenient: bool = False,
        cutoff: int | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> Network:
        """Reads a .cfg, and a .weights where one is given.

        Args:
            cfg: the .cfg file, or the name of a network of cfg/.
            weights: the .weights file; without it the network has shapes alone.
            lenient: what Darknet takes in silence warns instead of failing.
            cutoff: takes the first so many layers, of the cfg and of the weights (as `darknet partial`).
            width, height: of the input, in pixels, in place of the cfg's.

        Raises:
            CfgError, WeightsError: see `dnc.darknet.cfg`, `dnc.darknet.sizing` and `dnc.darknet.weights`.
        """
        cfg = find_cfg(cfg)
        sections, data = read_cfg(cfg, lenient)
        build = partial(cls.build, file=str(cfg), lenient=lenient, cutoff=cutoff)
        size = {key: side for key, side in (("width", width), ("height", height)) if side is not None}
        network = build_sized(build, sections, size) if size else build(sections)
        digest = hashlib.sha256(data)
        if cutoff is not None:
            digest.update(f"cutoff={cutoff}".encode())
        if weights is None:
            return dataclasses.replace(network, digest=digest.hexdigest())
        arrays = read_weights(weights, network.layers, lenient=lenient, partial=cutoff is not None)
        with open_regular(weights) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return dataclasses.replace(network, arrays=arrays, weights=str(weights), digest=digest.hexdigest())

    @classmethod
    def parse(cls, text: str, file: str = "<cfg>", *, lenient: bool = False) -> Network:
        """A network from cfg text, without weights."""
        network = cls.build(parse_cfg(text, file, lenient), file, lenient=lenient)
        return dataclasses.replace(network, digest=hashlib.sha256(text.encode(errors="replace")).hexdigest())

    @classmethod
    def build(cls, sections: list[Section], file: str, *, lenient: bool = False, cutoff: int | None = None) -> Network:
        """Gives each section to its Layer class, which sees the layers before it.

        Keys:
            width, height: the size of the input, in pixels; `--width` and `--height` of every command take another.
            channels: of the input; 3 are red, green and blue.
            inputs: how many numbers the input has, where the network takes no images: in place of the three above.
            letter_box: 1 keeps the proportions of an image and fills the rest with gray; else it is stretched.
        """
        net, *rest = sections
        shape = _input_shape(net)
        letter_box = net.boolean("letter_box")
        net.finish()
        if cutoff is not None and not 1 <= cutoff <= len(rest):
            raise CfgError(f"--cutoff {cutoff} must be from 1 to {len(rest)}, the number of layers", file)
        built: list[Layer] = []
        read: set[int] = set()
        current = shape
        parameters = 0
        training: Counter[str] = Counter()
        for section in rest[:cutoff]:
            kind = layers.get(section.name)
            context = Context(section, len(built), current, built, net, read)
            if kind is None:
                hint = close_match(section.name, layers, meant=_MEANT)
                if lenient or not hint:
                    hint = f"Darknet counts a layer without outputs; --lenient passes its input on. {hint}".strip()
                section.guess(f"unknown section [{section.where.section}]", hint=hint)
                built.append(layers["empty"].parse(section, context))
                continue
            layer = kind.parse(section, context)
            if section.boolean("dontload") and count(layer):
                section.fail("dontload=1 leaves this layer's weights out of the file", "dontload", "delete the line")
            if layer.name != "convolutional":
                section.boolean("dontloadscales")
            section.finish()
            if layer.head() is None and layer.name != "cost":
                training.update(f"[{section.name}] {key}" for key in section.training)
            parameters += count(layer)
            if parameters > MAX_PARAMETERS:
                section.fail(f"the weights up to this layer are {parameters} floats", hint="an engine holds 2 GiB")
            built.append(layer)
            current = layer.shape
        if not built:
            raise CfgError("the network has no layers", file, "add sections after [net]")
        done = tuple(layer.routed() if layer.index in read else layer for layer in built)
        ignored = ", ".join(f"{name} ({times})" for name, times in training.items())
        return cls(file=file, input_shape=shape, layers=done, letter_box=letter_box, training=ignored)

    @property
    def outputs(self) -> tuple[Layer, ...]:
        """The heads in cfg order, or for a network without any the last layer that is no [cost], as in Darknet."""
        heads = tuple(layer for layer in self.layers if layer.head() is not None)
        rest = [layer for layer in self.layers if layer.name != "cost"] or self.layers
        return heads or (rest[-1],)

    def sized(self, shape: Shape) -> Network:
        """The same files, for inputs of another (channels, height, width); the network itself if that is its own.

        Raises CfgError where the size does not fit.
        """
        if shape == self.input_shape or len(shape) != 3:
            return self
        _, height, width = shape
        # What there is to warn of has been said of this one.
        with listening():
            network = Network.load(
                self.file, self.weights or None, lenient=True, cutoff=len(self.layers), width=width, height=height
            )
        return dataclasses.replace(network, digest=self.digest)

    def cfg_with(self, options: Mapping[str, str]) -> bytes:
        """The text of its cfg, in which [net] has these options, and says the size that this network has.

        Raises CfgError where it cannot be read anew.
        """
        with listening():
            sections, data = read_cfg(self.file, lenient=True)
            size = dict(zip(("height", "width"), self.input_shape[1:], strict=False))
            changed = {key: str(side) for key, side in size.items() if sections[0].integer(key, 0) != side}
            if changed and "inputs" in sections[0].options:
                changed["inputs"] = str(math.prod(self.input_shape))
        return with_net(sections, data, {**options, **changed})

    def parameters(self) -> int:
        """Number of floats in the .weights file."""
        return sum(count(layer) for layer in self.layers)

    def with_random_weights(self, seed: int = 0) -> Network:
        """The same network with random weights."""
        digest = hashlib.sha256(f"{self.digest} random by {_RANDOM} {seed}".encode()).hexdigest()
        return dataclasses.replace(self, arrays=random_arrays(self.layers, seed), weights="random", digest=digest)

    def with_arrays(self, arrays: tuple[Arrays, ...]) -> Network:
        """The same network with these arrays, one mapping per layer."""
        return dataclasses.replace(self, arrays=arrays)

    def need_weights(self) -> None:
        """Raises WeightsError for a network without weights."""
        if not self.arrays:
            raise WeightsError("the network has no weights", Where(self.file), "give its .weights file")


def _input_shape(net: Section) -> Shape:
    """(channels, height, width), or (inputs,) for a network on vectors."""
    dims = [net.integer(key, 0) for key in ("channels", "height", "width")]
    inputs = net.integer("inputs", 0)
    for key, dim in zip(("channels", "height", "width"), dims, strict=True):
        if dim < 0 or dim > MAX_SIDE:
            net.fail(f"{key}={dim} must be from 1 to {MAX_SIDE}", key, "is there a typing error?")
    if all(dims):
        if math.prod(dims) > MAX_ELEMENTS:
            text = " x ".join(map(str, dims))
            net.fail(f"the input would have {text} elements", "channels", f"at most {MAX_ELEMENTS} are possible")
        if inputs and inputs != math.prod(dims):
            net.guess(f"inputs={inputs} is not channels * height * width, {math.prod(dims)}", "inputs", "delete it")
        return tuple(dims)
    if inputs < 1 or inputs > 1 << 28:
        missing = [key for key, dim in zip(("channels", "height", "width"), dims, strict=True) if not dim]
        where = next((key for key in missing if key in net.options), None)
        net.fail(f"[net] lacks {', '.join(missing)}", where, "give width, height and channels, or inputs for vectors")
    return (inputs,)
