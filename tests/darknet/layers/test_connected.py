"""[connected] against forward_connected_layer: product, batch normalisation or bias, activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.darknet.weights import Header, read_weights

Doubles = npt.NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
}


def dense(activation: str, normalize: bool) -> Callable[[Sequence[Doubles], Arrays], Doubles]:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        x, y = inputs[0].ravel(), np.zeros((len(arrays["biases"]), 1, 1))
        for k in range(len(y)):
            total = sum((float(w) * float(v) for w, v in zip(arrays["weights"][k], x, strict=True)), 0.0)
            if normalize:
                scale, mean, variance = (float(arrays[name][k]) for name in ("scales", "mean", "variance"))
                total = (total - mean) / math.sqrt(variance + 0.00001) * scale
            y[k] = ACTIVATIONS[activation](total + float(arrays["biases"][k]))
        return y

    return oracle


@pytest.mark.parametrize("net", ["width=3\nheight=4\nchannels=2", "inputs=9", "inputs=1"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_options(net: str, normalize: bool, activation: str, check: Callable[..., Network]) -> None:
    text = f"[connected]\noutput=5\nactivation={activation}\nbatch_normalize={int(normalize)}\n"
    check(text, dense(activation, normalize), net=net)


def test_defaults(check: Callable[..., Network]) -> None:
    """One logistic output; the alias; and a layer on the (output, 1, 1) of the one before."""
    network = check("[connected]\noutput=4\n[conn]\n", dense("logistic", False))
    assert [layer.shape for layer in network.layers] == [(4, 1, 1), (1, 1, 1)]
    assert (network.layers[0].describe(), network.layers[0].flops()) == ("4", 2.0 * 4 * 140)


def test_a_convolution_follows(check: Callable[..., Network]) -> None:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        y: Doubles = np.einsum("fc,cij->fij", arrays["weights"][:, :, 0, 0], inputs[0])
        return y + arrays["biases"][:, None, None]

    check("[connected]\noutput=4\n[convolutional]\nfilters=2\nactivation=linear\n", oracle)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("options", ["", "batch_normalize=1\n", "batch_normalize=1\ndontloadscales=1\n"])
def test_file(tmp_path: Path, transposed: bool, options: str, check: Callable[..., Network]) -> None:
    """Biases, weights, then batch normalisation; (inputs, outputs) in files of the old formats."""
    network = Network.parse(f"[net]\ninputs=3\n[connected]\noutput=2\nactivation=linear\n{options}")
    loaded = options.startswith("batch") and "dont" not in options
    names = ["biases", "weights", *(["scales", "mean", "variance"] if loaded else [])]
    assert list(network.layers[0].weights()) == names
    floats = np.random.default_rng(1).uniform(0.5, 1.5, 8 + 6 * loaded).astype("<f4")
    path = tmp_path / "net.weights"
    path.write_bytes(Header(major=1001 * transposed).pack() + floats.tobytes())
    arrays = read_weights(path, network.layers)
    matrix = floats[2:8].reshape(3, 2).T if transposed else floats[2:8].reshape(2, 3)
    np.testing.assert_array_equal(arrays[0]["weights"], matrix)
    if "dont" in options:
        assert {name: float(arrays[0][name][0]) for name in ("scales", "mean", "variance")} == {
            "scales": 1.0, "mean": 0.0, "variance": 0.0,
        }  # fmt: skip
    check(network.with_arrays(arrays), dense("linear", bool(options)))


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("output=0", "output=0 must be at least 1", "Darknet would crash or compute nothing"),
        ("activation=rellu", "activation=rellu is unknown", "did you mean 'relu'?"),
        ("outputs=3", "nothing in [connected] reads 'outputs'", "did you mean 'output'?"),
    ],
)
def test_refused(line: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(f"[connected]\n{line}\n", message, line, hint)
