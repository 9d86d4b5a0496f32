"""[implicit]: a constant from the weights, once for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]


def constant(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
    return arrays["weights"].astype(np.float64)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("net", ["width=7\nheight=5\nchannels=4", "inputs=6"])
def test_every_image_gets_it(net: str, batch: int, check: Callable[..., Network]) -> None:
    network = check("[implicit]\nfilters=3\natoms=2\nmean=.5\nstd=.1\n", constant, net=net, batch=batch, bound=0)
    assert network.layers[0].weights() == {"weights": (3, 2, 1)}
    assert network.parameters() == 6


def test_default_size() -> None:
    assert Network.parse("[net]\ninputs=6\n[implicit]\n").layers[0].shape == (128, 1, 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_added_and_multiplied(batch: int, check: Callable[..., Network]) -> None:
    """As YOLOR's cfgs do, on a vector of channels."""
    text = "[avgpool]\n[implicit]\nfilters=4\n[route]\nlayers=0\n[shortcut]\nfrom=-2\n[implicit]\nfilters=4\n"
    text += "[scale_channels]\nfrom=0\n"

    def product(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        return inputs[0] * inputs[1]

    def total(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        return inputs[0] + inputs[1]

    network = check(text, product, batch=batch, bound=1e-6)
    check(network, total, at=3, batch=batch, bound=1e-6)


@pytest.mark.parametrize("line", ["filters=0", "atoms=0"])
def test_refused(line: str, refused: Callable[..., None]) -> None:
    refused(f"[implicit]\n{line}\n", f"{line} must be at least 1", line, "Darknet would crash or compute nothing")
