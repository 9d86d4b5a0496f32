"""Preprocessing in the engine against the host's, for every mode and images of many sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc

pytest.importorskip("tvm.relax", exc_type=ImportError)

SIZES = ((333, 8), (480, 640), (61, 97), (31, 500), (240, 7), (1, 1))
"""Height and width; 333 to 320 is one of those where Darknet's last row is black."""
NOTHING = "[net]\nwidth={}\nheight={}\nchannels={}\n[maxpool]\nsize=1\nstride=1\n"


@pytest.mark.parametrize(("mode", "size", "more"), [
    ("resize", (320, 320), {}),
    ("resize", (97, 61), {"color": "bgr", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 1]}),
    ("resize-half-pixel", (61, 97), {"color": "bgr"}),
    ("letterbox", (320, 320), {}),
    ("letterbox", (97, 60), {"mean": [0.5]}),
    ("center-crop", (64, 48), {}),
    ("center-crop", (64, 64), {"crop": 0.8}),
])  # fmt: skip
def test_modes(mode: str, size: tuple[int, int], more: Any, write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("nothing", NOTHING.format(*size, 3))
    engine = dnc.compile(cfg, None, "tvm", tmp_path / "e", input="u8", preprocess=mode, verify=False, **more)
    prepare = engine.manifest.preprocessing
    assert prepare is not None
    generator = np.random.default_rng(0)
    for height, width in SIZES:
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        found, expected = engine.forward(pixels)[0], prepare(pixels)
        if mode == "resize-half-pixel":
            # Rounded to 8 bits: what lies next to a half may go the other way.
            far = np.abs(found - expected) > 1e-6
            assert far.mean() < 2e-3
            np.testing.assert_allclose(found, expected, rtol=0, atol=1.001 / 255)
        else:
            # Two or three roundings, of values up to 4.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "more"), [
    pytest.param((64, 48), {}, marks=pytest.mark.slow), ((24, 56), {"crop": 0.3}),
    ((56, 24), {"crop": 0.875, "color": "bgr", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}),
])  # fmt: skip
def test_bicubic(size: tuple[int, int], more: Any, write: Callable[..., Path], tmp_path: Path) -> None:
    """Sums of whole numbers: the same bits. Of 8 columns to 53 a position is whole but for rounding."""
    cfg = write("nothing", NOTHING.format(*size, 3))
    options = {"preprocess": "center-crop", "interpolation": "bicubic", **more}
    engine = dnc.compile(cfg, None, "tvm", tmp_path / "e", input="u8", verify=False, **options)
    prepare = engine.manifest.preprocessing
    assert prepare is not None
    generator = np.random.default_rng(0)
    for height, width in (*SIZES, (size[1], size[0]), (24, 24)):
        # Black and white, where a cubic overshoots.
        for numbers, factor in ((256, 1), (2, 255)):
            image = (generator.integers(0, numbers, (height, width, 3)) * factor).astype(np.uint8)
            np.testing.assert_array_equal(engine.forward(image)[0], prepare(image))


@pytest.mark.parametrize("channels", [1, 4])
def test_channels(channels: int, write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("nothing", NOTHING.format(20, 30, channels))
    engine = dnc.compile(cfg, None, "tvm", tmp_path / "e", input="u8", verify=False)
    assert engine.manifest.preprocessing is not None
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, channels), np.uint8)
    np.testing.assert_allclose(engine.forward(pixels)[0], engine.manifest.preprocessing(pixels), rtol=0, atol=1e-6)
