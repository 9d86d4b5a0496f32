"""Names of extensions, in LLVM's words and in Linux's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnc.runtime import processor
from dnc.runtime.processor import architecture, extensions, missing_extensions


def test_architecture() -> None:
    assert [architecture(name) for name in ("x86_64-conda-linux-gnu", "AMD64", "arm64", "aarch64-linux-gnu")] == [
        "x86_64", "x86_64", "aarch64", "aarch64",
    ]  # fmt: skip
    assert architecture()


def test_extensions() -> None:
    """Only what can be checked, and only that architecture's."""
    assert extensions({"fast-bextr", "fma", "avx512vnni", "sse4.2", "neon"}, "x86_64") == [
        "avx512vnni",
        "fma",
        "sse4.2",
    ]
    assert extensions({"neon", "dotprod", "fma"}, "aarch64") == ["dotprod", "neon"]
    assert extensions({"fma"}, "riscv64") == []


@pytest.mark.parametrize(("text", "missing"), [
    ("processor: 0\nflags\t\t: fpu fma sse4_2\n\nprocessor: 1\nflags\t\t: fpu\n", ["avx512vnni"]),
    ("vendor: x\n", []),
    (None, []),
])  # fmt: skip
def test_missing(text: str | None, missing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is missing where nothing is known."""
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(processor, "_CPUINFO", path)
    assert missing_extensions(["avx512vnni", "fma", "sse4.2", "unheard-of"], "x86_64") == missing


def test_missing_on_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nFeatures\t: fp asimd evtstrm aes crc32\n")
    monkeypatch.setattr(processor, "_CPUINFO", path)
    assert missing_extensions(["neon", "fullfp16", "dotprod"], "aarch64") == ["fullfp16", "dotprod"]
