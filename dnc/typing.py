"""Types and defaults that all of dnc shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

__all__ = ["Array", "Progress", "silent"]

Array = npt.NDArray[Any]

Progress = Callable[[str], None]
"""A function that is given a line on what happens now, for whoever waits."""


def silent(_: str) -> None:
    """Reports no progress."""
