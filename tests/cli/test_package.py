"""`dnc package`"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_there_and_back(command: Command, engines: Path, photographs: Path, tmp_path: Path) -> None:
    """The other commands take the package; unpacked it is the folder again."""
    engine = engines / "tiny.engine"
    assert command("package", engine) == (0, "tiny.dnc\n", "")
    arguments = photographs / "a.png", "--json", "-c", "0.1"
    assert command("detect", "tiny.dnc", *arguments).out == command("detect", engine, *arguments).out
    assert command("package", "--unpack", "tiny.dnc", "-o", "again.engine") == (0, "again.engine\n", "")
    for path in engine.iterdir():
        assert (tmp_path / "again.engine" / path.name).read_bytes() == path.read_bytes()


def test_as_part_of_a_program(command: Command, engines: Path, tmp_path: Path) -> None:
    assert command("package", engines / "tiny.engine", "--as-c") == (0, "tiny.c\ntiny.h\n", "")
    made = json.loads(command("package", engines / "tiny.engine", "--as-c", "-o", "my-net.c", "--json").out)
    size = made.pop("bytes")
    assert made == {"files": ["my-net.c", "my-net.h"], "symbol": "dnc_my_net"}
    assert json.loads(command("package", engines / "tiny.engine", "--json").out) == {"files": ["tiny.dnc"]}
    assert size == (tmp_path / "tiny.dnc").stat().st_size
    result = command("package", engines / "tiny.engine", "--cc", "gcc")
    assert (result.code, result.err) == (1, "dnc: error: --cc is for --as-object\n  hint: leave it out\n")


def test_errors(command: Command, engines: Path) -> None:
    assert command("package", engines / "tiny.engine", "-o", "a/b.dnc").code == 1
    result = command("package", engines)
    assert (result.code, result.err.count("\n")) == (1, 3)
    assert "not an engine" in result.err
    result = command("package", "--unpack", engines / "tiny.cfg")
    assert (result.code, result.err.count("\n")) == (1, 3)
    assert "a file that is no package" in result.err
