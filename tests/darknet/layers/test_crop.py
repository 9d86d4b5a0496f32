"""[crop] against the loop of crop_layer.c at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network

Doubles = npt.NDArray[np.float64]


@pytest.mark.parametrize("noadjust", [0, 1])
@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (4, 4), (1, 2), (3, 6)])
def test_middle(rows: int, columns: int, noadjust: int, check: Callable[..., Network]) -> None:
    """Odd remainders leave one more row below and column to the right; flip and the rest are for training."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        channels, height, width = inputs[0].shape
        y = np.empty((channels, rows, columns))
        top, left = (height - rows) // 2, (width - columns) // 2
        for c, i, j in np.ndindex(*y.shape):
            value = inputs[0][c, i + top, j + left]
            y[c, i, j] = value if noadjust else value * 2 - 1
        return y

    text = f"[crop]\ncrop_height={rows}\ncrop_width={columns}\nflip=1\nangle=7\nsaturation=1.5\nexposure=1.5\nshift=2\n"
    check(f"{text}noadjust={noadjust}\n", oracle, bound=0 if noadjust else 2e-7)


def test_default_is_a_pixel() -> None:
    assert Network.parse("[net]\nwidth=4\nheight=4\nchannels=3\n[crop]\n").layers[0].shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("crop_height=6", "crop_height=6 must be from 1 to 5"),
        ("crop_width=8", "crop_width=8 must be from 1 to 7"),
        ("crop_width=0", "crop_width=0 must be from 1 to 7"),
    ],
)
def test_refused(line: str, message: str, refused: Callable[..., None]) -> None:
    refused(f"[crop]\n{line}\n", message, line, "Darknet would crash or compute nothing")


def test_vectors_are_refused(refused: Callable[..., None]) -> None:
    message = "[crop] needs an image, but the layer before it has a flat output of 5"
    hint = "place it before the [softmax] or [cost], or set width, height and channels in [net]"
    refused("[crop]\n", message, "", hint, net="inputs=5")
