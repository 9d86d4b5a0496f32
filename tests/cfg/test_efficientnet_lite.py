"""TensorFlow's SAME padding in Darknet's symmetric one: every convolution of stride 2 that the networks have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dnc.darknet.layers.convolutional import Convolutional
from dnc.darknet.network import Network

NAMES = [f"efficientnet-lite{number}" for number in range(5)]
SIZES = (3, 3, 5, 3, 5)
"""The published kernels of the stem and of the stages that halve the map."""


def same(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """TensorFlow's convolution of stride 2 of a map by a kernel: the smaller half of the padding stands before it."""
    side, size = len(x), len(kernel)
    count = math.ceil(side / 2)
    total = max((count - 1) * 2 + size - side, 0)
    padded = np.pad(x, (total // 2, total - total // 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))[::2, ::2]
    y: np.ndarray = np.einsum("yxij,ij->yx", windows, kernel)
    return y


@pytest.mark.parametrize("name", NAMES)
def test_same(name: str) -> None:
    """With the kernel at the bottom right of what the cfg has, the numbers are TensorFlow's."""
    strided = [
        layer.convolution
        for layer in Network.load(name).layers
        if isinstance(layer, Convolutional) and layer.convolution.stride_x == 2
    ]
    generator = np.random.default_rng(0)
    for convolution, size in zip(strided, SIZES, strict=True):
        side = convolution.input_shape[1]
        x, kernel = generator.normal(size=(side, side)), generator.normal(size=(size, size))
        text = f"[net]\nwidth={side}\nheight={side}\nchannels=1\n[convolutional]\nfilters=1\nsize={convolution.size}\n"
        network = Network.parse(f"{text}stride=2\npadding={convolution.padding}\nactivation=linear\n")
        weights = np.zeros((1, 1, convolution.size, convolution.size), np.float32)
        weights[0, 0, -size:, -size:] = kernel
        arrays = {"weights": weights, "biases": np.zeros(1, np.float32)}
        y = network.layers[0].reference([x[None, None].astype(np.float32)], arrays, {})
        # 25 products of numbers of some units, in float32.
        np.testing.assert_allclose(y[0, 0], same(x, kernel), rtol=0, atol=1e-5)


def test_larger_kernels_stand_on_even_sides_alone() -> None:
    sides = set()
    for name in NAMES:
        for layer in Network.load(name).layers:
            if isinstance(layer, Convolutional) and layer.convolution.stride_x == 2:
                c = layer.convolution
                sides.add(c.input_shape[1] % 2)
                assert c.size % 2 == c.input_shape[1] % 2
            elif isinstance(layer, Convolutional):
                assert layer.convolution.size % 2
    assert sides == {0, 1}
