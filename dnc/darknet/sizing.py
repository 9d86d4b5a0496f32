"""Networks for inputs of another size than the one in their cfg: what `--width` and `--height` of the commands do.

Only [net] is read otherwise: anchors stay the pixels that they are, and each layer computes its shape of the one before
it, as if the cfg had the other numbers. Darknet rounds nothing, and neither does this: a size is right if the layers
fit together, which for most detectors are the multiples of 32, but also what pools round up to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dnc.darknet.cfg import Option, Section
from dnc.errors import CfgError, listening

if TYPE_CHECKING:
    from dnc.darknet.network import Network

__all__ = ["MAX_SIDE", "build_sized"]

MAX_SIDE = 1 << 16
"""The largest width, height and number of channels; more is a typing error."""
_FARTHEST = 64
"""How many multiples of the stride are tried on either side of a size that does not fit."""

Size = Mapping[str, int]
"""`width`, `height` or both, in pixels: what is asked for."""
Build = Callable[[list[Section]], "Network"]


def build_sized(build: Build, sections: list[Section], size: Size) -> Network:
    """Builds the network of a cfg for inputs of this size; what `size` does not say stays as in the cfg.

    Raises:
        CfgError: the network takes no images, the size does not fit its layers, or a layer has weights for the places
            of a map of the cfg's size.
    """
    for key, side in size.items():
        if not 1 <= side <= MAX_SIDE:
            raise CfgError(f"--{key} {side} must be from 1 to {MAX_SIDE}", sections[0].where)
    own = _attempt(build, sections, {})
    if own is not None and len(own.input_shape) != 3:
        (number,) = own.input_shape
        what = f"{_said(size)}: this network takes no images, but vectors of {number} numbers"
        raise CfgError(what, sections[0].where, "their length is inputs= of its [net]")
    try:
        network = build(_with(sections, size))
    except CfgError as error:
        if own is None:
            raise
        raise _misfit(build, sections, size, own, error) from error
    if own is not None:
        _check_places(network, own, size)
    return network


def _with(sections: Sequence[Section], size: Size) -> list[Section]:
    """The sections, with another size in [net]."""
    net, *rest = sections
    options = dict(net.options)
    for key, side in size.items():
        place = options.get(key) or Option(key, "", net.where.line, net.where.text)
        options[key] = replace(place, value=str(side))
    if size and "channels" in options:
        # Of images it says again what the sides say.
        options.pop("inputs", None)
    return [replace(net, options=options), *rest]


def _attempt(build: Build, sections: list[Section], size: Size) -> Network | None:
    """The network of this size, if there can be one; warnings are left to whoever takes it."""
    with suppress(CfgError), listening():
        return build(_with(sections, size))
    return None


def _check_places(network: Network, own: Network, size: Size) -> None:
    """Raises CfgError for a layer with weights of their own for each place, which the other size moves."""
    for layer, known in zip(network.layers, own.layers, strict=True):
        if layer.placed and layer.input_shape != known.input_shape:
            have, want = (" x ".join(map(str, shape)) for shape in (known.input_shape, layer.input_shape))
            _, height, width = own.input_shape
            layer.fail(
                f"{_said(size)}: the weights of [{layer.name}] are for an input of {have}, which would be {want}",
                f"the size of this network is fixed at {width} x {height}",
            )


def _misfit(build: Build, sections: list[Section], size: Size, own: Network, error: CfgError) -> CfgError:
    """The error of a layer, as one of the size that it is asked for, with the nearest sizes that do fit."""
    wrong = {key: side for key, side in size.items() if _attempt(build, sections, {key: side}) is None}
    if not wrong:
        return CfgError(f"{_said(size)} do not fit this network: {error.message}", error.where, error.hint)
    hints = []
    for key, side in wrong.items():
        stride = _stride(own, key)
        near = [
            next((other for other in others if _attempt(build, sections, {key: other}) is not None), None)
            for others in _multiples(side, stride)
        ]
        fitting = " or ".join(str(other) for other in near if other is not None)
        if fitting:
            hints.append(f"--{key} can be {fitting}" + (f": multiples of {stride}" if stride > 1 else ""))
    what = f"{_said(wrong)} does not fit this network: {error.message}"
    return CfgError(what, error.where, "; ".join(hints) or error.hint)


def _multiples(side: int, stride: int) -> tuple[Sequence[int], Sequence[int]]:
    """The multiples of a stride below a size, and above it, nearest first."""
    below, above = (side - 1) // stride, side // stride + 1
    numbers = range(below, max(0, below - _FARTHEST), -1), range(above, above + _FARTHEST)
    smaller, larger = ([number * stride for number in part] for part in numbers)
    return smaller, [other for other in larger if other <= MAX_SIDE]


def _stride(network: Network, key: str) -> int:
    """How many pixels of the input one step of the coarsest map is, along one side: 32 for most detectors."""
    axis = -1 if key == "width" else -2
    side = network.input_shape[axis]
    maps = [layer.shape[axis] for layer in network.layers if len(layer.shape) == 3 and max(layer.shape[1:]) > 1]
    steps = [max(1, round(side / length)) for length in maps]
    return min(math.lcm(*steps), MAX_SIDE)


def _said(size: Size) -> str:
    """The options, as they are written."""
    return " ".join(f"--{key} {side}" for key, side in size.items())
