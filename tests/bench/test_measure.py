"""Recordings: what is in them, and that they are read back as they were written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dnc.bench.measure import Recording, measure, read_recording
from dnc.bench.peers import Peer, Plain
from dnc.bench.subject import Subject
from dnc.bench.yardstick import NAME, yardstick
from dnc.errors import DncError
from dnc.runtime.timing import processors


def test_two_engines(engines: Path, tmp_path: Path) -> None:
    subjects = [Subject(name, engines / "tiny.engine", 1) for name in ("a", "b")]
    said: list[str] = []
    recording = measure(subjects, seconds=0.01, progress=said.append)
    first, second = recording.figures
    assert (first.name, second.name, first.kind, first.device) == ("a", "b", "engine", "CPU")
    assert first.ratio is None
    assert second.ratio is not None
    assert second.ratio.low <= second.ratio.value <= second.ratio.high
    latency = first.latency
    assert 0 < latency["min"] <= latency["p90"] <= latency["p99"]
    assert latency["low"] <= latency["median"] <= latency["high"]
    assert first.throughput.value == pytest.approx(1 / latency["median"])
    assert first.startup is not None
    assert first.startup["open"] < first.startup["ready"] < first.startup["process"]
    # A Python with numpy and an engine takes tens of megabytes.
    assert first.memory is not None
    assert 10e6 < first.memory < 1e9
    assert list(recording.timings.seconds) == ["a", "b", NAME]
    assert "timing a, b, yardstick" in " ".join(said)
    path = tmp_path / "recording.json"
    path.write_text(json.dumps(recording.to_json()), encoding="utf-8")
    again = read_recording(path)
    assert again.to_json() == recording.to_json()
    assert again.figures == recording.figures


def test_batches_and_callers(engines: Path) -> None:
    subject = Subject("tiny", engines / "tiny.engine", 1, batch=4, streams=2)
    recording = measure([subject], seconds=0.01, extras=False)
    (figures,) = recording.figures
    assert "low" not in figures.latency
    assert (recording.settings.batch, recording.settings.streams) == (4, 2)
    assert figures.startup is None
    assert figures.throughput.value == pytest.approx(4 / recording.timings.quiet().time("tiny").value)


def test_a_peer_that_does_not_run_is_a_note(engines: Path, tmp_path: Path) -> None:
    nothing = Plain(tmp_path / "a.cfg", tmp_path / "a.weights", tmp_path / "a.onnx", tmp_path / "a.npy")
    peer = Peer("opencv", nothing, 1, tmp_path, str(tmp_path / "python"))
    recording = measure([Subject("tiny", engines / "tiny.engine", 1)], [peer], seconds=0.01, extras=False)
    assert [each.name for each in recording.figures] == ["tiny"]
    assert recording.notes[0].startswith(f"opencv: cannot start {tmp_path / 'python'}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "no recording"),
        (b"[]", "no schema number"),
        (b'{"schema": 99}', "has schema 99, this dnc reads up to 1"),
        (b'{"schema": 1}', "KeyError"),
        (b'{"schema": 1, "settings": 3, "rounds": []}', "no recording"),
        (b'{"schema": 1, "settings": {}, "rounds": {"opening": [1%s]}}' % (b"0" * 30), "OverflowError"),
    ],
)
def test_what_is_no_recording(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DncError, match=said):
        read_recording(path)


def test_a_recording_that_was_changed(engines: Path) -> None:
    content = measure([Subject("tiny", engines / "tiny.engine", 1)], seconds=0.01, extras=False).to_json()
    content["rounds"]["seconds"]["tiny"][0] = -1
    with pytest.raises(ValueError, match="not positive"):
        Recording.from_json(content)
    content["rounds"]["seconds"]["tiny"].pop()
    with pytest.raises(ValueError, match="do not fit together"):
        Recording.from_json(content)


def test_a_missing_recording(tmp_path: Path) -> None:
    with pytest.raises(DncError, match="cannot read the recording"):
        read_recording(tmp_path / "none.json")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such scheduling")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_yardstick_runs(threads: int) -> None:
    assert processors() >= 1
    with yardstick(threads) as run:
        run()
        run()
