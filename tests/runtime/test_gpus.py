"""What nvidia-smi says, and what stands for a generation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dnc.runtime.gpus import Gpu, arch, gpus
from tests import ROOT


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    gpus.cache_clear()
    yield
    gpus.cache_clear()


@pytest.mark.parametrize(
    ("said", "code", "expected"),
    [
        ("NVIDIA H200, 9.0, 580.1\n", 0, [Gpu("NVIDIA H200", "sm_90", "580.1")]),
        ("A, 7.5, 1\nB, 12.0, 1\n", 0, [Gpu("A", "sm_75", "1"), Gpu("B", "sm_120", "1")]),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver.\n", 9, []),
        ("Orin (nvgpu), [N/A], [N/A]\n", 0, []),
        ("", 0, []),
    ],
)
def test_gpus(said: str, code: int, expected: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said, returncode=code))
    assert list(gpus()) == expected


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_driver_itself(tmp_path: Path) -> None:
    """On a Jetson, whose nvidia-smi does not know its GPU: a library with the driver's name stands for it."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Orin (nvgpu), [N/A], [N/A]'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "driver.c").write_text(
        "#include <string.h>\nint cuInit(int f) { return 0; }\n"
        "int cuDriverGetVersion(int *v) { *v = 12060; return 0; }\nint cuDeviceGetCount(int *n) { *n = 1; return 0; }\n"
        'int cuDeviceGetName(char *n, int s, int d) { strcpy(n, "Orin"); return 0; }\n'
        "int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : 7; return 0; }\n"
    )
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "driver.c")], check=True)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(tmp_path)}
    code = "from dnc.runtime.gpus import gpus; print(*gpus())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "Gpu(name='Orin', arch='sm_87', driver='CUDA 12.6')"


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", absent)
    assert gpus() == ()


def test_arch() -> None:
    assert [arch(text) for text in ("", "sm_75", "sm_120", "sm_90a")] == ["", "sm_75", "sm_120", "sm_90a"]
    for wrong in ("87", "sm87", "sm_8.7", "orin"):
        with pytest.raises(ValueError, match="generation"):
            arch(wrong)
