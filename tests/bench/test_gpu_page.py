"""benchmarks/gpu.md says what benchmarks/gpu/*.jsonl do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

# Benchmarks are no part of what types are checked of.
page = import_module("benchmarks.gpu.page")


def test_page_is_what_was_measured() -> None:
    """Whoever changes one of them runs `python -m benchmarks.gpu --page`."""
    assert page.tables() in page.PAGE.read_text(encoding="utf-8")


def test_behind_is_said() -> None:
    """Also of the best peer, which is none of dnc's own."""
    row = {"network": "net", "precision": "fp16", "images": 1}
    took = {"dnc": 3e-6, "dnc new": 1e-6, "PyTorch": 4e-6, "XLA": 2e-6}
    rows = [{**row, "peer": peer, "device": seconds} for peer, seconds in took.items()]
    machine = {"gpu": "a GPU", "host": "a host", "date": "2026-01-01", "versions": {}, "command": "this"}
    text = page.table([{"machine": machine}, *rows])
    assert "| net | 3 | 1 | 4 | 2 | 1.50 |" in text
    assert "behind in 1: net fp16 1 1.50" in text


def test_a_page_without_a_place_for_tables(tmp_path: Path) -> None:
    """It stays as it is."""
    lost = tmp_path / "gpu.md"
    lost.write_text("# GPUs\n")
    with pytest.raises(SystemExit, match="does not say where the tables are"):
        import_module("benchmarks.measured").put(lost, "| a |\n")
    assert lost.read_text() == "# GPUs\n"
