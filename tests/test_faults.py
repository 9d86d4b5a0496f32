"""Killed or refused at any file operation, dnc leaves what was there or what should be, and after one more run nothing
else: see faults.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.faults import SCENARIOS

if sys.platform != "linux":
    pytest.skip("children are forked, and files locked", allow_module_level=True)

QUICK = [("engine", "kill"), ("table", "ENOSPC"), ("scratch", "kill")]
FAULTS = ("kill", "kill-aside", "ENOSPC", "EIO", "EACCES", "full")
COMPILERS = {
    "calibrate": ("kill", "ENOSPC", "full"),
    "compile": ("kill", "ENOSPC", "full"),
    "export": ("kill", "ENOSPC", "full"),
    "exportfile": ("full",),
    "compileopenvino": ("kill", "ENOSPC", "full"),
    "compilecpu": ("kill",),
    "compiletvm": ("full",),
}
"""Those that take long, and what they are tried with here; the others by hand."""
SLOW = [(name, fault) for name in SCENARIOS for fault in COMPILERS.get(name, FAULTS) if (name, fault) not in QUICK]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scenarios begin with."""
    folder = tmp_path_factory.mktemp("material")
    run("material", folder)
    return folder


def run(*arguments: object) -> str:
    """What `python -m tests.faults` prints."""
    command = [sys.executable, "-m", "tests.faults", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def faults(name: str, fault: str, folder: Path, material: Path) -> int:
    """How many faults the scenario has survived."""
    return int(json.loads(run(name, fault, folder, material))["faults"])


@pytest.mark.parametrize(("name", "fault"), QUICK)
def test_quick(name: str, fault: str, tmp_path: Path, material: Path) -> None:
    # Fewer, and operations are not seen any more.
    assert faults(name, fault, tmp_path, material) >= 7


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault"), SLOW)
def test_every_operation(name: str, fault: str, tmp_path: Path, material: Path) -> None:
    """Hundreds of faults."""
    if name in COMPILERS:
        pytest.importorskip({"compiletvm": "tvm", "compileopenvino": "openvino"}.get(name, "onnxruntime"))
    assert faults(name, fault, tmp_path, material) >= 5
