"""What --target cuda takes: of back ends, without a GPU and with one, and of kernels that no GPU has run yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import dnc
from dnc.compiler import choosing
from dnc.errors import TargetError
from dnc.graph.composites import BINARY_CONVOLUTION, is_composite
from dnc.runtime.gpus import Gpu
from dnc.runtime.runners.tvm.session import MODEL
from dnc.targets.cuda import kernels, target
from dnc.targets.cuda.target import Cuda
from dnc.targets.cuda.tuning import GpuTuner, Measurer
from dnc.targets.tvm import tuning
from dnc.typing import silent

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "gpus", lambda: ())
    monkeypatch.setattr(kernels.CudaKernels, "lacking", lambda self: "")


def _taken(**given: str) -> tuple[str, str]:
    """The back end that is taken, and why."""
    choice = Cuda(given)
    (one,) = choice.candidates()
    return one.given.get("backend", "onnxruntime"), choice.reason()


def test_without_a_gpu() -> None:
    """TVM where a GPU is named, for it was the faster one on another; the engine that runs everywhere where none is."""
    assert _taken() == (
        "onnxruntime",
        "onnxruntime, for every GPU, untimed; on an NVIDIA H200 tvm took 0.29 to 0.47 of onnxruntime's time: "
        "--arch names a GPU to compile for",
    )
    assert _taken(arch="sm_87") == (
        "tvm",
        "tvm, untimed here: on an NVIDIA H200 tvm took 0.29 to 0.47 of onnxruntime's time",
    )
    assert "0.04 to 0.54" in _taken(arch="sm_75,sm_90", precision="fp16")[1]
    assert _taken(arch="sm_87", precision="tf32") == (
        "tvm",
        "tvm, untimed here: on an NVIDIA H200 tvm was the faster one in fp32 and fp16",
    )


def test_what_one_back_end_alone_has() -> None:
    """What is asked for decides, whatever was measured."""
    for given in ({"provider": "tensorrt"}, {"layout": "nhwc"}, {"fallback": "on"}):
        back_end, why = _taken(arch="sm_87", precision="fp16", **given)
        assert back_end == "onnxruntime"
        assert f"back end tvm has no {next(iter(given))}" in why
    assert _taken(arch="sm_87", precision="int8") == (
        "tvm",
        "tvm, untimed here: no GPU has run its kernels of 8 bits yet; --backend onnxruntime leaves them to TensorRT",
    )
    for given in ({"precision": "bf16"}, {"triple": "aarch64-linux-gnu"}):
        assert _taken(arch="sm_87", **given)[0] == "tvm"
        with pytest.raises(TargetError, match=f"back end onnxruntime has no .*{next(iter(given))}"):
            _taken(**given)
    assert _taken(backend="tvm", arch="sm_87") == ("tvm", "")
    assert _taken(backend="onnxruntime") == ("onnxruntime", "")


def test_without_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says what would be faster, and what is missing."""
    monkeypatch.setattr(kernels.CudaKernels, "lacking", lambda self: "apache-tvm is not installed")
    back_end, why = _taken(arch="sm_75,sm_87")
    assert back_end == "onnxruntime"
    assert why.endswith("of onnxruntime's time, but apache-tvm is not installed")


def test_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM; NVIDIA's compiler; the C++ compiler that links."""
    monkeypatch.undo()
    one = kernels.CudaKernels({"backend": "tvm"})
    monkeypatch.setattr(kernels.CudaKernels, "missing", lambda self: "apache-tvm")
    assert one.lacking() == "apache-tvm is not installed"
    monkeypatch.setattr(kernels.CudaKernels, "missing", lambda self: "")

    def none(*_: object) -> None:
        raise TargetError("there is none")

    for name in ("find_toolkit", "find_linker"):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "find_linker", lambda *_: "")
            patch.setattr(kernels, "find_toolkit", lambda *_: "")
            patch.setattr(kernels, "machine_for", lambda *_: "")
            assert one.lacking() == ""
            patch.setattr(kernels, name, none)
            assert one.lacking() == "there is none"


