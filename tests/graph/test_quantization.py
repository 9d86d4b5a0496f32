"""What 8-bit numbers stand for: 0 is exact, no number of an interval is off by more than half a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnc.graph.quantization import Grid, Interval, least_scales, quantize_weights, weight_scales


@given(st.floats(-1e6, 0), st.floats(0, 1e6), st.booleans())
def test_a_grid_covers_its_interval(low: float, high: float, zeros: bool) -> None:
    grid = Grid.of(Interval(low, high), zeros)
    assert 0 <= grid.zero <= 255
    assert grid.scale == float(np.float32(grid.scale)) > 0
    ends = np.array([low, high])
    found = (np.clip(np.round(ends / grid.scale) + grid.zero, 0, 255) - grid.zero) * grid.scale
    # Half a step for rounding, half a step because 0 has to be one of the integers.
    np.testing.assert_allclose(found, ends, rtol=0, atol=1.01 * grid.scale)


@given(st.floats(-1e6, 0), st.floats(0, 1e6))
def test_a_signed_grid_is_symmetric(low: float, high: float) -> None:
    grid = Grid.of(Interval(low, high), signed=True)
    assert grid.zero == 0
    ends = np.array([low, high])
    # The scale, a float32, may be rounded down: 127 of them are then less than the end by 1e-7 of it.
    assert (np.abs(ends) <= 127 * grid.scale * (1 + 1e-6)).all()
    assert grid.scale <= max(-low, high, 1e-30) / 127 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("interval", "zeros", "expected"),
    [
        (Interval(0, 255), True, Grid(1.0, 0)),
        (Interval(-255, 0), True, Grid(1.0, 255)),
        (Interval(-55, 200), True, Grid(1.0, 55)),
        (Interval(0, 255), False, Grid(1.0, 0)),
        (Interval(-1, 127), False, Grid(1.0, 128)),
        (Interval(-128, 1), False, Grid(1.0, 128)),
        # What lies beside 0 is widened to it.
        (Interval(51, 255), True, Grid(1.0, 0)),
    ],
)
def test_grids(interval: Interval, zeros: bool, expected: Grid) -> None:
    assert Grid.of(interval, zeros) == expected


@pytest.mark.parametrize("limit", [127, 63])
def test_weights(limit: int) -> None:
    weights = np.random.default_rng(0).normal(0, 1, (5, 3, 3, 3)).astype(np.float32) * np.float32(10) ** np.arange(
        -2, 3, dtype=np.float32
    ).reshape(-1, 1, 1, 1)
    weights[4] = 0
    scales = weight_scales(weights, limit)
    assert scales.dtype == np.float32
    assert (scales > 0).all()
    integers = quantize_weights(weights, scales, limit)
    assert integers.dtype == np.int8
    # The largest of each channel is the limit, but for the channel of zeros.
    assert np.abs(integers.reshape(5, -1)).max(axis=1).tolist() == [limit] * 4 + [0]
    column = scales.reshape(-1, 1, 1, 1)
    # Half a step, and the rounding of the scale to float32.
    assert (np.abs(integers * column - weights) <= 0.5001 * column).all()


def test_biases_fit_into_32_bits() -> None:
    """A channel whose weights are nearly nothing gets a scale with which its bias is a number at all."""
    weights, biases = np.full((2, 1, 1, 1), 1e-20), np.array([3.0, -5.0])
    scales = weight_scales(weights, 127, least_scales(biases, 0.1))
    assert (np.abs(biases / (0.1 * scales)) <= 2**30 * 1.001).all()
