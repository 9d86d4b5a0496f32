"""Preprocessing in C++: every mode, color and layout of pixels gives Python's bits."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.runtime.preprocessing import Preprocessing
from tests.embed.conftest import Folder
from tests.embed.native import FORMATS, Harness, NativeError

pytestmark = pytest.mark.slow
"""They compile C++."""

Pixels = npt.NDArray[np.uint8]

MODES: tuple[dict[str, Any], ...] = (
    {"mode": "resize"},
    {"mode": "resize-half-pixel"},
    {"mode": "letterbox"},
    {"mode": "center-crop"},
    {"mode": "center-crop", "crop": 0.875},
    {"mode": "center-crop", "crop": 0.3, "interpolation": "bicubic"},
    {"mode": "center-crop", "interpolation": "bicubic"},
)
SIZES = ((48, 32), (100, 75), (31, 57), (7, 5), (1, 1), (3, 200), (200, 3), (640, 240))


def in_rgb(pixels: Pixels, form: str) -> Pixels:
    """What Python takes for pixels (H, W, C) in the order of a format."""
    return pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]] if form.startswith("bgr") else pixels


def compare(
    harness: Harness, place: Path, prepared: Preprocessing, pixels: Pixels, form: str = "rgb", gap: int = 0
) -> None:
    """The input, and the pixels with the network's channels, equal Python's bit for bit."""
    height, width = pixels.shape[:2]
    rows = np.full((height, width * pixels.shape[2] + gap), 77, np.uint8)
    rows[:, : rows.shape[1] - gap] = pixels.reshape(height, -1)
    # The last row needs no gap behind it.
    data = rows.tobytes()[: rows.size - gap]
    (place / "pixels").write_bytes(data)
    stride = rows.shape[1] if gap else 0
    harness("preprocess", place, place / "pixels", width, height, stride, FORMATS[form][0], place / "out")
    expected = prepared(in_rgb(pixels, form))
    matched = prepared.match_channels(in_rgb(pixels, form))
    out = (place / "out").read_bytes()
    found = np.frombuffer(out[: expected.nbytes], np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.frombuffer(out[expected.nbytes :], np.uint8).reshape(matched.shape), matched)


@pytest.mark.parametrize("wishes", MODES, ids=lambda wishes: " ".join(map(str, wishes.values())))
def test_modes(wishes: dict[str, Any], harness: Harness, folder: Folder) -> None:
    prepared = Preprocessing(48, 32, **wishes)
    place = folder(preprocessing=prepared)
    generator = np.random.default_rng(0)
    for width, height in SIZES:
        compare(harness, place, prepared, generator.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(("channels", "color"), [(1, "gray"), (3, "rgb"), (3, "bgr"), (4, "rgb"), (4, "bgr")])
def test_colors(channels: int, color: str, harness: Harness, folder: Folder) -> None:
    """Every layout of pixels into every number of channels, with mean and deviation, and with gaps between rows."""
    generator = np.random.default_rng(1)
    numbers = (
        ([0.0], [1.0]),
        ([0.4], [0.25]),
        ([0.485, 0.456, 0.406, 0.5][:channels], [0.229, 0.224, 0.225, 2][:channels]),
    )
    for (mean, std), wishes in itertools.product(numbers, (MODES[2], MODES[5])):
        prepared = Preprocessing(
            9,
            8,
            channels,
            color=color,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            scale=1 / 128,
            **wishes,
        )
        place = folder(preprocessing=prepared, input_shape=(channels, 8, 9))
        for form, (_, have) in FORMATS.items():
            pixels = generator.integers(0, 256, (11, 13, have), np.uint8)
            for gap in (0, 5):
                compare(harness, place, prepared, pixels, form, gap)


@given(
    seed=st.integers(0, 2**32 - 1),
    sides=st.tuples(*[st.integers(1, 70)] * 4),
    wishes=st.sampled_from(MODES),
    crop=st.floats(0.1, 1),
)
@settings(max_examples=40)
def test_any_size(
    seed: int, sides: tuple[int, int, int, int], wishes: dict[str, Any], crop: float, harness: Harness, folder: Folder
) -> None:
    width, height, image_width, image_height = sides
    prepared = Preprocessing(width, height, **wishes)
    if "crop" in wishes:
        prepared = dataclasses.replace(prepared, crop=crop)
    place = folder(preprocessing=prepared, input_shape=(3, height, width))
    pixels = np.random.default_rng(seed).integers(0, 256, (image_height, image_width, 3), np.uint8)
    compare(harness, place, prepared, pixels)


@pytest.mark.parametrize(
    ("size", "width", "height", "stride", "form", "message"),
    [
        (899, 20, 15, 0, 0, "899 bytes are no image of 20x15 pixels, 3 bytes each and 60 a row"),
        (900, 20, 15, 61, 0, "900 bytes are no image"),
        (900, 20, 15, 59, 0, "900 bytes are no image"),
        (900, 20, 15, 2**63, 0, "900 bytes are no image"),
        (900, 0, 15, 0, 0, "an image of 0x15 pixels"),
        (900, 20, 0, 0, 0, "an image of 20x0 pixels"),
        (900, 2**40, 1, 0, 0, "an image of 1099511627776x1 pixels"),
        (900, 2**20, 2**20, 0, 0, "900 bytes are no image"),
        (900, 20, 15, 0, 9, "format 9 of an image is unknown"),
        (900, 20, 15, 0, -1, "format -1 of an image is unknown"),
    ],
)
def test_sizes_that_contradict_each_other(
    size: int, width: int, height: int, stride: int, form: int, message: str, harness: Harness, folder: Folder
) -> None:
    place = folder(preprocessing=Preprocessing(48, 32))
    (place / "pixels").write_bytes(bytes(size))
    with pytest.raises(NativeError, match=message) as caught:
        harness("preprocess", place, place / "pixels", width, height, stride, form, place / "out")
    assert caught.value.status == 4
