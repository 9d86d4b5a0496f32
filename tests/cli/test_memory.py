"""Commands on networks with memory: the images of one command are one sequence, as in one process of Darknet's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dnc
from tests.conftest import Result
from tests.networks import REMEMBERING
from tests.remembering import interpreted, noise
from tests.videos import read_video, write_video

Command = Callable[..., Result]
Write = Callable[..., Path]

FRAMES = noise(4)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def engine(write: Write) -> dnc.Engine:
    cfg = write("detector", REMEMBERING["detector"], seed=1)
    return dnc.compile(cfg, target="onnx", out=cfg.with_name("e"), verify=False)


def test_detect(engine: dnc.Engine, command: Command, paths: list[Path]) -> None:
    """An image that cannot be read is no frame."""
    expected = interpreted(engine, FRAMES, confidence=0.2)
    bad = paths[0].with_name("1b.png")
    bad.write_bytes(b"nothing")
    result = command("detect", engine.folder, *paths[:2], bad, *paths[2:], "-c", 0.2, "--json", "--skip-bad")
    assert result.code == 0, result.err
    found = [
        sorted((one["class_id"], one["confidence"]) for one in frame["objects"]) for frame in json.loads(result.out)
    ]
    for one, boxes in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, sorted((box.class_id, box.confidence) for box in boxes), atol=1e-5)
    assert sum(map(len, found)) > 20


def test_a_video_is_a_sequence_of_its_own(engine: dnc.Engine, command: Command, tmp_path: Path) -> None:
    """Its frames in their order, whatever was looked at before."""
    clip = write_video(tmp_path / "a.avi", 6)
    expected = interpreted(engine, read_video(clip)[0], confidence=0.2)
    result = command("detect", engine.folder, clip, clip, "-c", 0.2, "--json-lines")
    assert result.code == 0, result.err
    frames = [json.loads(line)["objects"] for line in result.out.splitlines()]
    for one, boxes in zip(frames, [*expected, *expected], strict=True):
        found = sorted((item["class_id"], item["confidence"]) for item in one)
        np.testing.assert_allclose(found, sorted((box.class_id, box.confidence) for box in boxes), atol=1e-5)
    assert frames[0] != frames[1]


def test_classify(write: Write, command: Command, paths: list[Path]) -> None:
    cfg = write("classifier", REMEMBERING["classifier"], seed=1)
    engine = dnc.compile(cfg, target="onnx", out=cfg.with_name("e"), verify=False)
    result = command("classify", engine.folder, *paths, "--top", 6, "--json")
    assert result.code == 0, result.err
    found = [{one["class_id"]: one["confidence"] for one in frame["classes"]} for frame in json.loads(result.out)]
    for one, classes in zip(found, interpreted(engine, FRAMES, top=6), strict=True):
        assert one == pytest.approx({best.class_id: best.confidence for best in classes}, abs=1e-5)


@pytest.mark.parametrize("decode", ["host", "graph+nms"])
def test_eval(decode: str, engine: dnc.Engine, command: Command, paths: list[Path]) -> None:
    """Two engines on the same images, each from zero: labels made of what the interpreter finds are found again."""
    expected = interpreted(engine, FRAMES)
    cfg = engine.folder.with_name("detector.cfg")
    engine = dnc.compile(cfg, target="onnx", out=engine.folder, verify=False, decode=decode)
    for path, boxes in zip(paths, expected, strict=True):
        inside = [box for box in boxes if 0 < box.center_x < 1 and 0 < box.center_y < 1]
        lines = [f"{box.class_id} {box.center_x} {box.center_y} {box.width} {box.height}\n" for box in inside]
        path.with_suffix(".txt").write_text("".join(lines))
    assert sum(map(len, expected)) > 10
    result = command("eval", engine.folder, engine.folder, "--images", paths[0].parent, "--like-darknet", "--json")
    assert result.code == 0, result.err
    for report in json.loads(result.out):
        assert report["false_negatives"] == 0


def test_eval_of_a_classifier(write: Write, command: Command, paths: list[Path]) -> None:
    cfg = write("classifier", REMEMBERING["classifier"], seed=9)
    engine = dnc.compile(cfg, target="onnx", out=cfg.with_name("e"), verify=False)
    names = [f"kind{index}" for index in range(6)]
    (paths[0].parent / "all.names").write_text("\n".join(names))
    for path, classes in zip(paths, interpreted(engine, FRAMES, top=1), strict=True):
        path.rename(path.with_name(f"{path.stem}_{names[classes[0].class_id]}.png"))
    engine(FRAMES)
    command_line = ("eval", engine.folder, "--images", paths[0].parent, "--labels", paths[0].parent / "all.names")
    result = command(*command_line, "--top", 1, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)[0]["top_1"] == 1
