"""Networks for inputs of another size than the one in their cfg: what `--width` and `--height` of the commands do.

Only [net] is read otherwise: anchors stay the pixels that they are, and each layer computes its shape of the one before
it, as if the cfg had the other numbers. Darknet rounds nothing, and neither does this: a size is right if the layers
fit together, which for most detectors are the multiples of 32, but also what pools round up to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
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
    own = None
    with suppress(CfgError), listening():
        own = build(_with(sections, {}))
    if own is not None and len(own.input_shape) != 3:
        (number,) = own.input_shape
        what = f"{_said(size)}: this network takes no images, but vectors of {number} numbers"
        raise CfgError(what, sections[0].where, "their length is inputs= of its [net]")
    try:
        network = build(_with(sections, size))
    except CfgError as error:
        if own is None:
            raise
        raise _Trials(build, sections, own).misfit(size, error) from error
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


@dataclass(frozen=True)
class _Trials:
    """Which sizes fit, found by trying them: shapes alone take milliseconds."""

    build: Build
    sections: list[Section]
    own: Network

    def misfit(self, size: Size, error: CfgError) -> CfgError:
        """The error of a layer, as one of the size that was asked for, with the nearest sizes that do fit."""
        wrong = {key: side for key, side in size.items() if not self._fits(key, side)}
        if not wrong:
            return CfgError(f"{_said(size)} do not fit this network: {error.message}", error.where, error.hint)
        hints = filter(None, (self._fitting(key, side) for key, side in wrong.items()))
        verb = "does" if len(wrong) == 1 else "do"
        what = f"{_said(wrong)} {verb} not fit this network: {error.message}"
        return CfgError(what, error.where, "; ".join(hints) or error.hint)

    def _fits(self, key: str, side: int) -> bool:
        """Whether one side may be this, while the other stays; warnings are left to whoever takes it."""
        with suppress(CfgError), listening():
            _check_places(self.build(_with(self.sections, {key: side})), self.own, {})
            return True
        return False

    def _fitting(self, key: str, side: int) -> str:
        """The nearest multiples of the stride that fit, on either side; empty where none does."""
        stride = _stride(self.own, -1 if key == "width" else -2)
        near = [next((one for one in some if self._fits(key, one)), 0) for some in _multiples(side, stride)]
        fitting = [str(one) for one in near if one]
        if not fitting:
            return ""
        # Where the next one fits as well, it is no chance.
        rule = stride > 1 and self._fits(key, max(near) + stride)
        return f"--{key} can be {' or '.join(fitting)}" + (f": multiples of {stride}" if rule else "")


def _multiples(side: int, stride: int) -> tuple[Sequence[int], Sequence[int]]:
    """The multiples of a stride below a size, and above it, nearest first."""
    below, above = (side - 1) // stride, side // stride + 1
    largest = min(above + _FARTHEST, MAX_SIDE // stride + 1)
    numbers = range(below, max(0, below - _FARTHEST), -1), range(above, largest)
    smaller, larger = ([number * stride for number in part] for part in numbers)
    return smaller, larger


def _stride(network: Network, axis: int) -> int:
    """How many pixels of the input one step of the coarsest map is, along one side: 32 for most detectors."""
    sides = {-1: network.input_shape[axis]}
    steps = {-1: Fraction(1)}
    for layer in network.layers:
        side = layer.shape[axis] if len(layer.shape) == 3 else 1
        sides[layer.index] = side
        # Each layer's own stride is whole, whatever its padding; a map of one place has none.
        found = [
            steps[source] * (Fraction(round(sides[source] / side)) or Fraction(1, side // sides[source]))
            for source in layer.sources
            if source in steps and side > 1
        ]
        if found:
            steps[layer.index] = max(found)
    return min(math.lcm(*(math.ceil(step) for step in steps.values())), MAX_SIDE)


def _said(size: Size) -> str:
    """The options, as they are written."""
    return " ".join(f"--{key} {side}" for key, side in size.items())
