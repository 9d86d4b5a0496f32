"""Enormous numbers and long lists in a cfg: read in no time, or refused at their line, before any memory is taken."""

from __future__ import annotations

import warnings

import pytest

from dnc.darknet.network import Network
from dnc.errors import CfgError

NUMBERS = {
    "convolutional": ("filters", "size", "stride", "padding", "dilation", "groups", "antialiasing"),
    "local": ("filters", "size", "stride", "pad"),
    "maxpool": ("size", "stride", "padding", "out_channels"),
    "local_avgpool": ("size", "stride", "padding"),
    "upsample": ("stride", "scale"),
    "reorg": ("stride",),
    "reorg3d": ("stride",),
    "route": ("groups", "group_id", "layers"),
    "shortcut": ("from",),
    "crop": ("crop_width", "crop_height"),
    "normalization": ("size",),
    "connected": ("output",),
    "softmax": ("groups",),
    "history": ("history_size",),
    "implicit": ("filters", "atoms"),
    "rnn": ("output", "hidden"),
    "gru": ("output",),
    "lstm": ("output",),
    "crnn": ("output_filters", "hidden_filters", "size"),
    "conv_lstm": ("output", "size", "groups"),
    "yolo": ("classes", "num", "mask"),
    "Gaussian_yolo": ("classes", "num", "mask"),
    "region": ("classes", "num", "coords"),
    "detection": ("classes", "num", "side"),
}
GIVEN = {"route": "layers=0", "shortcut": "from=0", "yolo": "anchors=1,1", "region": "anchors=1,1"}


def parsed(text: str) -> None:
    """A network, or an error at a line of the file; leniently as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for lenient in (False, True):
            place = "net.cfg:"
            try:
                Network.parse(text, "net.cfg", lenient=lenient)
            except CfgError as error:
                place = str(error)
            assert "net.cfg:" in place


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, keys in NUMBERS.items() for key in keys])
def test_enormous_numbers(section: str, key: str) -> None:
    for value in (4096, 65536, 10**6, 2**30, 2**31 - 1, -65536, -(2**31) + 1):
        parsed(
            "[net]\nwidth=32\nheight=32\nchannels=3\n[convolutional]\nfilters=6\n"
            f"[{section}]\n{key}={value}\n{GIVEN.get(section, '')}\n"
        )


@pytest.mark.parametrize("key", ["width", "height", "channels", "inputs", "batch", "time_steps"])
def test_enormous_inputs(key: str) -> None:
    for value in (65536, 10**6, 2**30, 2**31 - 1):
        parsed(f"[net]\n{key}={value}\nwidth=32\nheight=32\nchannels=3\n[convolutional]\nfilters=6\n")


@pytest.mark.parametrize(
    "long",
    [
        "[route]\nlayers=" + ",".join(["0"] * 20000),
        "[shortcut]\nfrom=" + ",".join(["0"] * 20000),
        "[yolo]\nclasses=1\nmask=" + ",".join(["0"] * 20000) + "\nanchors=1,1",
        "[yolo]\nclasses=1\nmask=0\nanchors=" + ",".join(["1"] * 20000),
        "[route]\nlayers=-1,-1\n" * 40,
        "[upsample]\nstride=16\n" * 8,
        "[maxpool]\nsize=3\nstride=1\n" * 3000,
        "[shortcut]\nfrom=0\n" * 3000,
    ],
    ids=["route", "shortcut", "mask", "anchors", "doubled", "upsampled", "pools", "shortcuts"],
)
def test_long_lists_and_long_networks(long: str) -> None:
    parsed(f"[net]\nwidth=8\nheight=8\nchannels=3\n[convolutional]\nfilters=6\n[convolutional]\nfilters=6\n{long}\n")
