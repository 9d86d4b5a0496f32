"""Engines to measure, and timings that take no time."""

from __future__ import annotations

from pathlib import Path

import pytest

import dnc
from tests.networks import NETWORKS, TINY, write_network


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.cfg, its random weights, tiny.engine for target onnx, and vector.engine, which takes no
    images; not to be written to."""
    folder = tmp_path_factory.mktemp("bench")
    for name, text in {"tiny": TINY, "vector": NETWORKS["vector"]}.items():
        dnc.compile(write_network(folder, name, text), target="onnx", out=folder / f"{name}.engine")
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As short as it gets: what is measured is right in form alone."""
    monkeypatch.setattr("dnc.runtime.timing._WINDOW", 0.0)
    monkeypatch.setattr("dnc.runtime.timing._WINDOWS", 2)
    monkeypatch.setattr("dnc.bench.measure._SETTLE", 0.0)
    monkeypatch.setattr("dnc.bench.measure._STARTS", (1, 1))
    monkeypatch.setattr("dnc.bench.subject._BURST", 0.001)
    monkeypatch.setattr("dnc.bench.layers._CHUNKS", 2)
    monkeypatch.setattr("dnc.bench.layers._SECONDS", 0.0)
    monkeypatch.setattr("dnc.bench.peaks._SECONDS", 0.0)
    monkeypatch.setattr("dnc.bench.peaks._SHAPES", {"1x1": (8, 1, 4)})
    monkeypatch.setattr("dnc.bench.peaks.last_cache", lambda: 1 << 16)
