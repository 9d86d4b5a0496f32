"""Engines from memory: what the folder gives, without a file where the library can, and nothing left when closed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import DncError, TargetError
from dnc.runtime.manifest import read_manifest, write_folder
from dnc.runtime.package import package
from dnc.runtime.runners.openvino import _tensor_of
from tests.manifests import manifest
from tests.patience import PATIENCE

Write = Callable[..., Path]
X = np.linspace(0, 1, 3 * 16 * 16, dtype=np.float32).reshape(3, 16, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["onnx", "openvino"])
def engine(request: pytest.FixtureRequest, write: Write, tmp_path: Path) -> dnc.Engine:
    """With labels, and for batches of any size."""
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[request.param], exc_type=ImportError)
    return compiled(write, tmp_path, request.param)


def compiled(write: Write, folder: Path, target: str) -> dnc.Engine:
    cfg = write("tiny")
    cfg.with_suffix(".names").write_text("cat\ndog\n")
    return dnc.compile(cfg, out=folder / "tiny.engine", target=target, verify=False)


def packed(engine: dnc.Engine) -> bytes:
    return package(engine.folder, engine.folder.with_suffix(".dnc")).read_bytes()


def same(engine: dnc.Engine, other: dnc.Engine) -> None:
    """The same bits, of one image and of a batch."""
    for x in (X, np.stack([X, X[::-1], 1 - X])):
        assert np.array_equal(engine.forward(x)[0], other.forward(x)[0])


def test_from_memory(engine: dnc.Engine, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each form of bytes, and nothing is written."""

    def kept(_: Path) -> None:
        raise AssertionError("OpenVINO's cache was asked for")

    data = packed(engine)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr("dnc.runtime.runners.openvino._cache", kept)
    forms: list[Any] = [data, bytearray(data), memoryview(data), memoryview(bytearray(data))]
    for form in forms:
        loaded = dnc.load(form)
        assert loaded.labels == ("cat", "dog")
        assert "the package in memory" in repr(loaded)
        if isinstance(form, bytearray):
            # What somebody does with it afterwards is his affair.
            form[:] = bytes(len(form))
            form.clear()
        with loaded.turn().opening():
            loaded.forward(X)
    monkeypatch.undo()
    same(engine, dnc.load(data))
    assert not cache.exists()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_weights_are_read_where_they_lie() -> None:
    pytest.importorskip("openvino", exc_type=ImportError)
    data = b"x" + bytes(range(200))
    tensor = _tensor_of(memoryview(data)[1:])
    assert tensor.data.ctypes.data == np.frombuffer(data, np.uint8).ctypes.data + 1
    assert bytes(tensor.data) == data[1:]
    assert _tensor_of(memoryview(b"")).byte_size == 0


def test_pickled_it_is_its_bytes(engine: dnc.Engine, tmp_path: Path) -> None:
    """In another process it needs none of the files either."""
    data = packed(engine)
    loaded = dnc.load(data, threads=1)
    again = pickle.loads(pickle.dumps(loaded))
    engine.folder.with_suffix(".dnc").unlink()
    same(engine, again)
    assert again.given == loaded.given


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_opens_it_again(engine: dnc.Engine) -> None:
    """In a process of its own, where nothing else of its library was at work."""
    code = """
import os, signal, sys, dnc, numpy as np
engine, x = dnc.load(sys.stdin.buffer.read()), np.ones((3, 16, 16))
expected = engine.forward(x)[0]
child = os.fork()
if child == 0:
    signal.alarm(600)
    os._exit(0 if np.array_equal(engine.forward(x)[0], expected) else 1)
print(os.waitpid(child, 0)[1], np.array_equal(engine.forward(x)[0], expected))
"""
    run = subprocess.run([sys.executable, "-c", code], input=packed(engine), capture_output=True, timeout=PATIENCE)
    assert run.stdout == b"0 True\n", run.stderr.decode()


def test_its_folder_is_made_when_it_is_asked_for(engine: dnc.Engine, cache: Path) -> None:
    loaded = dnc.load(packed(engine))
    assert loaded.files() == ("engine.json", *sorted({path.name for path in engine.folder.iterdir()} - {"engine.json"}))
    assert loaded.folder.parent == cache / "packages"
    assert read_manifest(loaded.folder) == loaded.manifest
    loaded.folder.rename(cache / "away")
    assert loaded.folder.exists()
    same(engine, loaded)


def test_closed_it_has_let_go(engine: dnc.Engine) -> None:
    data = packed(engine)
    before = sys.getrefcount(data)
    loaded = dnc.load(data)
    loaded.forward(X)
    assert sys.getrefcount(data) > before
    loaded.close()
    loaded.close()
    assert sys.getrefcount(data) == before
    uses: list[Callable[[], object]] = [
        lambda: loaded.forward(X),
        lambda: loaded.folder,
        loaded.files,
        lambda: pickle.dumps(loaded),
    ]
    for use in uses:
        with pytest.raises(DncError, match=r"the engine is closed\n  at the package in memory"):
            use()
    assert loaded.manifest.name == "tiny"


@pytest.mark.slow
def test_machine_code_is_run_where_it_is_trusted(write: Write, tmp_path: Path, cache: Path) -> None:
    """From the cache, where it is unpacked when it is to run."""
    pytest.importorskip("tvm")
    engine = compiled(write, tmp_path, "tvm")
    data = packed(engine)
    loaded = dnc.load(data)
    for use in (lambda: loaded.forward(X), loaded.files):
        with pytest.raises(DncError, match=r"machine code(.|\n)*at the package in memory(.|\n)*trust=True"):
            use()
    assert not cache.exists()
    same(engine, pickle.loads(pickle.dumps(dnc.load(data, trust=True))))
    assert [path.name for path in cache.iterdir()] == ["packages"]


@pytest.mark.parametrize(("target", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_package_without_its_model(target: str, library: str, tmp_path: Path) -> None:
    """Its digests are right."""
    pytest.importorskip(library, exc_type=ImportError)
    with write_folder(tmp_path / "e.engine") as writer:
        writer.finish(manifest(target=target))
    data = package(tmp_path / "e.engine", tmp_path / "e.dnc").read_bytes()
    with pytest.raises(TargetError, match="refuses the model"):
        dnc.load(data).forward(np.zeros((3, 32, 48)))
    with pytest.raises(TargetError, match=r"precision is built into the engine\n  at the package in memory"):
        dnc.load(data, precision="fp16")
