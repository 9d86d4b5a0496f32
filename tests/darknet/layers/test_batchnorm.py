"""[batchnorm] against (x - mean) / sqrt(variance + 1e-5) * scale + bias, with variances around that epsilon."""

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


def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
    y = np.empty_like(inputs[0])
    for c, i, j in np.ndindex(*y.shape):
        scale, bias, mean, variance = (float(arrays[name][c]) for name in ("scales", "biases", "mean", "variance"))
        y[c, i, j] = (inputs[0][c, i, j] - mean) / np.sqrt(variance + 0.00001) * scale + bias
    return y


def test_formula(check: Callable[..., Network]) -> None:
    check("[batchnorm]\n", oracle, bound=2e-6)


@pytest.mark.parametrize("variances", [[0, 1e-6, 1e-5, 1e-4], [-7e-44, -1e-6, -9e-6, -9.999e-6]])
@pytest.mark.parametrize("section", ["[batchnorm]", "[convolutional]\nfilters=4\nbatch_normalize=1\nactivation=linear"])
def test_tiny_variances(variances: list[float], section: str, check: Callable[..., Network]) -> None:
    """Dead channels have them: an epsilon of 1e-6, or one outside of the root, would change the output by a factor.

    Of -9.999e-6 an engine's own epsilon, 1e-5 as a float32, leaves 2.5e-4 less.
    """
    network = Network.parse(f"[net]\nwidth=7\nheight=5\nchannels=4\n{section}\n").with_random_weights(3)
    arrays = {**network.arrays[0], "variance": np.array(variances, np.float32)}

    def alone(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        x = inputs[0]
        if "weights" in arrays:
            x = np.einsum("kc,cij->kij", arrays["weights"][:, :, 0, 0].astype(np.float64), x)
        return oracle([x], arrays)

    check(network.with_arrays((arrays,)), alone, bound=2e-6)


def test_file_has_biases_first(tmp_path: Path) -> None:
    """pjreddie/darknet's has no biases, and fits no cfg here."""
    network = Network.parse("[net]\nwidth=2\nheight=1\nchannels=2\n[batchnorm]\n")
    path = tmp_path / "net.weights"
    path.write_bytes(Header().pack() + np.arange(8, dtype="<f4").tobytes())
    (arrays,) = read_weights(path, network.layers)
    assert list(arrays) == ["biases", "scales", "mean", "variance"]
    np.testing.assert_array_equal(np.concatenate(list(arrays.values())), np.arange(8))


def test_vectors_are_refused(refused: Callable[..., None]) -> None:
    message = "[batchnorm] needs an image, but the layer before it has a flat output of 5"
    hint = "place it before the [softmax] or [cost], or set width, height and channels in [net]"
    refused("[batchnorm]\n", message, "", hint, net="inputs=5")