def test_the_report_says_why(write: Write, tmp_path: Path) -> None:
    """In the engine, too."""
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="cuda", verify=False)
    assert engine.manifest.report["choice"].startswith(
        "onnxruntime, for every GPU, untimed; on an NVIDIA H200 tvm took"
    )
    assert dnc.load(engine.folder).manifest.report == engine.manifest.report


def _measurer(monkeypatch: pytest.MonkeyPatch, seconds: float, output: Any = None, error: str = "") -> tuple[bool, str]:
    """What is said of new kernels that take so long where those that are proven take 1 ms."""
    one = np.linspace(-1, 1, 100, dtype=np.float32)

    def networks(self: Measurer, folders: Mapping[str, Path], *_: Any) -> Any:
        if error:
            raise TargetError(error)
        outputs = {"rule": [one], "tuned": [one if output is None else output]}
        return {"rule": lambda: 0.001, "tuned": lambda: seconds}, outputs

    monkeypatch.setattr(Measurer, "networks", networks)
    monkeypatch.setattr(tuning, "interleave", lambda runs, **how: _interleave(runs, **{**how, "seconds": 0.0}))
    return Measurer.__new__(Measurer).try_new(Path("new"), Path("proven"), {}, "fp16", "auto")


_interleave = tuning.interleave  # type: ignore[attr-defined]


def test_new_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Right and faster on the device: taken. Slower, wrong, or the end of the process: left out, and why is said."""
    monkeypatch.chdir(tmp_path)
    for name in ("new", "proven"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MODEL).write_text(name)
    assert _measurer(monkeypatch, 0.0009) == (True, "taken: the same outputs, and 0.900 (0.900 to 0.900) of the time")
    taken, why = _measurer(monkeypatch, 0.0011)
    assert not taken
    assert why.endswith("not certainly faster, 1.100 (1.100 to 1.100) of its time")
    one = np.linspace(-1, 1, 100, dtype=np.float32)
    assert _measurer(monkeypatch, 0.0009, one + 0.01)[0]
    for output in (one + 0.03, np.where(one > 0.9, np.nan, one), one[:50]):
        taken, why = _measurer(monkeypatch, 0.0009, output)
        assert not taken
        assert why.startswith("left out: its outputs differ: output 0 is off by ")
    assert _measurer(monkeypatch, 0.0009, error="it ended") == (False, "left out: it ended")
    (tmp_path / "new" / MODEL).write_text("proven")
    assert _measurer(monkeypatch, 0.0009) == (False, "left out: this network has none of them")


def test_two_are_the_same_but_for_new_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for which: by title, as candidates are known by it."""
    monkeypatch.setattr(target, "gpus", lambda: (Gpu("NVIDIA A", "sm_80", "1.2"),))
    *_, measured, new = Cuda({"precision": "fp16", "arch": "sm_80"}).candidates()
    proven = new.proven()
    assert proven is not None
    assert (proven.title, proven.given) == (measured.title, measured.given)
    assert measured.proven() is None


def _binary(model: ir.Model) -> list[bool]:
    """Of each composite of a model, whether it is a BinaryConvolution."""
    return [node.op_type == BINARY_CONVOLUTION for node in model.graph if is_composite(node)]


