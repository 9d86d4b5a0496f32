"""[detection] against forward_detection_layer: a copy, with the softmax of each cell's classes where asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.runtime.decoding import DetectionHead

Doubles = npt.NDArray[np.float64]

HEAD = "[detection]\nclasses=3\ncoords=4\nside=2\nnum=2\nrescore=1\n"
"""4 cells of 3 classes and 2 boxes: 52 values."""


@pytest.mark.parametrize("net", ["inputs=52", "width=2\nheight=2\nchannels=13"])
@pytest.mark.parametrize("softmax", [0, 1])
@pytest.mark.parametrize("sqrt", [0, 1])
def test_vector(softmax: int, sqrt: int, net: str, check: Callable[..., Network]) -> None:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        out = inputs[0].ravel().copy()
        for cell in range(4 if softmax else 0):
            part = out[3 * cell : 3 * cell + 3]
            exponentials = [math.exp(value - max(part)) for value in part]
            out[3 * cell : 3 * cell + 3] = [value / sum(exponentials) for value in exponentials]
        return out

    network = check(f"{HEAD}softmax={softmax}\nsqrt={sqrt}\n", oracle, net=net, bound=1e-6)
    assert network.layers[0].head() == DetectionHead(
        output="layer000",
        where=f"<cfg>:{len(net.splitlines()) + 2} [detection] #0",
        classes=3,
        side=2,
        num=2,
        sqrt=bool(sqrt),
    )
    assert network.layers[0].describe() == "2 x 2 cells, 2 boxes, 3 classes"


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("coords=4", "coords=1", "coords=1 is not decoded by Darknet", "4 is possible"),
        ("classes=3", "classes=4", "the layer before has 52 outputs, side^2 * (classes + 5 * num) wants 56",
         "make output= of the [connected] before equal to that"),
        ("side=2", "side=0", "side=0 must be at least 1", "Darknet would crash or compute nothing"),
    ],
)  # fmt: skip
def test_refused(old: str, new: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(HEAD.replace(old, new), message, new, hint, net="inputs=52")


def test_coords_must_be_given(refused: Callable[..., None]) -> None:
    """Darknet's default is 1, and its decoder reads four."""
    refused(HEAD.replace("coords=4\n", ""), "coords=1 is not decoded by Darknet", "", "4 is possible", net="inputs=52")
