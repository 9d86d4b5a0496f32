"""Which units of a source are which layers of a network, and where their kernels stand: the first half of `dnc import`.

Layers and the source's units are matched by shape and order. Where the source has an order, the layers are a
subsequence of its units; if the first such subsequence and the last are not the same, the match is ambiguous, and
refused. Without one (safetensors), units of one shape are sorted by name, numbers by their value; a pair that no number
tells apart is ambiguous. A pin (`--map LAYER=NAME`) settles what is ambiguous.

Padding. Darknet pads by p before and after. A source that pads a before has its k x k kernel written into the cfg's
K x K one behind z = p - a zero rows, with K - k - z >= 0 after it; the numbers are the same wherever the output has the
same size. TensorFlow's SAME with stride s on n rows is

    total = max((ceil(n / s) - 1) * s + k - n, 0),   a = total // 2
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dnc.darknet.layers.base import Layer, Shape
from dnc.darknet.layers.batchnorm import BatchNorm
from dnc.darknet.layers.connected import Connected
from dnc.darknet.layers.convolutional import Convolution, Convolutional
from dnc.darknet.weights import count
from dnc.errors import WeightsError, close_match
from dnc.zoo.importer.tensors import Checkpoint, Unit

__all__ = ["PADDINGS", "Match", "Place", "channels_of", "is_normalized", "layers_text", "match"]

PADDINGS = ("same",)

_WIDEST = 2
"""How much larger than the source's a kernel may be: what SAME padding takes at most."""


@dataclass(frozen=True)
class Place:
    """Position of the source's kernel in a layer's: its size and padding, and the rows and columns before it."""

    size: int
    padding: int
    before: tuple[int, int] = (0, 0)
    adapts: bool = False
    """Whether size and padding are not the cfg's."""


