"""Packages: the same bytes everywhere, opened like a folder, unpacked once; what is damaged or hostile is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import BundleError
from dnc.runtime import manifest as bundles
from dnc.runtime import package as packages
from dnc.runtime.manifest import read_manifest
from dnc.runtime.package import package, unpack
from tests.patience import PATIENCE

Write = Callable[..., Path]
Member = tuple[str | zipfile.ZipInfo, bytes]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packages"


@pytest.fixture
def engine(write: Write, tmp_path: Path) -> Path:
    """The folder of an engine with all three files."""
    cfg = write("tiny")
    cfg.with_suffix(".names").write_text("cat\ndog\n")
    return dnc.compile(cfg, out=tmp_path / "tiny.engine", target="onnx").folder


@pytest.fixture
def file(engine: Path, tmp_path: Path) -> Path:
    return package(engine, tmp_path / "tiny.dnc")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(file: Path) -> list[Member]:
    with zipfile.ZipFile(file) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def write_zip(path: Path, entries: list[Member], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def forward(engine: dnc.Engine) -> np.ndarray:
    return engine.forward(np.full((3, 16, 16), 0.5))[0]


def refused(file: Path, *parts: str) -> None:
    """In one error, in a file and in memory, and nothing of it is anywhere."""
    for attempt in (dnc.load, unpack, load_bytes):
        with pytest.raises(BundleError) as caught:
            attempt(file)
        for part in parts:
            assert part in str(caught.value)


def load_bytes(file: Path) -> dnc.Engine:
    return dnc.load(file.read_bytes() if file.is_file() else b"")


def test_contents(engine: Path, file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["engine.json", "labels.txt", "model.onnx"]
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.external_attr >> 16 for info in archive.infolist()} == {stat.S_IFREG | 0o644}
        assert {name: archive.read(name) for name in archive.namelist()} == contents(engine)


def test_is_the_same_everywhere(engine: Path, file: Path, tmp_path: Path) -> None:
    """Whatever the times, the modes, and what else lies in the folder."""
    for path in engine.iterdir():
        os.utime(path, (0, 0))
        path.chmod(0o600)
    (engine / "notes.txt").write_text("no part of it")
    assert package(engine, tmp_path / "again.dnc").read_bytes() == file.read_bytes()
    # Pinned, so that no change of dnc, Python or zlib changes it unseen.
    assert hashlib.sha256(write_pinned(tmp_path).read_bytes()).hexdigest() == PINNED


PINNED = "6002dadb988708bedc21c8feac80c67b0344948b40b2745bc081d8144dcc80e7"


def write_pinned(tmp_path: Path) -> Path:
    """A package whose members no library wrote."""
    folder = tmp_path / "pinned.engine"
    folder.mkdir()
    (folder / "labels.txt").write_bytes(b"cat\n")
    (folder / "model.onnx").write_bytes(bytes(range(256)))
    listed = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    }
    fields: dict[str, Any] = {
        "schema": 1,
        "name": "pinned",
        "target": "onnx",
        "network": {},
        "input_shape": [2],
        "batch": "N",
        "outputs": ["out"],
        "output_shapes": [[2]],
        "preprocessing": None,
        "input_dtype": "float32",
        "decode": "host",
        "heads": [],
        "extra_inputs": [],
        "states": {},
        "passes": [],
        "tools": {},
        "files": listed,
    }
    fields["sha256"] = bundles._digest_of(fields)
    (folder / "engine.json").write_text(json.dumps(fields))
    return package(folder, tmp_path / "pinned.dnc")


def test_is_opened_like_the_folder(engine: Path, file: Path, cache: Path) -> None:
    loaded = dnc.load(file)
    assert np.array_equal(forward(loaded), forward(dnc.load(engine)))
    assert loaded.labels == ("cat", "dog")
    assert loaded.folder.parent == cache
    assert contents(loaded.folder) == contents(engine)
    assert [path.name for path in cache.iterdir()] == [read_digest(engine)]


def read_digest(engine: Path) -> str:
    digest: str = json.loads((engine / "engine.json").read_text())["sha256"]
    return digest


def test_is_unpacked_once(file: Path, cache: Path) -> None:
    model = dnc.load(file).folder / "model.onnx"
    before = model.stat().st_ino
    assert dnc.load(file).folder / "model.onnx" == model
    assert model.stat().st_ino == before


@pytest.mark.parametrize("damage", ["changed", "gone", "no manifest", "a file"])
def test_what_is_unpacked_is_mended(damage: str, file: Path, engine: Path, cache: Path) -> None:
    place = dnc.load(file).folder
    if damage == "changed":
        (place / "model.onnx").write_bytes(b"nonsense")
    elif damage == "gone":
        (place / "model.onnx").unlink()
    elif damage == "no manifest":
        (place / "engine.json").unlink()
    else:
        place.rename(place.with_name("elsewhere"))
        place.write_text("a file")
    assert contents(dnc.load(file).folder) == contents(engine)


def test_an_engine_that_is_opened_late_is_unpacked_again(file: Path, cache: Path) -> None:
    loaded = dnc.load(file)
    loaded.folder.rename(cache / "away")
    assert forward(loaded).shape == (14, 8, 8)


def test_pickled_it_is_its_package(file: Path) -> None:
    data = pickle.dumps(dnc.load(file))
    assert b"tiny.dnc" in data
    assert forward(pickle.loads(data)).shape == (14, 8, 8)


def test_processes_unpack_at_once(file: Path, cache: Path) -> None:
    code = "import sys, dnc, numpy as np; dnc.load(sys.argv[1]).forward(np.zeros((3, 16, 16)))"
    command = [sys.executable, "-c", code, str(file)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, stderr
    assert len(list(cache.iterdir())) == 1


def test_the_cache_is_pruned(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used within a day stays among the last 16, and what was not used within 30 days goes."""
    cache.mkdir(parents=True)
    now, day = time.time(), 24 * 3600
    ages = {f"old{n}": (2.0 + n) * day for n in range(20)} | {"ancient": 40.0 * day, ".killed.part": 2.0 * day}
    ages |= {f"new{n}": 60.0 for n in range(5)} | {".now.part": 60.0}
    for name, age in ages.items():
        (cache / name).mkdir()
        (cache / name / "model.onnx").write_text(name)
        os.utime(cache / name, (now - age, now - age))
    own = dnc.load(file).folder.name
    left = {path.name for path in cache.iterdir()}
    # The newest 16 hold this engine, five new ones, what is being unpacked, what a killed process left, which goes, and
    # eight old ones.
    assert left == {own, ".now.part", *(f"new{n}" for n in range(5)), *(f"old{n}" for n in range(8))}


