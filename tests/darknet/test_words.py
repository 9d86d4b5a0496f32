"""What other tools call things, and what acts in training only: neither misleads."""

from __future__ import annotations

import pytest

from dnc.darknet.network import Network
from dnc.errors import CfgError, DncWarning

NET = "[net]\nwidth=8\nheight=8\nchannels=3\n\n[convolutional]\nfilters=4\nactivation={}\n"


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("silu", "swish"),
        ("SiLU", "swish"),
        ("sigmoid", "logistic"),
        ("none", "linear"),
        ("gelu_tanh", "gelu"),
    ],
)
def test_the_same_function_by_another_name(name: str, own: str) -> None:
    with pytest.raises(CfgError, match=f"hint: it is Darknet's {own}"):
        Network.parse(NET.format(name))
    with pytest.warns(DncWarning, match=f"it is Darknet's {own}, which is taken; Darknet itself takes relu"):
        network = Network.parse(NET.format(name), lenient=True)
    assert f"activation='{own}'" in repr(network.layers[0])


@pytest.mark.parametrize("name", ["hardswish", "h_swish", "prelu", "hardsigmoid", "swiglu", "ReLU1", "tanhshrink"])
def test_what_only_looks_alike(name: str) -> None:
    with pytest.raises(CfgError, match="hint: Darknet has none like it"):
        Network.parse(NET.format(name))


def test_sections_and_keys_of_others() -> None:
    with pytest.raises(CfgError, match="Darknet has no transposed convolution"):
        Network.parse(NET.format("relu") + "\n[deconvolutional]\nfilters=2\n")
    with pytest.raises(CfgError, match="did you mean 'size'"):
        Network.parse(NET.format("relu") + "kernel_size=3\n")
    with pytest.raises(CfgError, match="did you mean 'activation'"):
        Network.parse(NET.replace("activation=", "act=").format("leaky"))
    with pytest.raises(CfgError, match="did you mean 'stride'"):
        Network.parse(NET.format("relu") + "\n[upsample]\nscale_factor=2\n")
    with pytest.raises(CfgError, match="leaky has the slope"):
        Network.parse(NET.format("lrelu"))


def test_what_acts_in_training_only() -> None:
    text = NET.format("relu") + "assisted_excitation=1\n\n[dropout]\ndropblock=1\n\n[dropout]\ndropblock=1\n"
    assert Network.parse(text).training == "[convolutional] assisted_excitation (1), [dropout] dropblock (2)"
    assert Network.parse(NET.format("relu")).training == ""
