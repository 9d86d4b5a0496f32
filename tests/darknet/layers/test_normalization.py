"""[normalization] against the running sum of normalization_layer.c, whose off-by-one the layer's closed form has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]


def lrn(size: int, alpha: float, beta: float, kappa: float) -> Callable[[Sequence[Doubles], Arrays], Doubles]:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        x = inputs[0]
        channels = len(x)
        norms = np.empty_like(x)
        norms[0] = kappa
        for k in range(size // 2):
            norms[0] += alpha * x[k] ** 2
        for k in range(1, channels):
            norms[k] = norms[k - 1]
            before, after = k - (size - 1) // 2 - 1, k + size // 2
            if before >= 0:
                norms[k] -= alpha * x[before] ** 2
            if after < channels:
                norms[k] += alpha * x[after] ** 2
        result: Doubles = x * norms**-beta
        return result

    return oracle


@pytest.mark.parametrize("channels", [4, 5, 11])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_running_sum(size: int, channels: int, check: Callable[..., Network]) -> None:
    """An alpha as large as the squares, but small enough that no norm is negative."""
    text = f"[normalization]\nsize={size}\nalpha=0.3\nbeta=0.6\nkappa=9\n"
    check(text, lrn(size, 0.3, 0.6, 9.0), net=f"width=7\nheight=5\nchannels={channels}", bound=1e-6)


def test_defaults(check: Callable[..., Network]) -> None:
    network = check("[lrn]\n", lrn(5, 0.0001, 0.75, 1.0), net="width=7\nheight=5\nchannels=8", bound=1e-6)
    assert network.layers[0].describe() == "5"


def test_negative_norms_are_darknets_nan(check: Callable[..., Network]) -> None:
    """The square that is missing from every window can make the root imaginary."""
    with np.errstate(invalid="ignore"):
        check("[lrn]\nsize=3\nalpha=5\nkappa=0.1\n", lrn(3, 5.0, 0.75, 0.1), net="width=7\nheight=5\nchannels=8")


def test_wide_windows_are_refused(refused: Callable[..., None]) -> None:
    """Darknet would read past the channels."""
    refused("[lrn]\nsize=8\n", "size=8 needs more than 4 channels, there are 4", "size=8")
    message = "8193 channels are too many for a matrix of all with all"
    refused("[lrn]\n", message, "", "at most 8192", net="width=1\nheight=1\nchannels=8193")
    refused("[lrn]\nsize=0\n", "size=0 must be at least 1", "size=0", "Darknet would crash or compute nothing")
