"""Networks of another size than their cfg says: as if it said so, or an error that names the option."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest

from dnc.darknet.cfg import find_cfg
from dnc.darknet.layers.base import Layer
from dnc.darknet.network import Network
from dnc.errors import CfgError, DncWarning
from tests import goldens
from tests.golden.record import NETWORKS as EDITED
from tests.networks import NETWORKS

DETECTOR = """[net]
width=64
height=64
channels=3
[convolutional]
filters=4
size=3
stride=2
pad=1
[convolutional]
filters=4
size=3
stride=2
pad=1
[convolutional]
filters=4
size=3
stride=2
pad=1
[upsample]
stride=2
[route]
layers=-1,1
[convolutional]
filters=7
[yolo]
mask=0
anchors=10,14
classes=2
num=1
"""
FIXED = "[connected]", "[local]", "[rnn]", "[lstm]", "[gru]"


def _write(folder: Path, text: str) -> Path:
    path = folder / "net.cfg"
    path.write_text(text, encoding="utf-8")
    return path


def _bare(layer: Layer) -> Layer:
    """A layer without the place that it has in a file."""
    return dataclasses.replace(layer, where=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["yolo", "attention", "convolutions", "autoencoder"])
@pytest.mark.parametrize("size", [{"width": 64}, {"height": 96}, {"width": 32, "height": 128}, {}])
def test_as_if_the_cfg_said_so(name: str, size: dict[str, Any], tmp_path: Path) -> None:
    """All layers, heads among them, are those of a cfg that is edited; what is not named stays."""
    text = NETWORKS[name]
    path = _write(tmp_path, text)
    own = Network.load(path)
    _, height, width = own.input_shape
    edited = text
    for key, side in size.items():
        edited = edited.replace(f"{key}={own.input_shape[1 if key == 'height' else 2]}\n", f"{key}={side}\n")
    network, other = Network.load(path, **size), Network.parse(edited, str(path))
    assert network.input_shape == (own.input_shape[0], size.get("height", height), size.get("width", width))
    assert list(map(_bare, network.layers)) == list(map(_bare, other.layers))
    assert [layer.head() for layer in network.layers] == [layer.head() for layer in other.layers]
    # The files are the same ones, which calibrations go by.
    assert network.digest == own.digest
    assert own.sized(network.input_shape).layers == network.layers


def test_the_numbers_of_darknet_with_an_edited_cfg(tmp_path: Path) -> None:
    """The network of cfg/ and a size give the very layers that Darknet was recorded with."""
    (name,) = [name for name, recorded in EDITED.items() if set(recorded.replaced) == {"width=416", "height=416"}]
    golden = goldens.whole(name)
    edited = Network.load(*golden.write(tmp_path))
    _, height, width = edited.input_shape
    network = Network.load(find_cfg(name), tmp_path / f"{name}.weights", width=width, height=height)
    assert list(map(_bare, network.layers)) == list(map(_bare, edited.layers))
    assert (width, height) == (160, 192)


@pytest.mark.parametrize(
    ("size", "message", "hint"),
    [
        ({"width": 60}, "--width 60 does not fit this network: ", "--width can be 56 or 64: multiples of 8"),
        ({"width": 64, "height": 3}, "--height 3 does not", "--height can be 8: multiples of 8"),
        (
            {"width": 65, "height": 66},
            "--width 65 --height 66 do not fit",
            "64 or 72: multiples of 8; --height can be 64 or",
        ),
        ({"width": 0}, "--width 0 must be from 1 to 65536", ""),
        ({"height": 1 << 17}, "--height 131072 must be from 1 to 65536", ""),
        ({"width": 65536, "height": 65536}, "--width 65536 --height 65536 do not fit", "at most 2147483647"),
    ],
)
def test_sizes_that_do_not_fit(size: dict[str, Any], message: str, hint: str, tmp_path: Path) -> None:
    """The option is named, the section where shapes part, and the nearest sizes that do, which are tried."""
    path = _write(tmp_path, DETECTOR)
    with pytest.raises(CfgError) as caught:
        Network.load(path, **size)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert str(caught.value.where).endswith("[route] #4" if "multiples" in hint else "[net]")
    # Darknet rounds nothing: what pools and strides round up to a multiple is right as well.
    assert Network.load(path, width=63, height=61).layers[-1].shape == (7, 16, 16)


def test_a_warning_is_given_once_and_of_the_size_that_is_taken(tmp_path: Path) -> None:
    path = _write(tmp_path, DETECTOR.replace("stride=2\n[route]", "stride=2\nnothing=1\n[route]"))
    with pytest.warns(DncWarning) as told:
        Network.load(path, width=32)
    assert ["nothing in [upsample] reads 'nothing'" in str(one.message) for one in told] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CfgError, match="does not fit"):
            Network.load(_write(tmp_path, DETECTOR), width=60)


def test_crop_needs_an_image_of_its_size(tmp_path: Path) -> None:
    """What comes after a crop has one size, and may have weights for it."""
    text = "[net]\nwidth=32\nheight=32\nchannels=1\n[crop]\ncrop_height=20\ncrop_width=20\n[connected]\noutput=2\n"
    path = _write(tmp_path, text)
    assert Network.load(path, width=48).layers[1].weights()["weights"] == (2, 400)
    with pytest.raises(CfgError, match="--width 8 does not fit this network: crop_width=20") as caught:
        Network.load(path, width=8)
    assert caught.value.hint == "--width can be 20: multiples of 2"


@pytest.mark.parametrize("section", FIXED)
def test_weights_for_places(section: str, tmp_path: Path) -> None:
    """Also where there would be as many: 4 x 8 places are not 8 x 4."""
    text = f"[net]\nwidth=8\nheight=4\nchannels=2\n[convolutional]\nfilters=2\nsize=1\n{section}\n"
    path = _write(tmp_path, text)
    sizes: list[dict[str, Any]] = [{"width": 16}, {"width": 4, "height": 8}]
    for size in sizes:
        with pytest.raises(CfgError) as caught:
            Network.load(path, **size)
        assert f"the weights of {section} are for an input of 2 x 4 x 8" in caught.value.message
        assert caught.value.hint == "the size of this network is fixed at 8 x 4"
        assert str(caught.value.where) == f"{path}:8 {section} #1"
    # Where a mean of all places comes before, there are none.
    path = _write(tmp_path, text.replace("size=1\n", "size=1\n[avgpool]\n"))
    if section != "[local]":
        assert Network.load(path, width=16).input_shape == (2, 4, 16)


def test_every_layer_with_weights_for_places_says_so() -> None:
    """Those whose weights are others at another size, of all that Darknet was recorded with."""
    found = set()
    for name in goldens.MICRO:
        text = goldens.micro(name).cfg
        own = Network.parse(text)
        if len(own.input_shape) != 3:
            continue
        _, height, width = own.input_shape
        edited = text.replace(f"width={width}\n", f"width={2 * width}\n", 1)
        try:
            other = Network.parse(edited.replace(f"height={height}\n", f"height={2 * height}\n", 1))
        except CfgError:
            continue
        changed = [old for old, new in zip(own.layers, other.layers, strict=True) if old.weights() != new.weights()]
        assert all(layer.placed for layer in changed), name
        found |= {layer.name for layer in changed}
    assert {"connected", "local"} <= found


def test_vectors_have_no_size(tmp_path: Path) -> None:
    path = _write(tmp_path, "[net]\ninputs=7\n[connected]\noutput=2\n")
    with pytest.raises(CfgError, match="--height 4: this network takes no images, but vectors of 7 numbers"):
        Network.load(path, height=4)


def test_a_cfg_without_a_size_or_with_a_wrong_one(tmp_path: Path) -> None:
    """inputs= says again what the sides say, and goes with them."""
    path = _write(tmp_path, DETECTOR.replace("width=64", "width=60"))
    with pytest.raises(CfgError, match="different sizes"):
        Network.load(path)
    assert Network.load(path, width=64).input_shape == (3, 64, 64)
    path = _write(tmp_path, DETECTOR.replace("width=64\n", ""))
    assert Network.load(path, width=64).input_shape == (3, 64, 64)
    path = _write(tmp_path, DETECTOR.replace("channels=3", "channels=3\ninputs=12288"))
    network = Network.load(path, width=32)
    assert network.input_shape == (3, 64, 32)
    assert Network.parse(network.cfg_with({}).decode()).input_shape == (3, 64, 32)


def test_the_text_of_a_network_of_another_size(tmp_path: Path) -> None:
    """Readers that are told no size are given one; a cfg that says it already stays as it is."""
    path = _write(tmp_path, DETECTOR)
    assert Network.load(path).cfg_with({}) == path.read_bytes()
    text = Network.load(path, width=32, height=96).cfg_with({"input_calibration": "1, 2"}).decode()
    assert text.startswith("[net]\ninput_calibration = 1, 2\nheight = 96\nwidth = 32\nchannels=3\n[conv")
