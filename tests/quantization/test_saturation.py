"""What saturating pairs make of a layer: against all of its products, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from dnc.graph.pairs import Pairing, places
from dnc.quantization.saturation import saturation
from dnc.typing import Array


def plainly(
    x: Array, w: Array, pairing: Pairing, strides: int, pad: int, dilation: int, groups: int, zero: int
) -> Array:
    """The number of pairs that are cut off, and what is lost, of each result."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=zero).astype(np.int64)
    outputs, channels, rows, _ = w.shape
    span = (rows - 1) * dilation + 1
    sides = [(x.shape[axis] - span) // strides + 1 for axis in (2, 3)]
    found = np.zeros((2, len(x), outputs, *sides), np.int64)
    for n, o, i, j in np.ndindex(found.shape[1:]):
        first = o // (outputs // groups) * channels
        window = x[n, first : first + channels, i * strides :, j * strides :][:, :span:dilation, :span:dilation]
        products = (window * w[o]).reshape(-1)
        for a, b in places(w.shape, pairing):
            lost = max(-32768, min(32767, products[a] + products[b])) - (products[a] + products[b])
            found[:, n, o, i, j] += (lost != 0, lost)
    return found


@pytest.mark.parametrize("pairing", [Pairing.ROWS, Pairing.CHANNELS])
@pytest.mark.parametrize(
    ("shape", "strides", "pad", "dilation", "groups"),
    [((4, 3, 3, 3), 1, 1, 1, 1), ((4, 2, 3, 3), 2, 0, 1, 2), ((3, 5, 1, 1), 1, 0, 1, 1), ((4, 3, 3, 3), 1, 2, 2, 2)],
)
def test_saturation(
    pairing: Pairing, shape: tuple[int, ...], strides: int, pad: int, dilation: int, groups: int
) -> None:
    generator = np.random.default_rng(0)
    x = generator.choice(np.array([0, 17, 200, 255], np.uint8), (2, shape[1] * groups, 7, 6))
    w = generator.choice(np.array([-127, -64, 30, 100, 127], np.int8), shape)
    every = plainly(x, w, pairing, strides, pad, dilation, groups, 200)
    found = saturation(
        x, w, pairing, zero_point=200, strides=[strides] * 2, pads=[pad] * 4, dilations=[dilation] * 2, groups=groups
    )
    assert found.saturated == every[0].sum() > 0
    assert found.pairs == every[0].size * len(places(shape, pairing))
    assert 0 < found.share < 1
    np.testing.assert_array_equal(found.error, every[1])


def test_matrix_product() -> None:
    x = np.array([[255, 255, 1, 255, 255], [0, 255, 255, 255, 255]], np.uint8)
    w = np.array([[127, 127, 127, 127, 127], [-127, -127, 64, 64, 127]], np.int8)
    found = saturation(x, w, Pairing.ROWS)
    cut = 32767 - 2 * 255 * 127
    low = -32768 + 2 * 255 * 127
    assert found.error.tolist() == [[cut, low], [cut, 0]]
    assert (found.saturated, found.pairs) == (3, 8)


def test_depthwise_is_exact() -> None:
    full = np.full((1, 2, 4, 4), 255, np.uint8)
    found = saturation(full, np.full((2, 1, 3, 3), 127, np.int8), Pairing.ROWS, groups=2)
    assert (found.pairs, found.share, found.error.shape) == (0, 0, (1, 2, 2, 2))
    assert not found.error.any()
