"""dnc toolchain: what is printed. What is installed is tested in tests/test_toolchain.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc.runtime.runners.myriad import toolchain
from dnc.targets.myriad import installing
from tests.conftest import Result

Command = Callable[..., Result]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DNC_CACHE", str(tmp_path))
    return tmp_path


def test_list(command: Command, cache: Path) -> None:
    result = command("toolchain", "list")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0].split() == ["name", "MB", "here", "what", "it", "is"]
    assert result.out.splitlines()[1].split()[:3] == ["myriad", "72", "no"]
    (item,) = json.loads(command("toolchain", "list", "--json").out)
    assert (item["name"], item["installed"], item["folder"]) == ("myriad", False, f"{cache}/toolchains/myriad")
    assert all("==" in wheel for wheel in item["wheels"])


def test_list_damaged(command: Command, cache: Path) -> None:
    (cache / "toolchains" / "myriad").mkdir(parents=True)
    assert "damaged: libopenvino.so in" in command("toolchain", "list").out
    (item,) = json.loads(command("toolchain", "list", "--json").out)
    assert not item["installed"]


def test_install(command: Command, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def install(name: str, *, force: bool, progress: object) -> Path:
        asked.append((name, force))
        return toolchain.folder(name)

    monkeypatch.setattr(installing, "install", install)
    assert command("toolchain", "install", "myriad") == Result(0, f"{cache}/toolchains/myriad\n", "")
    result = command("toolchain", "install", "myriad", "--force", "--json")
    assert json.loads(result.out) == {"name": "myriad", "folder": f"{cache}/toolchains/myriad"}
    assert asked == [("myriad", False), ("myriad", True)]


def test_remove(command: Command, cache: Path) -> None:
    place = cache / "toolchains" / "myriad"
    assert command("toolchain", "remove", "myriad") == Result(0, f"{place} was not there\n", "")
    place.mkdir(parents=True)
    assert command("toolchain", "remove", "myriad") == Result(0, f"removed {place}\n", "")
    assert not place.exists()


def test_unknown(command: Command, cache: Path) -> None:
    result = command("toolchain", "install", "myriat")
    assert (result.code, result.out) == (1, "")
    assert result.err == "dnc: error: unknown toolchain 'myriat'\n  hint: did you mean 'myriad'?\n"
    assert command("toolchain", "remove", "x").code == 1
