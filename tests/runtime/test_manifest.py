"""The engine folder: what is written, that it is the same everywhere, and that a damaged one is refused."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import BundleError, DncError
from dnc.files import writing
from dnc.runtime import manifest as bundles
from dnc.runtime.manifest import Manifest, read_manifest, write_folder
from dnc.runtime.runners import Session
from dnc.runtime.runners.onnx import OnnxRunner
from tests import ROOT
from tests.networks import NETWORKS, TINY
from tests.patience import PATIENCE

Write = Callable[..., Path]


@pytest.fixture
def cfg(write: Write) -> Path:
    path = write("tiny")
    path.with_suffix(".names").write_text("cat\ndog\n")
    return path


@pytest.fixture
def engine(cfg: Path) -> Path:
    """The folder of an engine with all three files."""
    return dnc.compile(cfg, out=cfg.with_name("e"), target="onnx").folder


def sign(folder: Path, fields: dict[str, Any]) -> None:
    """Writes engine.json with the digest that belongs to it."""
    fields["sha256"] = bundles._digest_of(fields)
    (folder / "engine.json").write_text(json.dumps(fields))


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(BundleError) as caught:
        dnc.load(folder)
    for part in parts:
        assert part in str(caught.value)


def test_contents(engine: Path) -> None:
    assert sorted(path.name for path in engine.iterdir()) == ["engine.json", "labels.txt", "model.onnx"]
    assert (engine / "labels.txt").read_bytes() == b"cat\ndog\n"
    assert stat.S_IMODE(engine.stat().st_mode) == 0o755
    fields = json.loads((engine / "engine.json").read_text())
    assert list(fields) == [
        *("schema", "name", "target", "network", "input_shape", "batch", "outputs", "output_shapes", "input_dtype"),
        *(
            "decode",
            "extra_inputs",
            "states",
            "passes",
            "tools",
            "tuning",
            "options",
            "report",
            "runner",
            "remarks",
            "arithmetic",
            "deviation",
            "preprocessing",
            "heads",
            "files",
            "sha256",
        ),
    ]
    assert sorted(fields["files"]) == ["labels.txt", "model.onnx"]
    text = (engine / "engine.json").read_text()
    assert str(engine.parent) not in text


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name: str, write: Write, tmp_path: Path) -> None:
    """What is read is what was written, for every kind of head."""
    engine = dnc.compile(write(name), out=tmp_path / "e", target="onnx")
    read = read_manifest(tmp_path / "e")
    assert read == engine.manifest
    with write_folder(tmp_path / "f") as writer:
        (writer.folder / "model.onnx").write_bytes((tmp_path / "e/model.onnx").read_bytes())
        writer.finish(read)
    assert (tmp_path / "f/engine.json").read_bytes() == (tmp_path / "e/engine.json").read_bytes()


def test_same_bytes_everywhere(tmp_path: Path, write: Write) -> None:
    """Two processes with other hash seeds, working folders and paths write the same bytes."""
    contents = []
    for number, seed in enumerate(("0", "4711")):
        folder = tmp_path / f"place {number}" / ("deeper" * number)
        folder.mkdir(parents=True)
        for name in ("yolo", "crnn", "classifier"):
            source = write(name)
            for suffix in (".cfg", ".weights"):
                (folder / f"{name}{suffix}").write_bytes(source.with_suffix(suffix).read_bytes())
        paths = [folder / "yolo.cfg", Path("crnn.cfg"), folder / "../" / folder.name / "classifier.cfg"]
        code = (
            "import sys, warnings; warnings.simplefilter('ignore'); import dnc\n"
            "for cfg in sys.argv[1:]: dnc.compile(cfg, target='onnx', keep_layers=True)"
        )
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, *map(str, paths)]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        engines = sorted(folder.glob("*.engine"))
        assert [path.name for path in engines] == ["classifier.engine", "crnn.engine", "yolo.engine"]
        contents.append([(path.name, path.read_bytes()) for engine in engines for path in sorted(engine.iterdir())])
    assert contents[0] == contents[1]


def test_another_network_has_another_digest(cfg: Path, write: Write) -> None:
    first = dnc.compile(cfg, out=cfg.with_name("e"), target="onnx").manifest
    second = dnc.compile(write("tiny", seed=1), out=cfg.with_name("f"), target="onnx").manifest
    third = dnc.compile(write("tiny", TINY + "# more\n"), out=cfg.with_name("g"), target="onnx").manifest
    assert len({manifest.network["digest"] for manifest in (first, second, third)}) == 3


def test_bit_flips(engine: Path) -> None:
    """One bit anywhere in any file."""
    generator = random.Random(0)
    for path in sorted(engine.iterdir()):
        data = path.read_bytes()
        places = range(len(data)) if len(data) < 40 else sorted(generator.sample(range(len(data)), 250))
        for place in places:
            damaged = bytearray(data)
            damaged[place] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            try:
                # A blank for a blank of another kind, or ten for 1e1, leaves what engine.json says as it is.
                assert read_manifest(engine) == read_bundle_of(path, data, engine)
                assert path.name == "engine.json"
            except BundleError:
                pass
        path.write_bytes(data)
    read_manifest(engine)


def read_bundle_of(path: Path, data: bytes, folder: Path) -> Manifest:
    """The manifest with `data` in place of what `path` holds now."""
    now = path.read_bytes()
    path.write_bytes(data)
    try:
        return read_manifest(folder)
    finally:
        path.write_bytes(now)


@pytest.mark.parametrize("name", ["engine.json", "model.onnx", "labels.txt"])
def test_missing_truncated_longer(name: str, engine: Path) -> None:
    path = engine / name
    data = path.read_bytes()
    # The last byte of engine.json is the end of its last line, which JSON does not need.
    for cut in (0, 1, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:cut])
        refused(engine, name, "hint: ")
    path.write_bytes(data + b"\n")
    if name != "engine.json":
        refused(engine, f"{name} has {len(data) + 1} bytes, not {len(data)}", "build it again")
    path.unlink()
    refused(engine, "has no engine.json" if name == "engine.json" else f"cannot read {name}: No such file")
    path.mkdir()
    refused(engine, name)


def test_no_engine(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "the folder does not exist", "make one with `dnc compile`")
    refused(tmp_path, "the folder has no engine.json")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "a file that is no package")


NO_MANIFEST = {
    "binary": b"\xff\xfe\x00",
    "text": b"hello",
    "list": b"[]",
    "number": b"1",
    "null": b"null",
    "deep": b"[" * 100_000,
    "long number": b'{"schema": ' + b"9" * 10_000 + b"}",
    "no schema": b"{}",
    "schema is text": b'{"schema": "1"}',
    "schema is true": b'{"schema": true}',
    "schema 0": b'{"schema": 0}',
    "only a schema": b'{"schema": 1}',
    "digest of another kind": b'{"schema": 1, "sha256": []}',
}


@pytest.mark.parametrize("shape", [[1] * 70, [], [1, 2], [1 << 16, 1 << 14, 2], [0]], ids=str)
@pytest.mark.parametrize("key", ["input_shape", "states"])
def test_inputs_that_no_network_has(key: str, shape: list[int], engine: Path) -> None:
    fields = json.loads((engine / "engine.json").read_text())
    sign(engine, {**fields, key: {"h": shape} if key == "states" else shape})
    refused(engine, "no input has the shape", "build the engine again")


@pytest.mark.parametrize("name", NO_MANIFEST)
def test_no_manifest(name: str, engine: Path) -> None:
    (engine / "engine.json").write_bytes(NO_MANIFEST[name])
    refused(engine, "engine.json", "hint: ")


def test_newer(engine: Path) -> None:
    fields = json.loads((engine / "engine.json").read_text())
    sign(engine, {**fields, "schema": 3})
    refused(engine, "the engine has schema 3, this dnc reads up to 2", "update dnc")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "sub/../model.onnx", "a\0b"])
def test_path_escapes(name: str, engine: Path) -> None:
    (engine.parent / "x").write_text("")
    fields = json.loads((engine / "engine.json").read_text())
    fields["files"][name] = {"size": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    sign(engine, fields)
    refused(engine, "cannot read" if "\0" in name else "names a file outside the folder")


WRONG: list[Any] = [None, True, 1, -1, 0, 1.5, float("nan"), "", "x", [], ["x"], [1], [[]], {}, {"x": 1}, [{}], 10**30]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


OTHERS = ("attention", "yolo2", "yolo1", "classifier", "crnn")


@pytest.mark.parametrize("name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_wrong_types(name: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value of engine.json becomes something else, with a right digest: refused, or an engine that runs."""
    opened: dict[tuple[object, ...], Session] = {}
    really = OnnxRunner.open

    def once(runner: OnnxRunner, folder: Path, threads: int | None = None) -> Session:
        # The model is always the same one.
        key = (*sorted(runner.options.items()), threads)
        if key not in opened:
            opened[key] = really(runner, folder, threads)
        return opened[key]

    monkeypatch.setattr(OnnxRunner, "open", once)
    folder = dnc.compile(write(name), out=tmp_path / "e", target="onnx").folder
    fields = json.loads((folder / "engine.json").read_text())
    generator = random.Random(0)
    for place in _places(fields):
        if not place or place[0] in ("sha256", "schema", "tools") or place[0] == "network":
            continue
        for wrong in generator.sample(WRONG, 1 if name == "tiny" else 5):
            changed = copy.deepcopy(fields)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = wrong
            sign(folder, changed)
            with suppress(DncError), np.errstate(all="ignore"):
                read_manifest(folder)
                # It has numbers of another kind, empty lists of what may be empty, or another text.
                engine = dnc.load(folder)
                engine.forward(np.ones(engine.manifest.input_shape))
                engine(np.ones((9, 7, 3), np.uint8), confidence=0.01)
    for key in fields:
        changed = {**fields}
        del changed[key]
        # Engines of before there were any lack these.
        if key not in ("sha256", "tuning", "options", "report", "remarks", "runner", "arithmetic", "deviation"):
            sign(folder, changed)
            refused(folder, "hint: ")
    sign(folder, {**fields, "more": 1})
    refused(folder, "hint: ")


