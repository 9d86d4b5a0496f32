"""What 8-bit numbers stand for: 0 is exact, no number of an interval is off by more than half a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnc.graph.quantization import (
    QuantParams,
    Range,
    as_threshold,
    attach_ranges,
    least_weight_scales,
    range_of,
)
from tests.models import model

FINITE = st.floats(-1e6, 0), st.floats(0, 1e6)


@given(*FINITE)
def test_asymmetric_parameters_cover_the_range(low: float, high: float) -> None:
    params = QuantParams.asymmetric(Range(low, high))
    (scale,) = params.scale
    assert scale == float(np.float32(scale)) > 0
    assert params.dtype == "uint8"
    assert params.quantize(np.zeros(1)) == params.zero_point
    ends = np.array([low, high])
    # Half a step for rounding, half a step because 0 has to be one of the integers.
    np.testing.assert_allclose(params.dequantize(params.quantize(ends)), ends, rtol=1e-6, atol=1.01 * scale)


@given(*FINITE)
def test_symmetric_parameters(low: float, high: float) -> None:
    params = QuantParams.symmetric(Range(low, high))
    assert (params.zero_point, params.dtype) == (0, "int8")
    ends = np.array([low, high])
    # The scale, a float32, may be rounded down: 127 of them are then less than the end by 1e-7 of it.
    assert (np.abs(ends) <= 127 * params.scale[0] * (1 + 1e-6)).all()
    assert params.scale[0] <= max(-low, high, 1e-30) / 127 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("known", "zero_point"),
    # What lies beside 0 is widened to it.
    [(Range(0, 255), 0), (Range(-255, 0), 255), (Range(-55, 200), 55), (Range(51, 255), 0)],
)
def test_parameters_with_a_scale_of_1(known: Range, zero_point: int) -> None:
    assert QuantParams.asymmetric(known) == QuantParams((1.0,), zero_point, "uint8")


@given(st.floats(1e-30, 1e30))
def test_a_threshold_is_127_times_a_float32(value: float) -> None:
    """So near that no 8-bit number changes: half a unit in the last place of a float32."""
    threshold = as_threshold(value)
    assert float(np.float32(threshold / 127)) == threshold / 127
    assert abs(threshold - value) <= 2**-24 * value
    assert Range.symmetric(value, -1, 1).threshold == threshold == as_threshold(threshold)


def test_a_threshold_is_not_0() -> None:
    assert as_threshold(0.0) > 0


def test_ranges_belong_to_values() -> None:
    """They are there in a clone, too."""
    built = model("agraph (float[1,2] x) => (float[1,2] y) { a = Relu(x)  y = Relu(a) }")
    ranges = {"x": Range(-1, 1), "a": Range(0, 1)}
    attach_ranges(built, ranges)
    values = [*built.clone().graph.inputs, *(node.outputs[0] for node in built.clone().graph)]
    assert [range_of(value) for value in values] == [ranges["x"], ranges["a"], None]


def test_weights() -> None:
    weights = np.random.default_rng(0).normal(0, 1, (5, 3, 3, 3)).astype(np.float32) * np.float32(10) ** np.arange(
        -2, 3, dtype=np.float32
    ).reshape(-1, 1, 1, 1)
    weights[4] = 0
    params = QuantParams.of_weights(weights)
    integers = params.quantize(weights)
    assert integers.dtype == np.int8
    # The largest of each channel is 127, but for the channel of zeros.
    assert np.abs(integers.reshape(5, -1)).max(axis=1).tolist() == [127] * 4 + [0]
    column = np.array(params.scale).reshape(-1, 1, 1, 1)
    assert (column > 0).all()
    # Half a step, and the rounding of the scale to float32.
    assert (np.abs(params.dequantize(integers) - weights) <= 0.5001 * column).all()


def test_biases_fit_into_32_bits() -> None:
    """A channel whose weights are nearly nothing gets a scale with which its bias is a number at all."""
    weights, biases = np.full((2, 1, 1, 1), 1e-20), np.array([3.0, -5.0])
    params = QuantParams.of_weights(weights, least_weight_scales(biases, 0.1))
    assert (np.abs(biases / (0.1 * np.array(params.scale))) <= 2**30 * 1.001).all()
