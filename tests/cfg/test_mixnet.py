"""MixNet: what is counted, and what others count of the same networks."""

from __future__ import annotations

import math

import pytest

from dnc.darknet.layers.avgpool import AvgPool
from dnc.darknet.layers.convolutional import Convolutional
from dnc.darknet.network import Network


@pytest.mark.parametrize(
    ("name", "paddle"), [("mixnet-s", 252.977e6), ("mixnet-m-paper", 357.119e6), ("mixnet-l", 579.017e6)]
)
def test_operations_are_those_that_paddleclas_counts(name: str, paddle: float) -> None:
    """Its figures of all three: multiply-adds, two for each value that is normalised, and one for each of a mean."""
    layers = Network.load(name).layers
    convolutions = [layer for layer in layers if isinstance(layer, Convolutional)]
    normalised = [math.prod(layer.shape) for layer in convolutions if layer.convolution.batch_normalize]
    means = [math.prod(layer.input_shape) for layer in layers if isinstance(layer, AvgPool)]
    counted = sum(layer.flops() for layer in convolutions) / 2 + 2 * sum(normalised) + sum(means)
    assert counted == pytest.approx(paddle, rel=3e-4)
