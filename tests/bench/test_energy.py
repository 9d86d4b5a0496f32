"""Counters of joules, as Linux and NVIDIA's driver have them."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from dnc.bench.energy import Meter, joules, meters


def zone(root: Path, name: str, microjoules: int) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{microjoules}\n", encoding="ascii")
    (folder / "max_energy_range_uj").write_text("262143328850\n", encoding="ascii")
    return folder


def test_packages_of_rapl(tmp_path: Path) -> None:
    for name, count in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 500_000), ("intel-rapl:0:0", 7)):
        zone(tmp_path, name, count)
    (tmp_path / "intel-rapl").mkdir()
    found, reason = meters(root=tmp_path)
    # What is below a package is a part of it.
    assert [(meter.name, meter.read()) for meter in found] == [("RAPL intel-rapl:0", 3.0), ("RAPL intel-rapl:1", 0.5)]
    assert reason == ""
    assert found[0].wraps == pytest.approx(262143.32885)


def test_no_rapl(tmp_path: Path) -> None:
    assert meters(root=tmp_path) == ([], meters(root=tmp_path / "none")[1])
    assert "no RAPL counters" in meters(root=tmp_path)[1]
    (zone(tmp_path, "intel-rapl:0", 1) / "max_energy_range_uj").unlink()
    assert "cannot read" in meters(root=tmp_path)[1]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_rapl_for_root_alone(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").chmod(0)
    assert "is for root alone" in meters(root=tmp_path)[1]


def test_joules_of_some_runs() -> None:
    now = [0.0]

    def run() -> None:
        now[0] += 0.5

    plain = Meter("plain", lambda: 100 + 8 * now[0])
    # At 2 s this one starts again from 0.
    wrapping = Meter("wrapping", lambda: (90 + 5 * now[0]) % 100, wraps=100.0)
    spent, runs = joules(run, [plain, wrapping], 4.0, clock=lambda: now[0])
    assert runs == 8
    assert spent == {"plain": pytest.approx(32.0), "wrapping": pytest.approx(20.0)}
    assert joules(run, [plain], 0.0, clock=lambda: now[0])[1] == 1


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meters(gpu=True) == ([], "it takes pynvml: pip install nvidia-ml-py")

    class Failure(Exception):
        pass

    def init() -> None:
        raise Failure("Driver Not Loaded")

    library = types.SimpleNamespace(
        NVMLError=Failure,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda place: place,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1500 + handle,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    found, reason = meters(gpu=True)
    assert [(meter.name, meter.read()) for meter in found] == [("NVML GPU 0", 1.5), ("NVML GPU 1", 1.501)]
    assert reason == ""
    library.nvmlInit = init
    assert meters(gpu=True) == ([], "NVML: Driver Not Loaded")
