"""The page of recordings: each with its table and its bars, by machine."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from dnc.bench.measure import Recording, read_recording
from tests import ROOT
from tests.bench.test_difference import recording

# Benchmarks are no part of what types are checked of.
page = import_module("benchmarks.page")
PAGE, RECORDINGS = ROOT / "benchmarks" / "recorded.md", ROOT / "benchmarks" / "recordings"


def test_recordings_become_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of one machine and one of another; the longest bar is the slowest engine's."""
    one = recording(0)
    facts = {**one.machine, "processors": 2, "os": "Linux", "python": "3.12"}
    latency = dict.fromkeys(("median", "min", "p90", "p99", "low", "high"), 0.005)
    figures = replace(one.figures[0], latency=latency)
    one = replace(one, machine=facts, figures=(figures,))
    slow = replace(figures, name="slow", latency={name: value * 4 for name, value in figures.latency.items()})
    seconds = {**one.timings.seconds, "slow": one.timings.seconds["engine"] * 4}
    both = replace(one, figures=(figures, slow), timings=replace(one.timings, seconds=seconds))
    elsewhere = replace(one, machine={**one.machine, "cpu": "An older one"})
    for name, content in {"b": both, "a": one, "c": elsewhere}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content.to_json()))
    given = [str(tmp_path / f"{name}.json") for name in "cba"]
    monkeypatch.setattr("sys.argv", ["page", *given, "-o", str(tmp_path / "page.md")])
    page.main()
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    titles = [line for line in text.splitlines() if line.startswith("##")]
    assert titles[titles.index("## An older one") + 1] == "### c"
    assert titles.index("### b") == titles.index("### a") + 1
    bars = [line.partition(" █")[0].strip() for line in text.split("### b")[1].splitlines() if "█" in line]
    assert bars[:2] == ["engine", "slow"]
    lengths = [line.count("█") for line in text.split("### b")[1].splitlines() if "█" in line]
    assert lengths[:2] == [4, 18]
    assert "| slow | " in text
    assert "geometric mean" not in text


def test_what_dnc_loses_is_marked() -> None:
    """Above, and in its row; means count the networks that all other programs run, in which one wins and one loses."""
    one = recording(0)
    about = {**one.machine, "processors": 2, "os": "Linux", "python": "3.12"}

    def beside(**times: float) -> Recording:
        figures, seconds = [], dict(one.timings.seconds)
        for name, factor in times.items():
            kind = "peer" if name in ("OpenCV", "ncnn") else "engine"
            latency = dict.fromkeys(("median", "p99", "low", "high"), 0.005 * factor)
            title, device = (f"a {name}", "CPU (znver4, TVM)") if kind == "engine" else (f"{name} 1.0", "CPU")
            figures.append(replace(one.figures[0], name=title, kind=kind, device=device, target="", latency=latency))
            seconds[title] = one.timings.seconds["engine"] * factor
        return replace(
            one, machine=about, figures=tuple(figures), timings=replace(one.timings, seconds=seconds), notes=("busy",)
        )

    several = {"wins": beside(tvm=1, onnx=3, OpenCV=8, ncnn=4), "loses": beside(tvm=2, OpenCV=1, ncnn=3)}
    text = page.page([*several.items(), ("apart", beside(tvm=1, OpenCV=50))])
    assert "## x (Zen 4)" in text
    assert text.count("busy") == 1 + page.page([]).count("busy")
    assert "| fp32 | 2 | 1.41 | **loses** |" in text
    assert "| wins | ncnn, 20 ms | tvm 4.00 (4.00 to 4.00) |" in text
    assert "| loses | OpenCV, 5 ms | tvm **0.50 (0.50 to 0.50), behind** |" in text
    assert "| apart | OpenCV, 250 ms | tvm 50.00 (50.00 to 50.00) |" in text
    assert "| OpenCV 1.0 | 40 (40 to 40) | 40 |  |  | 0.50 (0.50 to 0.50) |" in text


def test_page_is_what_was_recorded() -> None:
    """Whoever changes one of them runs the command that `benchmarks/page.py` begins with."""
    recordings = [(path.stem, read_recording(path)) for path in sorted(RECORDINGS.glob("*.json"))]
    assert PAGE.exists() == bool(recordings)
    assert not recordings or page.page(recordings) == PAGE.read_text(encoding="utf-8")


def test_what_is_no_recording_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is written."""
    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["page", str(tmp_path / "a.json"), "-o", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit, match="this is no recording"):
        page.main()
    assert not (tmp_path / "page.md").exists()
