"""Tables, Markdown and pictures of what was measured."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

from dnc.bench.end_to_end import EndToEnd
from dnc.bench.layers import Layer, Layers
from dnc.bench.measure import measure
from dnc.bench.peaks import Peaks
from dnc.bench.plot import import_matplotlib, plot
from dnc.bench.report import Report, frames_report, layers_report, layers_table, markdown, recording_report
from dnc.bench.subject import Subject
from dnc.errors import DncError
from dnc.tables import Column, Table

ROWS = (
    Layer("a.cfg:3 [convolutional] #0", 0.006, 3e6, 1e6, 0.6, "memory", 0.5),
    Layer("[yolo] #1", 0.0, 0.0, 5.0, 0.0, "memory", 0.0),
)
LAYERS = Layers("e", ROWS, 0.010, 0.004, ("[shortcut] #2",), Peaks(4e9, 1e9, 2, "fp32"))


def test_layers() -> None:
    lines = layers_table(LAYERS).text().splitlines()
    assert lines[1].split("  ")[0] == "a.cfg:3 [convolutional] #0"
    assert lines[1].split()[-7:] == ["60.0%", "3.000", "1.000", "0.5", "0.1667", "memory", "50%"]
    assert lines[-2].split()[-2:] == ["4000.0", "40.0%"]
    assert lines[-1].split()[:3] == ["network", "10000.0", "100.0%"]
    report = Report()
    layers_report(LAYERS, report)
    text = report.markdown()
    assert "4 GFLOP/s, 1 GB/s" in text
    assert "joined with their neighbours: [shortcut] #2" in text
    assert "do not add up" in text


def test_layers_that_take_longest() -> None:
    """They stand first; the others are summed up, so that all rows still add up to the network."""
    rows = [Layer(f"a.cfg:{n} [convolutional] #{n}", n / 1000, 1e6, 1e6, n / 10, "memory", 0.5) for n in range(1, 5)]
    layers = dataclasses.replace(LAYERS, rows=tuple(rows), between=0.0)
    first, second, rest, *_ = (line.split("  ")[0] for line in layers_table(layers, 2).text().splitlines()[1:])
    assert (first, second) == (rows[3].where, rows[2].where)
    assert rest == "…and 2 more: --top 0"
    assert layers_table(layers, 2).rows[2][1:3] == ("3000.0", "30.0%")
    for all_of_them in (0, 4, 9):
        assert [row[0] for row in layers_table(layers, all_of_them).rows][:4] == [row.where for row in rows]
    report = Report()
    layers_report(layers, report, 2)
    assert "e, layer by layer: the 2 that take longest" in report.markdown()


@pytest.mark.parametrize(("bound", "disturbed"), [("compute", True), ("memory", False)])
def test_shares_beyond_the_roof(bound: str, disturbed: bool) -> None:
    """Caches are faster than memory, but nothing computes faster than the machine: the peak was measured too low."""
    row = dataclasses.replace(ROWS[0], bound=bound, roof=9.77)
    report = Report()
    layers_report(dataclasses.replace(LAYERS, rows=(row,)), report)
    text = report.markdown()
    assert ("| >100% |" in text or "&gt;100%" in text, "977" in text) == (True, False)
    assert ("layers compute faster than the peak" in text) == disturbed


def test_layers_on_bits() -> None:
    rows = (ROWS[0], Layer("b.cfg:9 [convolutional] #2", 0.002, 0.0, 1e6, 0.2, "compute", 0.25, bits=8e6))
    layers = dataclasses.replace(LAYERS, rows=rows, peaks=Peaks(4e9, 1e9, 2, "fp32", bits=16e9))
    lines = layers_table(layers).text().splitlines()
    assert lines[0].split()[-7:] == ["MBOP", "GBOP/s", "bound", "by", "of", "the", "roof"]
    assert lines[1].split()[-4:] == ["0.5", "0.1667", "memory", "50%"]
    assert lines[2].split()[-6:] == ["1.000", "0.5", "8.000", "4", "compute", "25%"]
    assert lines[-1].split()[-2:] == ["8.000", "0.8"]
    report = Report()
    layers_report(layers, report)
    assert "4 GFLOP/s, 16 GBOP/s on single bits, 1 GB/s" in report.markdown()


def test_frames() -> None:
    times = {"median": 0.001, "p90": 0.002, "p99": 0.003, "mean": 0.001}
    stages = dict.fromkeys(("decode", "preprocess", "infer", "postprocess", "total"), times)
    report = Report()
    frames_report([EndToEnd("e", "a.avi", 30, 10, 2.0, stages, 5)], report)
    text = report.markdown()
    assert "| 15 | 10 (25%) |" in text
    assert "30 frames of a.avi, 5 results" in text


def test_markdown_is_escaped() -> None:
    table = Table([Column("a"), Column("b", right=True)])
    table.add("x|y", "<1>")
    assert markdown(table) == "| a | b |\n| --- | ---: |\n| x\\|y | &lt;1> |"


def test_a_recording(engines: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    subjects = [Subject(name, engines / "tiny.engine", 1) for name in ("a", "b")]
    recording = measure(subjects, seconds=0.01, extras=False)
    report = recording_report(recording)
    report.show()
    out = capsys.readouterr().out
    assert "of the time of a" in out
    assert "intervals hold with 99.9% confidence" in out
    # What was not measured has no column.
    assert "start-up" not in out
    assert "energy" not in out
    if not importlib.util.find_spec("matplotlib"):
        pytest.skip("the rest needs matplotlib")
    for name in ("a.png", "a.svg"):
        plot(recording, [LAYERS], tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_that_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DncError, match=r"\.png or \.svg, not '\.gif'"):
        import_matplotlib(tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DncError, match="needs matplotlib") as caught:
        import_matplotlib(tmp_path / "a.png")
    assert "darknet-compiler[plot]" in caught.value.hint
