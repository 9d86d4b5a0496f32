"""Where an engine is behind others: sections of the cfg by what there is to win, from the layers of several engines.

Engines join sections in their own ways. Sections that any of them computes together are compared together; so is a
section with the one before it where an engine has no time of it, because it is in that one's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dnc.bench.layers import MADE, Layers

__all__ = ["Behind", "behind"]


@dataclass(frozen=True)
class Behind:
    """Sections that are compared together."""

    where: str
    """The places of those that take the first engine's time, as in its own layers; of the others `#1`."""
    seconds: tuple[float, ...]
    """Of each engine, the least: see `Layer.least`."""
    best: str
    """The fastest of the other engines."""

    @property
    def lost(self) -> float:
        """Seconds by which the first engine is behind the fastest other one; negative where it leads."""
        return self.seconds[0] - min(self.seconds[1:])


def behind(tables: Sequence[Layers]) -> list[Behind]:
    """Compares the first of several engines with the others, what there is most to win first.

    Args:
        tables: the layers of two engines or more, of one network.
    """
    taken = [{row.place: row.least for row in layers.rows} for layers in tables]
    titles = {row.place: row.where for layers in reversed(tables) for row in layers.rows}
    compared = []
    for group in _groups(tables):
        seconds = tuple(sum(times.get(place, 0.0) for place in group) for times in taken)
        first, *others = sorted(group, key=lambda place: (-taken[0].get(place, 0.0), _order(place)))
        where = " + ".join([titles.get(first, first), *sorted(others, key=_order)])
        best = min(range(1, len(tables)), key=lambda number: seconds[number])
        compared.append(Behind(where, seconds, tables[best].engine))
    return sorted(compared, key=lambda one: -one.lost)


def _groups(tables: Sequence[Layers]) -> list[list[str]]:
    """The places that are compared together, in order."""
    home: dict[str, list[str]] = {}
    for layers in tables:
        for row in layers.rows:
            together = [place for known in (row.place, *row.also) for place in home.get(known, [known])]
            group = list(dict.fromkeys(together))
            home |= dict.fromkeys(group, group)
    # What the engines made is no section; some make nothing.
    made = [home.pop(MADE)] if MADE in home else []
    groups = sorted({id(group): group for group in home.values()}.values(), key=lambda group: min(map(_order, group)))
    every = [{row.place for row in layers.rows} for layers in tables]
    joined: list[list[str]] = []
    for group in groups:
        if joined and any(places.isdisjoint(of) for of in (group, joined[-1]) for places in every):
            joined[-1] = joined[-1] + group
        else:
            joined.append(group)
    return joined + made


def _order(place: str) -> tuple[bool, int, str]:
    """Sections by their number, then what has none."""
    number = re.fullmatch(r"#(\d+)", place)
    return (number is None, int(number[1]) if number else 0, place)
