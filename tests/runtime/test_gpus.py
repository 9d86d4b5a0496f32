"""What nvidia-smi says, and what stands for a generation."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dnc.runtime.gpus import Gpu, arch, gpus


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
