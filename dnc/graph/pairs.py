"""Sums of pairs: how CPUs without VNNI add up products of 8-bit numbers, and weights with which nothing is cut off.

Their instruction (`vpmaddubsw`) multiplies unsigned activations by signed weights and adds two products in 16 bits,
which end at 32767. Two things follow for the weights a, b of a pair, as the activations reach 255:

1. It cannot be cut off if |a + b| <= `LIMIT`: 255 x 128 = 32640. Weights of opposite signs always fit.
2. A scale of at most twice the finest makes every pair of an output channel fit: weights lose a bit, at most.

Which weights are a pair is the kernel's affair (`Pairing`). Convolutions of single channels are no sums of pairs: in
each group one input and one output, so kernels multiply one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from math import prod

import numpy as np
import numpy.typing as npt

from dnc.typing import Array

__all__ = ["LIMIT", "Pairing", "adds_pairs", "fit", "largest_sums", "pairs_fit", "places"]

LIMIT = 128
"""The largest sum of two weights: its 255-fold is within 16 bits."""
_LEVELS = 127


class Pairing(Enum):
    """How kernels take the inputs of an output two by two. Channels are those of one group; where their number is even,
    ROWS and CHANNELS are the same pairs."""

    ROWS = "rows"
    """In the order of row, column and channel, from the first on; the last of an odd number remains alone."""
    CHANNELS = "channels"
    """Channels in their order, at each place of the kernel; the last of an odd number remains alone."""
    PLACES = "places"
    """In groups of a single channel, any two places of the kernel: which, depends on more than is known here."""


def adds_pairs(shape: Sequence[int], groups: int) -> bool:
    """Whether kernels add up pairs for weights (outputs, channels, ...) in so many groups."""
    return prod(shape[1:]) > 1 and not (shape[1] == 1 and shape[0] == groups)


def places(shape: Sequence[int], pairing: Pairing) -> npt.NDArray[np.intp]:
    """The pairs of an output: (pairs, 2), places among its weights (channels, ...), which are counted as they lie.

    Args:
        shape: of all weights, (outputs, channels, ...).
        pairing: the kernel's.
    """
    _, channels, *kernel = shape
    if pairing is Pairing.PLACES:
        return np.stack(np.triu_indices(prod(kernel) if channels == 1 else 0, 1), axis=1)
    order = np.arange(channels * prod(kernel)).reshape(channels, -1)
    if pairing is Pairing.CHANNELS and channels % 2:
        order = np.concatenate([order, np.full_like(order[:1], -1)])
    by_channel = order.T.reshape(-1)
    found = by_channel[: by_channel.size // 2 * 2].reshape(-1, 2)
    return found[(found >= 0).all(axis=1)]


def largest_sums(weights: Array, pairings: Sequence[Pairing]) -> Array:
    """The largest sum of two weights that are a pair, without its sign, of each output: (outputs,).

    Args:
        weights: integers or real numbers, (outputs, channels, ...).
        pairings: all that the kernel may have.
    """
    rows = weights.reshape(len(weights), -1)
    sums = [_sums(rows, places(weights.shape, pairing)).max(axis=1, initial=0) for pairing in pairings]
    largest: Array = np.max(sums, axis=0, initial=0)
    return largest


def pairs_fit(weights: npt.NDArray[np.int8], pairings: Sequence[Pairing]) -> bool:
    """Whether no pair of int8 weights can be cut off, whatever the activations."""
    return bool((largest_sums(weights, pairings) <= LIMIT).all())


def fit(steps: Array, pairings: Sequence[Pairing]) -> npt.NDArray[np.int8]:
    """Rounds weights so that all pairs fit and, of kernels with several places, their sum stays what it was.

    Neighbouring places of an image, and of most layers, are nearly equal: what counts of roundings is their sum. So
    those are rounded the other way that are nearest to it, until the sum of an output's weights is off by no more than
    half a step (after Guo et al., "SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation",
    ICLR 2022). With the first layer of yolov3-tiny, that is worth 5 dB at the heads.

    Args:
        steps: weights in units of their scale, (outputs, channels, ...), of which no two of a pair sum up to more than
            `LIMIT`, but for rounding.
        pairings: all that the kernel may have.
    """
    exact = steps.reshape(len(steps), -1)
    rounded = np.clip(np.round(exact), -_LEVELS, _LEVELS)
    taken = [part for pairing in pairings for part in _disjoint(places(steps.shape, pairing))]
    for pairs in taken:
        first, second = pairs.T
        over = _sums(rounded, pairs) > LIMIT
        sign = np.sign(rounded[:, first])
        by_first = (rounded - exact)[:, first] * sign >= (rounded - exact)[:, second] * sign
        rounded[:, first] -= sign * (over & by_first)
        rounded[:, second] -= sign * (over & ~by_first)
    if prod(steps.shape[2:]) == 1:
        return rounded.reshape(steps.shape).astype(np.int8)
    errors = rounded - exact
    off = errors.sum(axis=1, keepdims=True)
    away = np.sign(off)
    # A weight may be moved if its pairs fit even when their other one is moved as well.
    movable = (errors * away > 0) & (np.abs(rounded - away) <= _LEVELS)
    for pairs in taken:
        fits = np.abs(rounded[:, pairs].sum(axis=2) - 2 * away) <= LIMIT
        for place in pairs.T:
            movable[:, place] &= fits
    order = np.argsort(np.where(movable, -errors * away, np.inf), axis=1, kind="stable")
    chosen = np.arange(exact.shape[1]) < np.round(np.abs(off))
    moved = np.zeros_like(movable)
    np.put_along_axis(moved, order, chosen, axis=1)
    rounded -= away * (moved & movable)
    return rounded.reshape(steps.shape).astype(np.int8)


def _disjoint(pairs: npt.NDArray[np.intp]) -> Iterable[npt.NDArray[np.intp]]:
    """The same in parts, in each of which a weight occurs once."""
    return [pairs] if len(np.unique(pairs)) == pairs.size else pairs[:, None]


def _sums(rows: Array, pairs: npt.NDArray[np.intp]) -> Array:
    """Without their signs: (outputs, pairs)."""
    wide = rows.astype(np.int32) if rows.dtype == np.int8 else rows
    sums: Array = np.abs(wide[:, pairs[:, 0]] + wide[:, pairs[:, 1]])
    return sums