def test_old_engine_is_replaced(cfg: Path, engine: Path) -> None:
    before = (engine / "model.onnx").read_bytes()
    dnc.compile(cfg, out=engine, target="onnx", skip=["fold-batchnorm"])
    assert (engine / "model.onnx").read_bytes() != before
    assert sorted(path.name for path in cfg.parent.iterdir()) == ["e", "tiny.cfg", "tiny.names", "tiny.weights"]


def test_damaged_engine_is_replaced(cfg: Path, engine: Path) -> None:
    (engine / "engine.json").write_bytes(b"\0")
    dnc.compile(cfg, target="onnx", out=engine)
    read_manifest(engine)


def test_strangers_are_left_alone(cfg: Path, engine: Path) -> None:
    """An engine's folder with something else in it is not replaced: that would delete it."""
    (engine / "notes.txt").write_text("mine")
    for manifest in (None, b"\0"):
        if manifest is not None:
            (engine / "engine.json").write_bytes(manifest)
        with pytest.raises(BundleError, match=r"stands in the way: notes\.txt"):
            dnc.compile(cfg, target="onnx", out=engine)
    assert (engine / "notes.txt").read_text() == "mine"


def test_empty_folder_and_link(cfg: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    dnc.compile(cfg, target="onnx", out=tmp_path / "empty")
    (tmp_path / "link").symlink_to("real")
    dnc.compile(cfg, target="onnx", out=tmp_path / "link")
    dnc.compile(cfg, target="onnx", out=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert dnc.load(tmp_path / "real").manifest == dnc.load(tmp_path / "link").manifest
    names = {"empty", "link", "real", "tiny.cfg", "tiny.weights", "tiny.names"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_failed_replacement_brings_the_old_one_back(cfg: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in engine.iterdir()}

    def broken(one: Path, other: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dnc.files.writing._exchange", broken)
    with pytest.raises(BundleError, match="No space left"):
        dnc.compile(cfg, target="onnx", out=engine, skip=["fold-batchnorm"])
    assert {path.name: path.read_bytes() for path in engine.iterdir()} == before
    assert sorted(path.name for path in cfg.parent.iterdir()) == ["e", "tiny.cfg", "tiny.names", "tiny.weights"]


def test_two_at_once(cfg: Path, engine: Path) -> None:
    """Processes that write the same engine: whoever comes last wins, nobody fails, nothing is left behind."""
    code = (
        "import sys\nfrom dnc.runtime.manifest import read_manifest, write_folder\n"
        "manifest = read_manifest(sys.argv[1])\n"
        "for _ in range(40):\n  with write_folder(sys.argv[2]) as writer:\n"
        "    (writer.folder / 'model.onnx').write_text(sys.argv[3])\n    writer.finish(manifest)"
    )
    out = cfg.with_name("f")
    commands = [[sys.executable, "-c", code, str(engine), str(out), str(number)] for number in range(4)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, stderr
    assert (out / "model.onnx").read_text() in "0123"
    read_manifest(out)
    names = {"e", "f", "tiny.cfg", "tiny.names", "tiny.weights"}
    assert {path.name for path in cfg.parent.iterdir()} == names


WRITING = """
import shutil, sys
from pathlib import Path
from dnc.files import writing
from dnc.runtime.manifest import write_folder, read_manifest
if sys.argv[4] == "aside":
    def broken(one, other): raise OSError(38, "no renameat2")
    writing._exchange = broken
sources = [Path(name) for name in sys.argv[1:3]]
print("begins", flush=True)
for number in range(int(sys.argv[5])):
    source = sources[number % 2]
    with write_folder(sys.argv[3]) as writer:
        shutil.copyfile(source / "model.onnx", writer.folder / "model.onnx")
        writer.finish(read_manifest(source))
"""
"""Writes two engines into one place in turn."""


@contextmanager
def written_in_a_loop(write: Write, folder: Path, way: str, times: int) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process that writes two engines into one place in turn, and the place."""
    sources = [dnc.compile(write("tiny", seed=seed), out=folder / str(seed), target="onnx").folder for seed in (0, 1)]
    place = shutil.copytree(sources[0], folder / "place")
    command = [sys.executable, "-c", WRITING, *map(str, (*sources, place, way, times))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        yield place, process
        assert process.wait() == 0


@pytest.mark.parametrize("way", ["exchange", "aside"])
def test_readers_see_one_engine_or_the_other(way: str, write: Write, tmp_path: Path) -> None:
    """However often it is replaced meanwhile, nothing is damaged or missing."""
    seen = set()
    with written_in_a_loop(write, tmp_path, way, 100) as (place, process):
        while process.poll() is None:
            seen.add(read_manifest(place).network["digest"])
    assert len(seen) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_killed_between_two_renames(number: int, engine: Path, cfg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no renameat2, the next reader or writer puts back what stepped aside."""
    before = {path.name: path.read_bytes() for path in engine.iterdir()}
    aside = engine.parent / ".e.0123abcd.dnc-part" / "old" / "e"
    aside.parent.mkdir(parents=True)
    engine.rename(aside)
    if number == 0:
        assert dnc.load(engine).forward(np.zeros((3, 16, 16)))[0].shape == (14, 8, 8)
    else:
        (aside / "notes.txt").write_text("mine")
        with pytest.raises(BundleError, match=r"stands in the way: notes\.txt"):
            dnc.compile(cfg, target="onnx", out=engine)
        (engine / "notes.txt").unlink()
    assert {path.name: path.read_bytes() for path in engine.iterdir()} == before
    assert sorted(path.name for path in cfg.parent.iterdir()) == ["e", "tiny.cfg", "tiny.names", "tiny.weights"]


def test_what_lives_is_waited_for(engine: Path) -> None:
    """A reader does not put back what another process is about to replace."""
    own, lock = writing._make(engine.parent, ".e")
    (own / "old").mkdir()
    engine.rename(own / "old" / "e")
    with pytest.raises(BundleError, match="replaced again and again"):
        read_manifest(engine)
    assert (own / "old" / "e").exists()
    assert lock is not None
    os.close(lock)
    read_manifest(engine)


def test_names_that_are_no_utf_8(cfg: Path, tmp_path: Path) -> None:
    """File systems take any bytes; JSON and ONNX do not."""
    name = os.fsdecode(b"gar\xe7on")
    odd = tmp_path / f"{name}.cfg"
    odd.write_bytes(cfg.read_bytes())
    odd.with_suffix(".weights").write_bytes(cfg.with_suffix(".weights").read_bytes())
    engine = dnc.compile(odd, out=tmp_path / "e", target="onnx")
    assert read_manifest(tmp_path / "e").name == name
    assert engine.forward(np.zeros((3, 16, 16)))[0].shape == (14, 8, 8)


def test_labels_with_odd_characters(cfg: Path, tmp_path: Path) -> None:
    names = tmp_path / "odd.names"
    names.write_bytes("猫\nchien\u2009d\u2019eau\n".encode())
    assert dnc.compile(cfg, target="onnx", out=tmp_path / "e", labels=names).labels == ("猫", "chien\u2009d\u2019eau")


def test_what_could_not_be_read_is_not_written(engine: Path, tmp_path: Path) -> None:
    """A manifest that `read_manifest` would refuse is a bug, and leaves nothing."""
    from dataclasses import replace

    manifest = replace(read_manifest(engine), decode="nowhere")
    with pytest.raises(ValueError, match="decode nowhere"), write_folder(tmp_path / "f") as writer:
        writer.finish(manifest)
    assert not (tmp_path / "f").exists()


def test_loading_is_quiet(engine: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dnc.load(engine).forward(np.zeros((3, 16, 16)))[0].shape == (14, 8, 8)
