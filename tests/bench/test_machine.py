"""What a measurement was made on."""

from __future__ import annotations

import json
import subprocess

import pytest

from dnc.bench import machine as module
from dnc.bench.machine import describe, machine


def test_it_is_described() -> None:
    about = machine()
    assert json.loads(json.dumps(about)) == about
    assert about["usable"] >= 1
    assert "numpy" in about["libraries"]
    text = "\n".join(describe(about))
    assert about["cpu"] in text
    assert f"numpy {about['libraries']['numpy']}" in text


def test_little_is_known_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read", lambda path: "")
    module._processor_lines.cache_clear()
    about = machine()
    module._processor_lines.cache_clear()
    assert {"governor", "turbo", "flags", "cores"}.isdisjoint(about)
    assert describe(about)


def test_a_gpu_and_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "NVIDIA H100, 550.54.15, 81559 MiB\nNVIDIA H100, 550.54.15, 81559 MiB\n"
    monkeypatch.setattr("subprocess.run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=listing))
    about = machine()
    assert about["gpus"] == 2 * [{"name": "NVIDIA H100", "driver": "550.54.15", "memory": "81559 MiB"}]
    assert "NVIDIA H100, driver 550.54.15, 81559 MiB" in describe(about)


def test_settings_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
        "/sys/devices/system/cpu/intel_pstate/no_turbo": "1",
    }
    monkeypatch.setattr(module, "_read", lambda path: files.get(path, ""))
    assert (module._governor(), module._turbo()) == ("performance", "off")
    files = {"/sys/devices/system/cpu/cpufreq/boost": "1"}
    assert module._turbo() == "on"


def test_the_arithmetic_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is taken for: figures of 8-bit engines hold for it."""
    monkeypatch.setenv("DNC_ISA", "avx2")
    about = machine()
    assert (about["isa"], about["arithmetic"]) == ("avx2", "pairs")
    assert any(line.startswith("avx2, 8-bit arithmetic pairs: ") for line in describe(about))
