"""Networks of other than three channels, from files and arrays, in every command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc import errors
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.errors import DncError, ImageError
from tests import goldens
from tests.conftest import Result
from tests.networks import TINY

Command = Callable[..., Result]


@pytest.fixture
def run(command: Command) -> Callable[..., Result]:
    """A command that does what it should."""

    def checked(*words: object) -> Result:
        result = command(*words)
        assert result.code == 0, result.err
        return result

    return checked


@pytest.mark.parametrize("given", ["f32", "u8"])
def test_two_channels_are_darknets(given: str, tmp_path: Path, run: Command) -> None:
    """An image of gray and alpha, from the command line."""
    place = goldens.TWO_CHANNELS
    engine = tmp_path / "two.engine"
    dnc.compile(place / "two.cfg", target="onnx", input=given, out=engine)
    result = run("detect", engine, place / "la.png", "--confidence", "0.4", "--json")
    found = goldens.detections(json.loads(result.out))["la"]
    expected = goldens.detections(goldens.frames("two-channel"))["la"]
    assert len(found) == len(expected) == 1065
    # The sums of float32 are in another order, and Darknet prints six decimals.
    assert goldens.misses(found, expected, 0, 1e-5, 1e-5) == goldens.misses(expected, found, 0, 1e-5, 1e-5) == []


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """many.cfg of five channels with its weights, and three arrays with labels: the current folder."""
    monkeypatch.chdir(tmp_path)
    cfg = Path("many.cfg")
    cfg.write_text(TINY.replace("channels=3", "channels=5"), encoding="utf-8")
    network = Network.load(cfg).with_random_weights(1)
    assert network.input_shape[0] == 5
    with cfg.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    generator = np.random.default_rng(0)
    folder = Path("arrays")
    folder.mkdir()
    for name, kind in (("a", "uint8"), ("b", "uint16"), ("c", "float32")):
        picture = generator.integers(0, 256, (20, 30, 5))
        scaled = {"uint8": picture, "uint16": picture * 257, "float32": picture / 255}[kind]
        np.save(folder / f"{name}.npy", scaled.astype(kind))
        (folder / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n", encoding="utf-8")
    (folder / "notes.md").write_text("no image", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("given", ["f32", "u8"])
def test_five_channels_in_every_run(given: str, many: Path, run: Command) -> None:
    run("compile", "many.cfg", "--target", "onnx", "--input", given, "-o", "many.engine")
    result = run("detect", "many.engine", "arrays", "-c", "0", "--json")
    assert [Path(frame["filename"]).name for frame in json.loads(result.out)] == ["a.npy", "b.npy", "c.npy"]
    run("detect", "many.engine", "arrays", "-o", "drawn")
    for name in "abc":
        assert Image.open(f"drawn/{name}.png").size == (30, 20)
    report = json.loads(run("eval", "many.engine", "--images", "arrays", "--like-darknet", "--json").out)
    assert report[0]["images"] == 3
    frames = json.loads(run("bench", "many.engine", "--images", "arrays", "--seconds", "0.1", "--json").out)
    assert frames["end_to_end"][0]["frames"] >= 3
    run("compare", "many.engine", "many.cfg", "--image", "arrays/a.npy")
    run("compare", "many.cfg", "--target", "onnx")
    engine = dnc.load("many.engine")
    for name in "abc":
        array = np.load(f"arrays/{name}.npy")
        assert engine.detect(array, confidence=0) == engine.detect(f"arrays/{name}.npy", confidence=0)
    Image.new("RGB", (9, 9)).save("rgb.png")
    with pytest.raises(ImageError, match="an image file has no 5 channels") as caught:
        engine("rgb.png")
    assert caught.value.hint == "give the pixels as an array (H, W, 5), or as an .npy file"
    with pytest.raises(DncError, match="3 channels, the network takes 5"):
        engine(np.zeros((9, 9, 3), np.uint8))


def test_five_channels_are_calibrated(many: Path, run: Command) -> None:
    result = run("calibrate", "many.cfg", "arrays", "--json")
    assert json.loads(result.out)["images"]["files"] == ["a.npy", "b.npy", "c.npy"]
    run("calibrate", "many.cfg", "arrays/b.npy")
    run(
        "compile",
        "many.cfg",
        "--target",
        "onnx",
        "--precision",
        "int8",
        "--calibration",
        "many.calibration.json",
        "-o",
        "many.engine",
    )
    run("detect", "many.engine", "arrays/c.npy")


def test_pictures_of_a_folder_come_before_its_arrays(many: Path) -> None:
    from dnc.evaluation.datasets import find_images

    assert [path.suffix for path in find_images(["arrays"])] == [".npy"] * 3
    Image.new("RGB", (9, 9)).save("arrays/d.png")
    assert [path.name for path in find_images(["arrays"])] == ["d.png"]


def test_exif(engines: Path, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned if it is asked for; warned of once if nothing is said."""
    from dnc.runtime import images

    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)).save(
            tmp_path / f"{name}.jpg", exif=exif
        )
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n", encoding="utf-8")
    shutil.copy(engines / "tiny.cfg", tmp_path)
    shutil.copy(engines / "tiny.weights", tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in (
        ["detect", engines / "tiny.engine", tmp_path],
        ["eval", engines / "tiny.engine", "--images", tmp_path],
        ["calibrate", "tiny.cfg", tmp_path],
        ["compare", engines / "tiny.engine", "tiny.cfg", "--image", "a.jpg"],
        ["bench", engines / "tiny.engine", "--images", tmp_path, "--seconds", "0.1"],
    ):
        errors._said.discard(images.TURNED)
        plain = run(*words)
        assert plain.err.count("lies on its side by its EXIF (orientation 6)") == 1
        errors._said.discard(images.TURNED)
        turned, ignored = run(*words, "--exif"), run(*words, "--no-exif")
        assert images.TURNED not in errors._said
        if words[0] == "detect":
            assert "60 x 20" in plain.out
            assert "60 x 20" in ignored.out
            assert "20 x 60" in turned.out
