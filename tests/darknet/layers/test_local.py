"""[local] against forward_local_layer: a convolution with weights of its own at every place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.darknet.weights import Header, read_weights

Doubles = npt.NDArray[np.float64]
Oracle = Callable[[Sequence[Doubles], Arrays], Doubles]


def local(filters: int, size: int, stride: int, pad: int, leaky: bool) -> Oracle:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        x, weights = inputs[0], arrays["weights"].ravel()
        channels, height, width = x.shape
        rows, columns = ((side - (1 if pad else size)) // stride + 1 for side in (height, width))
        y = arrays["biases"].astype(np.float64).reshape(filters, rows, columns)
        for f, i, j, c, m, n in np.ndindex(filters, rows, columns, channels, size, size):
            row, column = i * stride + m - pad, j * stride + n - pad
            if 0 <= row < height and 0 <= column < width:
                place = ((((i * columns + j) * filters + f) * channels + c) * size + m) * size + n
                y[f, i, j] += float(weights[place]) * x[c, row, column]
        return np.where(y > 0, y, 0.1 * y) if leaky else 1 / (1 + np.exp(-y))

    return oracle


@pytest.mark.parametrize(
    ("size", "stride", "pad"), [(1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0), (3, 1, 1), (3, 2, 1), (3, 3, 0), (5, 1, 0)]
)
@pytest.mark.parametrize("net", ["width=7\nheight=5\nchannels=2", "width=6\nheight=6\nchannels=1"])
def test_geometry(size: int, stride: int, pad: int, net: str, check: Callable[..., Network]) -> None:
    text = f"[local]\nfilters=3\nsize={size}\nstride={stride}\npad={pad}\n"
    check(f"{text}activation=leaky\n", local(3, size, stride, pad, True), net=net)


def test_defaults(check: Callable[..., Network]) -> None:
    network = check("[local]\n", local(1, 1, 1, 0, False))
    assert network.layers[0].describe() == "1  1 x 1 / 1"
    assert network.layers[0].flops() == 2 * 4 * 35


def test_file(tmp_path: Path, check: Callable[..., Network]) -> None:
    """A bias for every output, then the weights place by place."""
    network = Network.parse("[net]\nwidth=3\nheight=2\nchannels=2\n[local]\nfilters=2\nsize=2\nactivation=leaky\n")
    assert network.layers[0].weights() == {"biases": (4,), "weights": (2, 2, 2, 2, 2)}
    path = tmp_path / "net.weights"
    floats = np.random.default_rng(1).normal(size=36).astype("<f4")
    path.write_bytes(Header().pack() + floats.tobytes())
    network = network.with_arrays(read_weights(path, network.layers))
    np.testing.assert_array_equal(network.arrays[0]["weights"].ravel(), floats[4:])
    check(network, local(2, 2, 1, 0, True))


@pytest.mark.parametrize(
    ("options", "line", "message", "hint"),
    [
        ("size=5\npad=1", "pad=1", "size=5 with pad=1 has no defined output", "use size=3, pad=1, or pad=0"),
        ("size=1\npad=1", "pad=1", "size=1 with pad=1 has no defined output", "use size=3, pad=1, or pad=0"),
        ("size=6", "", "the output would be empty: 1 x 0 x 2", "the input is too small for this layer"),
        ("size=65\npad=32", "size=65", "size=65 would take 4225 slices", "at most 64 are possible"),
        ("stride=0", "stride=0", "stride=0 must be at least 1", "Darknet would crash or compute nothing"),
    ],
)
def test_refused(options: str, line: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    refused(f"[local]\n{options}\n", message, line, hint)
