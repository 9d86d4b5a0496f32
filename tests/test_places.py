"""No home, no place to write to, no folder to stand in, a path that is no text: dnc works all the same."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dnc
from dnc.errors import DncError
from dnc.files.places import as_text, cache_dir, can_be_written
from tests.patience import PATIENCE

Write = Callable[..., Path]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="users and bytes of POSIX")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.delenv("DNC_CACHE", raising=False)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> None:
        raise KeyError("no such user")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)


def test_a_user_without_a_home(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is a folder that nobody else may write to."""
    homeless(monkeypatch)
    place = cache_dir()
    assert place == cache_dir(to_write=True) == temporary / f"dnc-{os.getuid()}"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o777)
    with pytest.raises(DncError, match="could be written to by somebody else"):
        cache_dir()
    place.rmdir()
    place.symlink_to(temporary)
    with pytest.raises(DncError, match="somebody else"):
        cache_dir()
    monkeypatch.setenv("DNC_CACHE", "~/cache")
    assert cache_dir() == Path("~/cache")


def test_a_home_that_cannot_be_written_to(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put there is found; what is made again without a word goes elsewhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == cache_dir(to_write=True) == tmp_path / ".cache" / "dnc"
    monkeypatch.setattr("dnc.files.places.can_be_written", lambda folder: False)
    assert cache_dir() == tmp_path / ".cache" / "dnc"
    assert cache_dir(to_write=True).parent == temporary


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("DNC_CACHE", raising=False)
    homeless(monkeypatch)
    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(DncError, match=r"no place for a cache: No usable(.|\n)*set DNC_CACHE"):
        cache_dir()


def test_can_be_written(tmp_path: Path) -> None:
    assert can_be_written(tmp_path / "a" / "b")
    assert not can_be_written(Path("/proc/1/a"))


@pytest.mark.parametrize(("target", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("tvm", "tvm")])
def test_paths_that_are_no_text(
    target: str, library: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To Unix a path is bytes; libraries take UTF-8 alone."""
    pytest.importorskip(library)
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    cfg = write("tiny")
    for path in (cfg, cfg.with_suffix(".weights")):
        path.rename(folder / path.name)
    with dnc.compile(folder / "tiny.cfg", target=target, out=folder / "e") as engine:
        assert engine.session.device
    assert as_text(tmp_path) == tmp_path
    link = as_text(folder)
    assert (link.parent, link.resolve()) == (tmp_path / "cache" / "links", folder)


def test_a_folder_that_is_gone(write: Write, tmp_path: Path) -> None:
    """A command that is given whole paths works; others say what is not there."""
    cfg = write("tiny")
    gone = tmp_path / "gone"
    code = "import os, sys; from dnc.cli import main; os.rmdir(os.getcwd()); main()"
    for arguments, answer in (
        (("compile", cfg, "-t", "onnx", "-o", tmp_path / "e"), 0),
        (("info", cfg), 0),
        (("package", tmp_path / "e"), 1),
        (("compile", "tiny.cfg"), 1),
    ):
        gone.mkdir()
        command = [sys.executable, "-c", code, *map(str, arguments)]
        result = subprocess.run(command, cwd=gone, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == answer, result.stderr
        assert "Traceback" not in result.stderr
