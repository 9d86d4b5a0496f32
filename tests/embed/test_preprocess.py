"""Preprocessing in C++: every mode, color and layout of pixels gives Python's bits."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.errors import ImageError
from dnc.runtime.images import PIXELS, Pixels
from dnc.runtime.preprocessing import Preprocessing
from tests.embed.conftest import Folder
from tests.embed.native import FORMATS, MANY, TYPES, Harness, NativeError

pytestmark = pytest.mark.slow
"""They compile C++."""

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
    order, channels = FORMATS.get(form, (MANY, pixels.shape[2]))
    row = width * pixels.shape[2] * pixels.itemsize
    rows = np.full((height, row + gap), 77, np.uint8)
    rows[:, :row] = np.ascontiguousarray(pixels).reshape(height, -1).view(np.uint8)
    # The last row needs no gap behind it.
    data = rows.tobytes()[: rows.size - gap]
    (place / "pixels").write_bytes(data)
    stride = rows.shape[1] if gap else 0
    number = order + 6 * TYPES.index(pixels.dtype.name)
    harness("preprocess", place, place / "pixels", width, height, stride, number, channels, place / "out")
    expected = prepared(in_rgb(pixels, form))
    matched = prepared.to_bytes(in_rgb(pixels, form))
    out = (place / "out").read_bytes()
    found = np.frombuffer(out[: expected.nbytes], np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.frombuffer(out[expected.nbytes :], np.uint8).reshape(matched.shape), matched)


def noise(generator: np.random.Generator, kind: str, *shape: int) -> Pixels:
    """Of every value; floats beyond black and white as well."""
    if kind == "float32":
        return generator.uniform(-0.25, 1.25, shape).astype(np.float32)
    return generator.integers(0, PIXELS[kind] + 1, shape).astype(kind)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("wishes", MODES, ids=lambda wishes: " ".join(map(str, wishes.values())))
def test_modes(wishes: dict[str, Any], kind: str, harness: Harness, folder: Folder) -> None:
    prepared = Preprocessing(48, 32, **wishes)
    place = folder(preprocessing=prepared)
    generator = np.random.default_rng(0)
    for width, height in SIZES:
        compare(harness, place, prepared, noise(generator, kind, height, width, 3))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("channels", [2, 5, 13])
def test_any_number_of_channels(channels: int, kind: str, harness: Harness, folder: Folder) -> None:
    """In the network's order; rows that no number is aligned in."""
    generator = np.random.default_rng(2)
    for wishes in MODES:
        prepared = Preprocessing(9, 8, channels, color="gray" if channels == 1 else "rgb", **wishes)
        place = folder(preprocessing=prepared, input_shape=(channels, 8, 9))
        for gap in (0, 5):
            compare(harness, place, prepared, noise(generator, kind, 11, 13, channels), "many", gap)


def test_what_fits_no_network(harness: Harness, folder: Folder) -> None:
    """As in Python: other numbers of channels, and floats that are no numbers."""
    many, color = Preprocessing(9, 8, 6), Preprocessing(9, 8)
    for prepared, channels in ((many, 3), (many, 5), (color, 2), (color, 6)):
        place = folder(preprocessing=prepared, input_shape=(prepared.channels, 8, 9))
        pixels = np.zeros((11, 13, channels), np.uint8)
        with pytest.raises(ImageError, match=f"{channels} channels, the network takes {prepared.channels}"):
            prepared(pixels)
        (place / "pixels").write_bytes(pixels.tobytes())
        with pytest.raises(NativeError, match=f"{channels} channels, the network takes {prepared.channels}"):
            harness("preprocess", place, place / "pixels", 13, 11, 0, MANY, channels, place / "out")
    place = folder(preprocessing=color, input_shape=(3, 8, 9))
    for wrong in (np.nan, np.inf, -np.inf):
        floats = np.zeros((11, 13, 3), np.float32)
        floats[10, 12, 2] = wrong
        (place / "pixels").write_bytes(floats.tobytes())
        with pytest.raises(NativeError, match="not finite"):
            harness("preprocess", place, place / "pixels", 13, 11, 0, 12, 3, place / "out")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("channels", "color"), [(1, "gray"), (2, "rgb"), (3, "rgb"), (3, "bgr"), (4, "rgb"), (4, "bgr")]
)
def test_colors(channels: int, color: str, kind: str, harness: Harness, folder: Folder) -> None:
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
            pixels = noise(generator, kind, 11, 13, have)
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
        (900, 20, 15, 0, 18, "format 18 of an image is unknown"),
        (900, 20, 15, 0, 5, "an image of 0 channels in format 5"),
        (1799, 20, 15, 0, 6, "1799 bytes are no image of 20x15 pixels, 6 bytes each and 120 a row"),
        (3599, 20, 15, 0, 12, "3599 bytes are no image of 20x15 pixels, 12 bytes each and 240 a row"),
        (900, 20, 15, 0, -1, "format -1 of an image is unknown"),
    ],
)
def test_sizes_that_contradict_each_other(
    size: int, width: int, height: int, stride: int, form: int, message: str, harness: Harness, folder: Folder
) -> None:
    place = folder(preprocessing=Preprocessing(48, 32))
    (place / "pixels").write_bytes(bytes(size))
    with pytest.raises(NativeError, match=message) as caught:
        harness("preprocess", place, place / "pixels", width, height, stride, form, 0, place / "out")
    assert caught.value.status == 4
