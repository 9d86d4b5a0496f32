from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import dnc
from dnc.diagnosis.report import Diagnosis
from tests.conftest import Result
from tests.diagnosis.conftest import Ward, ward  # noqa: F401

FEW = ["--layer-images", "2", "--limit", "2", "--measured", "1"]


def test_tables_page_and_json(ward: Ward, command: Callable[..., Result], tmp_path: Path) -> None:  # noqa: F811
    page = tmp_path / "page.html"
    ward.change_range("layer004", 0.1)
    eight = ["-t", "onnx", "--precision", "int8", "--calibration", ward.table]
    result = command("diagnose", ward.cfg, *eight, *FEW, "--html", page)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{ward.cfg} (onnx int8) against ")
    worst = lines[lines.index("the worst layers:") + 2]
    assert worst.startswith("net.cfg:29 [convolutional] #4")
    assert "range cut" in worst
    assert "calibrate it on images like these" in worst
    assert any(line.startswith("--keep ") and line.endswith("measured") for line in lines)
    assert "mAP@0.50" in result.out
    assert page.read_text("utf-8").lower().startswith("<!doctype html>")
    assert f"the page is {page}" in result.err
    printed = command("diagnose", ward.cfg, *eight, *FEW, "--json")
    assert printed.code == 0, printed.err
    found = Diagnosis.from_json(json.loads(printed.out))
    assert found.culprits[0] == 4


@pytest.mark.parametrize("option", ["--html", "--model-explorer", "--netron"])
def test_a_place_that_cannot_be_written(option: str, command: Callable[..., Result], tmp_path: Path) -> None:
    """Said before anything is looked at: not even the engine is there. Overlays are of engines."""
    what = "net.cfg" if option == "--html" else tmp_path
    for place in (tmp_path, tmp_path / "none" / "x"):
        result = command("diagnose", what, option, place)
        assert (result.code, result.out) == (1, "")
        assert f"  at {place}\n" in result.err
    same = tmp_path / "same"
    result = command("diagnose", tmp_path, "--netron", same, "--model-explorer", same)
    assert (result.code, "two results would be written to one file" in result.err) == (1, True)


@pytest.mark.slow
def test_an_engine_and_times_of_its_layers(
    ward: Ward,  # noqa: F811
    command: Callable[..., Result],
    tmp_path: Path,
) -> None:
    engine = dnc.compile(ward.cfg, target="onnx", precision="int8", calibration=ward.table, out=tmp_path / "net.engine")
    times = tmp_path / "times.json"
    row = {"where": "net.cfg:5 [convolutional] #0", "seconds": 0.25}
    times.write_text(json.dumps({"layers": [{"engine": "net", "rows": [row], "seconds": 0.5}]}), "utf-8")
    told = [engine.folder, "--calibration", ward.table, *FEW[:4], "--measured", "0"]
    result = command("diagnose", *told, "--times", times)
    assert result.code == 0, result.err
    first = next(line for line in result.out.splitlines() if line.startswith("net.cfg:5 "))
    assert first.endswith("250.000")
    overlays = ["--model-explorer", tmp_path / "explorer.json", "--netron", tmp_path / "netron.json"]
    result = command("diagnose", *told, *overlays)
    assert result.code == 0, result.err
    node = "000_convolutional/Conv"
    assert node in json.loads((tmp_path / "explorer.json").read_text("utf-8"))["results"]
    assert node in {item["target"] for item in json.loads((tmp_path / "netron.json").read_text("utf-8"))["metrics"]}
    assert "--netron is for an engine" in command("diagnose", ward.cfg, *overlays[2:]).err
    wrong = command("diagnose", *told, "--target", "onnx")
    assert wrong.code == 2
    assert "--target is for a cfg" in wrong.err


@pytest.mark.parametrize("told", [["--batch", "4"], ["--decode", "graph"], ["--input", "u8"], ["--keep-layers"]])
def test_options_without_effect_are_refused(told: list[str], command: Callable[..., Result]) -> None:
    result = command("diagnose", "net.cfg", *told)
    assert result.code == 2
    assert f"{told[0]} has no effect" in result.err


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"layers": []}', '{"layers": [{"engine": "a", "rows": 3, "seconds": 1}]}']
)
def test_no_times(text: str, command: Callable[..., Result], tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    times.write_text(text, "utf-8")
    result = command("diagnose", "net.cfg", "--times", times)
    assert result.code == 1
    assert "dnc bench ENGINE --layers --json" in result.err


def test_times_of_several_engines(command: Callable[..., Result], tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    empty: dict[str, object] = {"rows": [], "seconds": 1}
    times.write_text(json.dumps({"layers": [{"engine": "a", **empty}, {"engine": "b", **empty}]}), "utf-8")
    result = command("diagnose", "net.cfg", "--times", times)
    assert result.code == 1
    assert "several engines: a, b" in result.err
