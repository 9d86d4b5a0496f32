"""The builder: what it writes, and that positions become relative numbers."""

from __future__ import annotations

import pytest

from cfg.generators.text import Cfg, multiple_of_8
from dnc.darknet.network import Network
from dnc.errors import CfgError


@pytest.mark.parametrize(
    ("filters", "rounded"),
    # 8.7 would go down to 8, which is still over 90 %; 9 would not, nor 19.2 to 16.
    [(0.1, 8), (8.7, 8), (9, 16), (12, 16), (19.2, 24), (32, 32), (35.2, 32), (52, 56), (115.2, 112), (1408, 1408)],
)
def test_multiple_of_8(filters: float, rounded: int) -> None:
    assert multiple_of_8(filters) == rounded


def test_text() -> None:
    cfg = Cfg("small", "A title.", ("A note, " + "and more of it, " * 10,), 8, 16)
    first = cfg.convolution(4, 3, 2, "leaky", groups=1)
    cfg.comment("a block")
    cfg.convolution(8, groups=4, batch_normalize=0)
    scaled = cfg.squeeze_excite(2, 8, "relu")
    cfg.route(first, scaled, groups=2, group_id=1)
    cfg.convolution(4, 4, padding=2)
    text = cfg.text("cfg/generators/small.py")
    header, _, body = text.partition("\n\n")
    assert header.splitlines()[0] == "# A title."
    assert header.splitlines()[-1] == "# Written by cfg/generators/small.py (python -m cfg.generators): do not edit."
    assert all(line.startswith("# ") and len(line) <= 120 for line in header.splitlines())
    assert body.startswith("[net]\nbatch=1\nwidth=8\nheight=16\nchannels=3\n\n[convolutional]\nbatch_normalize=1\n")
    assert "filters=4\nsize=3\nstride=2\npad=1\nactivation=leaky\n\n# a block\n[convolutional]\nfilters=8\n" in body
    assert "[convolutional]\nfilters=8\ngroups=4\nsize=1\nstride=1\nactivation=linear\n" in body
    assert "size=4\nstride=1\npadding=2\n" in body
    network = Network.parse(text)
    assert network.layers[scaled].sources == (scaled - 1, 1)
    joined, wide = network.layers[scaled + 1 :]
    assert joined.sources == (first, scaled)
    assert joined.shape == (6, 8, 4)
    assert wide.shape == (4, 9, 5)
    parameters = f"{network.parameters():,} parameters."
    assert parameters in header


def test_what_is_no_network() -> None:
    cfg = Cfg("small", "A title.", (), 8, 8)
    cfg.convolution(4)
    cfg.convolution(8)
    cfg.section("sam", **{"from": -2})
    with pytest.raises(CfgError, match=r"small\.cfg"):
        cfg.text("x.py")


def test_layer_that_is_not_there_yet() -> None:
    cfg = Cfg("small", "A title.", (), 8, 8)
    cfg.convolution(4)
    with pytest.raises(AssertionError):
        cfg.shortcut(1)
