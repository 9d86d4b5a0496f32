"""[gru] against its formulas with scalars, its graph against its reference, and the order of its weights."""

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

PARTS = ["input_z", "input_r", "input_h", "state_z", "state_r", "state_h"]
OPTIONS = ["", "batch_normalize=1"]


def network(options: str, net: str = "inputs=5") -> Network:
    return Network.parse(f"[net]\n{net}\n[gru]\noutput=3\n{options}\n").with_random_weights(7)


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
    state = [[0.0] * 3, [0.0] * 3]
    for frame, (actual, states) in zip(inputs, reference_steps(net, inputs), strict=True):
        for image, x in enumerate(frame.tolist()):
            h = state[image]
            z, r = (
                [logistic(a + b) for a, b in zip(connected(x, arrays, i), connected(h, arrays, s), strict=True)]
                for i, s in (("input_z", "state_z"), ("input_r", "state_r"))
            )
            forgot = [a * b for a, b in zip(r, h, strict=True)]
            read, recur = connected(x, arrays, "input_h"), connected(forgot, arrays, "state_h")
            new = [logistic(a + b) for a, b in zip(read, recur, strict=True)]
            state[image] = [s * a + (1 - s) * b for s, a, b in zip(z, h, new, strict=True)]
            assert_close(actual[image], np.array(state[image], np.float32))
        np.testing.assert_array_equal(actual, states["h"])


def test_the_candidate_is_logistic_not_tanh() -> None:
    """With every weight and bias at zero, z and n are 1/2: h = 1/4, 3/8, ... and not 0, as tanh would give."""
    net = network("")
    net = net.with_arrays(tuple({name: np.zeros_like(array) for name, array in own.items()} for own in net.arrays))
    outputs = [float(output[0, 0]) for output, _ in reference_steps(net, frames(net))]
    assert outputs == [0.25, 0.375, 0.4375]


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
    assert layer.shape == (3,)
    assert layer.states() == {"h": (3,)}
    assert layer.describe() == "5 -> 3"
    assert layer.flops() == 2 * 3 * (5 * 3 + 3 * 3)


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
        Network.parse("[net]\ninputs=5\n[gru]\noutput=0\n", "net.cfg")
    assert str(caught.value) == (
        "output=0 must be at least 1\n  at net.cfg:4 [gru] #0\n      4 | output=0\n"
        "  hint: Darknet would crash or compute nothing"
    )


def test_misspelt_key_is_refused() -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse("[net]\ninputs=5\n[gru]\nbatch_normalise=1\n", "net.cfg")
    assert str(caught.value) == (
        "nothing in [gru] reads 'batch_normalise'\n  at net.cfg:4 [gru] #0\n      4 | batch_normalise=1\n"
        "  hint: did you mean 'batch_normalize'?"
    )


def test_a_convolution_cannot_follow() -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse("[net]\ninputs=5\n[gru]\noutput=3\n[convolutional]\n", "net.cfg")
    assert str(caught.value) == (
        "[convolutional] needs an image, but the layer before it has a flat output of 3\n"
        "  at net.cfg:5 [convolutional] #1\n      5 | [convolutional]\n"
        "  hint: place it before the [softmax] or [cost], or set width, height and channels in [net]"
    )