@pytest.mark.parametrize("name", ["convolutions", "tiny"])
def test_new_kernels_get_signs(name: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, where what is proven gets floats; when back ends are timed, and when kernels are tuned. Without any, both
    get one model."""
    monkeypatch.setattr(kernels.CudaKernels, "missing", lambda self: "")
    monkeypatch.setattr(kernels.CudaKernels, "versions", lambda self: {})
    monkeypatch.setattr(target, "gpus", lambda: (Gpu("NVIDIA A", "sm_80", "1.2"),))
    found: list[Any] = []

    def keep(*given: Any) -> Any:
        found.append(given)
        raise TargetError("enough")

    monkeypatch.setattr("dnc.compiler.compiling.choose", keep)
    monkeypatch.setattr(kernels.CudaKernels, "build_tuned", keep)
    shared: dict[str, Any] = {"target": "cuda", "batch": 1, "verify": False}
    for options, tune in (({}, None), ({"backend": "tvm"}, "1")):
        with pytest.raises(TargetError, match="enough"):
            dnc.compile(write(name), options={"arch": "sm_80", **options}, tune=tune, **shared)
    (candidates, *_), (_, tuned, *_, unproven) = found
    measured, new = (candidate.model for candidate in candidates[-2:])
    count = sum(section.startswith("xnor=1") for section in write(name).read_text().splitlines())
    assert (_binary(measured), _binary(tuned)) == ([], [])
    if count:
        assert _binary(new) == _binary(unproven) == [True] * count
    else:
        assert new is measured
        assert unproven is None


def test_new_kernels_that_cannot_be_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing can be measured, what is proven goes on, and so do the other back ends."""
    new = kernels.CudaKernels({"backend": "tvm", "arch": "sm_80", "kernels": "new"})
    proven = new.proven()
    assert proven is not None

    def none(*_: object) -> None:
        raise TargetError("the driver is too old")

    monkeypatch.setattr(kernels, "Measurer", none)
    built: dict[str, Any] = {"other": None, proven.title: None, new.title: None}
    refused: dict[str, str] = {}
    choosing._replace(new, proven.title, tmp_path, {}, built, refused, silent)
    assert list(built) == ["other", proven.title]
    assert refused == {new.title: "left out: the driver is too old"}


class _Compiler:
    """Has a network, or refuses it at once."""

    def __init__(self, error: str = "") -> None:
        self._error = error

    def network(self, library: Path) -> Any:
        if self._error:
            raise TargetError(self._error)
        return tuning.Made(lambda: {"compiler": "nvcc"})

    def functions(self, library: Path) -> Any:
        return self.network(library)


def test_new_kernels_that_cannot_be_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tuning goes on without them, and says so; without what is proven, it ends."""
    measurer: Any = SimpleNamespace(name="NVIDIA A", capability="8.0", driver="13.0")
    monkeypatch.setattr(GpuTuner, "networks", lambda *_: None)
    monkeypatch.setattr("dnc.targets.cuda.tuning.versions", lambda: "TVM 0")
    for refuses in ("new", "measured"):
        tuner = GpuTuner(
            {kinds: _Compiler("it is odd" * (kinds == refuses)) for kinds in ("measured", "new")},  # type: ignore[misc]
            measurer,
            {},
            {},
            archs=["sm_80"],
            graphs="auto",
            precision="fp16",
            record=dict,
            scratch=tmp_path,
            cache=None,
            progress=silent,
        )
        if refuses == "new":
            tuner.base(tmp_path / "model.so", tmp_path)
            assert (tuner.kinds, tuner.trial) == ("measured", "left out: it is odd")
        else:
            with pytest.raises(TargetError, match="it is odd"):
                tuner.base(tmp_path / "model.so", tmp_path)


def test_ctrl_c_while_new_kernels_are_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The network without them is built by then, and stays; nothing is tuned any more."""

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(GpuTuner, "_folder", lambda self, path: path)
    for ended in ("compiled", "timed"):
        tuner = GpuTuner.__new__(GpuTuner)
        vars(tuner).update(deadline=None, progress=silent, kinds="measured", stopped="", _networks={}, _graphs="auto")
        vars(tuner).update(_measurer=SimpleNamespace(try_new=stop), _feeds={}, _precision="fp16")
        reply = SimpleNamespace(result=stop if ended == "compiled" else lambda *_: {})
        tuner._try_new(tmp_path / "network", tmp_path / "other", reply)  # type: ignore[arg-type]
        assert tuner.trial == f"left out: it was stopped before they were {ended}"
        assert (tuner.kinds, tuner.stopped) == ("measured", tuning.STOPPED)
