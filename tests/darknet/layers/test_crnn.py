"""[crnn] against its formulas in numpy, against Darknet itself, and its graph against its reference."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.network import Network
from dnc.darknet.weights import Header, count, read_weights, write_weights
from dnc.errors import CfgError
from tests.darknet.layers.stepping import (
    assert_close,
    assert_golden,
    assert_graph_is_the_reference,
    convolution,
    frames,
    graph_steps,
    reference_steps,
)

Doubles = npt.NDArray[np.float64]

OPTIONS = [
    "pad=1",
    "pad=1\nbatch_normalize=1\nactivation=leaky",
    "pad=1\nactivation=tanh\nshortcut=1",
    "padding=1\nactivation=relu\ngroups=2",
    "size=1\nactivation=linear\nbatch_normalize=1",
    "size=5\npad=1\nactivation=leaky\nshortcut=1",
    "pad=1\ndilation=2\nactivation=leaky",
    "pad=1\nxnor=1\nbatch_normalize=1\nactivation=leaky\ngroups=2",
    "pad=1\nxnor=1\nactivation=linear\nshortcut=1",
]


def network(options: str) -> Network:
    text = f"[net]\nwidth=5\nheight=4\nchannels=4\n[crnn]\nhidden=6\noutput=2\n{options}\n"
    return Network.parse(text).with_random_weights(7)


def parts(options: str) -> list[str]:
    return ["input", "self", "output"]


def test_darknets_own_numbers(tmp_path: Path) -> None:
    assert_golden("crnn", tmp_path)


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("options", OPTIONS)
def test_graph_is_the_reference(options: str, batch: int | str) -> None:
    assert_graph_is_the_reference(network(options), batch)


@pytest.mark.parametrize("options", OPTIONS)
def test_reference_is_darknets_loop(options: str) -> None:
    net = network(options)
    arrays, inputs = net.arrays[0], frames(net)
    given = dict(line.split("=") for line in options.splitlines())
    activation = given.get("activation", "logistic")
    state = [np.zeros((6, 4, 5)), np.zeros((6, 4, 5))]
    for frame, (actual, states) in zip(inputs, reference_steps(net, inputs), strict=True):
        for image, x in enumerate(frame.astype(np.float64)):
            old = state[image]
            state[image] = old if given.get("shortcut") == "1" else np.zeros_like(old)
            state[image] = state[image] + convolution(x, arrays, "input", net, activation)
            state[image] = state[image] + convolution(old, arrays, "self", net, activation)
            assert_close(states["h"][image], state[image].astype(np.float32))
            expected = convolution(state[image], arrays, "output", net, activation)
            assert_close(actual[image], expected.astype(np.float32))


def test_layer_says() -> None:
    layer = network("pad=1").layers[0]
    assert layer.shape == (2, 4, 5)
    assert layer.states() == {"h": (6, 4, 5)}
    assert layer.describe() == "2  3 x 3 / 1"
    assert layer.flops() == 2 * 9 * 20 * (4 * 6 + 6 * 6 + 6 * 2)
    assert network("pad=1\nxnor=1").layers[0].flops() == layer.flops() / 32
    (plain,) = Network.parse("[net]\nwidth=5\nheight=4\nchannels=4\n[crnn]\npad=1\n").layers
    assert plain.shape == (1, 4, 5)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_file(tmp_path: Path, options: str, transposed: bool) -> None:
    """The header's flag is for fully connected layers alone: these matrices stay as they are."""
    net = network(options)
    (layer,), (arrays,) = net.layers, net.arrays
    fields = ["biases", *(["scales", "mean", "variance"] if "batch_normalize=1" in options else []), "weights"]
    order = [f"{part}.{name}" for part in parts(options) for name in fields]
    assert list(layer.weights()) == order
    assert count(layer) == sum(arrays[name].size for name in order)
    path = tmp_path / "net.weights"
    header = Header(major=1001 if transposed else 0)
    path.write_bytes(header.pack() + b"".join(arrays[name].tobytes() for name in order))
    (read,) = read_weights(path, net.layers)
    assert list(read) == order
    for name in order:
        np.testing.assert_array_equal(read[name], arrays[name])
    file = io.BytesIO()
    write_weights(file, net.layers, (read,), header)
    assert file.getvalue() == path.read_bytes()


