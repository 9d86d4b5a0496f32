"""[dropout], [empty], [cost], [contrastive]: what goes in comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]

SAME = {
    "dropout": "probability=.5",
    "dropout with dropblock": "dropblock=1\ndropblock_size_abs=7\nprobability=.1",
    "empty": "",
    "silence": "",
}
FLAT = {"cost": "type=sse\nscale=2\nratio=.5", "contrastive": "classes=10\ntemperature=2\nyolo_layer=-3"}


@pytest.mark.parametrize("net", ["width=7\nheight=5\nchannels=4", "inputs=6"])
@pytest.mark.parametrize("kind", SAME)
def test_same(kind: str, net: str, check: Callable[..., Network]) -> None:
    text = f"[{kind.split()[0]}]\n{SAME[kind]}\n"
    network = check(text, lambda inputs, arrays: inputs[0], net=net, bound=0)
    assert network.layers[0].shape == network.input_shape
    assert (network.layers[0].describe(), network.layers[0].flops(), network.layers[0].weights()) == ("", 0, {})


@pytest.mark.parametrize("net", ["width=7\nheight=5\nchannels=4", "inputs=6"])
@pytest.mark.parametrize("kind", FLAT)
def test_flat(kind: str, net: str, check: Callable[..., Network]) -> None:
    """Losses have no width and height: Darknet's memory of [cost] is not even filled."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        return inputs[0].ravel()

    check(f"[{kind}]\n{FLAT[kind]}\n", oracle, net=net, bound=0)


def test_the_result_is_what_comes_before_the_cost() -> None:
    net = Network.parse("[net]\ninputs=6\n[connected]\noutput=3\n[cost]\n")
    assert [layer.name for layer in net.outputs] == ["connected"]


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("[dropout]\nprobabilty=.5\n", "probabilty=.5", "nothing in [dropout] reads 'probabilty'",
         "did you mean 'probability'?"),
        ("[contrastive]\nclasses=0\n", "classes=0", "classes=0 must be at least 1",
         "Darknet would crash or compute nothing"),
    ],
)  # fmt: skip
def test_refused(text: str, line: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(text, message, line, hint)
