"""What the doctor finds: targets that work, that are not installed, and that crash, hang or compute nonsense."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dnc.cli import _doctor as doctor
from dnc.runtime.runners import Session
from dnc.runtime.runners.onnx import OnnxRunner, OnnxSession
from dnc.targets import targets
from tests.conftest import Result
from tests.patience import PATIENCE

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def few(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(doctor, "targets", {name: targets[name] for name in names})


def test_a_target_that_works() -> None:
    state = doctor._state("onnx", PATIENCE)
    assert (state.state, state.device, state.remedy) == ("works", "CPU", ""), state


def test_a_target_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets["onnx"], "missing", lambda _: "onnxruntime")
    state = doctor._state("onnx", PATIENCE)
    assert (state.state, state.reason) == ("missing", "onnxruntime")
    assert 'pip install "darknet-compiler[onnx]"' in state.remedy


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.abort()", "it crashed (SIGABRT)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it crashed (SIGSEGV)"),
        ("raise ImportError('libz.so.9: cannot open')", "it ended with code 1: ImportError: libz.so.9: cannot open"),
        ("print('nonsense')", "it ended with code 0"),
        ("print('[1, 2]')", "it ended with code 0"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_target_that_crashes(code: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHILD", code)
    state = doctor._state("onnx", PATIENCE)
    assert (state.state, state.reason) == ("fails", reason)
    assert state.remedy == 'pip install --force-reinstall "darknet-compiler[onnx]"'


def test_a_target_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And has started a process of its own, which keeps the pipe open: that this ends shows that both were stopped."""
    monkeypatch.setattr(doctor, "_CHILD", "import subprocess; subprocess.run(['sleep', 'infinity'])")
    state = doctor._state("onnx", 0.5)
    assert (state.state, state.reason) == ("fails", "no answer within 0 s")


def test_a_target_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    run = OnnxSession.run
    monkeypatch.setattr(OnnxSession, "run", lambda self, inputs: [2 * each for each in run(self, inputs)])
    state = doctor.try_target("onnx")
    assert state.state == "fails"
    assert state.reason == "its numbers are 100.0% off"
    monkeypatch.setattr(OnnxSession, "run", lambda self, inputs: [each * np.nan for each in run(self, inputs)])
    assert doctor.try_target("onnx").state == "fails"


def test_a_target_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    from dnc.errors import TargetError

    def refuse(*_: object) -> Session:
        raise TargetError("no device", hint="plug one in")

    monkeypatch.setattr(OnnxRunner, "open", refuse)
    state = doctor.try_target("onnx")
    assert (state.state, state.reason, state.remedy) == ("fails", "no device", "plug one in")


def test_examine(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    few(monkeypatch, "onnx")
    (cache / "packages" / "x").mkdir(parents=True)
    (cache / "packages" / "x" / "model.onnx").write_bytes(bytes(1000))
    (cache / "some.weights").write_bytes(bytes(10))
    told: list[str] = []
    found = doctor.examine(PATIENCE, told.append)
    json.dumps(found)
    assert [each["state"] for each in found["targets"]] == ["works"]
    assert found["packages"]["numpy"] == np.__version__
    assert found["machine"]["python"]
    assert found["cache"] == {
        "folder": str(cache),
        "writable": True,
        "remedy": "",
        "bytes": {"packages": 1000, "weights": 10},
    }
    (myriad,) = found["toolchains"]
    assert (myriad["state"], myriad["remedy"]) == ("missing", "dnc toolchain install myriad")
    assert "trying target onnx, 1 of 1" in told


def test_builds_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def __init__(self, name: str) -> None:
            self.metadata = {"Name": name}

    for names, found in ((["numpy", "onnxruntime"], 0), (["onnxruntime", "onnxruntime-gpu"], 1)):
        installed = [Distribution(name) for name in names]
        monkeypatch.setattr(doctor, "distributions", lambda installed=installed: installed)
        assert len(doctor._conflicts()) == found
