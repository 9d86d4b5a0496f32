"""[scale_channels] and [sam] against the loops of scale_channels_layer.c and sam_layer.c."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]

SE = "[convolutional]\nfilters=6\nactivation=linear\n[avgpool]\n[convolutional]\nfilters=6\n"
MAP = "[convolutional]\nfilters=6\nactivation=linear\n[convolutional]\nfilters={}\n"


def product(wh: bool, elements: bool, leaky: bool) -> Callable[[Sequence[Doubles], Arrays], Doubles]:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        factors, source = inputs
        y = np.empty_like(source)
        for c, i, j in np.ndindex(*y.shape):
            factor = factors[c, i, j] if elements else factors[0, i, j] if wh else factors[c, 0, 0]
            y[c, i, j] = factor * source[c, i, j]
        return np.where(y > 0, y, 0.1 * y) if leaky else y

    return oracle


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("index", ["0", "-3"])
def test_a_factor_for_each_channel(index: str, leaky: bool, check: Callable[..., Network]) -> None:
    text = f"{SE}[scale_channels]\nfrom={index}\n" + ("activation=leaky\n" if leaky else "")
    network = check(text, product(False, False, leaky), bound=1e-6)
    assert network.layers[3].shape == (6, 5, 7)
    assert network.layers[3].describe() == "0"


@pytest.mark.parametrize("leaky", [False, True])
def test_a_factor_for_each_pixel(leaky: bool, check: Callable[..., Network]) -> None:
    text = f"{MAP.format(1)}[scale_channels]\nfrom=-2\nscale_wh=1\n" + ("activation=leaky\n" if leaky else "")
    check(text, product(True, False, leaky), bound=1e-6)


@pytest.mark.parametrize("leaky", [False, True])
def test_sam_has_one_for_each_element(leaky: bool, check: Callable[..., Network]) -> None:
    text = f"{MAP.format(6)}[sam]\nfrom=-2\n" + ("activation=leaky\n" if leaky else "")
    check(text, product(False, True, leaky), bound=1e-6)


def test_darknets_zeros_are_not_copied(check: Callable[..., Network]) -> None:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        y: Doubles = inputs[0] * inputs[1]
        y /= 1 + np.exp(-y)
        return y

    check(f"{SE}[scale_channels]\nfrom=0\nactivation=swish\n", oracle, bound=1e-6)
    check(f"{MAP.format(6)}[sam]\nfrom=0\nactivation=swish\n", oracle, bound=1e-6)


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (
            MAP.format(6) + "[scale_channels]\nfrom=0\n",
            "",
            "the previous layer is 6 x 5 x 7, but layer 0 of 6 x 5 x 7 wants 6 x 1 x 1",
            "",
        ),
        (
            MAP.format(2) + "[scale_channels]\nfrom=0\nscale_wh=1\n",
            "from=0",
            "the previous layer is 2 x 5 x 7, but layer 0 of 6 x 5 x 7 wants 1 x 5 x 7",
            "",
        ),
        (
            MAP.format(5) + "[sam]\nfrom=0\n",
            "from=0",
            "the previous layer is 5 x 5 x 7, but layer 0 of 6 x 5 x 7 wants 6 x 5 x 7",
            "",
        ),
        (SE + "[scale_channels]\nfrom=0,1\n", "from=0,1", "from= names 2 layers", "one is possible here"),
        (SE + "[scale_channels]\nfrom=5\n", "from=5", "from=5 is layer 5, which is not one of layers 0 to 2",
         "only earlier layers"),
        (SE + "[sam]\n", "", "[sam] must say from=", "for instance from=-2"),
    ],
)  # fmt: skip
def test_refused(text: str, line: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(text, message, line or text.rstrip().rpartition("\n")[2], hint)


def test_vectors_are_refused(refused: Callable[..., None]) -> None:
    text = "[softmax]\n[connected]\noutput=4\n[scale_channels]\nfrom=0\n"
    refused(text, "the layer to scale must be an image", "from=0", net="inputs=4")
