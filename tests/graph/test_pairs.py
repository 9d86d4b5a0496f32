"""Pairs of products: which weights they are, and roundings with which their sums fit 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnc.graph.pairs import LIMIT, Pairing, adds_pairs, fit, largest_sums, pairs_fit, places
from dnc.graph.quantization import LEVELS, QuantParams
from dnc.typing import Array

ALL = tuple(Pairing)


def named(shape: tuple[int, ...], pairing: Pairing) -> list[str]:
    """Pairs as channel, row, column."""
    names = ["".join(map(str, place)) for place in np.ndindex(shape[1:])]
    return [f"{names[first]}+{names[second]}" for first, second in places(shape, pairing)]


# What real kernels pair: see tests/targets/test_pairs.py.
PAIRS = {
    Pairing.ROWS: ["000+100", "200+001", "101+201", "010+110", "210+011", "111+211"],
    Pairing.CHANNELS: ["000+100", "001+101", "010+110", "011+111"],
    Pairing.PLACES: [],
}


@pytest.mark.parametrize("pairing", ALL)
def test_places(pairing: Pairing) -> None:
    assert named((1, 3, 2, 2), pairing) == PAIRS[pairing]


def test_channels_in_rows() -> None:
    """Those of an even number, and those of a matrix, are the same pairs in both orders."""
    for shape in ((1, 4, 3, 3), (1, 4)):
        assert named(shape, Pairing.ROWS) == named(shape, Pairing.CHANNELS)
    assert named((1, 5), Pairing.ROWS) == named((1, 5), Pairing.CHANNELS) == ["0+1", "2+3"]


def test_one_channel() -> None:
    """Each group of a depthwise convolution has one output; with several, kernels pair places."""
    assert not adds_pairs((8, 1, 3, 3), 8)
    assert adds_pairs((16, 1, 3, 3), 8)
    assert adds_pairs((8, 4, 1, 1), 1)
    assert not adds_pairs((8, 1, 1, 1), 1)
    assert named((2, 1, 2, 2), Pairing.ROWS) == ["000+001", "010+011"]
    every = ["000+001", "000+010", "000+011", "001+010", "001+011", "010+011"]
    assert named((2, 1, 2, 2), Pairing.PLACES) == every


def finest(weights: Array) -> QuantParams:
    """The scales of weights whose pairs fit."""
    return QuantParams.of_weights(weights, largest_sums(weights, ALL) / LIMIT)


SHAPES = [(4, 3, 3, 3), (4, 8, 1, 1), (3, 7), (6, 1, 3, 3), (2, 5, 1, 1), (2, 16, 3, 3)]


@given(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES), st.sampled_from([1.0, 0.0, 100.0]))
def test_all_pairs_fit(seed: int, shape: tuple[int, ...], extreme: float) -> None:
    """With whatever weights: usual ones, all equal, or single channels a hundred times the others."""
    generator = np.random.default_rng(seed)
    weights = generator.standard_t(2, shape) if extreme else np.ones(shape)
    weights[:, generator.integers(shape[1])] *= max(extreme, 1)
    weights = weights.astype(np.float32)
    params = finest(weights)
    integers = fit(params.steps(weights), ALL)
    assert integers.dtype == np.int8
    assert pairs_fit(integers, ALL)
    # No scale is more than twice the finest, and no weight is off by more than a step.
    assert (np.array(params.scale) <= 2 * np.array(QuantParams.of_weights(weights).scale)).all()
    assert np.abs(integers - params.steps(weights)).max() <= 1.001


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (16, 16, 3, 3), (6, 1, 5, 5)])
def test_sums_stay(shape: tuple[int, ...]) -> None:
    weights = np.random.default_rng(0).normal(0, 1, shape)
    weights.reshape(shape[0], -1)[:, 1] = 0
    steps = finest(weights).steps(weights)
    integers = fit(steps, ALL)
    off = (integers - steps).reshape(shape[0], -1).sum(axis=1)
    # Half a step, and all roundings to the nearest are off by several.
    assert np.abs(off).max() <= 0.5001
    assert np.abs((np.round(steps) - steps).reshape(shape[0], -1).sum(axis=1)).max() > 1
    assert not integers.reshape(shape[0], -1)[:, 1].any(), "what was 0 is no longer"


def test_a_single_place_is_rounded_to_the_nearest() -> None:
    """Channels are not alike: their sum tells nothing."""
    weights = np.random.default_rng(0).normal(0, 1, (16, 9, 1, 1))
    steps = finest(weights).steps(weights)
    np.testing.assert_array_equal(fit(steps, ALL), np.round(steps))


def test_pairs_fit() -> None:
    """Those of opposite signs always do, and a sum of 129 no longer."""
    for first, second, fits in (
        (127, -127, True),
        (64, 64, True),
        (65, 64, False),
        (-64, -64, True),
        (-127, -2, False),
    ):
        weights = np.array([[first, second, 0, LEVELS]], np.int8)
        assert pairs_fit(weights, [Pairing.ROWS]) == fits
        assert (255 * abs(first + second) <= 2**15 - 1) == fits
