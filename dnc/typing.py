"""Types and defaults that all of dnc shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy.typing as npt

__all__ = ["Array", "Progress", "is_number", "silent"]

Array = npt.NDArray[Any]

Progress = Callable[[str], None]
"""A function that is given a line on what happens now, for whoever waits."""


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number of a JSON file; an integer beyond every float is none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return type(value) is int and value.bit_length() < 1000


def silent(_: str) -> None:
    """Reports no progress."""