def _same_pads(length: int, stride: int, extent: int, upper: bool = True) -> tuple[int, int]:
    total = max((-(-length // stride) - 1) * stride + extent - length, 0)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def _source_pads(unit: Unit, c: Convolution, padding: str | None) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(before, after) of rows and of columns as the source pads; None if nobody says."""
    if unit.kind == "linear":
        return (0, 0), (0, 0)
    if isinstance(unit.pads, tuple):
        top, left, bottom, right = unit.pads
        return (top, bottom), (left, right)
    if unit.pads in (None, "COMPUTED") and padding is None:
        return None
    extent = (unit.kernel[2] - 1) * c.dilation + 1
    _, height, width = c.input_shape
    upper = unit.pads != "SAME_LOWER"
    return _same_pads(height, c.stride_y, extent, upper), _same_pads(width, c.stride_x, extent, upper)


def _zeros(length: int, stride: int, size: int, padding: int, kernel: int, pads: tuple[int, int]) -> int | None:
    """Number of zero rows before a `kernel` in one of `size`; None if nothing gives the same numbers."""
    before = padding - pads[0]
    counts = (length + 2 * padding - size) // stride, (length + sum(pads) - kernel) // stride
    return before if before >= 0 and size - kernel - before >= 0 and counts[0] == counts[1] else None


def _held(c: Convolution, kernel: int, pads: Sequence[tuple[int, int]], size: int, padding: int) -> Place | None:
    """The place of a `kernel` in one of `size` and `padding`, for both axes."""
    _, height, width = c.input_shape
    rows = _zeros(height, c.stride_y, size, padding, kernel, pads[0])
    columns = _zeros(width, c.stride_x, size, padding, kernel, pads[1])
    if rows is None or columns is None:
        return None
    return Place(size, padding, (rows, columns), (size, padding) != (c.size, c.padding))


def _place(unit: Unit, c: Convolution, padding: str | None) -> Place | None:
    """Position of the unit's kernel in the layer's; None if it does not fit, or the source's padding is not known."""
    kernel, pads = unit.kernel[2], _source_pads(unit, c, padding)
    if pads is None:
        return Place(c.size, c.padding) if kernel == c.size else None
    if c.dilation > 1:
        agrees = kernel == c.size and all(pair == (c.padding * c.dilation,) * 2 for pair in pads)
        return Place(c.size, c.padding) if agrees else None
    if kernel != c.size and (c.xnor or c.binary or kernel < 2 or not 0 < c.size - kernel <= _WIDEST):
        return None
    return _held(c, kernel, pads, c.size, c.padding)


def _adapted_place(unit: Unit, c: Convolution, padding: str | None) -> Place | None:
    """The smallest kernel that holds the unit's with its padding."""
    kernel, pads = unit.kernel[2], _source_pads(unit, c, padding)
    if pads is None or c.dilation > 1 or c.xnor or c.binary:
        return None
    _, rows, columns = c.shape
    _, height, width = c.input_shape
    ends = ((height + sum(pads[0]) - kernel) // c.stride_y + 1, (width + sum(pads[1]) - kernel) // c.stride_x + 1)
    if ends != (rows, columns):
        return None
    sizes = ((size, p) for size in range(kernel, kernel + max(map(sum, pads)) + _WIDEST) for p in range(size))
    return next((place for size, p in sizes if (place := _held(c, kernel, pads, size, p))), None)


@dataclass(frozen=True)
class Match:
    """Units of the layers' weights and batch normalisations, and places of the kernels, by layer index."""

    units: Mapping[int, Unit]
    norms: Mapping[int, Unit]
    places: Mapping[int, Place]


def match(
    checkpoint: Checkpoint,
    layers: Sequence[Layer],
    *,
    padding: str | None = None,
    cutoff: int | None = None,
    pins: Sequence[tuple[int, str]] = (),
) -> Match:
    """Finds the one way in which a source's units are a network's layers, or its first `cutoff` ones.

    Raises WeightsError where there is none, more than one, or a layer that nothing is imported into; see
    `dnc.zoo.importer.import_weights` for padding and pins.
    """
    return _Matcher(checkpoint, layers, padding, cutoff).match(pins)


class _Matcher:
    """State of a search for the match."""

    def __init__(
        self, checkpoint: Checkpoint, layers: Sequence[Layer], padding: str | None, cutoff: int | None
    ) -> None:
        self._source, self._layers, self._padding, self._cutoff = checkpoint, layers, padding, cutoff
        self._wanting = [layer for layer in layers if count(layer)]
        self._check_kinds()
        self._units: dict[int, Unit] = {}
        self._norms: dict[int, Unit] = {}

    def _check_kinds(self) -> None:
        for layer in self._wanting:
            known = isinstance(layer, Convolutional | Connected | BatchNorm)
            if not known and (self._cutoff is None or layer.index < self._cutoff):
                message = f"import does not know [{layer.name}]"
                raise WeightsError(message, layer.where, f"--cutoff {layer.index} imports the layers before it")

    def _pin(self, index: int, name: str) -> None:
        layer = next((layer for layer in self._wanting if layer.index == index), None)
        if layer is None:
            hint = f"layers with weights: {_numbers(layer.index for layer in self._wanting)}"
            raise WeightsError(f"--map {index}={name}: layer {index} has no weights of its own", hint=hint)
        unit = self._source.find(name)
        if unit is None:
            hint = close_match(name, [unit.name for unit in self._source.units]) or "dnc import lists what is left over"
            raise WeightsError(f"--map {index}={name}: the source has no '{name}'", self._source.path, hint)
        of_norm = unit.kind == "batchnorm"
        if index in (self._norms if of_norm else self._units):
            raise WeightsError(f"--map {index}={name}: layer {index} is mapped twice")
        if of_norm:
            if unit.channels != channels_of(layer):
                raise self._mismatch(layer, unit)
            self._norms[index] = unit
        else:
            if isinstance(layer, BatchNorm) or not self._fits(layer, unit):
                raise self._mismatch(layer, unit)
            self._units[index] = unit

    def match(self, pins: Sequence[tuple[int, str]]) -> Match:
        """The match. Raises WeightsError where there is none, or more than one."""
        for index, name in pins:
            self._pin(index, name)
        own = [layer for layer in self._wanting if isinstance(layer, Convolutional | Connected)]
        wanted = [layer for layer in own if self._cutoff is None or layer.index < self._cutoff]
        align = self._in_order if self._source.ordered else self._by_name
        if len(wanted) < len(own):
            # Rather a match of the whole network, which is less ambiguous.
            try:
                matching = align(own, whole=True)
            except WeightsError:
                matching = align(wanted, whole=False)
        else:
            matching = align(wanted, whole=True)
        self._units.update({layer.index: unit for layer, unit in matching if layer in wanted})
        self._match_norms(wanted)
        places = {}
        for layer in wanted:
            if isinstance(layer, Convolutional):
                places[layer.index] = self._placed(layer, self._units[layer.index])
        return Match(self._units, self._norms, places)

    def _free(self, layers: Sequence[Layer]) -> tuple[list[Layer], list[Unit]]:
        """The layers and the units that no pin took."""
        pinned = {unit.name for unit in self._units.values()}
        units = [unit for unit in self._source.units if unit.kind != "batchnorm" and unit.name not in pinned]
        return [layer for layer in layers if layer.index not in self._units], units

    def _fits(self, layer: Layer, unit: Unit) -> bool:
        """Whether the unit's weights can be the layer's; a linear layer is a convolution of 1x1 and the reverse."""
        if unit.kind == "batchnorm":
            return False
        kernel, wanted = unit.kernel, _kernel(layer)
        if kernel[:2] != wanted[:2] or kernel[2] != kernel[3]:
            return False
        if kernel == wanted:
            return True
        return isinstance(layer, Convolutional) and _place(unit, layer.convolution, self._padding) is not None

    def _in_order(self, layers: Sequence[Layer], whole: bool) -> list[tuple[Layer, Unit]]:
        layers, units = self._free(layers)
        first = self._greedy(layers, units)
        last = self._greedy(layers[::-1], units[::-1])[::-1]
        if not whole and first == list(range(len(layers))):
            # The beginning of a longer network, without a gap.
            return [(layer, units[at]) for layer, at in zip(layers, first, strict=True)]
        for layer, a, b in zip(layers, first, (len(units) - 1 - at for at in last), strict=True):
            if a != b:
                raise self._ambiguous(layer, [units[a], units[b]])
        return [(layer, units[at]) for layer, at in zip(layers, first, strict=True)]

    def _greedy(self, layers: Sequence[Layer], units: Sequence[Unit]) -> list[int]:
        """The first subsequence of the units that fits the layers."""
        places: list[int] = []
        at = 0
        for layer in layers:
            start = at
            while at < len(units) and not self._fits(layer, units[at]):
                at += 1
            if at == len(units):
                raise self._missing(layers, units, places, start)
            places.append(at)
            at += 1
        return places

    def _missing(
        self, layers: Sequence[Layer], units: Sequence[Unit], places: Sequence[int], start: int
    ) -> WeightsError:
        """Explains why a layer found no unit; what was passed over first is likelier the cause than what is missing."""
        gap = next((number for number, at in enumerate(places) if number != at), len(places))
        layer, at = layers[len(places)], start
        hint = f"{len(places)} of {len(layers)} layers were found; --map LAYER=NAME gives a layer its source"
        if gap < len(places) and len(units) <= len(layers):
            layer, at = layers[gap], gap
        if at >= len(units):
            wants = f"layer {layer.index} [{layer.name}] wants {_shape_text(_kernel(layer))}"
            message = f"the source ends too early: {wants}, and nothing is left after '{units[-1].name}'"
            if not units:
                message = f"{wants}, and the source has no convolution and no linear layer"
            return WeightsError(message, layer.where, f"half a checkpoint, or another network's? {hint}")
        return self._mismatch(layer, units[at], hint)

    def _mismatch(self, layer: Layer, unit: Unit, hint: str = "") -> WeightsError:
        if isinstance(layer, BatchNorm) or unit.kind == "batchnorm":
            wants, has = f"{channels_of(layer)} channels", f"{unit.channels}"
        else:
            wants, has = _shape_text(_kernel(layer)), _shape_text(unit.kernel)
            smaller = unit.kernel[:2] == _kernel(layer)[:2] and unit.kernel[2] < _kernel(layer)[2]
            if smaller and unit.pads in (None, "COMPUTED") and self._padding is None:
                hint = f"--padding same, if the source pads as TensorFlow does; {hint}".removesuffix("; ")
        message = f"layer {layer.index} [{layer.name}] wants {wants}, '{unit.name}' of the source has {has}"
        return WeightsError(message, layer.where, hint or "give the cfg of the same network")

    def _ambiguous(self, layer: Layer, units: Sequence[Unit]) -> WeightsError:
        names = " or ".join(f"'{unit.name}'" for unit in units[:4])
        wants, of_norm = f"{channels_of(layer)} channels", units[0].kind == "batchnorm"
        if not of_norm:
            wants = _shape_text(_kernel(layer))
        what = "the batch normalisation of " if of_norm and not isinstance(layer, BatchNorm) else ""
        message = f"{what}layer {layer.index} [{layer.name}], {wants}, could be {names}"
        return WeightsError(message, layer.where, f"say which with --map {layer.index}={units[0].name}, or the other")

    def _by_name(self, layers: Sequence[Layer], whole: bool) -> list[tuple[Layer, Unit]]:
        """Units of one shape, sorted by name, are the layers of that shape in order."""
        layers, units = self._free(layers)
        groups: dict[Shape, list[Layer]] = {}
        for layer in layers:
            groups.setdefault(self._stored_kernel(layer, units), []).append(layer)
        unit_of: dict[int, Unit] = {}
        for kernel, members in groups.items():
            same = sorted((unit for unit in units if unit.kernel == kernel), key=lambda unit: _natural(unit.name))
            if len(same) < len(members):
                layer = members[len(same)]
                wants = f"{len(members)} layers want {_shape_text(_kernel(layer))}"
                hint = "half a checkpoint, or another network's? --map LAYER=NAME gives a layer its source"
                # What no layer wants, and agrees on one side.
                near = [
                    u
                    for u in units
                    if u.kernel not in groups and (u.kernel[0] == kernel[0] or u.kernel[1] == kernel[1])
                ]
                if near:
                    hint = f"'{near[0].name}' of the source has {_shape_text(near[0].kernel)}; {hint}"
                message = f"{wants}, layer {layer.index} [{layer.name}] among them; the source has {len(same)}"
                raise WeightsError(message, layer.where, hint)
            if len(same) > len(members) and whole:
                raise self._ambiguous(members[0], same)
            for number, (one, other) in enumerate(pairwise(same)):
                if not _numbered(one.name, other.name):
                    raise self._ambiguous(members[min(number, len(members) - 1)], [one, other])
            unit_of.update({layer.index: unit for layer, unit in zip(members, same, strict=False)})
        matched = [(layer, unit_of[layer.index]) for layer in layers]
        for (_, one), (layer, other) in pairwise(matched):
            if _numbered(other.name, one.name):
                message = f"'{other.name}' comes before '{one.name}' by its name, layer {layer.index} after it"
                raise WeightsError(message, layer.where, f"if that is right, say --map {layer.index}={other.name}")
        return matched

    def _stored_kernel(self, layer: Layer, units: Sequence[Unit]) -> Shape:
        """The kernel that the source has for the layer: its own shape, or the largest one that fits into it."""
        wanted = _kernel(layer)
        fitting = {unit.kernel for unit in units if self._fits(layer, unit)}
        return wanted if wanted in fitting or not fitting else max(fitting)

    def _match_norms(self, wanted: Sequence[Layer]) -> None:
        """Fills in the batch normalisations of the layers, and those that are layers themselves."""
        by_name = {unit.name: unit for unit in self._source.units}
        pinned = {unit.name for unit in self._norms.values()}
        alone = [layer for layer in self._wanting if isinstance(layer, BatchNorm)]
        alone = [layer for layer in alone if self._cutoff is None or layer.index < self._cutoff]
        if self._source.ordered:
            for layer in wanted:
                name = self._source.norms.get(self._units[layer.index].name)
                # Where batch normalisations are layers, one that follows an unnormalized convolution is such a layer.
                if name and name not in pinned and (is_normalized(layer) or not alone):
                    self._norms.setdefault(layer.index, by_name[name])
        else:
            self._norms_by_parent([layer for layer in wanted if is_normalized(layer) or not alone], pinned)
        taken = {unit.name for unit in self._norms.values()}
        free = [unit for unit in self._source.units if unit.kind == "batchnorm" and unit.name not in taken]
        if not self._source.ordered:
            free.sort(key=lambda unit: _natural(unit.name))
        alone = [layer for layer in alone if layer.index not in self._norms]
        self._norms.update(self._aligned(alone, free))
        taken = {unit.name for unit in self._norms.values()}
        for layer in wanted:
            unclear = [u for u in free if u.name not in taken and u.channels == channels_of(layer)]
            if is_normalized(layer) and layer.index not in self._norms and unclear and self._cutoff is None:
                name = self._units[layer.index].name
                message = f"layer {layer.index} [{layer.name}] wants batch normalisation, and none follows '{name}'"
                hint = f"is it '{unclear[0].name}'? say --map {layer.index}={unclear[0].name}"
                raise WeightsError(message, layer.where, hint)

    def _norms_by_parent(self, wanted: Sequence[Layer], pinned: set[str]) -> None:
        """Batch normalisations, sorted by name, follow the layers of their module in order."""
        parents: dict[str, list[Layer]] = {}
        for layer in wanted:
            if layer.index not in self._norms:
                parents.setdefault(self._units[layer.index].parent, []).append(layer)
        for parent, layers in parents.items():
            norms = [u for u in self._source.units if u.kind == "batchnorm" and u.parent == parent]
            norms = sorted((u for u in norms if u.name not in pinned), key=lambda unit: _natural(unit.name))
            channels = {channels_of(layer) for layer in layers}
            norms = [unit for unit in norms if unit.channels in channels]
            normalized = [layer for layer in layers if is_normalized(layer)]
            if [unit.channels for unit in norms] == [channels_of(layer) for layer in normalized]:
                layers = normalized
            for one, other in pairwise(norms):
                if one.channels == other.channels and not _numbered(one.name, other.name):
                    layer = next(layer for layer in layers if channels_of(layer) == one.channels)
                    raise self._ambiguous(layer, [one, other])
            if len(norms) > len(layers):
                if self._cutoff is None:
                    raise self._ambiguous(layers[0], norms)
                norms = norms[: len(layers)]
            first, last = _subsequence(norms, layers), _subsequence(norms[::-1], layers[::-1])
            if first is None or last is None:
                wants = ", ".join(str(channels_of(layer)) for layer in layers)
                has = ", ".join(f"'{unit.name}' {unit.channels}" for unit in norms)
                message = f"the batch normalisations of '{parent}' do not follow its layers: {has}; layers {wants}"
                raise WeightsError(message, layers[0].where, "--map LAYER=NAME gives a layer its own")
            for unit, a, b in zip(norms, first, (len(layers) - 1 - at for at in last[::-1]), strict=True):
                if a != b:
                    hint = f"say --map {layers[a].index}={unit.name}, or the other"
                    message = f"'{unit.name}' could follow layer {layers[a].index} or layer {layers[b].index}"
                    raise WeightsError(message, layers[a].where, hint)
                self._norms[layers[a].index] = unit

    def _aligned(self, layers: Sequence[Layer], units: Sequence[Unit]) -> dict[int, Unit]:
        """The units of layers that are batch normalisations."""
        first, last = _subsequence(layers, units), _subsequence(layers[::-1], units[::-1])
        if first is None or last is None:
            layer = layers[0]
            message = f"the source lacks batch normalisations for {layers_text(layer.index for layer in layers)}"
            hint = f"layer {layer.index} wants {channels_of(layer)} channels; --map LAYER=NAME gives a layer its own"
            raise WeightsError(message, layer.where, hint)
        for layer, a, b in zip(layers, first, (len(units) - 1 - at for at in last[::-1]), strict=True):
            if a != b:
                raise self._ambiguous(layer, [units[a], units[b]])
        return {layer.index: units[at] for layer, at in zip(layers, first, strict=True)}

    def _placed(self, layer: Convolutional, unit: Unit) -> Place:
        """Position of the kernel. Raises WeightsError where no cfg gives the source's numbers."""
        c = layer.convolution
        for what, says, has in (
            ("strides", unit.strides, (c.stride_y, c.stride_x)),
            ("dilations", unit.dilations, (c.dilation, c.dilation)),
        ):
            if says is not None and says != has and not (what == "dilations" and c.size == 1):
                message = f"layer {layer.index} [{layer.name}] has {what} {has}, '{unit.name}' of the source {says}"
                raise WeightsError(message, layer.where, "give the cfg of the same network")
        if unit.pads == "COMPUTED" and self._padding is None:
            message = f"the model computes how '{unit.name}' pads, for layer {layer.index} [{layer.name}]"
            hint = "--padding same, if it is as TensorFlow does; else export it so that the padding is constant"
            raise WeightsError(message, layer.where, hint)
        place = _place(unit, c, self._padding)
        if place is None and self._padding is not None:
            place = _adapted_place(unit, c, self._padding)
        pads = _source_pads(unit, c, self._padding)
        assert place is not None or pads is not None
        if place is None:
            assert pads is not None
            (top, bottom), (left, right) = pads
            message = (
                f"layer {layer.index} [{layer.name}] of size {c.size} pads by {c.padding}, "
                f"'{unit.name}' by {top}, {left} before and {bottom}, {right} after its {unit.kernel[2]} rows"
            )
            hint = "--padding same writes an adapted cfg beside the weights"
            if self._padding is not None:
                hint = f"no larger kernel gives {layer.shape[1:]} with that padding, dilation or binarization"
            raise WeightsError(message, layer.where, hint)
        for other in self._layers:
            shares = isinstance(other, Convolutional) and other.weights_of == layer.index != other.index
            if shares and pads is not None:
                assert isinstance(other, Convolutional)
                if place.adapts or _place(unit, other.convolution, self._padding) != place:
                    message = f"layer {other.index} shares the weights of layer {layer.index}, but pads otherwise"
                    raise WeightsError(message, other.where, "give each layer weights of its own")
        return place


def _numbers(numbers: Iterable[int]) -> str:
    texts = list(map(str, numbers))
    return ", ".join(texts[:20]) + (", ..." if len(texts) > 20 else "")


def _shape_text(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))})"


def _kernel(layer: Layer) -> Shape:
    """(out, in / groups, rows, columns)."""
    if isinstance(layer, Convolutional):
        return layer.convolution.kernel
    assert isinstance(layer, Connected)
    return (layer.dense.outputs, layer.dense.inputs, 1, 1)


def channels_of(item: Layer | Unit) -> int:
    """Number of outputs of a layer's or a unit's weights."""
    if isinstance(item, Unit):
        return item.channels
    return item.shape[0] if isinstance(item, BatchNorm) else _kernel(item)[0]


def is_normalized(layer: Layer) -> bool:
    """Whether it has batch_normalize=1."""
    if isinstance(layer, Convolutional):
        return layer.convolution.batch_normalize
    return isinstance(layer, Connected) and layer.dense.batch_normalize


def _subsequence(items: Sequence[Layer | Unit], among: Sequence[Layer | Unit]) -> list[int] | None:
    """The first places, in order, whose channels are the items'; None if there are none."""
    places: list[int] = []
    at = 0
    for item in items:
        while at < len(among) and channels_of(among[at]) != channels_of(item):
            at += 1
        if at == len(among):
            return None
        places.append(at)
        at += 1
    return places


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts block10 after block9."""
    parts = re.split(r"([0-9]+)", name)
    # int() refuses thousands of digits; longer numbers are greater ones.
    return [(len(part.lstrip("0")), int(part[:18]), part) if part.isdecimal() else (-1, 0, part) for part in parts]


def _numbered(one: str, other: str) -> bool:
    """Whether a number, and nothing else, is what first tells the names apart, and is greater in the other."""
    pairs = zip(re.split(r"([0-9]+)", one), re.split(r"([0-9]+)", other), strict=False)
    first = next(((a, b) for a, b in pairs if a != b), None)
    return first is not None and all(part.isdecimal() for part in first) and _natural(one) < _natural(other)


def layers_text(indices: Iterable[int]) -> str:
    """`layers 1, 4`, for messages."""
    numbers = sorted(indices)
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"layer{'s' if len(numbers) > 1 else ''} {shown}"