def test_a_stride_that_keeps_the_size_is_fine() -> None:
    """4 x 4 with padding=3 and stride=2 stays 4 x 4; odd, but Darknet takes it."""
    text = "[net]\nwidth=4\nheight=4\nchannels=3\n[crnn]\nhidden=2\noutput=2\nstride=2\npadding=3\n"
    net = Network.parse(text).with_random_weights(1)
    assert net.layers[0].shape == (2, 4, 4)
    inputs = frames(net)
    for actual, expected in zip(graph_steps(net, inputs), reference_steps(net, inputs), strict=True):
        assert_close(actual[0], expected[0])


@pytest.mark.parametrize(
    ("options", "message", "place", "hint"),
    [
        (
            "pad=1\nstride=2",
            "size=3, stride=2, padding=1 would make 3 x 2 of 5 x 4, but a recurrent convolution must keep its size",
            "net.cfg:9 [crnn] #0\n      9 | stride=2",
            "use stride=1, pad=1 and an odd size; a [convolutional] or [maxpool] before can reduce the size",
        ),
        (
            "",
            "size=3, stride=1, padding=0 would make 3 x 2 of 5 x 4, but a recurrent convolution must keep its size",
            "net.cfg:5 [crnn] #0\n      5 | [crnn]",
            "use stride=1, pad=1 and an odd size; a [convolutional] or [maxpool] before can reduce the size",
        ),
        (
            "size=2\npad=1",
            "size=2, stride=1, padding=1 would make 6 x 5 of 5 x 4, but a recurrent convolution must keep its size",
            "net.cfg:8 [crnn] #0\n      8 | size=2",
            "use stride=1, pad=1 and an odd size; a [convolutional] or [maxpool] before can reduce the size",
        ),
        (
            "pad=1\ngroups=3",
            "groups=3 does not divide 4 input channels and 6 filters",
            "net.cfg:9 [crnn] #0\n      9 | groups=3",
            "groups must divide both",
        ),
        (
            "pad=1\ngroups=4",
            "groups=4 does not divide 4 input channels and 6 filters",
            "net.cfg:9 [crnn] #0\n      9 | groups=4",
            "groups must divide both",
        ),
        (
            "pad=1\nstride=0",
            "stride=0 must be at least 1",
            "net.cfg:9 [crnn] #0\n      9 | stride=0",
            "Darknet would divide by zero",
        ),
        (
            "pad=1\nshortcuts=1",
            "nothing in [crnn] reads 'shortcuts'",
            "net.cfg:9 [crnn] #0\n      9 | shortcuts=1",
            "did you mean 'shortcut'?",
        ),
    ],
)
def test_refused(options: str, message: str, place: str, hint: str) -> None:
    text = f"[net]\nwidth=5\nheight=4\nchannels=4\n[crnn]\nhidden=6\noutput=2\n{options}\n"
    with pytest.raises(CfgError) as caught:
        Network.parse(text, "net.cfg")
    assert str(caught.value) == f"{message}\n  at {place}\n  hint: {hint}"


def test_groups_must_divide_the_output_too() -> None:
    text = "[net]\nwidth=5\nheight=4\nchannels=4\n[crnn]\nhidden=6\noutput=3\npad=1\ngroups=2\n"
    with pytest.raises(CfgError, match="groups=2 does not divide 6 input channels and 3 filters"):
        Network.parse(text)


def test_vectors_are_refused() -> None:
    with pytest.raises(CfgError, match=r"\[crnn\] needs an image, but the layer before it has a flat output of 9"):
        Network.parse("[net]\ninputs=9\n[crnn]\npad=1\n")
