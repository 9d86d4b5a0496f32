"""Target `onnx`, and `cuda`, which is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import dnc
from dnc.errors import DncWarning, TargetError
from dnc.passes import Pass
from dnc.targets import Session, Target, targets
from dnc.targets.cuda import Cuda
from dnc.targets.onnx import Onnx, OnnxSession, import_onnxruntime

Write = Callable[..., Path]


@pytest.fixture
def folder(write: Write, tmp_path: Path) -> Path:
    return dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx").folder


@pytest.mark.parametrize("name", list(targets))
def test_every_target(name: str) -> None:
    """What the interface asks for: passes with different names, something to install, one line about it."""
    target = targets[name]()
    assert isinstance(target, Target)
    assert target.name == name
    assert "\n" not in target.summary
    assert target.extra
    assert isinstance(target.missing(), str)
    assert all(each.candidates() == [each] for each in target.candidates())
    if not target.missing():
        chosen = target.passes()
        assert all(isinstance(each, Pass) for each in chosen)
        # What nothing reads may go more than once.
        names = [each.name for each in chosen if each.name != "eliminate-dead-code"]
        assert len(set(names)) == len(names)
        assert all(isinstance(version, str) for version in target.versions().values())


def test_portable(folder: Path) -> None:
    """Any ONNX tool reads model.onnx: opset 14, IR version 8, one input, the heads' outputs."""
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 14)]
    assert model.ir_version == 8
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["layer002"]


def test_session(folder: Path) -> None:
    session = Onnx().open(folder)
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
            Onnx().open(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(TargetError, match="ONNX Runtime refuses the model"):
        Onnx().open(tmp_path)
    with pytest.raises(TargetError):
        Onnx().open(tmp_path, threads=-7)


class FakeSession(OnnxSession):
    """A session that got the providers it is told, whatever was asked for."""

    loads: tuple[str, ...] = ()
    asked: list[list[str]] = []

    def __init__(self, path: Path, providers: list[str], threads: int | None) -> None:
        FakeSession.asked.append(list(providers))
        self.providers = [provider for provider in providers if provider in (*FakeSession.loads, CPU)]
        self.device = self.providers[0].removesuffix("ExecutionProvider")


TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("available", "loads", "device", "warning"),
    [
        ([TENSORRT, CUDA, CPU], (TENSORRT, CUDA), "Tensorrt", ""),
        ([TENSORRT, CUDA, CPU], (CUDA,), "CUDA", "Tensorrt did not load; running on CUDA"),
        ([CUDA, CPU], (CUDA,), "CUDA", ""),
        ([TENSORRT, CUDA, CPU], (), "CPU", "no GPU: its libraries or the GPU's driver did not load"),
        ([CPU], (), "CPU", "no GPU: onnxruntime has no CUDA provider"),
    ],
)
def test_cuda_falls_back(
    available: list[str],
    loads: tuple[str, ...],
    device: str,
    warning: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT, else CUDA, else the CPU; every step down is a warning, and `device` is what really runs."""
    runtime = SimpleNamespace(get_available_providers=lambda: available, preload_dlls=lambda: None)
    monkeypatch.setattr("dnc.targets.cuda.import_onnxruntime", lambda: runtime)
    monkeypatch.setattr("dnc.targets.cuda.OnnxSession", FakeSession)
    monkeypatch.setattr(FakeSession, "loads", loads)
    monkeypatch.setattr(FakeSession, "asked", [])
    if warning:
        with pytest.warns(DncWarning, match=warning):
            session = Cuda().open(folder)
    else:
        session = Cuda().open(folder)
    assert session.device == device
    assert all(asked[-1] == CPU for asked in FakeSession.asked)


def test_cuda_without_a_gpu(write: Write, tmp_path: Path) -> None:
    """Built anywhere; on a machine without a GPU it runs on the CPU, says so, and gives the same numbers."""
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    cfg = write("tiny")
    x = np.random.default_rng(0).random((3, 16, 16), np.float32)
    engine = dnc.compile(cfg, out=tmp_path / "e", target="cuda")
    assert engine.bundle.target == "cuda"
    with pytest.warns(DncWarning, match=r"no GPU: (.|\n)*pip install onnxruntime-gpu"):
        (output,) = engine.forward(x)
    assert engine.device == "CPU"
    plain = dnc.compile(cfg, out=tmp_path / "f", target="onnx")
    assert np.array_equal(plain.forward(x)[0], output)
    model = (tmp_path / "e" / "model.onnx").read_bytes()
    assert model == (tmp_path / "f" / "model.onnx").read_bytes()


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert Onnx().missing() == "onnxruntime"
    assert Cuda().missing() == "onnxruntime-gpu"


def test_libraries_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(TargetError, match=r"cannot be loaded: libcudart\.so\.12"):
        import_onnxruntime()
