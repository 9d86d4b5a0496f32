"""What a run is fed: images of any kind, batches, thresholds, windows, states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dnc.errors import DncError, ImageError
from dnc.runtime.inputs import Inputs, noise
from dnc.runtime.preprocessing import Preprocessing
from tests.manifests import manifest

PREPARED = Preprocessing(48, 32, mode="letterbox")
SUPPRESSING: dict[str, Any] = {
    "decode": "graph+nms",
    "extra_inputs": ("confidence", "iou", "window"),
    "preprocessing": PREPARED,
}


def picture(height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)


def test_pixels_of_any_image(tmp_path: Path) -> None:
    inputs, pixels = Inputs(manifest(preprocessing=PREPARED)), picture()
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    palette = Image.fromarray(pixels).convert("P")
    for image in (pixels, path, str(path), path.read_bytes(), Image.fromarray(pixels), pixels[:, :, ::-1]):
        # Files and PIL images know their own color.
        assert np.array_equal(inputs.pixels(image, "rgb" if image is pixels else "bgr"), pixels)
    assert inputs.pixels(palette).shape == (20, 30, 3)
    assert np.array_equal(inputs.pixels(np.dstack([pixels, pixels[:, :, 0]]), "bgr")[0, 0], pixels[0, 0, [2, 1, 0, 0]])
    assert inputs.pixels(Image.fromarray(pixels[:, :, 0]), "bgr").shape == (20, 30, 3)
    assert np.array_equal(inputs.pixels(pixels[:, :, 0], "bgr"), pixels[:, :, 0])


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_any_channels_of_any_type(kind: str, tmp_path: Path) -> None:
    """As arrays, and from .npy files; the first three are exchanged for bgr. Bytes for an engine that takes them."""
    prepared = Preprocessing(48, 32, 6)
    inputs = Inputs(manifest(input_shape=(6, 32, 48), preprocessing=prepared))
    array = picture(channels=6).astype(kind) / np.array(255 if kind == "float32" else 1, kind)
    array = array.astype(kind)
    np.save(tmp_path / "a.npy", array)
    for image in (array, tmp_path / "a.npy", (tmp_path / "a.npy").read_bytes()):
        assert np.array_equal(inputs.prepare(inputs.pixels(image)).array, prepared(array))
    assert np.array_equal(inputs.pixels(array, "bgr"), array[:, :, [2, 1, 0, 3, 4, 5]])
    raw = Inputs(manifest(input_shape=(6, 32, 48), preprocessing=prepared, input_dtype="uint8"))
    assert raw.prepare(array).array.dtype == np.uint8


def test_prepared_by_the_host_or_by_the_engine() -> None:
    pixels = picture(channels=4)
    floats = Inputs(manifest(preprocessing=PREPARED)).prepare(pixels)
    assert floats.size == (30, 20)
    assert np.array_equal(floats.array, PREPARED(pixels))
    raw = Inputs(manifest(preprocessing=PREPARED, input_dtype="uint8")).prepare(pixels)
    assert np.array_equal(raw.array, pixels[:, :, :3])
    with pytest.raises(ImageError, match="2 channels"):
        Inputs(manifest(preprocessing=PREPARED)).prepare(pixels[:, :, :2])


def test_batches_are_filled_up() -> None:
    inputs = Inputs(manifest(preprocessing=PREPARED, batch=3))
    images = [inputs.prepare(picture(side)) for side in (9, 10, 11, 12)]
    first, second = inputs.groups(images)
    assert [len(first), len(second)] == [3, 1]
    assert np.array_equal(inputs.batch(first)["input"], np.stack([image.array for image in images[:3]]))
    assert np.array_equal(inputs.batch(second)["input"], np.stack([images[3].array] * 3))


def test_what_runs_together() -> None:
    """All floats; but pixels only if they are of one size."""
    sizes = [picture(9), picture(9), picture(10)]
    for dtype, counts in (("float32", [3]), ("uint8", [1, 1, 1])):
        inputs = Inputs(manifest(preprocessing=PREPARED, input_dtype=dtype))
        assert [len(group) for group in inputs.groups(sizes)] == counts
        assert [len(group) for group in inputs.groups(sizes[:2])] == [2]
        assert inputs.groups([]) == []


def test_thresholds_and_windows() -> None:
    """A wide image lies in the middle of a letterbox; an array is its own image."""
    inputs = Inputs(manifest(**SUPPRESSING))
    feeds = inputs.batch([inputs.prepare(picture(10, 60)), inputs.prepare(picture(32, 48))], confidence=0.5, iou=0.25)
    assert (feeds["confidence"].tolist(), feeds["iou"].tolist()) == ([0.5], [0.25])
    assert feeds["window"].tolist() == [[0, 0.375, 1, 0.25], [0, 0, 1, 1]]
    feeds = inputs.feeds(np.zeros((2, 3, 32, 48), np.float32))
    assert [feeds[name].tolist() for name in ("confidence", "iou")] == [[0.25], [np.float32(0.45)]]
    assert feeds["window"].tolist() == [[0, 0, 1, 1]] * 2
    without = Inputs(manifest(**{**SUPPRESSING, "extra_inputs": ("confidence", "iou")}))
    assert list(without.feeds(np.zeros((2, 3, 32, 48), np.float32))) == ["input", "confidence", "iou"]


def test_states() -> None:
    """Zero, but for those that are given."""
    inputs = Inputs(manifest(states={"state000.h": (4,), "state001.h": (2, 3)}))
    given = np.ones((2, 4), np.float32)
    feeds = inputs.feeds(np.zeros((2, 3, 32, 48), np.float32), states={"state000.h": given})
    assert feeds["state000.h"] is given
    assert feeds["state001.h"].tolist() == np.zeros((2, 2, 3)).tolist()
    assert list(feeds) == ["input", "state000.h", "state001.h"]


def test_arrays() -> None:
    inputs = Inputs(manifest(batch=2), Path("net.engine"))
    x, single = inputs.array(np.zeros((2, 3, 32, 48)))
    assert (str(x.dtype), single) == ("float32", False)
    x, single = Inputs(manifest()).array(np.zeros((3, 32, 48)).tolist())
    assert (x.shape, single) == ((1, 3, 32, 48), True)
    for array, message in ((np.zeros((3, 32, 48)), r"wants \(2, 3, 32, 48\)"), ("dog.jpg", "no array of numbers")):
        with pytest.raises(DncError, match=message) as caught:
            inputs.array(array)
        assert caught.value.where == Path("net.engine")
    raw = Inputs(manifest(input_dtype="uint8"))
    assert raw.array(picture())[0].shape == (1, 20, 30, 3)
    with pytest.raises(DncError, match="takes pixels, uint8"):
        raw.array(np.zeros((20, 30, 3)))


def test_networks_that_take_no_images() -> None:
    with pytest.raises(DncError, match="takes no images") as caught:
        Inputs(manifest(input_shape=(7,))).pixels("a.png")
    assert caught.value.hint == "use forward() with an array (N, 7)"
    with pytest.raises(DncError, match="takes no images") as caught:
        Inputs(manifest(input_shape=(5, 32, 48))).pixels("a.png")
    assert caught.value.hint == "compile it again, or use forward() with an array (N, 5, 32, 48)"
    with pytest.raises(DncError, match="color='hsv' is not known"):
        Inputs(manifest(preprocessing=PREPARED)).pixels(picture(), "hsv")


def test_noise() -> None:
    generator = np.random.default_rng(0)
    assert noise((50, 50), np.uint8, generator).max() == 255
    for kind in (np.float32, np.float16):
        drawn = noise((50, 50), kind, generator)
        assert drawn.dtype == kind
        assert 0 <= drawn.min() < 0.1 < 0.9 < drawn.max() <= 1
