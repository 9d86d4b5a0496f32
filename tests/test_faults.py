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

QUICK = [("engine", "kill"), ("engine", "kill-aside"), ("table", "ENOSPC"), ("scratch", "kill")]
FAULTS = ("kill", "kill-aside", "ENOSPC", "EIO", "EACCES", "full")
COMPILERS = {
    "calibrate": ("kill", "ENOSPC", "full"),
    "compile": ("kill", "ENOSPC", "full"),
    "compileopenvino": ("kill", "ENOSPC", "full"),
    "compilecpu": ("kill",),
    "compiletvm": ("full",),
}
"""Those that take long, and what they are tried with here; the others by hand."""
SLOW = [(name, fault) for name in SCENARIOS for fault in COMPILERS.get(name, FAULTS) if (name, fault) not in QUICK]


def faults(name: str, fault: str, folder: Path) -> int:
    """How many faults the scenario has survived."""
    command = [sys.executable, "-m", "tests.faults", name, fault, str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(json.loads(result.stdout)["faults"])


@pytest.mark.parametrize(("name", "fault"), QUICK)
def test_quick(name: str, fault: str, tmp_path: Path) -> None:
    # Fewer, and operations are not seen any more.
    assert faults(name, fault, tmp_path) >= 7


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault"), SLOW)
def test_every_operation(name: str, fault: str, tmp_path: Path) -> None:
    """Hundreds of faults."""
    if name in COMPILERS:
        pytest.importorskip({"compiletvm": "tvm", "compileopenvino": "openvino"}.get(name, "onnxruntime"))
    assert faults(name, fault, tmp_path) >= 5
