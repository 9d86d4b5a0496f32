"""[activation]: shapes, default and errors. The formulas are in test_activations.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]


@pytest.mark.parametrize("net", ["inputs=6", "width=3\nheight=2\nchannels=1"])
@pytest.mark.parametrize("option", ["activation=relu\n", ""])
def test_vectors_and_maps(net: str, option: str, check: Callable[..., Network]) -> None:
    """The default is linear, unlike that of [convolutional]."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        return np.maximum(inputs[0], 0) if option else inputs[0]

    network = check(f"[activation]\n{option}", oracle, net=net, bound=0)
    assert network.layers[0].shape == network.input_shape
    assert network.layers[0].describe() == ("relu" if option else "linear")


def test_darknets_zeros_are_not_copied(check: Callable[..., Network]) -> None:
    """Darknet's CPU build gives zeros for swish here; the formula is what its authors meant."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        y: Doubles = inputs[0] / (1 + np.exp(-inputs[0]))
        return y

    network = check("[activation]\nactivation=swish\n", oracle)
    assert network.layers[0].flops() == 0


def test_misspelt_key_is_refused(refused: Callable[..., None]) -> None:
    message = "nothing in [activation] reads 'activasion'"
    refused("[activation]\nactivasion=relu\n", message, "activasion=relu", "did you mean 'activation'?")
