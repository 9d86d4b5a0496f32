"""[lstm] against its formulas with scalars, its graph against its reference, and the order of its weights."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

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

PARTS = ["wf", "wi", "wg", "wo", "uf", "ui", "ug", "uo"]
OPTIONS = ["", "batch_normalize=1"]


def network(options: str, net: str = "inputs=5") -> Network:
    return Network.parse(f"[net]\n{net}\n[lstm]\noutput=3\n{options}\n").with_random_weights(7)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def connected(x: Sequence[float], arrays: Arrays, part: str) -> list[float]:
    """forward_connected_layer for one image, in double; linear."""
    out = []
    for k, row in enumerate(arrays[part + ".weights"].tolist()):
        total = sum(weight * value for weight, value in zip(row, x, strict=True))
        if part + ".scales" in arrays:
            scale, mean, variance = (float(arrays[f"{part}.{name}"][k]) for name in ("scales", "mean", "variance"))
            total = (total - mean) / math.sqrt(variance + 0.00001) * scale
        out.append(total + float(arrays[part + ".biases"][k]))
    return out


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("options", OPTIONS)
def test_graph_is_the_reference(options: str, batch: int | str) -> None:
    assert_graph_is_the_reference(network(options), batch)


@pytest.mark.parametrize("options", OPTIONS)
def test_reference_is_darknets_loop(options: str) -> None:
    net = network(options)
    arrays, inputs = net.arrays[0], frames(net)
    hidden, cells = [[0.0] * 3, [0.0] * 3], [[0.0] * 3, [0.0] * 3]
    for frame, (actual, states) in zip(inputs, reference_steps(net, inputs), strict=True):
        for image, x in enumerate(frame.tolist()):
            w = {gate: connected(hidden[image], arrays, f"w{gate}") for gate in "figo"}
            u = {gate: connected(x, arrays, f"u{gate}") for gate in "figo"}
            for k in range(3):
                f, i, o = (logistic(w[gate][k] + u[gate][k]) for gate in "fio")
                g = math.tanh(w["g"][k] + u["g"][k])
                cells[image][k] = f * cells[image][k] + i * g
                hidden[image][k] = o * math.tanh(cells[image][k])
            assert_close(actual[image].ravel(), np.array(hidden[image], np.float32))
            assert_close(states["c"][image], np.array(cells[image], np.float32))
        np.testing.assert_array_equal(actual, states["h"].reshape(2, 3, 1, 1))


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
    assert layer.states() == {"h": (3,), "c": (3,)}
    assert layer.describe() == "5 -> 3"
    assert layer.flops() == 2 * 4 * (5 * 3 + 3 * 3)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_file(tmp_path: Path, normalize: bool, transposed: bool) -> None:
    net = network(f"batch_normalize={int(normalize)}")
    (layer,), (arrays,) = net.layers, net.arrays
    fields = ["biases", "weights", *(["scales", "mean", "variance"] if normalize else [])]
    order = [f"{part}.{name}" for part in PARTS for name in fields]
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


def test_empty_output_is_refused() -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse("[net]\ninputs=5\n[lstm]\noutput=0\n", "net.cfg")
    assert str(caught.value) == (
        "output=0 must be at least 1\n  at net.cfg:4 [lstm] #0\n      4 | output=0\n"
        "  hint: Darknet would crash or compute nothing"
    )


def test_misspelt_key_is_refused() -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse("[net]\ninputs=5\n[lstm]\nbatch_normalise=1\n", "net.cfg")
    assert str(caught.value) == (
        "nothing in [lstm] reads 'batch_normalise'\n  at net.cfg:4 [lstm] #0\n      4 | batch_normalise=1\n"
        "  hint: did you mean 'batch_normalize'?"
    )


def test_a_convolution_can_follow() -> None:
    """The output is (output, 1, 1) to what comes next, as in Darknet; that of [gru] stays flat."""
    net = Network.parse("[net]\ninputs=5\n[lstm]\noutput=3\n[convolutional]\nfilters=2\n").with_random_weights(7)
    assert [layer.shape for layer in net.layers] == [(3, 1, 1), (2, 1, 1)]
    inputs = frames(net)
    for (actual, _), (expected, _) in zip(graph_steps(net, inputs), reference_steps(net, inputs), strict=True):
        assert_close(actual, expected)
