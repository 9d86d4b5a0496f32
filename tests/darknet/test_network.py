"""A network from a cfg: its input, its layers, what its outputs are, and its digest."""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from dnc.darknet.network import Network
from dnc.darknet.weights import Header
from dnc.errors import CfgError, DncWarning, WeightsError
from tests import ROOT, goldens
from tests.networks import NETWORKS, TINY

NET = "[net]\nwidth=4\nheight=5\nchannels=3\n"


def test_input_shapes() -> None:
    assert Network.parse(NET + "[dropout]\n").input_shape == (3, 5, 4)
    assert Network.parse("[network]\ninputs=7\n[dropout]\n").input_shape == (7,)
    # Darknet takes sides where all are given, as long as inputs= agrees.
    assert Network.parse(NET + "inputs=60\n[dropout]\n").input_shape == (3, 5, 4)
    with pytest.raises(CfgError, match="inputs=61 is not channels"):
        Network.parse(NET + "inputs=61\n[dropout]\n")
    with pytest.warns(DncWarning, match="inputs=61"):
        assert Network.parse(NET + "inputs=61\n[dropout]\n", lenient=True).input_shape == (3, 5, 4)
    assert Network.parse("[net]\nwidth=0\nheight=0\ninputs=5\n[dropout]\n").input_shape == (5,)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("", "[net] lacks channels, height, width"),
        ("width=4\nheight=4", "[net] lacks channels"),
        ("inputs=0", "[net] lacks channels, height, width"),
        ("inputs=1000000000", "[net] lacks channels"),
        ("width=65536\nheight=65536\nchannels=1", "the input would have 1 x 65536 x 65536 elements"),
        ("width=65537\nheight=1\nchannels=1", "width=65537 must be from 1 to 65536"),
        ("widht=4\nheight=4\nchannels=1", "nothing in [net] reads 'widht'"),
    ],
)
def test_bad_inputs(net: str, message: str) -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse(f"[net]\n{net}\n[dropout]\n")
    assert message in str(caught.value) or "lacks" in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers(name: str) -> None:
    """Numbered in order, each knows its line, reads only what is before it, and cannot be changed."""
    network = Network.parse(NETWORKS[name], "a/b.cfg")
    lines = NETWORKS[name].split("\n")
    for index, layer in enumerate(network.layers):
        assert layer.index == index
        assert layer.where.file == "a/b.cfg"
        assert layer.where.index == index
        assert lines[layer.where.line - 1] == layer.where.text == f"[{layer.where.section}]"
        assert all(-1 <= source < index for source in layer.sources)
        assert layer.input_shape == (network.layers[index - 1].shape if index else network.input_shape)
        with pytest.raises(dataclasses.FrozenInstanceError):
            layer.index = 9  # type: ignore[misc]


def test_outputs() -> None:
    """Heads in the order of the cfg; without any, the last layer that is no [cost]."""
    found = {name: [layer.index for layer in Network.parse(cfg).outputs] for name, cfg in NETWORKS.items()}
    assert found["yolo"] == [7, 12]
    assert found["classifier"] == [8]
    assert found["convolutions"] == [9]
    assert [layer.index for layer in Network.parse(NET + "[convolutional]\n[cost]\n[cost]\n").outputs] == [0]
    assert [layer.index for layer in Network.parse(NET + "[cost]\n").outputs] == [0]


def test_unknown_sections() -> None:
    """Counted as a layer, as in Darknet; what they say is theirs."""
    text = NET + "[convolutional]\nfilters=2\n[deconvolutional]\nfilterz=9\nwhatever\n[convolutional]\n"
    with pytest.raises(CfgError, match="a line that is neither"):
        Network.parse(text)
    text = text.replace("whatever\n", "")
    with pytest.raises(CfgError, match=r"unknown section \[deconvolutional\](.|\n)*Darknet has no transposed conv"):
        Network.parse(text)
    with pytest.warns(DncWarning) as caught:
        network = Network.parse(text, lenient=True)
    assert len(caught) == 1
    assert "Darknet counts a layer without outputs; --lenient passes its input on" in str(caught[0].message)
    assert [layer.name for layer in network.layers] == ["convolutional", "empty", "convolutional"]
    assert [layer.shape[0] for layer in network.layers] == [2, 2, 1]


