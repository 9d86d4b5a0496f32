"""[softmax] against the loop of blas.c: all inputs, groups, the groups of a tree, and the channels of each pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.runtime.decoding import ClassifierHead

Doubles = npt.NDArray[np.float64]
Oracle = Callable[[Sequence[Doubles], Arrays], Doubles]

NETS = ["inputs=12", "width=2\nheight=3\nchannels=2"]


def softmax(values: Sequence[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature - max(values) / temperature) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def parts(sizes: Sequence[int], temperature: float = 1.0) -> Oracle:
    """One softmax after the other along memory."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        flat: list[float] = inputs[0].ravel().tolist()
        out: list[float] = []
        for size in sizes:
            out += softmax(flat[len(out) : len(out) + size], temperature)
        return np.array(out)

    return oracle


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("groups", [1, 2, 3, 12])
def test_groups_and_temperature(groups: int, temperature: float, net: str, check: Callable[..., Network]) -> None:
    text = f"[softmax]\ngroups={groups}\ntemperature={temperature}\nnoloss=1\n"
    network = check(text, parts([12 // groups] * groups, temperature), net=net, bound=1e-6)
    assert network.layers[0].shape == (12,)


def test_large_values_do_not_overflow(check: Callable[..., Network]) -> None:
    x = np.random.default_rng(1).normal(0, 400, (2, 12)).astype(np.float32)
    check("[soft]\n", parts([12]), net="inputs=12", x=x, bound=1e-6)


def test_spatial_is_over_the_channels(check: Callable[..., Network]) -> None:
    """As the GPU build does, whose call has a temperature of 1 in it; the CPU build does not know the option."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        y = np.empty_like(inputs[0])
        for i, j in np.ndindex(*y.shape[1:]):
            y[:, i, j] = softmax(inputs[0][:, i, j].tolist(), 1.0)
        return y.ravel()

    check("[softmax]\nspatial=1\ntemperature=3\n", oracle, bound=1e-6)


TREE = "a -1\nb -1\nc -1\naa 0\nab 0\nba 1\nbb 1\nbc 1\nbd 1\naaa 3\naab 3\naac 3\n"


@pytest.mark.parametrize("options", ["", "temperature=2\n", "groups=3\n", "spatial=1\n"])
@pytest.mark.parametrize("net", NETS)
def test_tree(tmp_path: Path, net: str, options: str, check: Callable[..., Network]) -> None:
    """One softmax for the children of each node; it goes before groups and spatial."""
    (tmp_path / "a.tree").write_text(TREE)
    text = f"[softmax]\ntree={tmp_path / 'a.tree'}\n{options}"
    network = check(text, parts([3, 2, 4, 3], 2.0 if "temp" in options else 1.0), net=net, bound=1e-6)
    head = network.layers[0].head()
    assert isinstance(head, ClassifierHead)
    assert head.tree == (-1, -1, -1, 0, 0, 1, 1, 1, 1, 3, 3, 3)


def test_head() -> None:
    head = Network.parse("[net]\ninputs=5\n[empty]\n[softmax]\n", "a/b.cfg").layers[1].head()
    assert head == ClassifierHead(output="layer001", where="b.cfg:4 [softmax] #1", classes=5)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("groups=3", "groups=3 does not divide 140 inputs", ""),
        ("groups=0", "groups=0 must be at least 1", "Darknet would crash or compute nothing"),
        ("temperature=0", "temperature=0 divides by zero", ""),
        ("temprature=2", "nothing in [softmax] reads 'temprature'", "did you mean 'temperature'?"),
    ],
)
def test_refused(line: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(f"[softmax]\n{line}\n", message, line, hint)


def test_spatial_wants_an_image(refused: Callable[..., None]) -> None:
    message = "[softmax] needs an image, but the layer before it has a flat output of 5"
    hint = "place it before the [softmax] or [cost], or set width, height and channels in [net]"
    refused("[softmax]\nspatial=1\n", message, "", hint, net="inputs=5")
