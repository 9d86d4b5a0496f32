"""[route] against forward_route_layer, which copies memory one source after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.errors import DncWarning

Doubles = npt.NDArray[np.float64]

BODY = "".join(f"[convolutional]\nfilters={filters}\nactivation=linear\n" for filters in (6, 4, 2))


def copied(groups: int, group_id: int, flat: bool = False) -> Callable[[Sequence[Doubles], Arrays], Doubles]:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        out: list[float] = []
        for x in inputs:
            size = x.size // groups
            out += x.ravel()[size * group_id : size * (group_id + 1)].tolist()
        y = np.array(out)
        return y if flat else y.reshape(-1, *inputs[0].shape[1:])

    return oracle


@pytest.mark.parametrize("layers", ["-1", "-2", "0", "-1,-3", "0,1,2", "2,0,2", "-1,0,-2,1", "-3, 1"])
def test_concatenation(layers: str, check: Callable[..., Network]) -> None:
    network = check(f"{BODY}[route]\nlayers={layers}\n", copied(1, 0), bound=1e-6)
    wanted = [3 + index if index < 0 else index for index in map(int, layers.split(","))]
    assert network.layers[3].sources == tuple(wanted)
    assert network.layers[3].describe() == " ".join(map(str, wanted))


@pytest.mark.parametrize(
    ("layers", "groups", "group_id"), [("-1", 2, 0), ("-1", 2, 1), ("0", 3, 2), ("0,1,2", 2, 1), ("-1,-2", 2, 0)]
)
def test_groups_slice_each_source(layers: str, groups: int, group_id: int, check: Callable[..., Network]) -> None:
    text = f"{BODY}[route]\nlayers={layers}\ngroups={groups}\ngroup_id={group_id}\n"
    network = check(text, copied(groups, group_id), bound=1e-6)
    assert network.layers[3].describe().endswith(f"  {group_id}/{groups}")


def test_vectors_follow_each_other(check: Callable[..., Network]) -> None:
    text = "[softmax]\n[gru]\noutput=3\n[route]\nlayers=0,1,0\n"
    network = Network.parse(f"[net]\ninputs=4\n{text}")
    assert network.layers[2].shape == (11,)
    check("[softmax]\n[cost]\n[route]\nlayers=0,1\n", copied(1, 0, flat=True), net="inputs=4", bound=1e-6)


def test_different_sizes(check: Callable[..., Network], refused: Callable[..., None]) -> None:
    """Darknet gives such an output no width and height, and goes on; here that is for --lenient."""
    text = f"{BODY}[maxpool]\nstride=2\nsize=2\n[route]\nlayers=-1,0\n"
    message = "the layers have different sizes: 2 x 3 x 4, 6 x 5 x 7"
    refused(text, message, "layers=-1,0", "Darknet flattens them")
    rounded = f"{BODY}[maxpool]\nstride=2\nsize=2\n[upsample]\nstride=2\n[route]\nlayers=-1,0\n"
    hint = "Darknet flattens them; a difference of 1 comes of a width= or height= that the strides do not divide"
    refused(rounded, "the layers have different sizes: 2 x 6 x 8, 6 x 5 x 7", "layers=-1,0", hint)
    with pytest.warns(DncWarning, match="different sizes"):
        network = Network.parse(f"[net]\nwidth=7\nheight=5\nchannels=4\n{text}", lenient=True).with_random_weights()
    check(network, copied(1, 0, flat=True), bound=1e-6)


@pytest.mark.parametrize(
    ("options", "line", "message", "hint"),
    [
        ("layers=3", "layers=3", "layers=3 is layer 3, which is not one of layers 0 to 2", "only earlier layers"),
        ("layers=-4", "layers=-4", "layers=-4 is layer -1, which is not one of layers 0 to 2", "only earlier layers"),
        ("", "", "[route] must say layers=", "for instance layers=-2"),
        ("layers=1\ngroups=3", "groups=3", "groups=3 does not divide the 4 channels of layer 1", ""),
        ("layers=1\ngroups=2\ngroup_id=2", "group_id=2", "group_id=2 must be from 0 to 1",
         "Darknet would crash or compute nothing"),
        ("layers=1\ngroup=2", "group=2", "nothing in [route] reads 'group'", "did you mean 'groups'?"),
    ],
)  # fmt: skip
def test_refused(options: str, line: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(f"{BODY}[route]\n{options}\n", message, line, hint)


def test_groups_of_vectors_are_refused(refused: Callable[..., None]) -> None:
    text = "[softmax]\n[softmax]\n[route]\nlayers=0,1\ngroups=2\n"
    refused(text, "groups need inputs of one width and height", "groups=2", net="inputs=4")


def test_the_first_layer_has_nothing_before_it(refused: Callable[..., None]) -> None:
    message = "layers=-1 is layer -1, which is not the first layer"
    refused("[route]\nlayers=-1\n", message, "layers=-1", "only earlier layers")
