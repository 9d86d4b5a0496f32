"""Axis and windows against loops: where windows lie, and that ONNX derives as many of them as Darknet has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.layers.windows import Axis, windows


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Those of convolutions (padding on both sides) and of pools (a total padding, most of it at the end)."""
    size, stride = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 3)) if size % 2 else 1
    if dilation > 1:
        # The one padding for which Darknet's sizes, which leave dilation out, are right.
        length, begin = draw(st.integers(1, 12)), (size - 1) // 2 * dilation
        return Axis(length, (length - 1) // stride + 1, size, stride, begin, dilation)
    total = draw(st.integers(0, 7))
    length = draw(st.integers(max(1, size - total), 12))
    begin = draw(st.sampled_from([total // 2, total - total // 2]))
    return Axis(length, (length + total - size) // stride + 1, size, stride, begin)


@given(axes())
@settings(max_examples=300)
def test_onnx_counts_as_darknet(axis: Axis) -> None:
    """ONNX: floor((length + pads - span) / stride) + 1. The padding at the end is never more than needed."""
    assert axis.span == max(tap * axis.dilation for tap in range(axis.size)) + 1
    assert (axis.length + axis.begin + axis.end - axis.span) // axis.stride + 1 == axis.count
    last = (axis.count - 1) * axis.stride - axis.begin + axis.span
    assert axis.end == max(0, last - axis.length)


@given(axes(), axes(), st.sampled_from([0.0, -1.0]))
@settings(max_examples=100)
def test_windows_are_the_loop(vertical: Axis, horizontal: Axis, fill: float) -> None:
    x = np.random.default_rng(3).normal(size=(1, 2, vertical.length, horizontal.length)).astype(np.float32)
    view = windows(x, vertical, horizontal, fill)
    assert view.shape == (1, 2, vertical.count, horizontal.count, vertical.size, horizontal.size)
    for index in np.ndindex(*view.shape[1:]):
        c, i, j, m, n = index
        row = i * vertical.stride - vertical.begin + m * vertical.dilation
        column = j * horizontal.stride - horizontal.begin + n * horizontal.dilation
        inside = 0 <= row < vertical.length and 0 <= column < horizontal.length
        assert view[0][index] == (x[0, c, row, column] if inside else np.float32(fill))


def test_a_view_of_what_needs_no_padding() -> None:
    x = np.zeros((1, 1, 6, 6), np.float32)
    axis = Axis(6, 3, 2, 2, 0)
    assert np.shares_memory(windows(x, axis, axis, 0.0), x)
    assert (axis.span, axis.end) == (2, 0)


@pytest.mark.parametrize(
    ("axis", "end"), [(Axis(5, 3, 2, 2, 0), 1), (Axis(6, 6, 2, 1, 0), 1), (Axis(5, 1, 2, 4, 0), 0)]
)
def test_end_of_the_usual_pools(axis: Axis, end: int) -> None:
    """2x2 stride 2 on an odd side; 2x2 stride 1, which keeps the side; and one that leaves pixels out."""
    assert axis.end == end
