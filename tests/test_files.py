"""A file is whole or not there, and what stood in its place stays until it is."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

import dnc
from dnc.darknet.network import Network
from dnc.darknet.weights import read_weights
from dnc.errors import DncError
from dnc.files import writing
from dnc.files.places import prune, temporary_dir
from dnc.files.reading import check_foreign, open_regular, read_bounded
from dnc.files.writing import check_places, scratch_folder, sweep, whole_file, whole_folder
from dnc.runtime.package import package


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(place: Path, error: type[BaseException]) -> None:
    with whole_file(place) as file:
        file.write(b"half")
        raise error


def test_appears_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.write_bytes(b"old")
    with whole_file(place) as file:
        file.write(b"new")
        assert place.read_bytes() == b"old"
    assert place.read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    for place in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(error):
            write_half(place, error)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_full_disk_is_an_error_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(DncError) as caught, whole_file(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert caught.value.message == "cannot write the file: No space left on device"
    assert caught.value.where == str(tmp_path / "a")
    assert names(tmp_path) == []


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", Path(os.devnull)):
        with pytest.raises(DncError, match="no file stands in the way"), whole_file(place):
            pass
    with pytest.raises(DncError, match="cannot write the file"), whole_file(tmp_path / "none" / "a"):
        pass
    assert names(tmp_path) == ["folder"]


def test_files_of_an_engine_stay(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"files": {"model.onnx": {}}}')
    for name in ("model.onnx", "beside"):
        (tmp_path / name).write_bytes(b"old")
    for name in ("engine.json", "model.onnx"):
        with pytest.raises(DncError, match="a file of an engine stands in the way"), whole_file(tmp_path / name):
            pass
    with whole_file(tmp_path / "beside") as file:
        file.write(b"new")
    (tmp_path / "engine.json").write_text("[]")
    with whole_file(tmp_path / "engine.json") as file:
        file.write(b"any program's")


def test_a_place_is_checked_before_it_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("a")
    check_places([tmp_path / "a", tmp_path / "b"])
    for wrong in (tmp_path / "folder", tmp_path / "none" / "a", tmp_path / "a" / "b", tmp_path / "link"):
        with pytest.raises(DncError):
            check_places([tmp_path / "a", wrong])
    assert names(tmp_path) == ["a", "folder", "link"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    with whole_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_bytes() == b"new"


def test_the_longest_unused_folders_go(tmp_path: Path) -> None:
    for used, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(bytes(100))
        os.utime(tmp_path / name, (used, used))
    prune(tmp_path, 400, [])
    assert names(tmp_path) == ["a", "b", "c", "d"]
    prune(tmp_path, 250, [tmp_path / "a"])
    assert names(tmp_path) == ["a", "d"]


def test_reads_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1024)
    assert read_bounded(tmp_path / "a", 1024) == b"x" * 1024
    with pytest.raises(OSError, match="more than 0 KiB"):
        read_bounded(tmp_path / "a", 1023)
    with pytest.raises(OSError, match="more than 0 KiB"):
        read_bounded("/proc/self/maps", 20)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than 1 MiB"):
        read_bounded(tmp_path / "sparse", 1 << 20)


@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "folder", "no\0name", "missing"])
def test_never_waits_for_what_is_no_file(what: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"pipe or a device|directory|null|No such file"):
        open_regular(tmp_path / what)


def test_leftovers_of_the_dead_go(tmp_path: Path) -> None:
    """What a process made that lives, what has another name and what belongs to others stays."""
    dead = tmp_path / ".a.0123abcd.dnc-part"
    (dead / "new").mkdir(parents=True)
    # Killed before it had its lock.
    (tmp_path / ".b.0123abcd.dnc-part").mkdir()
    strangers = {".a.part", ".a.0123abcd.part", "a.0123abcd.dnc-part.txt"}
    for name in strangers:
        (tmp_path / name).mkdir()
    own, lock = writing._make(tmp_path, ".c")
    with whole_file(tmp_path / "d") as file:
        file.write(b"new")
    assert set(names(tmp_path)) == {*strangers, own.name, "d"}
    assert lock is not None
    os.close(lock)
    writing._swept.clear()
    sweep(tmp_path)
    assert set(names(tmp_path)) == {*strangers, "d"}


def test_a_link_is_no_leftover(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / ".a.0123abcd.dnc-part").symlink_to("mine")
    (tmp_path / ".b.0123abcd.dnc-part").mkdir()
    (tmp_path / ".b.0123abcd.dnc-part" / "lock").symlink_to(tmp_path / "mine" / "more")
    sweep(tmp_path)
    assert names(tmp_path / "mine") == ["file"]


def test_whoever_was_taken_for_dead_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process looks between the making of a folder and its lock."""
    really, tries = writing._take, []

    def late(own: Path) -> int:
        tries.append(own)
        if len(tries) < 3:
            if len(tries) == 1:
                # It had the lock and was faster.
                os.close(really(own))
            shutil.rmtree(own)
        return really(own)

    monkeypatch.setattr(writing, "_take", late)
    with whole_file(tmp_path / "a") as file:
        file.write(b"new")
    assert len(set(tries)) == 3
    assert names(tmp_path) == ["a"]


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of others is removed where nobody knows whether they live."""
    (tmp_path / ".a.0123abcd.dnc-part").mkdir()

    def refused(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("dnc.files.writing.fcntl.flock", refused)
    with whole_folder(tmp_path / "b") as folder:
        (folder / "c").touch()
    assert names(tmp_path) == [".a.0123abcd.dnc-part", "b"]


def test_a_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder("some") as folder:
        assert names(folder) == []
        assert names(tmp_path)[0].startswith("dnc-some.")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(DncError, match="TMPDIR names another one"), scratch_folder("some"):
        pass
    assert names(tmp_path) == []


def test_a_temporary_file_that_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error, whatever writes it: opening tells the file, writing does not. What else fails is not hidden."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DncError, match=r"file: No space left(.|\n)*TMPDIR"), scratch_folder("some"):
        raise full
    with pytest.raises(DncError, match="cannot write a temporary file: No such file"), scratch_folder("some") as folder:
        (folder / "none" / "file").write_bytes(b"x")
    with pytest.raises(DncError, match=r"temporary file: No space left(.|\n)*TMPDIR"), scratch_folder("some") as folder:
        raise DncError("cannot write the engine", folder / "a.engine", "is the disk full?") from full
    with pytest.raises(DncError, match="cannot write it"), scratch_folder("some"):
        raise DncError("cannot write it", tmp_path / "a.engine") from full
    for other in (OSError(errno.ENOSPC, "No space left on device", "stdout"), OSError(errno.EPIPE, "Broken pipe")):
        with pytest.raises(OSError, match=other.strerror), scratch_folder("some"):
            raise other
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="bytes of POSIX")
def test_a_folder_for_temporary_files_that_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries write there."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    with scratch_folder("some") as folder:
        str(folder).encode()
        assert folder.parent.resolve().parent == place
    assert names(place) == []


def test_the_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `tempfile` chooses it, but nothing is written to try it, which a kill would leave there."""
    (tmp_path / "a").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setenv("TEMP", str(tmp_path / "a"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: pytest.fail("it writes"))
    assert temporary_dir() == tmp_path / "a"


def test_a_long_name(tmp_path: Path) -> None:
    place = tmp_path / ("é" * 127)
    for _ in range(2):
        with whole_file(place) as file:
            file.write(b"new")
    assert names(tmp_path) == [place.name]


@pytest.mark.parametrize("name", ["a.onnx", "a.pt", "a.tflite", "a.engine", "a.PLAN"])
def test_files_of_other_tools(name: str, tmp_path: Path) -> None:
    """What dnc reads is said, whichever file is given in place of a cfg, weights or an engine."""
    path = tmp_path / name
    check_foreign(path, DncError)
    path.write_bytes(b"x")
    for read in (dnc.load, Network.load, package, partial(read_weights, layers=())):
        with pytest.raises(DncError, match=r"which dnc does not read\n(.|\n)*Darknet's .cfg and .weights") as caught:
            read(path)
        assert ("dnc import" in caught.value.hint) == (path.suffix in (".onnx", ".pt"))
