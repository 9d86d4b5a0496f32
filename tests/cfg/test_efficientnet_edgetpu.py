"""EfficientNet-EdgeTPU: where the stride of a fused block stands."""

from __future__ import annotations

import numpy as np
import pytest

from dnc.darknet.network import Network
from dnc.darknet.reference import run


def fused(expand: int, project: int, side: int) -> str:
    """A fused block with these strides."""
    return (
        f"[net]\nwidth={side}\nheight={side}\nchannels=3\n"
        f"[convolutional]\nfilters=12\nsize=3\nstride={expand}\npad=1\nactivation=relu\n"
        f"[convolutional]\nfilters=5\nsize=1\nstride={project}\nactivation=linear\n"
    )


@pytest.mark.parametrize("side", [8, 9])
def test_stride_of_a_fused_block(side: int) -> None:
    """In the expansion as in the projection, where Google has it: the same numbers, with a quarter of the work."""
    generator = np.random.default_rng(0)
    x = generator.random((1, 3, side, side), np.float32)
    ours, original = (Network.parse(fused(*strides, side)) for strides in ((2, 1), (1, 2)))
    arrays = tuple(
        {name: generator.standard_normal(shape, np.float32) for name, shape in layer.weights().items()}
        for layer in ours.layers
    )
    got, expected = (run(network.with_arrays(arrays), x)[0] for network in (ours, original))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
