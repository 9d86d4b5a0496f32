"""dnc classify: the best classes, as text and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import dnc
from tests.conftest import Result

Command = Callable[..., Result]


def test_json(command: Command, engines: Path, photographs: Path) -> None:
    engine = engines / "classifier.engine"
    result = command("classify", engine, photographs, "--json", "--top", 3)
    assert (result.code, result.err) == (0, "")
    frames = json.loads(result.out)
    assert [frame["frame_id"] for frame in frames] == [1, 2, 3]
    for frame, name in zip(frames, ("a.png", "b.jpg", "c.PNG"), strict=True):
        assert frame["filename"] == str(photographs / name)
        expected = dnc.load(engine)(photographs / name, top=3)
        assert len(expected) == 3
        assert frame["classes"] == [item.to_json() for item in expected]


def test_text(command: Command, engines: Path, photographs: Path) -> None:
    result = command("classify", engines / "classifier.engine", photographs / "a.png", "--top", 99)
    first, *lines = result.out.splitlines()
    assert first.startswith(f"{photographs / 'a.png'}: 40 x 30, ")
    shares = [float(line.split("%")[0]) for line in lines]
    assert len(lines) == 6
    assert shares == sorted(shares, reverse=True)
    # No labels: classes go by their numbers. A softmax in two groups sums up to 2.
    assert {line.split()[1] for line in lines} == set("012345")
    assert abs(sum(shares) - 200) < 1


def test_bad_images(command: Command, engines: Path, photographs: Path) -> None:
    engine = engines / "classifier.engine"
    result = command("classify", engine, photographs / "notes.txt")
    assert result.code == 1
    assert "cannot read the image" in result.err
    result = command("classify", engine, photographs / "notes.txt", photographs / "a.png", "--skip-bad", "--json")
    assert result.code == 0
    assert len(json.loads(result.out)) == 1
    assert result.err.startswith("dnc: warning: cannot read the image")


def test_what_is_no_classifier(command: Command, engines: Path, photographs: Path) -> None:
    image, tiny = photographs / "a.png", engines / "tiny.engine"
    for engine, hint in (
        (tiny, f"use `dnc detect {tiny}`"),
        (engines / "features.engine", "Engine.forward()"),
        (engines / "vector.engine", "forward() of dnc.load("),
    ):
        result = command("classify", engine, image)
        assert (result.code, result.out) == (1, "")
        assert hint in result.err
