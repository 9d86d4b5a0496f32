"""[upsample] against upsample_cpu, forwards and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]


@pytest.mark.parametrize("scale", [None, 0.5, -2.0])
@pytest.mark.parametrize("stride", [None, 1, 2, 3, 4, -1, -2, -3])
def test_strides(stride: int | None, scale: float | None, check: Callable[..., Network]) -> None:
    step = abs(stride or 2)

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        small = stride is not None and stride < 0
        channels, height, width = inputs[0].shape
        if small:
            out = np.zeros((channels, height // step, width // step))
            for k, j, i in np.ndindex(*inputs[0].shape):
                out[k, j // step, i // step] += (scale or 1) * inputs[0][k, j, i]
            return out
        out = np.zeros((channels, height * step, width * step))
        for k, j, i in np.ndindex(*out.shape):
            out[k, j, i] = (scale or 1) * inputs[0][k, j // step, i // step]
        return out

    text = "[upsample]\n" + (f"stride={stride}\n" if stride else "") + (f"scale={scale}\n" if scale else "")
    network = check(text, oracle, net="width=12\nheight=6\nchannels=3", bound=1e-6 if stride and stride < 0 else 0)
    assert network.layers[0].describe() == (f"1/{step}x" if stride and stride < 0 else f"{step}x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stride=0", "stride=0 must not be 0"),
        ("stride=-2", "stride=-2 does not divide 5 x 7"),
        ("stride=-8", "stride=-8 does not divide 5 x 7"),
    ],
)
def test_refused(line: str, message: str, refused: Callable[..., None]) -> None:
    refused(f"[upsample]\n{line}\n", message, line)


def test_vectors_are_refused(refused: Callable[..., None]) -> None:
    message = "[upsample] needs an image, but the layer before it has a flat output of 5"
    hint = "place it before the [softmax] or [cost], or set width, height and channels in [net]"
    refused("[upsample]\n", message, "", hint, net="inputs=5")
