"""[region] against forward_region_layer: flatten, the logistic function of objectness, softmax or tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.runtime.decoding import RegionHead

Doubles = npt.NDArray[np.float64]
Oracle = Callable[[Sequence[Doubles], Arrays], Doubles]

NET = "width=3\nheight=2\nchannels=18"
HEAD = "[region]\nclasses=4\nnum=2\ncoords=4\nanchors=1.5,2, 3,.5\n"
"""Two anchors of 5 + 4 entries on 18 channels."""
TREE = "a -1\nb -1\naa 0\nab 0\n"


def region(groups: Sequence[int]) -> Oracle:
    """`groups`: sizes of the softmaxes over the classes; none where they stay as they are."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        flat, swap = inputs[0].ravel(), np.empty(inputs[0].size)
        for c, i in np.ndindex(18, 6):
            swap[i * 18 + c] = flat[c * 6 + i]
        for cell in range(12):
            index = 9 * cell
            swap[index + 4] = 1 / (1 + math.exp(-swap[index + 4]))
            start = index + 5
            for size in groups:
                part = swap[start : start + size]
                exponentials = [math.exp(value - max(part)) for value in part]
                swap[start : start + size] = [value / sum(exponentials) for value in exponentials]
                start += size
        return swap.reshape(inputs[0].shape)

    return oracle


@pytest.mark.parametrize(
    ("options", "groups"), [("", []), ("softmax=1\n", [4]), ("softmax=1\nthresh=.6\nlog=1\n", [4])]
)
def test_map(options: str, groups: list[int], check: Callable[..., Network]) -> None:
    network = check(HEAD + options, region(groups), net=NET, bound=1e-6)
    assert network.layers[0].shape == (18, 2, 3)
    assert network.layers[0].describe() == "2 anchors, 4 classes"


@pytest.mark.parametrize("options", ["", "softmax=1\n"])
def test_tree(tmp_path: Path, options: str, check: Callable[..., Network]) -> None:
    (tmp_path / "a.tree").write_text(TREE)
    check(f"{HEAD}{options}tree={tmp_path / 'a.tree'}\n", region([2, 2]), net=NET, bound=1e-6)


def test_head(tmp_path: Path) -> None:
    (tmp_path / "a.tree").write_text(TREE)
    (tmp_path / "a.map").write_text("3\n1\n")
    options = f"tree={tmp_path / 'a.tree'}\nmap={tmp_path / 'a.map'}\nclassfix=-1\nsqrt=1\n"
    layer = Network.parse(f"[net]\n{NET}\n{HEAD}{options}", "b.cfg").layers[0]
    assert layer.head() == RegionHead(
        output="layer000",
        where="b.cfg:5 [region] #0",
        classes=4,
        anchors=((1.5, 2), (3, 0.5)),
        tree=(-1, -1, 0, 0),
        classfix=-1,
    )


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("coords=4", "coords=5", "coords=5 is not decoded by Darknet", "4 is possible"),
        ("classes=4", "classes=5", "the layer before has 18 filters, 2 anchors x 10 values want 20",
         "make filters= in the [convolutional] before equal to anchors * (classes + 5)"),
        ("num=2", "num=0", "num=0 must be at least 1", "Darknet would crash or compute nothing"),
        ("anchors=1.5,2, 3,.5", "anchors=1.5,2", "anchors= has 2 numbers, num=2 wants 4",
         "two numbers, width and height, for each anchor; Darknet takes 0.5 for the missing ones"),
    ],
)  # fmt: skip
def test_refused(old: str, new: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(HEAD.replace(old, new), message, new, hint, net=NET)
