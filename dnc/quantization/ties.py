"""Equal ranges for layers that move values and compute none, so that they can run on 8-bit numbers as they are.

    1. A [maxpool], [reorg], [upsample] by repetition, [dropout], or a [route] of one layer has the range of its input:
       what its input clips stays clipped.
    2. A [route] of several layers and its inputs have the widest range among the inputs.
    3. So have a [shortcut]'s inputs, where the target adds numbers of one scale; its sum has a range of its own.

What is tied to something that is tied shares its range, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dnc.darknet.layers.base import Layer, layer_value
from dnc.darknet.layers.dropout import Dropout
from dnc.darknet.layers.maxpool import MaxPool
from dnc.darknet.layers.reorg import Reorg, Reorg3d
from dnc.darknet.layers.route import Route
from dnc.darknet.layers.shortcut import Shortcut
from dnc.darknet.layers.upsample import Upsample
from dnc.darknet.network import Network
from dnc.quantization.calibration import Range

__all__ = ["tie"]


def tie(network: Network, ranges: Mapping[str, Range], *, shortcuts: bool = False) -> dict[str, Range]:
    """The ranges, equal where they have to be.

    What was seen (minimum, maximum) stays as it is. A value without a range, as many are in a table of Darknet's, gets
    that of the values that it is tied to, or else stays without one.

    Args:
        network: the network.
        ranges: by the name of the value.
        shortcuts: ties the inputs of shortcuts.
    """
    names = ["input", *(layer_value(layer.index) for layer in network.layers)]
    parents = {name: name for name in names}

    def group(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    moved = set()
    for layer in network.layers:
        tied = [names[source + 1] for source in layer.sources]
        if _moves(layer):
            tied.append(names[layer.index + 1])
            moved.add(tied[-1])
        elif not (shortcuts and isinstance(layer, Shortcut)):
            continue
        for name in tied[1:]:
            parents[group(name)] = group(tied[0])
    groups: dict[str, list[str]] = {}
    for name in names:
        if name in ranges:
            groups.setdefault(group(name), []).append(name)
    found = {}
    for name in names:
        known = groups.get(group(name))
        if known:
            # A layer that moves values says nothing more about them, where their range before it is known.
            wide = _widest([ranges[other] for other in known if other not in moved] or [ranges[k] for k in known])
            seen = ranges.get(name, wide)
            found[name] = dataclasses.replace(wide, minimum=seen.minimum, maximum=seen.maximum)
    return found


def _widest(entries: Sequence[Range]) -> Range:
    return Range(
        low=min(entry.low for entry in entries),
        high=max(entry.high for entry in entries),
        minimum=min(entry.minimum for entry in entries),
        maximum=max(entry.maximum for entry in entries),
        threshold=max(entry.threshold for entry in entries),
    )


def _moves(layer: Layer) -> bool:
    if isinstance(layer, MaxPool):
        return not layer.antialiasing
    if isinstance(layer, Upsample):
        return layer.stride > 0 and layer.scale == 1
    return isinstance(layer, Reorg | Reorg3d | Route | Dropout)
