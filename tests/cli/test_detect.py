"""dnc detect: which images, what is printed, where pictures go, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc.darknet.weights import write_weights
from dnc.runtime.decoding import Detection
from tests import goldens
from tests.conftest import Result
from tests.networks import TINY

Command = Callable[..., Result]

SURE = "0.3"
"""Random weights are not sure of anything."""


@pytest.fixture
def detect(command: Command, engines: Path) -> Command:
    """`dnc detect` with the tiny engine and a low threshold."""
    return lambda *arguments: command("detect", engines / "tiny.engine", *arguments, "-c", SURE)


def boxes(engines: Path, image: Path) -> list[Detection]:
    found: list[Detection] = dnc.load(engines / "tiny.engine")(image, confidence=float(SURE))
    return found


def test_json_is_darknets(detect: Command, engines: Path, photographs: Path) -> None:
    images = [photographs / "b.jpg", photographs / "a.png"]
    result = detect(*images, "--json")
    assert (result.code, result.err) == (0, "")
    frames = json.loads(result.out)
    assert [frame["frame_id"] for frame in frames] == [1, 2]
    assert [frame["filename"] for frame in frames] == list(map(str, images))
    for frame, image, size in zip(frames, images, [(17, 21), (40, 30)], strict=True):
        assert list(frame) == ["frame_id", "filename", "objects"]
        expected = sorted(boxes(engines, image), key=lambda box: box.place)
        assert expected
        pixels = [dict(zip(("left", "top", "right", "bottom"), box.pixels(*size), strict=True)) for box in expected]
        assert [item["pixels"] for item in frame["objects"]] == pixels
        assert frame["objects"] == [box.to_json() for box in expected]


def test_json_has_the_keys_that_darknet_wrote(detect: Command, photographs: Path) -> None:
    def keys(value: Any) -> Any:
        return {key: keys(item) for key, item in value.items()} if isinstance(value, dict) else type(value)

    golden = goldens.frames("yolov3-tiny")
    frame = json.loads(detect(photographs / "a.png", "--json").out)[0]
    del frame["objects"][0]["pixels"]
    assert list(frame) == list(golden[0])
    assert keys(frame["objects"][0]) == keys(golden[0]["objects"][0])


def test_as_many_candidates_as_asked_for(detect: Command, photographs: Path) -> None:
    whole = json.loads(detect(photographs / "a.png", "--json").out)[0]["objects"]
    few = json.loads(detect(photographs / "a.png", "--json", "--max-candidates", "1").out)[0]["objects"]
    assert len(whole) > 1
    assert [item["confidence"] for item in few] == [max(item["confidence"] for item in whole)]


def test_text(detect: Command, engines: Path, photographs: Path) -> None:
    image = photographs / "a.png"
    result = detect(image)
    assert (result.code, result.err) == (0, "")
    first, *lines = result.out.splitlines()
    assert first.startswith(f"{image}: 40 x 30, ")
    assert first.endswith(" ms")
    expected = boxes(engines, image)
    assert {box.label for box in expected} == {"cat", "black dog"}
    assert [line.split() for line in lines] == [
        [*box.label.split(), f"{box.confidence:.1%}", *map(str, box.pixels(40, 30))] for box in expected
    ]
    assert len(set(map(len, lines))) == 1


def test_thresholds(command: Command, engines: Path, photographs: Path) -> None:
    def count(*options: str) -> int:
        result = command("detect", engines / "tiny.engine", photographs / "a.png", *options, "--threads", "1")
        return len(result.out.splitlines()) - 1

    assert count("-c", "0.999") == 0
    assert count("-c", "0.2", "--iou", "0.1") < count("-c", "0.2", "--iou", "1")


def names(result: Result) -> list[str]:
    assert result.code == 0, result
    return [Path(frame["filename"]).name for frame in json.loads(result.out)]


def test_folders_and_globs(detect: Command, photographs: Path) -> None:
    everything = ["a.png", "b.jpg", "c.PNG"]
    assert names(detect(photographs, "--json")) == everything
    assert names(detect(photographs / "[ab].*", "--json")) == everything[:2]
    assert names(detect(photographs / "b.jpg", photographs, "--json")) == ["b.jpg", *everything]


def test_a_glob_of_all_folders(detect: Command, photographs: Path, tmp_path: Path) -> None:
    for folder in ("b/c", "a"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(photographs / "a.png", tmp_path / folder / f"{folder[-1]}.png")
    assert names(detect(tmp_path / "**" / "*.png", "--json")) == ["a.png", "c.png"]


def test_a_name_with_the_characters_of_a_glob(detect: Command, photographs: Path, tmp_path: Path) -> None:
    image = tmp_path / "a[1].png"
    shutil.copy(photographs / "a.png", image)
    assert names(detect(image, "--json")) == ["a[1].png"]


def test_one_picture(detect: Command, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "drawn.png"
    assert detect(photographs / "a.png", "-o", out).code == 0
    assert list(out.parent.iterdir()) == [out]
    original, drawn = Image.open(photographs / "a.png"), Image.open(out)
    assert (drawn.format, drawn.size, drawn.mode) == ("PNG", original.size, "RGB")
    assert np.any(np.asarray(drawn) != np.asarray(original))
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(("name", "kind"), [("x.jpg", "JPEG"), ("x.PNG", "PNG"), ("x.bmp", "BMP"), ("x.webp", "WEBP")])
def test_the_suffix_is_the_format(name: str, kind: str, detect: Command, photographs: Path, tmp_path: Path) -> None:
    assert detect(photographs / "c.PNG", "-o", tmp_path / name).code == 0
    assert Image.open(tmp_path / name).format == kind


def test_several_pictures_go_into_a_folder(detect: Command, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    assert detect(photographs, "-o", out, "--json").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.jpg", "c.PNG"]
    # A folder that is there takes one as well, and a picture that is there is replaced.
    (out / "b.jpg").write_bytes(b"old")
    assert detect(photographs / "b.jpg", "-o", out).code == 0
    assert Image.open(out / "b.jpg").size == (17, 21)


def test_a_gray_network_has_pictures_in_color(command: Command, photographs: Path, tmp_path: Path) -> None:
    cfg = tmp_path / "gray.cfg"
    cfg.write_text(TINY.replace("channels=3", "channels=1"), encoding="utf-8")
    network = dnc.Network.load(cfg).with_random_weights(1)
    with (tmp_path / "gray.weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    dnc.compile(cfg, target="onnx", out=tmp_path / "gray.engine")
    out = tmp_path / "drawn.png"
    assert command("detect", tmp_path / "gray.engine", photographs / "a.png", "-c", "0.99", "-o", out).code == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(photographs / "a.png")))


def refused(result: Result, *parts: str) -> None:
    assert (result.code, result.err.count("dnc: error: ")) == (1, 1), result
    assert "Traceback" not in result.err
    for part in parts:
        assert part in result.err


def test_a_corrupt_image_in_the_middle(detect: Command, photographs: Path, tmp_path: Path) -> None:
    for name in ("a.png", "c.PNG"):
        shutil.copy(photographs / name, tmp_path)
    bad = tmp_path / "b.jpg"
    bad.write_bytes((photographs / "b.jpg").read_bytes()[:300])
    result = detect(tmp_path, "--json")
    refused(result, "cannot read the image", f"  at {bad}")
    assert result.out == ""

    result = detect(tmp_path, "--skip-bad", "--json", "-o", tmp_path / "drawn")
    assert names(result) == ["a.png", "c.PNG"]
    assert [frame["frame_id"] for frame in json.loads(result.out)] == [1, 2]
    assert result.err.startswith("dnc: warning: cannot read the image")
    assert f"  at {bad}" in result.err
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a.png", "c.PNG"]

    refused(detect(bad, "--skip-bad"), "none of the 1 images can be read")


def test_a_missing_image_is_noticed_before_anything_runs(detect: Command, photographs: Path) -> None:
    missing = photographs / "missing.png"
    result = detect(photographs / "a.png", missing)
    refused(result, "there is no such image", f"  at {missing}")
    assert result.out == ""
    assert names(detect(photographs / "a.png", missing, "--skip-bad", "--json")) == ["a.png"]


def test_nothing_to_see(detect: Command, engines: Path, photographs: Path) -> None:
    refused(detect(engines), "no images in the folder")
    refused(detect(photographs / "*.bmp"), "nothing matches this pattern")
    refused(detect("x" * 5000), "there is no such image")


def test_pictures_that_cannot_be(detect: Command, photographs: Path, tmp_path: Path) -> None:
    a, b = photographs / "a.png", photographs / "b.jpg"
    before = a.read_bytes()
    refused(detect(a, "-o", tmp_path / "x.xyz"), "'.xyz' is no image format", "for instance .bmp")
    for sources in ((a,), (a, b)):
        refused(detect(*sources, "-o", tmp_path / "x.json"), "'.json' is no format", "--json > x.json")
    assert not (tmp_path / "x.json").exists()
    refused(detect(a, "-o", tmp_path / "x"), "'' is no image format")
    refused(detect(a, b, "-o", tmp_path / "x.png"), "2 pictures cannot go into one file", "give a folder")
    (tmp_path / "file").write_text("", encoding="utf-8")
    refused(detect(a, b, "-o", tmp_path / "file"), "2 pictures cannot go into one file")
    refused(detect(a, "-o", tmp_path / "file" / "x.png"), "cannot write the picture")
    refused(detect(a, "-o", a), "would replace its image")
    refused(detect(photographs, "-o", photographs), "would replace its image")
    shutil.copy(a, tmp_path / "a.png")
    refused(detect(a, tmp_path / "a.png", "-o", tmp_path / "drawn"), "would have the same picture")
    assert a.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "file"]


def test_a_picture_is_whole_or_not_there(
    detect: Command, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, file: Any, *arguments: Any, **options: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    refused(detect(photographs / "a.png", "-o", tmp_path / "x.png"), "No space left on device", "is the disk full")
    assert list(tmp_path.iterdir()) == []


def test_networks_without_boxes(command: Command, engines: Path, photographs: Path) -> None:
    image = photographs / "a.png"
    classifier = engines / "classifier.engine"
    refused(command("detect", classifier, image), "no detection layer", f"use `dnc classify {classifier}`")
    refused(command("detect", engines / "features.engine", image), "no detection layer", "Engine.forward()")
    refused(command("detect", engines / "tiny.cfg", image), "not an engine")
    refused(command("detect", engines / "none.engine", image), "does not exist")


def test_a_label_that_a_terminal_would_obey(command: Command, write: Callable[..., Path]) -> None:
    """Labels come with the engine, from anywhere; --json has them as they are."""
    cfg = write("yolo")
    names = cfg.with_suffix(".names")
    names.write_text("".join(f"\x1b]0;owned{number}\x07\n" for number in range(2)), encoding="utf-8")
    engine, image = cfg.with_name("e"), cfg.with_name("a.png")
    Image.new("RGB", (40, 30), (200, 30, 90)).save(image)
    assert command("compile", cfg, "-o", engine, "-t", "onnx", "--no-verify").code == 0
    for arguments in (("detect", engine, image, "--confidence", "0.01"), ("info", engine)):
        result = command(*arguments)
        assert result.code == 0
        assert "owned" in result.out
        assert "\x1b" not in result.out
    found = json.loads(command("detect", engine, image, "--confidence", "0.01", "--json").out)
    assert found[0]["objects"][0]["name"].startswith("\x1b]0;owned")
