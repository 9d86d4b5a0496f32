"""dnc bench: what it prints, its options and its exit codes; what it measures is tested in tests/bench/."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.conftest import _quick  # noqa: F401
from tests.conftest import Result

Command = Callable[..., Result]


def test_one_engine(command: Command, engines: Path) -> None:
    result = command("bench", engines / "tiny.engine", "--seconds", 0.01, "--threads", 1)
    assert result.code == 0, result.err
    assert "1 threads; opened 6 times" in result.out
    row = next(line for line in result.out.splitlines() if line.startswith("tiny "))
    assert "MB" in row
    assert result.err == ""


def test_alone_in_a_folder(command: Command, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(engines / "tiny.engine")
    result = command("bench", "--seconds", 0.01, "--json")
    assert result.code == 0, result.err
    assert [each["name"] for each in json.loads(result.out)["engines"]] == ["tiny"]
    monkeypatch.chdir(engines)
    result = command("bench")
    assert (result.code, result.out) == (1, "")
    assert "engines here" in result.err


def test_variants_of_a_cfg_and_layers(command: Command, engines: Path) -> None:
    result = command(
        "bench", engines / "tiny.cfg", "--target", "onnx", "--precision", "fp32,bf16", "--layers",
        "--against", "ort,ncnn", "--seconds", 0.01, "--markdown",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "| tiny onnx bf16 | " in result.out
    assert "| ONNX Runtime " in result.out
    assert "### tiny onnx fp32, layer by layer" in result.out
    assert "| tiny.cfg:6 [convolutional] #0 | " in result.out
    assert "| between layers | " in result.out


def test_from_images_to_boxes(command: Command, engines: Path, photographs: Path) -> None:
    options = ("--images", photographs, "--seconds", 0.01)
    result = command("bench", engines / "tiny.engine", *options, "--json")
    assert result.code == 0, result.err
    (found,) = json.loads(result.out)["end_to_end"]
    assert found["frames"] >= 3
    assert found["dropped"] is None
    assert set(found["stages"]) == {"decode", "preprocess", "infer", "postprocess", "total"}
    result = command("bench", engines / "tiny.engine", *options, "--fps", 1000)
    assert "dropped" in result.out


def test_recordings_are_compared(command: Command, engines: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    content = json.loads(command("bench", engines / "tiny.engine", "--seconds", 0.01, "--json").out)
    # What was measured in this way says nothing; exact times do.
    seconds = content["rounds"]["seconds"]
    seconds["yardstick"] = [0.002 + 1e-6 * place for place in range(len(seconds["yardstick"]))]
    content["rounds"]["waited"] = [0.0] * len(seconds["tiny"])
    for path, taken in zip(paths, (0.001, 0.0012), strict=True):
        seconds["tiny"] = [taken] * len(seconds["tiny"])
        path.write_text(json.dumps(content), encoding="utf-8")
    result = command("bench", "--diff", *paths, "--fail-above", "5%")
    assert (result.code, result.err) == (3, "")
    (line,) = result.out.splitlines()
    assert line.startswith(f"{paths[1]} takes 1.200 (")
    assert line.endswith("slower by more than 5 %")
    result = command("bench", "--diff", *paths, "--fail-above", "0.25", "--json")
    assert result.code == 0
    assert json.loads(result.out)[0]["slower"] is False
    assert command("bench", "--diff", *reversed(paths)).code == 0


def test_engines_are_compared(command: Command, engines: Path) -> None:
    engine = engines / "tiny.engine"
    result = command("bench", "--diff", engine, engine, "--fail-above", "9000%", "--seconds", 0.01)
    assert (result.code, result.err) == (0, "")
    assert "times as long as" in result.out


def test_a_picture_needs_matplotlib(command: Command, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = command("bench", engines / "tiny.engine", "--plot", "a.png")
    assert result.code == 1
    assert "needs matplotlib" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--images", "a", "--video", "b"], 2, "one of --images, --video and --camera"),
        (["--fps", "3"], 2, "--fps is for"),
        (["--fail-above", "five"], 2, "'five' is no share"),
        (["--diff", "a", "b", "c"], 2, "nothing else is measured"),
        (["--json", "--markdown"], 2, "either --json or --markdown"),
        (["--peer", "opencv"], 2, "NAME=/path/to/python"),
        (["--images", "a", "--layers"], 2, "there are no peers, layers"),
        (["--against", "ort", "--streams", "2"], 2, "peers have one caller"),
        (["--against", "darknett"], 1, "no peer 'darknett'"),
        (["none.engine"], 1, "there is no engine and no cfg 'none.engine'"),
        (["--diff", "none.json", "none.json"], 1, "cannot read the recording"),
        (["--images", "none.png"], 1, "there is no such image"),
        (["--plot", "a.gif"], 1, "a picture is .png or .svg"),
    ],
)
def test_mistakes(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("bench", *arguments)
    assert (result.code, result.out) == (code, "")
    assert said in result.err


def test_more_mistakes(command: Command, engines: Path, tmp_path: Path) -> None:
    result = command("bench", engines / "tiny.engine", "--target", "onnx")
    assert result.code == 2
    assert "--target is for a cfg; these are engines" in result.err
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    result = command("bench", "--diff", engines / "tiny.engine", tmp_path / "a.json")
    assert result.code == 2
    assert "not one of each" in result.err
    result = command("bench", engines / "vector.engine", "--images", engines)
    assert result.code == 1


def test_a_stream_is_no_file(command: Command, engines: Path) -> None:
    pytest.importorskip("cv2")
    result = command("bench", engines / "tiny.engine", "--video", "http://127.0.0.1:1/a.mp4", "--seconds", "1")
    assert result.code == 1
    assert "the stream cannot be opened\n  at http://127.0.0.1:1/a.mp4\n" in result.err
