"""The committed networks are what the generators write; what has no generator was written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfg.generators import generated
from cfg.generators.__main__ import FOLDER, main

BY_HAND = {
    "darknet19.cfg",
    "darknet53.cfg",
    "yolov3-spp.cfg",
    "yolov3-tiny.cfg",
    "yolov3.cfg",
    "yolov4-tiny.cfg",
    "yolov4.cfg",
    "yolov7-tiny.cfg",
}


def test_committed() -> None:
    """`python -m cfg.generators` mends it."""
    written = generated()
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.cfg")}
    assert committed.keys() == written.keys() | BY_HAND
    assert [name for name, text in written.items() if committed[name] != text] == []


def test_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"a.cfg": "[net]\n", "b.cfg": "[net]\n", "c.cfg": "[net]\n"}
    monkeypatch.setattr("cfg.generators.__main__.generated", lambda: texts)
    assert main([], tmp_path) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == texts
    capsys.readouterr()
    assert main(["--check"], tmp_path) == 0
    assert capsys.readouterr().out == ""
    changed, missing = tmp_path / "b.cfg", tmp_path / "c.cfg"
    changed.write_text("[net]\nbatch=1\n", encoding="utf-8")
    missing.unlink()
    assert main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out == "b.cfg differs from its generator\nc.cfg differs from its generator\n"
    assert changed.read_text(encoding="utf-8") == "[net]\nbatch=1\n"
    assert not missing.exists()
    assert main([], tmp_path) == 0
    assert capsys.readouterr().out == "wrote b.cfg\nwrote c.cfg\n"
    assert main(["--check"], tmp_path) == 0
