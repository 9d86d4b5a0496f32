"""[avgpool] against the sum over a channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]


@pytest.mark.parametrize("name", ["avgpool", "avg"])
@pytest.mark.parametrize("net", ["width=7\nheight=5\nchannels=4", "width=1\nheight=1\nchannels=2"])
def test_mean_of_each_channel(name: str, net: str, check: Callable[..., Network]) -> None:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        channels, height, width = inputs[0].shape
        y = np.zeros((channels, 1, 1))
        for c, i, j in np.ndindex(channels, height, width):
            y[c, 0, 0] += inputs[0][c, i, j] / (height * width)
        return y

    network = check(f"[{name}]\n", oracle, net=net, bound=1e-6)
    assert network.layers[0].shape == (network.input_shape[0], 1, 1)


def test_vectors_are_refused(refused: Callable[..., None]) -> None:
    message = "[avgpool] needs an image, but the layer before it has a flat output of 5"
    hint = "place it before the [softmax] or [cost], or set width, height and channels in [net]"
    refused("[avgpool]\n", message, "", hint, net="inputs=5")
