"""dnc eval: what it prints, its options and its exit codes; the figures are tested in tests/test_evaluate.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

Command = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path, photographs: Path) -> Path:
    """A .data file of three photographs with labels."""
    for path in photographs.iterdir():
        shutil.copy(path, tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("0 .5 .5 .5 .5\n", encoding="utf-8")
    (tmp_path / "valid.list").write_text("a.png\nb.jpg\nc.PNG\n", encoding="utf-8")
    (tmp_path / "obj.names").write_text("cat\ndog\n", encoding="utf-8")
    (tmp_path / "obj.data").write_text("classes=2\nvalid=valid.list\ntrain=none\nnames=obj.names\n", encoding="utf-8")
    return tmp_path / "obj.data"


def test_one_engine_like_darknet(command: Command, engines: Path, data: Path) -> None:
    result = command("eval", engines / "tiny.engine", "--data", data, "--like-darknet")
    assert result.code == 0
    assert result.err.startswith(
        f"dnc: 3 images of {data.parent}/valid.list, the first of which is {data.parent}/a.png"
    )
    assert "unique_truth_count = 3" in result.out
    assert "class_id = 1, name = dog, ap = 0.00%" in result.out
    assert "mean average precision (mAP@0.50) = " in result.out.splitlines()[-1]


def test_engines_side_by_side(command: Command, engines: Path, data: Path) -> None:
    engine = engines / "tiny.engine"
    result = command("eval", engine, engine, "--images", data.parent / "valid.list", "--like-darknet", "--limit", 2)
    assert result.code == 0
    head, *rows = result.out.splitlines()
    assert head.split() == [str(engine), str(engine), "difference"]
    names = ["mAP@0.50", "precision", "recall", "F1", "average IoU", "TP", "FP", "FN"]
    assert [row.split("  ")[0] for row in rows] == names
    assert rows[0].split()[-2:] == ["+0.00", "%"]
    assert rows[-1].split()[-1] == "+0"


def test_json(command: Command, engines: Path, data: Path) -> None:
    pytest.importorskip("pycocotools")
    engine = engines / "tiny.engine"
    result = command("eval", engine, engine, "--images", data.parent, "--json")
    first, second = json.loads(result.out)
    assert first == second
    assert (first["metric"], first["images"], first["skipped"]) == ("coco", 3, 0)
    assert first["difference"]["AP50"] == 0


def test_the_arithmetic_is_told(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of engines with 8-bit numbers, whose figures hold for it."""
    monkeypatch.setenv("DNC_ISA", "avx2")
    command("calibrate", "obj.data", "tiny.cfg", "tiny.weights", "-input_calibration", 2)
    options = ("--target", "onnx", "--precision", "int8", "--calibration", "tiny.calibration.json", "--no-verify")
    assert command("compile", "tiny.cfg", *options, "-o", "e").code == 0
    (folder / "d.txt").write_text("0 .5 .5 .5 .5\n", encoding="utf-8")
    result = command("eval", "e", "--data", "obj.data", "--like-darknet", "--json")
    assert "measured on avx2, 8-bit arithmetic pairs: " in result.err
    (report,) = json.loads(result.out)
    assert (report["isa"], report["arithmetic"]) == ("avx2", "pairs")


def test_classifier(command: Command, engines: Path, photographs: Path, tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_text("".join(f"{photographs / name} 1\n" for name in ("a.png", "b.jpg")), encoding="utf-8")
    result = command("eval", engines / "classifier.engine", "--images", source, "--top", 2, "--json")
    assert result.code == 0
    (report,) = json.loads(result.out)
    assert (report["metric"], report["k"], report["images"]) == ("top", 2, 2)


def test_mistakes(command: Command, engines: Path, data: Path, tmp_path: Path) -> None:
    engine = engines / "tiny.engine"
    (data.parent / "b.jpg").write_bytes(b"no image")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    for arguments, said in (
        (("--data", data, "--like-darknet"), "b.jpg"),
        (("--data", data, "--train"), "obj.data:3"),
        (("--images", tmp_path / "empty.txt"), "there are no images in this list"),
        (("--data", data, "--labels", engines), "3 of 3 images have no labels"),
    ):
        result = command("eval", engine, *arguments)
        assert (result.code, result.out) == (1, ""), arguments
        assert said in result.err
        assert "Traceback" not in result.err
    result = command("eval", engine, "--data", data, "--like-darknet", "--skip-bad")
    assert result.code == 0
    assert "warning" in result.err
    result = command("eval", engines / "features.engine", "--data", data)
    assert (result.code, result.out) == (1, "")
    for wrong in ((), ("--data", data, "--images", data), ("--images", data, "--train")):
        assert command("eval", engine, *wrong).code == 2