def test_too_many_weights() -> None:
    """Over 2 GiB no ONNX file can hold them: an error at the section where it becomes too much."""
    big = "[connected]\noutput=20000\n"
    assert Network.parse(NET + big).parameters() == 20000 * 61
    with pytest.raises(CfgError) as caught:
        Network.parse(NET + big + big + big, "a.cfg")
    assert str(caught.value) == (
        "the weights up to this layer are 801260000 floats\n"
        "  at a.cfg:9 [connected] #2\n      9 | [connected]\n  hint: an engine holds 2 GiB"
    )


def test_without_weights() -> None:
    network = Network.parse(TINY)
    with pytest.raises(WeightsError, match="the network has no weights"):
        network.need_weights()
    network.with_random_weights().need_weights()


def test_cutoff(tmp_path: Path) -> None:
    """`darknet partial`: what comes after is not even read."""
    path = tmp_path / "a.cfg"
    path.write_text(TINY + "[nonsense]\n")
    assert len(Network.load(path, cutoff=3).layers) == 3
    with pytest.raises(CfgError, match="unknown section"):
        Network.load(path)
    for cutoff in (0, -1, 5):
        with pytest.raises(CfgError, match=f"--cutoff {cutoff} must be from 1 to 4, the number of layers"):
            Network.load(path, cutoff=cutoff)


def test_digests(tmp_path: Path) -> None:
    """Of the bytes of both files: another comment is another network, another place is not."""
    paths = [tmp_path / "a" / "x.cfg", tmp_path / "b" / "y.cfg"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(TINY)
    first, second = (Network.load(path) for path in paths)
    assert first.digest == second.digest == Network.parse(TINY).digest
    assert first.with_random_weights(1).digest == second.with_random_weights(1).digest
    assert first.with_random_weights(1).digest != first.with_random_weights(2).digest
    paths[1].write_text(TINY + "#\n")
    assert Network.load(paths[1]).digest != first.digest
    weights = tmp_path / "w"
    weights.write_bytes(Header().pack() + np.zeros(374, "<f4").tobytes())
    other = tmp_path / "v"
    other.write_bytes(Header(seen=1).pack() + np.zeros(374, "<f4").tobytes())
    digests = {Network.load(paths[0], path).digest for path in (weights, other)}
    assert len(digests | {first.digest}) == 3


def test_cfg_from_a_pipe(tmp_path: Path) -> None:
    """Read once: `dnc compile <(sed ... net.cfg)`."""
    path = tmp_path / "pipe.cfg"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(TINY,))
    writer.start()
    network = Network.load(path)
    writer.join()
    assert network.digest == Network.parse(TINY).digest


def test_letter_box() -> None:
    assert Network.parse(NET + "[dropout]\n").letter_box is False
    assert Network.parse(NET + "letter_box=1\n[dropout]\n").letter_box is True


def test_dontload() -> None:
    with pytest.raises(CfgError, match="dontload=1 leaves this layer's weights out"):
        Network.parse(NET + "[convolutional]\ndontload=1\n")
    Network.parse(NET + "[maxpool]\ndontload=1\n")
    Network.parse(NET + "[convolutional]\ndontload=0\n")


def test_real_networks() -> None:
    """Every cfg at hand is read without a warning, strictly."""
    for path in sorted((ROOT / "cfg").glob("*.cfg")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            network = Network.load(path)
        assert len(network.layers) > 2


def test_micro_networks(tmp_path: Path) -> None:
    """The networks whose outputs Darknet itself computed: read strictly, and their weights fit to the byte."""
    for name in goldens.MICRO:
        network = Network.load(*goldens.micro(name).write(tmp_path))
        assert len(network.arrays) == len(network.layers)


def test_every_layer_is_reached() -> None:
    """A cfg of one section of each kind at a time fails with a CfgError, if at all."""
    from dnc.darknet.layers import layers

    reached = 0
    for name in layers:
        for net in (NET, "[net]\ninputs=6\n"):
            with suppress(CfgError):
                reached += len(Network.parse(f"{net}[{name}]\n").layers)
    assert reached > 30


def test_lenient_is_handed_on(write: Callable[..., Path]) -> None:
    path = write("tiny", TINY.replace("=leaky", "=lleaky"), lenient=True)
    with pytest.raises(CfgError):
        Network.load(path, path.with_suffix(".weights"))
    with pytest.warns(DncWarning):
        Network.load(path, path.with_suffix(".weights"), lenient=True)
