"""Parameters of which the default suite takes some, and the slow one all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["thinned"]


def thinned(values: Iterable[Any], every: int = 3) -> list[Any]:
    """One value in `every` as it is, the others for `pytest -m slow`: cases that prove much the same twice."""
    return [
        value if place % every == 0 else pytest.param(value, marks=pytest.mark.slow)
        for place, value in enumerate(values)
    ]
