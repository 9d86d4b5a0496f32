"""8-bit numbers: which real numbers they stand for, and where an engine wants them.

    real = scale (integer - zero)

Activations are unsigned, 0 to 255, or, for engines that have no other zero than 0, signed, -128 to 127; one scale for a
tensor. Their interval always holds 0, which stands for itself, so that padding with zeros adds no error. Weights are
signed and symmetric, -127 to 127, one scale for each output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["MOVES", "PRECISIONS", "Grid", "Interval", "Recipe", "least_scales", "quantize_weights", "weight_scales"]

PRECISIONS = ("int8", "mixed")
"""Those that need a calibration: `mixed` leaves layers in float32 that lose too much."""

MOVES = frozenset({"MaxPool", "Resize", "Reshape", "Transpose", "Slice", "Split", "Gather", "Identity"})
"""Operators whose outputs are numbers of their first input, as they were; of Resize, the nearest."""

_TINY = float(np.finfo(np.float32).tiny)
_MOST = 2.0**30
"""A bias in units of its scale, as int32, leaves room for the sum of products."""


class Interval(NamedTuple):
    """Real numbers from low to high; 0 is one of them."""

    low: float
    high: float


class Grid(NamedTuple):
    """What the 256 numbers of a tensor stand for."""

    scale: float
    zero: int

    @classmethod
    def of(cls, interval: Interval, zeros: bool = True, signed: bool = False) -> Grid:
        """The finest grid that covers the interval.

        Args:
            interval: of real numbers.
            zeros: any integer may stand for 0; else 128, or 0 where nothing is negative.
            signed: the integers are -127 to 127, and 0 stands for 0.
        """
        low, high = min(interval.low, 0.0), max(interval.high, 0.0)
        if signed:
            return cls(_float32(max(-low, high) / 127), 0)
        if not zeros:
            scale = high / 255 if low == 0 else max(-low / 128, high / 127)
            return cls(_float32(scale), 0 if low == 0 else 128)
        scale = _float32((high - low) / 255)
        return cls(scale, int(np.clip(np.round(-low / scale), 0, 255)))


def _float32(scale: float) -> float:
    """Scales are float32 in every engine."""
    return max(float(np.float32(scale)), _TINY)


@dataclass(frozen=True)
class Recipe:
    """Where an engine wants 8-bit numbers, and of which kind, so that it computes with them as fast as it can."""

    operators: frozenset[str]
    """What it computes with integers."""
    outputs: bool = False
    """What these operators give is rounded too, and not only what they read: an engine that has a kernel for each of
    them, and does not join several, knows them by that."""
    zeros: bool = True
    """Any integer may stand for 0: see `Grid.of`."""
    signed: bool = False
    """Activations are signed, 0 stands for 0, and the calibration has to be a symmetric one."""
    tied: bool = False
    """The parts of a concatenation share a scale."""
    biases: bool = False
    """Biases are int32, in units of the product of the two scales; else they stay float32."""
    limit: int = 127
    """The largest weight."""
    dense: bool = False
    """Products of several groups stay float32. So does what moves numbers where any that reads them is float32; else
    it moves them on the grid of the concatenation that alone reads them."""
    first_limit: int = 127
    """That of the network's first convolution. 63 keeps the sum of two products within 16 bits, in which CPUs without
    VNNI add them up."""


def weight_scales(
    weights: npt.NDArray[Any], limit: int, least: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.float32]:
    """The scale of each output channel, axis 0: its largest weight is `limit`.

    Args:
        weights: float, (outputs, ...).
        limit: the largest integer.
        least: what the scales must not be below, (outputs,).
    """
    flat = np.abs(weights.reshape(len(weights), -1))
    largest: npt.NDArray[Any] = flat.max(axis=1, initial=0).astype(np.float64) / limit
    bound = largest if least is None else np.maximum(largest, least)
    scales: npt.NDArray[np.float32] = np.maximum(bound, _TINY).astype(np.float32)
    return scales


def least_scales(biases: npt.NDArray[Any], scale: float) -> npt.NDArray[Any]:
    """The least scales of weights with which the biases are int32 numbers, if the input's scale is `scale`."""
    return np.abs(biases.astype(np.float64)) / (scale * _MOST)


def quantize_weights(weights: npt.NDArray[Any], scales: npt.NDArray[Any], limit: int) -> npt.NDArray[np.int8]:
    """Integers, rounded to even, for scales of axis 0."""
    column = scales.reshape([-1] + [1] * (weights.ndim - 1))
    integers: npt.NDArray[np.int8] = np.clip(np.round(weights / column), -limit, limit).astype(np.int8)
    return integers