def test_opening_counts_as_use(file: Path) -> None:
    place = dnc.load(file).folder
    os.utime(place, (0, 0))
    dnc.load(file)
    assert time.time() - place.stat().st_mtime < 60


def test_a_cache_that_cannot_be_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "taken"))
    with pytest.raises(BundleError, match=r"cannot unpack the package: Not a directory(.|\n)*DNC_CACHE"):
        dnc.load(file)


def test_unpack(file: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert contents(unpack(file, tmp_path / "there")) == contents(engine)
    monkeypatch.chdir(tmp_path / "there")
    assert unpack(file) == Path("tiny.engine")
    assert package("tiny.engine") == Path("tiny.dnc")
    assert Path("tiny.dnc").read_bytes() == file.read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(BundleError, match="something that is no engine stands in the way"):
        unpack(file, tmp_path / "mine")


def test_a_damaged_engine_is_not_packed(engine: Path, tmp_path: Path) -> None:
    (engine / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(BundleError, match=r"model.onnx has 8 bytes"):
        package(engine, tmp_path / "new.dnc")
    assert not (tmp_path / "new.dnc").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_other_tools_pack(method: int, engine: Path, file: Path, tmp_path: Path) -> None:
    """Deflated, in another order, with times, and without the kind of each file."""
    entries: list[Member] = []
    for name, content in reversed(members(file)):
        info = zipfile.ZipInfo(str(name), (2020, 2, 2, 2, 2, 2))
        info.external_attr, info.compress_type = 0o600 << 16, method
        entries.append((info, content))
    other = write_zip(tmp_path / "other.dnc", entries)
    assert contents(dnc.load(other).folder) == contents(engine)
    assert np.array_equal(forward(load_bytes(other)), forward(dnc.load(engine)))


def test_members_lie_where_vectors_are_read(file: Path) -> None:
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        places = [data.index(archive.read(name)) for name in archive.namelist()]
    assert [place % 64 for place in places] == [0, 0, 0]


# What is refused.


def resigned(file: Path, change: Callable[[dict[str, Any]], None], *more: Member) -> list[Member]:
    """The members, with another engine.json whose digest is right."""
    entries = dict(members(file))
    fields = json.loads(entries.pop("engine.json"))
    change(fields)
    fields["sha256"] = bundles._digest_of(fields)
    return [("engine.json", json.dumps(fields).encode()), *entries.items(), *more]


def test_a_newer_package(file: Path) -> None:
    def newer(fields: dict[str, Any]) -> None:
        fields["schema"] = 7

    write_zip(file, resigned(file, newer))
    refused(file, "the engine has schema 7, this dnc reads up to 2", "update dnc")


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/b", "..\\evil", "C:evil", "..", ".", "a\\b", "engine.json"]
)
def test_path_escapes(name: str, file: Path, tmp_path: Path) -> None:
    """Listed and there, or there only."""
    content = b"evil"

    def listed(fields: dict[str, Any]) -> None:
        fields["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    plain = members(file)
    write_zip(file, resigned(file, listed, *([(name, content)] if name != "engine.json" else [])))
    refused(file, "names a file outside the folder")
    with pytest.warns(UserWarning, match="Duplicate") if name == "engine.json" else _nothing():
        write_zip(file, [*plain, (name, content)])
    refused(file, "this is no package of dnc's")
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_members_that_are_not_listed_missing_or_twice(file: Path) -> None:
    good = members(file)
    write_zip(file, [*good, ("more.bin", b"")])
    refused(file, "more.bin is not listed in engine.json")
    write_zip(file, good[:-1])
    refused(file, "model.onnx is missing")
    write_zip(file, good[1:])
    refused(file, "it has no engine.json")
    with pytest.warns(UserWarning, match="Duplicate"):
        write_zip(file, [*good, good[-1]])
    refused(file, "model.onnx is there twice")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices(kind: int, file: Path) -> None:
    entries = members(file)
    info = zipfile.ZipInfo("model.onnx")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    write_zip(file, [*entries[:-1], (info, b"/etc/passwd")])
    refused(file, "model.onnx is a folder, a link or a device")


def test_a_name_that_ends_early(file: Path, engine: Path) -> None:
    """zipfile reads names up to a zero byte."""
    data = file.read_bytes().replace(b"labels.txt", b"labels\0txt", 2)
    file.write_bytes(data)
    refused(file)


def test_sizes_that_are_not_listed(file: Path) -> None:
    good = members(file)
    write_zip(file, [*good[:-1], ("model.onnx", good[-1][1] + b"more")])
    refused(file, "model.onnx has")


def test_contents_that_have_changed(file: Path) -> None:
    """With the archive's own checksum right; and with an intact copy in the cache."""
    dnc.load(file)
    good = members(file)
    changed = bytes([good[-1][1][0] ^ 1]) + good[-1][1][1:]
    write_zip(file, [*good[:-1], ("model.onnx", changed)])
    refused(file, "the contents of model.onnx have changed")


def test_a_bomb(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that is packed to almost nothing, and a package that is too large, before a byte of it is written."""
    content = bytes(50_000_000)

    def listed(fields: dict[str, Any]) -> None:
        fields["files"]["zeros"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    entries = resigned(file, listed, ("zeros", content))
    write_zip(file, entries, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 100_000
    refused(file, "zeros is packed to less than a 200th")
    write_zip(file, entries)
    monkeypatch.setattr(packages, "LIMIT", 40_000_000)
    refused(file)
    monkeypatch.setattr(packages, "LIMIT", 49_000_000)
    refused(file, "it holds more than")
    assert not list((tmp_path / "cache").rglob("zeros"))


def test_a_size_that_is_a_lie(file: Path) -> None:
    """The directory says less than the member unpacks to: no more is read."""
    good = members(file)
    write_zip(file, [*good[:-1], ("model.onnx", good[-1][1] + bytes(10_000_000))], zipfile.ZIP_DEFLATED)
    data = bytearray(file.read_bytes())
    right, wrong = len(good[-1][1]), len(good[-1][1]) + 10_000_000
    assert data.count(struct.pack("<I", wrong)) == 2
    file.write_bytes(data.replace(struct.pack("<I", wrong), struct.pack("<I", right)))
    refused(file)


def test_a_directory_that_is_too_long(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        for number in range(75):
            archive.writestr(f"{number:060000d}", b"")
    refused(file, "too large to be an engine")


def test_an_encrypted_or_otherwise_packed_member(file: Path) -> None:
    data = file.read_bytes()
    at = data.rfind(b"PK\1\2")
    file.write_bytes(data[: at + 8] + bytes([data[at + 8] | 1]) + data[at + 9 :])
    refused(file, "encrypted")
    file.write_bytes(data)
    write_zip(file, members(file), zipfile.ZIP_LZMA)
    refused(file, "packed by another method than deflate")


def test_what_is_no_package(tmp_path: Path, file: Path) -> None:
    for content in (b"", b"text", b"PK\5\6", b"\x89PNG", bytes(100_000)):
        (tmp_path / "x").write_bytes(content)
        refused(tmp_path / "x", "not an engine: a file that is no package")
    write_zip(tmp_path / "x", [("a.txt", b"hello")])
    refused(tmp_path / "x", "it has no engine.json")
    refused(tmp_path / "absent.dnc")
    with pytest.raises(BundleError, match="does not exist"):
        dnc.load(tmp_path / "absent.dnc")
    (tmp_path / "x").write_bytes(file.read_bytes()[:-30])
    refused(tmp_path / "x", "the package is cut off")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX's")
def test_pipes_are_not_waited_for(tmp_path: Path, engine: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="neither a folder nor a file"):
        dnc.load(tmp_path / "pipe")
    (engine / "model.onnx").unlink()
    os.mkfifo(engine / "model.onnx")
    with pytest.raises(BundleError, match=r"cannot read model.onnx: it is a pipe or a device"):
        read_manifest(engine)
    (engine / "engine.json").unlink()
    os.mkfifo(engine / "engine.json")
    with pytest.raises(BundleError, match=r"cannot read engine.json: it is a pipe or a device"):
        read_manifest(engine)


def test_a_huge_manifest(engine: Path, file: Path) -> None:
    """Neither read into memory nor parsed."""
    huge = b" " * (bundles.MANIFEST_LIMIT + 1)
    (engine / "engine.json").write_bytes(huge)
    with pytest.raises(BundleError, match=r"engine.json is longer than 16 MiB"):
        read_manifest(engine)
    write_zip(file, [("engine.json", huge), *members(file)[1:]])
    refused(file, "it holds more than")


def mutate(data: bytes, kind: int, at: int, end: int, generator: random.Random) -> bytes:
    before, after = data[:at], data[end:]
    return [
        before + bytes([data[at] ^ (1 << generator.randrange(8))]) + data[at + 1 :],
        before + generator.randbytes(end - at) + after,
        before,
        data[at:],
        before + after,
        data[:end] + data[at:],
        before + bytes(end - at) + after,
        before + b"\xff" * (end - at) + after,
    ][kind]


@pytest.mark.parametrize("warm", [False, True])
def test_mutations(warm: bool, file: Path, tmp_path: Path, engine: Path) -> None:
    """Bytes changed, cut, doubled, moved: refused, or the same engine (a time or a flag that nobody reads)."""
    expected = contents(engine)
    data = file.read_bytes()
    generator = random.Random(0)
    directory = data.index(b"PK\1\2")
    outcomes = []
    if warm:
        dnc.load(file)
    for number in range(400):
        at = generator.choice([generator.randrange(len(data)), generator.randrange(directory, len(data))])
        end = min(len(data), at + generator.choice([1, 2, 4, 8, 100]))
        mutated = mutate(data, number % 8, at, end, generator)
        path = tmp_path / "mutated.dnc"
        path.write_bytes(mutated)
        try:
            loaded = dnc.load(path)
        except BundleError:
            outcomes.append("refused")
        else:
            outcomes.append("opened")
            assert contents(loaded.folder) == expected
    # Of what was refused nothing is left, and most is.
    assert outcomes.count("refused") > 300
    assert len(list((tmp_path / "cache" / "packages").iterdir())) == 1


def test_a_package_is_not_packaged_again(file: Path, command: Callable[..., Any]) -> None:
    before = file.read_bytes()
    with pytest.raises(BundleError, match="a package already"):
        package(file)
    assert file.read_bytes() == before
    code, _, err = command("compile", file)
    assert code == 1
    assert "an engine, compiled already" in err


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    for use in (package, dnc.load):
        with pytest.raises(BundleError, match="the file does not exist") as caught:
            use(tmp_path / "x.dnc")
        assert "dnc package" in caught.value.hint
