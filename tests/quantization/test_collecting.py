"""Calibrating: what is measured is what the network computes on preprocessed images, on every run the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnc.compiler.source import preprocessing_for
from dnc.darknet.layers.base import layer_value
from dnc.darknet.network import Network
from dnc.darknet.reference import initial_states, run_all
from dnc.errors import CalibrationError, DncWarning, ImageError
from dnc.quantization.calibration import Calibration
from dnc.quantization.collecting import calibrate
from dnc.runtime.images import read_image
from tests.networks import NETWORKS
from tests.remembering import forget_history

Write = Callable[..., Path]


def _load(cfg: Path) -> Network:
    return Network.load(cfg, cfg.with_suffix(".weights"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three images of different sizes."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{name}.png" for name in "abc"]
    for path, size in zip(paths, ((20, 30), (16, 16), (9, 40)), strict=True):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return paths


def _calibrate(cfg: Path, images: list[Path], **options: object) -> Calibration:
    network = _load(cfg)
    preprocessing = preprocessing_for(network, cfg.with_suffix(".weights"))
    return calibrate(network, preprocessing, images, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["yolo", "attention", "classifier", "yolo2", "convolutions", "crnn"])
def test_what_was_seen_is_what_the_reference_computes(name: str, write: Write, pictures: list[Path]) -> None:
    """crnn sees the images as a sequence."""
    # Two channels are no image.
    cfg = write(name, NETWORKS[name].replace("channels=2", "channels=3"))
    network = _load(cfg)
    found = _calibrate(cfg, pictures, method="minmax")
    preprocessing = preprocessing_for(network, cfg.with_suffix(".weights"))
    assert preprocessing is not None
    assert found.preprocessing == preprocessing.to_json()
    inputs = [preprocessing(read_image(path, preprocessing.channels))[None] for path in pictures]
    extremes = {"input": [(x.min(), x.max()) for x in inputs]}
    means = {"input": [x.mean(axis=(0, 2, 3)) for x in inputs]}
    states = initial_states(network)
    for x in inputs:
        for index, output in run_all(network, x, states):
            extremes.setdefault(layer_value(index), []).append((output.min(), output.max()))
            if output.ndim == 4:
                means.setdefault(layer_value(index), []).append(output.mean(axis=(0, 2, 3)))
        forget_history(network, states)
    for key, images in means.items():
        channels = found.ranges[key].channels
        assert channels is not None
        # float32 in another order, through a few layers.
        assert channels.mean == pytest.approx(
            np.mean(images, axis=0), abs=1e-4 * max(float(np.abs(images).max()), 1e-6)
        )
    assert set(found.ranges) == set(extremes)
    for key, pairs in extremes.items():
        low, high = (float(number) for number in (min(p[0] for p in pairs), max(p[1] for p in pairs)))
        # float32 in another order, through a few layers.
        near = 1e-4 * max(abs(low), abs(high), 1e-6)
        assert found.ranges[key].minimum == pytest.approx(min(low, 0), abs=near)
        assert found.ranges[key].maximum == pytest.approx(max(high, 0), abs=near)
        assert found.histograms[key]["values"] == len(pictures) * int(
            np.prod(network.input_shape if key == "input" else network.layers[int(key[5:])].shape)
        )


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_same_images_give_the_same_bytes(symmetric: bool, write: Write, pictures: list[Path]) -> None:
    cfg = write("yolo")
    first, second = (json.dumps(_calibrate(cfg, pictures, symmetric=symmetric).to_json()) for _ in range(2))
    assert first == second


def test_the_order_of_images_changes_nothing_but_their_list(write: Write, pictures: list[Path]) -> None:
    cfg = write("yolo")
    one, other = _calibrate(cfg, pictures), _calibrate(cfg, pictures[::-1])
    assert one.ranges == other.ranges
    assert one.histograms == other.histograms
    assert one.images["files"] == ["a.png", "b.png", "c.png"]
    assert one.images["sha256"] != other.images["sha256"]


def test_the_digest_is_that_of_names_and_contents(write: Write, pictures: list[Path]) -> None:
    cfg = write("tiny")
    before = _calibrate(cfg, pictures).images["sha256"]
    Image.new("RGB", (8, 8)).save(pictures[1])
    assert _calibrate(cfg, pictures).images["sha256"] != before


def test_an_image_that_is_damaged(write: Write, pictures: list[Path]) -> None:
    cfg = write("tiny")
    pictures[1].write_bytes(pictures[1].read_bytes()[:60])
    with pytest.raises(ImageError, match="cannot read the image") as caught:
        _calibrate(cfg, pictures)
    assert caught.value.where == pictures[1]
    assert "--skip-bad" in caught.value.hint
    with pytest.warns(DncWarning, match=r"b\.png"):
        found = _calibrate(cfg, pictures, skip_bad=True)
    assert (found.images["count"], found.images["skipped"]) == (2, ["b.png"])
    assert found.ranges == _calibrate(cfg, [pictures[0], pictures[2]]).ranges
    pictures[1].unlink()
    with pytest.raises(ImageError, match="no such image"):
        _calibrate(cfg, pictures)


@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
def test_no_image_can_be_read(write: Write, pictures: list[Path]) -> None:
    pictures[0].write_bytes(b"no image")
    with pytest.raises(ImageError, match="none of the 1 images can be read"):
        _calibrate(write("tiny"), pictures[:1], skip_bad=True)


def test_what_cannot_be_calibrated(write: Write, pictures: list[Path]) -> None:
    with pytest.raises(CalibrationError, match="no images to calibrate on"):
        _calibrate(write("tiny"), [])
    with pytest.raises(CalibrationError, match="takes no images"):
        _calibrate(write("vector"), pictures)
    with pytest.raises(CalibrationError, match="method best with"):
        _calibrate(write("tiny"), pictures, method="best")
    with pytest.raises(CalibrationError, match="percentile 0"):
        _calibrate(write("tiny"), pictures, method="percentile", percentile=0.0)


def test_infinite_numbers_name_layer_and_image(write: Write, pictures: list[Path]) -> None:
    cfg = write("tiny")
    network = _load(cfg)
    arrays = list(network.arrays)
    arrays[1] = {**arrays[1], "biases": np.full_like(arrays[1]["biases"], np.inf)}
    preprocessing = preprocessing_for(network, cfg.with_suffix(".weights"))
    with pytest.raises(CalibrationError, match=r"layer001 on this image: .* infinite") as caught:
        calibrate(network.with_arrays(tuple(arrays)), preprocessing, pictures)
    assert caught.value.where == pictures[0]
