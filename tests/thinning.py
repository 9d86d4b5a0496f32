"""Parameters of which the default suite takes some, and the slow one all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["crossed", "thinned"]


def thinned(values: Iterable[Any], every: int = 3) -> list[Any]:
    """One value in `every` as it is, the others for `pytest -m slow`: cases that prove much the same twice."""
    return [
        value if place % every == 0 else pytest.param(value, marks=pytest.mark.slow)
        for place, value in enumerate(values)
    ]


def crossed(*lists: Iterable[Any], every: int = 3) -> list[Any]:
    """All combinations of one value of each list: those whose places add up to a multiple of `every` as they are, so
    that each value comes with several of every other list; the rest for `pytest -m slow`."""
    combinations = itertools.product(*(enumerate(values) for values in lists))
    return [
        pytest.param(
            *(value for _, value in pairs), marks=[pytest.mark.slow] if sum(place for place, _ in pairs) % every else []
        )
        for pairs in combinations
    ]
