"""Target `onnx`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dnc
from dnc.errors import TargetError
from dnc.passes import Pass
from dnc.runtime.runners import Session
from dnc.runtime.runners.onnx import import_onnxruntime
from dnc.targets import Selectable, targets
from dnc.targets.onnx import Onnx

Write = Callable[..., Path]


@pytest.fixture
def folder(write: Write, tmp_path: Path) -> Path:
    return dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx").folder


@pytest.mark.parametrize("name", list(targets))
def test_every_target(name: str) -> None:
    """What the interface asks for: passes with different names, something to install, one line about it."""
    target = targets[name]()
    assert isinstance(target, Selectable)
    assert target.name == name
    assert "\n" not in target.summary
    assert target.extra
    assert isinstance(target.missing(), str)
    assert all(each.candidates() == [each] for each in target.candidates())
    for candidate in target.candidates():
        if candidate.missing():
            continue
        chosen = candidate.optimizations()
        assert all(isinstance(step.rewriting, Pass) and step.why for step in chosen)
        # What nothing reads may go more than once.
        names = [step.name for step in chosen if step.name != "eliminate-dead-code"]
        assert len(set(names)) == len(names)
        assert all(isinstance(version, str) for version in candidate.versions().values())


def test_portable(folder: Path) -> None:
    """Any ONNX tool reads model.onnx: opset 14, IR version 8, one input, the heads' outputs."""
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 14)]
    assert model.ir_version == 8
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["layer002"]


def test_session(folder: Path) -> None:
    session = Onnx().runner().open(folder)
    assert isinstance(session, Session)
    assert session.device == "CPU"
    (output,) = session.run({"input": np.zeros((1, 3, 16, 16), np.float32)})
    assert output.shape == (1, 14, 8, 8)
    wrong: list[dict[str, Any]] = [
        {},
        {"input": np.zeros((1, 3, 16, 15), np.float32)},
        {"input": np.zeros((1, 3, 16, 16))},
        {"input": np.zeros((1, 3, 16, 16), np.float32), "more": np.zeros(1, np.float32)},
        {"input": "text"},
    ]
    for inputs in wrong:
        with pytest.raises(TargetError, match="ONNX Runtime failed"):
            session.run(inputs)


def test_models_that_are_refused(tmp_path: Path) -> None:
    for data in (b"", b"nonsense", bytes(1000)):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(TargetError, match=r"ONNX Runtime refuses the model(.|\n)*build the engine again"):
            Onnx().runner().open(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(TargetError, match="ONNX Runtime refuses the model"):
        Onnx().runner().open(tmp_path)
    with pytest.raises(TargetError):
        Onnx().runner().open(tmp_path, threads=-7)


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert Onnx().missing() == "onnxruntime"


def test_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(TargetError, match=r"cannot be loaded: libcudart\.so\.12"):
        import_onnxruntime()
