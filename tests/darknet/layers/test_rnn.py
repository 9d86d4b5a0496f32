"""[rnn] against its formulas with scalars, its graph against its reference, and whole character networks."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dnc.darknet.layers import layers
from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.darknet.weights import Header, read_weights, write_weights
from dnc.errors import CfgError
from tests.darknet.layers.stepping import (
    assert_close,
    assert_graph_is_the_reference,
    frames,
    graph_steps,
    reference_steps,
)

OPTIONS = [
    "",
    "batch_normalize=1",
    "activation=tanh",
    "activation=relu\nlogistic=1",
    "activation=leaky\nlogistic=2\nbatch_normalize=1",
    "activation=linear\nlogistic=3",
    "activation=tanh\nshortcut=1",
    "activation=relu\nshortcut=1\nbatch_normalize=1\nlogistic=1",
]

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "loggy": lambda x: 2 / (1 + math.exp(-x)) - 1,
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "leaky": lambda x: x if x > 0 else 0.1 * x,
}


def network(options: str, net: str = "inputs=5", sizes: str = "hidden=4\noutput=3") -> Network:
    return Network.parse(f"[net]\n{net}\n[rnn]\n{sizes}\n{options}\n").with_random_weights(7)


def connected(x: Sequence[float], arrays: Arrays, part: str, activation: str) -> list[float]:
    """forward_connected_layer for one image, in double."""
    out = []
    for k, row in enumerate(arrays[part + ".weights"].tolist()):
        total = sum(weight * value for weight, value in zip(row, x, strict=True))
        if part + ".scales" in arrays:
            scale, mean, variance = (float(arrays[f"{part}.{name}"][k]) for name in ("scales", "mean", "variance"))
            total = (total - mean) / math.sqrt(variance + 0.00001) * scale
        out.append(ACTIVATIONS[activation](total + float(arrays[part + ".biases"][k])))
    return out


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
    recurrent = {"1": "logistic", "2": "loggy"}.get(given.get("logistic", "0"), activation)
    state = [[0.0] * 4, [0.0] * 4]
    for frame, (actual, _) in zip(inputs, reference_steps(net, inputs), strict=True):
        for image, x in enumerate(frame.tolist()):
            old = state[image]
            read, recur = connected(x, arrays, "input", activation), connected(old, arrays, "self", recurrent)
            carried = old if given.get("shortcut") == "1" else [0.0] * 4
            state[image] = [a + b + c for a, b, c in zip(read, recur, carried, strict=True)]
            y = np.array(connected(state[image], arrays, "output", activation), np.float32)
            assert_close(actual[image], y.reshape(-1, 1, 1))


def test_an_image_is_flattened() -> None:
    net = network("", "width=4\nheight=2\nchannels=3")
    inputs = frames(net)
    flat = network("", "inputs=24").with_arrays(net.arrays)
    expected = list(reference_steps(flat, [frame.reshape(2, -1) for frame in inputs]))
    for actual, graph, (output, _) in zip(
        reference_steps(net, inputs), graph_steps(net, inputs), expected, strict=True
    ):
        assert_close(actual[0], output)
        assert_close(graph[0], output)


def test_layer_says() -> None:
    layer = network("").layers[0]
    assert layer.shape == (3, 1, 1)
    assert layer.states() == {"h": (4,)}
    assert layer.describe() == "5 -> 3"
    assert layer.flops() == 2 * (5 * 4 + 4 * 4 + 4 * 3)
    assert network("", sizes="").layers[0].shape == (1, 1, 1)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_file(tmp_path: Path, normalize: bool, transposed: bool) -> None:
    net = network(f"batch_normalize={int(normalize)}")
    (layer,), (arrays,) = net.layers, net.arrays
    fields = ["biases", "weights", *(["scales", "mean", "variance"] if normalize else [])]
    order = [f"{part}.{name}" for part in ("input", "self", "output") for name in fields]
    assert list(layer.weights()) == order
    path = tmp_path / "net.weights"
    header = Header(major=1001 if transposed else 0)
    stored = [arrays[name].T if transposed else arrays[name] for name in order]
    path.write_bytes(header.pack() + b"".join(np.ascontiguousarray(array).tobytes() for array in stored))
    (read,) = read_weights(path, net.layers)
    assert list(read) == order
    for name in order:
        np.testing.assert_array_equal(read[name], arrays[name])
    file = io.BytesIO()
    write_weights(file, net.layers, (read,))
    plain = b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in order)
    assert file.getvalue() == Header().pack() + plain


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("output=0", "output=0 must be at least 1"),
        ("hidden=-4", "hidden=-4 must be at least 1"),
    ],
)
def test_empty_sizes_are_refused(option: str, message: str) -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse(f"[net]\ninputs=5\n[rnn]\n{option}\n", "net.cfg")
    assert str(caught.value) == (
        f"{message}\n  at net.cfg:4 [rnn] #0\n      4 | {option}\n  hint: Darknet would crash or compute nothing"
    )


def test_huge_state_is_refused() -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse("[net]\ninputs=5\n[rnn]\nhidden=2000000000\n", "net.cfg")
    assert str(caught.value) == (
        "the weights up to this layer are 4000000016000000001 floats\n  at net.cfg:3 [rnn] #0\n"
        "      3 | [rnn]\n  hint: an engine holds 2 GiB"
    )


def test_misspelt_key_and_activation_are_refused() -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse("[net]\ninputs=5\n[rnn]\nhiden=3\n", "net.cfg")
    assert str(caught.value) == (
        "nothing in [rnn] reads 'hiden'\n  at net.cfg:4 [rnn] #0\n      4 | hiden=3\n  hint: did you mean 'hidden'?"
    )
    with pytest.raises(CfgError, match="activation=tahn is unknown"):
        Network.parse("[net]\ninputs=5\n[rnn]\nactivation=tahn\n")


CELLS = {
    "rnn": "[rnn]\nbatch_normalize=1\noutput=32\nhidden=32\nactivation=leaky\n",
    "gru": "[gru]\nbatch_normalize=1\noutput=32\n",
    "lstm": "[lstm]\nbatch_normalize=1\noutput=32\n",
}


@pytest.mark.parametrize("kind", CELLS)
def test_character_network(kind: str) -> None:
    """The shape of Darknet's rnn.cfg, gru.cfg and lstm.train.cfg, narrower."""
    if "softmax" not in layers or "cost" not in layers:
        pytest.skip("dnc has no [softmax] or no [cost] yet")
    head = "[connected]\noutput=256\nactivation=linear\n\n[softmax]\n\n[cost]\ntype=sse\n"
    text = f"[net]\nsubdivisions=1\ninputs=256\nbatch=1\ntime_steps=576\nmomentum=0.9\n\n{CELLS[kind] * 3}\n{head}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = Network.parse(text).with_random_weights(3)
    assert [layer.name for layer in net.layers] == [kind] * 3 + ["connected", "softmax", "cost"]
    inputs = [np.eye(256, dtype=np.float32)[[letter, letter + 1]] for letter in (100, 97, 114)]
    graph, reference = list(graph_steps(net, inputs)), list(reference_steps(net, inputs))
    for (actual, _), (expected, _) in zip(graph, reference, strict=True):
        assert_close(actual, expected)
        np.testing.assert_allclose(actual.sum(axis=1), 1, rtol=0, atol=1e-5)
    # The same letter gives another answer once the network has a past.
    again = list(reference_steps(net, [inputs[0], inputs[0]]))
    assert float(np.abs(again[0][0] - again[1][0]).max()) > 1e-4
