"""Target `cuda` compiles anywhere, runs on the provider that is wanted, or says why not; never elsewhere in silence.

The providers are stood in for by ONNX Runtime on the CPU, which is told what to claim.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import pytest

import dnc
from dnc.compiler.source import preprocessing_for
from dnc.darknet.network import Network
from dnc.errors import CalibrationError, DncWarning, TargetError
from dnc.quantization.collecting import calibrate
from dnc.runtime.gpus import Gpu
from dnc.runtime.runners.cuda import CudaRunner
from dnc.runtime.runners.cuda import onnxruntime as cuda
from dnc.runtime.runners.cuda.onnxruntime import CudaSession, provider_options, providers_for
from dnc.targets import Target
from dnc.targets.cuda.onnxruntime import CudaOnnxRuntime
from dnc.targets.cuda.target import BACKENDS, Cuda
from tests import ROOT
from tests.conftest import Result

Write = Callable[..., Path]

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
NO_LIBRARY = "libcublasLt.so.13: cannot open shared object file"


class Session:
    """A real session on the CPU that claims to have other providers."""

    def __init__(self, path: str, options: Any, claims: list[str]) -> None:
        self._real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        self._claims = claims

    def get_providers(self) -> list[str]:
        return [*self._claims, CPU]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Fake:
    """An onnxruntime with providers that load, or do not: TensorRT then raises, CUDA is left out without a word."""

    __version__, cuda_version = "1.31.1", "13.0"
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, available: tuple[str, ...], loads: tuple[str, ...]) -> None:
        self.available, self.loads = [*available, CPU], loads
        self.asked: list[dict[str, dict[str, str]]] = []
        self.allocated: list[tuple[list[int], str, int]] = []
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self.allocate)

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        print("Failed to load libcublas.so.13")

    def allocate(self, shape: list[int], kind: Any, device: str, number: int) -> Any:
        self.allocated.append((shape, device, number))
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)

    def InferenceSession(self, path: str, options: Any, providers: list[Any], enable_fallback: int = 1) -> Session:
        if providers == [CPU]:
            return Session(path, options, [])
        assert enable_fallback == 0
        self.asked.append(dict(providers))
        names = [name for name, _ in providers]
        assert set(names) <= set(self.available)
        if TENSORRT in names and TENSORRT not in self.loads:
            raise RuntimeError("Please install TensorRT libraries")
        return Session(path, options, [name for name in names if name in self.loads])


def made(given: Mapping[str, str] | None = None) -> Target:
    """The only candidate of target cuda."""
    (target,) = Cuda(given).candidates()
    return target


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Fake]:
    """Puts one in place of onnxruntime; TensorRT is installed where it is available."""

    def install(*available: str, loads: tuple[str, ...] | None = None) -> Fake:
        made = Fake(available, available if loads is None else loads)
        monkeypatch.setattr("dnc.runtime.runners.cuda.onnxruntime.import_onnxruntime", lambda: made)
        monkeypatch.setattr("dnc.targets.onnx.import_onnxruntime", lambda: made)
        monkeypatch.setattr("dnc.runtime.runners.cuda.onnxruntime.tensorrt_is_installed", lambda: TENSORRT in available)
        monkeypatch.setattr("dnc.runtime.runners.cuda.onnxruntime._why", lambda *_: NO_LIBRARY)
        return made

    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    for module in ("target", "onnxruntime"):
        monkeypatch.setattr(f"dnc.targets.cuda.{module}.gpus", lambda: ())
    return install


@pytest.fixture
def folder(write: Write, tmp_path: Path) -> Path:
    return dnc.compile(write("tiny"), out=tmp_path / "e", target="cuda").folder


def options(**given: str) -> dict[str, Any]:
    return Cuda(given).options


ON_BOTH = (TENSORRT, CUDA)


@pytest.mark.parametrize(
    ("available", "loads", "wish", "device", "warning"),
    [
        (ON_BOTH, ON_BOTH, {"precision": "tf32"}, "Tensorrt", ""),
        (ON_BOTH, ON_BOTH, {"precision": "fp16"}, "Tensorrt", ""),
        # Float32 would not be float32 on TensorRT.
        (ON_BOTH, ON_BOTH, {}, "CUDA", ""),
        (ON_BOTH, ON_BOTH, {"precision": "fp16", "provider": "cuda"}, "CUDA", ""),
        ((CUDA,), (CUDA,), {"precision": "fp16"}, "CUDA", ""),
        (ON_BOTH, (CUDA,), {"precision": "fp16"}, "CUDA", "TensorRT did not load: libcublasLt.* running on CUDA"),
    ],
)
def test_provider(
    available: tuple[str, ...],
    loads: tuple[str, ...],
    wish: dict[str, str],
    device: str,
    warning: str,
    fake: Callable[..., Fake],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """What is wanted, or for auto what is installed; a step down is a warning, and `device` is what runs."""
    fake(*available, loads=loads)
    if warning:
        with pytest.warns(DncWarning, match=warning):
            session = made(wish).runner().open(folder)
    else:
        session = made(wish).runner().open(folder)
    assert session.device == device
    assert not [each for each in recwarn if issubclass(each.category, DncWarning)]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("available", "loads", "wish", "reason", "command"),
    [
        ((), (), {}, "CUDA did not load: this onnxruntime has no such provider, only CPU", "uninstall onnxruntime;"),
        ((CUDA,), (), {}, f"CUDA did not load: {NO_LIBRARY}", r"onnxruntime-gpu\[cuda,cudnn\]"),
        (ON_BOTH, (), {"precision": "fp16"}, "TensorRT did not load: .*; CUDA did not load: ", "onnxruntime-gpu"),
        (ON_BOTH, (CUDA,), {"precision": "fp16", "provider": "tensorrt"}, "TensorRT did not load", "onnxruntime-gpu"),
        # The CUDA provider would compute in float32.
        (ON_BOTH, (CUDA,), {"precision": "int8"}, "TensorRT did not load", "onnxruntime-gpu"),
    ],
)
def test_nothing_falls_back_in_silence(
    available: tuple[str, ...],
    loads: tuple[str, ...],
    wish: dict[str, str],
    reason: str,
    command: str,
    fake: Callable[..., Fake],
    folder: Path,
) -> None:
    """Without a provider there is an error, which says why and what mends it; if allowed, a warning and the CPU."""
    fake(*available, loads=loads)
    with pytest.raises(TargetError, match=rf"cannot run on a GPU: {reason}(.|\n)*{command}(.|\n)*fallback=on"):
        made(wish).runner().open(folder)
    with pytest.warns(DncWarning, match=rf"{reason}(.|\n)*running on the CPU(.|\n)*{command}"):
        session = made({**wish, "fallback": "on"}).runner().open(folder)
    assert session.device == "CPU"
    assert made({**wish, "fallback": "on"}).runner().taking_turns().options["fallback"] == "off"


def test_on_this_machine(write: Write, tmp_path: Path) -> None:
    """With the onnxruntime that is installed: built anywhere; the CPU runs it only if that is allowed, to the bit."""
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    cfg = write("tiny")
    x = np.random.default_rng(0).random((3, 16, 16), np.float32)
    engine = dnc.compile(cfg, out=tmp_path / "e", target="cuda")
    assert engine.manifest.target == "cuda"
    assert engine.manifest.report["device"] == "nothing was timed or tried on a GPU"
    with pytest.raises(TargetError, match=r"no such provider, only (.|\n)*pip uninstall onnxruntime"):
        engine.forward(x)
    allowed = dnc.load(engine.folder, fallback="on")
    with pytest.warns(DncWarning, match="running on the CPU"):
        (output,) = allowed.forward(x)
    assert allowed.device == "CPU"
    plain = dnc.compile(cfg, out=tmp_path / "f", target="onnx")
    assert np.array_equal(plain.forward(x)[0], output)
    model = (tmp_path / "e" / "model.onnx").read_bytes()
    assert model == (tmp_path / "f" / "model.onnx").read_bytes()


def test_command(command: Callable[..., Result], write: Write, tmp_path: Path) -> None:
    result = command("compile", write("tiny"), "-t", "cuda", "-o", tmp_path / "e", "--allow-fallback")
    assert result.code == 0
    assert "  device: nothing was timed or tried on a GPU\n" in result.out
    assert dnc.load(tmp_path / "e").manifest.options == {"fallback": "on"}
    refused = command("compile", write("tiny"), "-t", "onnx", "-o", tmp_path / "f", "--allow-fallback")
    assert refused.code == 1
    assert "target onnx has no option 'fallback'" in refused.err


def test_compiles_without_onnxruntime(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="cuda")
    assert onnx.load(engine.folder / "model.onnx").graph.node
    with pytest.raises(TargetError, match=r"needs onnxruntime-gpu to run(.|\n)*onnxruntime-gpu\[cuda,cudnn\]"):
        engine.forward(np.zeros((3, 16, 16)))


@pytest.mark.parametrize(
    ("log", "reason", "remedy"),
    [
        (
            "\x1b[1;31m2026 [E:onnxruntime:Default] FAIL : Failed to load library /x/libonnxruntime_providers_cuda.so "
            "with error: libcudnn.so.9: cannot open shared object file\n\x1b[m\n",
            "libcudnn.so.9: cannot open shared object file",
            "onnxruntime-gpu[cuda,cudnn]",
        ),
        ("FAIL : with error: libcuda.so.1: cannot open shared object file\n", "libcuda.so.1: cannot", "nvidia-smi"),
        ("with error: libnvinfer.so.10: cannot open\n", "libnvinfer.so.10: cannot open", "tensorrt-cu13==10.*"),
        (
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=h",
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
            "nvidia-smi",
        ),
        (
            f"[W:onnxruntime] Failed to create {CUDA}. Require cuDNN 9.* and CUDA 13.*. Please install",
            "Require cuDNN 9.* and CUDA 13.*. Please install",
            "pip uninstall onnxruntime",
        ),
        ("something else", "", "pip uninstall onnxruntime"),
    ],
)
def test_reasons(log: str, reason: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime writes into its log, and nowhere else."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stderr=log, returncode=0))
    found = cuda._why(Path("model.onnx"), CUDA, {CUDA: {}})
    assert found.startswith(reason) if reason else found == ""
    assert remedy in cuda._remedy(found, SimpleNamespace(cuda_version="13.0"))


def test_asking_again_is_harmless(folder: Path) -> None:
    """For real, in another process: an onnxruntime without the provider has nothing to say of it."""
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    assert cuda._why(folder / "model.onnx", CUDA, {CUDA: {"device_id": "0"}}) == ""


@pytest.mark.parametrize("data", [b"", b"nonsense"])
def test_models_that_are_refused(data: bytes, fake: Callable[..., Fake], folder: Path) -> None:
    """That is no matter of the GPU."""
    fake(CUDA)
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(TargetError, match=r"ONNX Runtime refuses the model(.|\n)*build the engine again"):
        made({"fallback": "on"}).runner().open(folder)


def test_what_the_providers_are_told(fake: Callable[..., Fake], folder: Path) -> None:
    """Float32 is float32; TensorRT's switches are words, CUDA's are digits."""
    runtime = fake(*ON_BOTH)
    made().runner().open(folder)
    wanted = {"use_tf32": "0", "prefer_nhwc": "0", "enable_cuda_graph": "0", "device_id": "0"}
    assert runtime.asked[-1][CUDA].items() >= wanted.items()
    made({"precision": "fp16", "device": "2", "layout": "nhwc"}).runner().open(folder)
    both = runtime.asked[-1]
    assert list(both) == [TENSORRT, CUDA]
    assert both[TENSORRT]["trt_fp16_enable"] == "True"
    assert both[TENSORRT]["trt_int8_enable"] == "False"
    assert {each["device_id"] for each in both.values()} == {"2"}
    assert (both[CUDA]["use_tf32"], both[CUDA]["prefer_nhwc"]) == ("0", "1")
    made({"precision": "tf32", "provider": "cuda"}).runner().open(folder)
    assert runtime.asked[-1][CUDA]["use_tf32"] == "1"
    made({"precision": "int8"}).runner().open(folder)
    assert runtime.asked[-1][TENSORRT]["trt_int8_enable"] == "True"


def test_tensorrt_in_float32(fake: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the environment keeps it from TF32, for it has no option for that."""
    fake(*ON_BOTH)
    with pytest.raises(TargetError, match=r"TF32 unless(.|\n)*export NVIDIA_TF32_OVERRIDE=0"):
        providers_for(options(provider="tensorrt"))
    assert providers_for(options(provider="tensorrt", precision="tf32")) == ["tensorrt"]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert providers_for(options(provider="tensorrt")) == ["tensorrt"]
    assert providers_for(options()) == ["tensorrt", "cuda"]


def test_tensorrt_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not cuda.tensorrt_is_installed()
    (tmp_path / "libnvinfer.so.10").touch()
    assert cuda.tensorrt_is_installed()
    monkeypatch.delenv("LD_LIBRARY_PATH")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == "tensorrt_libs" else None)
    assert cuda.tensorrt_is_installed()


def test_options() -> None:
    for wrong in ({"device": "x"}, {"arch": "ampere"}, {"backend": "cudnn"}, {"precision": "fp64"}, {"graphs": "yes"}):
        with pytest.raises(TargetError, match="of target cuda is not"):
            made(wrong)
    with pytest.raises(TargetError, match="8-bit convolutions"):
        made({"precision": "int8", "provider": "cuda"})
    with pytest.raises(TargetError, match="8-bit convolutions"):
        CudaRunner({"precision": "int8", "provider": "cuda"})
    assert made({"precision": "fp16"}).title == "cuda fp16"
    fixed = {each.name for each in Cuda.known_options if not each.at_load}
    assert fixed >= {"backend", "precision", "arch"}
    assert not fixed & {"provider", "device", "layout", "graphs", "cache", "fallback"}


def test_back_ends_are_timed_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that have what is asked for; without a GPU nothing can be timed."""

    def titles(**given: str) -> list[str]:
        return [each.title for each in Cuda(given).candidates()]

    assert titles() == ["cuda"]
    monkeypatch.setattr("dnc.targets.cuda.target.gpus", lambda: (Gpu("NVIDIA A", "sm_80", "1.2"),))
    assert titles() == ["cuda by onnxruntime", "cuda by tvm", "cuda by tvm, new kernels"]
    names = ["cuda fp16 by onnxruntime", "cuda fp16 by tvm", "cuda fp16 by tvm, new kernels"]
    assert titles(precision="fp16", arch="sm_80") == names
    assert titles(kernels="measured") == ["cuda by tvm"]
    assert titles(kernels="new") == ["cuda by tvm, new kernels"]
    assert titles(precision="bf16") == ["cuda bf16 by tvm", "cuda bf16 by tvm, new kernels"]
    assert titles(backend="tvm") == ["cuda by tvm"]


def test_another_back_end(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one class, which the target asks everything."""
    asked: list[str] = []

    class Other(CudaOnnxRuntime):
        def build(self, *arguments: Any) -> Mapping[str, str]:
            asked.append("build")
            super().build(*arguments)
            return {"back end": "another"}

    monkeypatch.setattr("dnc.targets.cuda.target.BACKENDS", {**BACKENDS, "onnxruntime": Other})
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="cuda")
    assert engine.manifest.report["back end"] == "another"
    assert asked == ["build"]


def opened(engine: dnc.Engine, fake: Callable[..., Fake], **wish: str) -> tuple[CudaSession, Fake]:
    runtime = fake(CUDA)
    session = made({**engine.manifest.options, **wish}).runner().open(engine.folder)
    assert isinstance(session, CudaSession)
    return session, runtime


def test_bound_memory(write: Write, tmp_path: Path, fake: Callable[..., Fake]) -> None:
    """The same numbers as without; memory of the device for each shape, once, and outputs that are nobody else's."""
    plain = dnc.compile(write("yolo"), out=tmp_path / "p", target="onnx")
    session, runtime = opened(dnc.compile(write("yolo"), out=tmp_path / "e", target="cuda"), fake, device="1")
    generator = np.random.default_rng(0)
    kept = []
    for count in (1, 3, 1, 3, 2, 1):
        x = generator.random((count, 3, 32, 32), np.float32)
        kept.append((session.run({"input": x}), plain.session.run({"input": x})))
    for found, expected in kept:
        for one, other in zip(found, expected, strict=True):
            # Activations have another form than for the CPU.
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    arrays = 1 + len(kept[0][0])
    assert len(runtime.allocated) == 3 * arrays
    assert {(device, number) for _, device, number in runtime.allocated} == {("cuda", 1)}
    # An array that is not in one piece.
    x = generator.random((32, 32, 3, 1), np.float32).transpose(3, 2, 0, 1)
    one, other = session.run({"input": x})[0], plain.session.run({"input": x.copy()})[0]
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    for count in range(1, 20):
        session.run({"input": np.zeros((count, 3, 32, 32), np.float32)})
    assert len(session._free) == 8
    # What nobody wants is not copied; arrays that a GPU has are another back end's.
    x = generator.random((1, 3, 32, 32), np.float32)
    found = session.submit({"input": x}, {1}).result()
    assert [array.size > 0 for array in found] == [False, True]
    np.testing.assert_array_equal(found[1], session.run({"input": x})[1])
    there = SimpleNamespace(__dlpack_device__=lambda: (2, 0))
    for feeds, left in (({"input": there}, False), ({"input": x}, True)):
        with pytest.raises(TargetError, match="arrays of the host alone"):
            session.submit(feeds, on_device=left)


@pytest.mark.parametrize("decode", ["graph", "graph+nms"])
def test_outputs_of_any_size(decode: str, write: Write, tmp_path: Path, fake: Callable[..., Fake]) -> None:
    """How many detections there are nobody knows before; pixels of any size go in."""
    told: dict[str, Any] = {"decode": decode, "input": "u8", "verify": False}
    plain = dnc.compile(write("yolo"), out=tmp_path / "p", target="onnx", **told)
    session, runtime = opened(dnc.compile(write("yolo"), out=tmp_path / "e", target="cuda", **told), fake)
    generator = np.random.default_rng(0)
    for dims in ((40, 50), (64, 32)):
        feeds: dict[str, Any] = {"input": generator.integers(0, 256, (1, *dims, 3), np.uint8)}
        if decode == "graph+nms":
            feeds |= {name: np.array([0.01], np.float32) for name in ("confidence", "iou")}
            feeds["window"] = np.array([[0, 0, 1, 1]], np.float32)
        for found, expected in zip(session.run(feeds), plain.session.run(feeds), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert runtime.allocated


def test_threads(write: Write, tmp_path: Path, fake: Callable[..., Fake]) -> None:
    """Each has memory of its own."""
    session, _ = opened(dnc.compile(write("yolo"), out=tmp_path / "e", target="cuda"), fake)
    inputs = [np.random.default_rng(seed).random((1 + seed % 2, 3, 32, 32), np.float32) for seed in range(4)]
    expected = [session.run({"input": x}) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            found = session.run({"input": inputs[number]})
            if not all(map(np.array_equal, found, expected[number])):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_wrong_inputs(fake: Callable[..., Fake], folder: Path) -> None:
    fake(CUDA)
    session = made().runner().open(folder)
    fine = np.zeros((1, 3, 16, 16), np.float32)
    wrong: list[dict[str, Any]] = [
        {},
        {"input": fine[:, :, :, 1:]},
        {"input": fine[0]},
        {"input": fine.astype(np.float64)},
        {"input": fine, "more": fine},
        {"input": "text"},
    ]
    for inputs in wrong:
        with pytest.raises(TargetError, match=r"ONNX Runtime failed: .*inputs? "):
            session.run(inputs)
    assert session.run({"input": fine})[0].shape == (1, 14, 8, 8)


def test_graphs(write: Write, tmp_path: Path, fake: Callable[..., Fake]) -> None:
    """They need fixed shapes; the provider in front records them, and it alone."""
    runtime = fake(*ON_BOTH)
    cfg = write("tiny")
    with pytest.raises(TargetError, match=r"graphs=on: CUDA graphs need fixed shapes.*--batch N"):
        dnc.compile(cfg, out=tmp_path / "e", target="cuda", options={"graphs": "on"})
    free = dnc.compile(cfg, out=tmp_path / "e", target="cuda")
    with pytest.raises(TargetError, match=r"fixed shapes, and input has none(.|\n)*compile it with --batch N"):
        dnc.load(free.folder, graphs="on").forward(np.zeros((3, 16, 16)))
    engine = dnc.compile(cfg, out=tmp_path / "f", target="cuda", batch=1, options={"graphs": "on"})
    assert engine.forward(np.zeros((3, 16, 16)))[0].shape == (14, 8, 8)
    assert runtime.asked[-1][CUDA]["enable_cuda_graph"] == "1"
    made({"graphs": "on", "precision": "fp16"}).runner().open(engine.folder)
    assert runtime.asked[-1][TENSORRT]["trt_cuda_graph_enable"] == "True"
    assert runtime.asked[-1][CUDA]["enable_cuda_graph"] == "0"
    session = made({"graphs": "on"}).runner().open(engine.folder)
    before = len(runtime.allocated)
    threads = [
        threading.Thread(target=session.run, args=({"input": np.zeros((1, 3, 16, 16), np.float32)},)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # What was recorded has one place.
    assert len(runtime.allocated) == before + 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_graphs_after_an_exception(
    when: str, how: type[BaseException], write: Write, tmp_path: Path, fake: Callable[..., Fake]
) -> None:
    """A run that ends before or after the kernels leaves the memory to which the recorded ones are bound in its
    place, from the first run on."""
    runtime = fake(CUDA)
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="cuda", batch=1, options={"graphs": "on"})
    session = made({"graphs": "on"}).runner().open(engine.folder)
    assert isinstance(session, CudaSession)
    real, bound = session._session.run_with_iobinding, []
    array = np.ones((1, 3, 16, 16), np.float32)
    before = len(runtime.allocated)

    def run(binding: Any, ends: bool = False) -> None:
        bound.append(binding)
        if ends and when == "before":
            raise how
        real(binding)
        if ends and when == "after":
            raise how

    for ends in (True, False, True, False):
        session._session.run_with_iobinding = partial(run, ends=ends)
        with pytest.raises(TargetError if how is RuntimeError else how) if ends else nullcontext():
            np.testing.assert_array_equal(session.run({"input": array})[0], engine.session.run({"input": array})[0])
    assert all(each is bound[0] for each in bound)
    assert len(runtime.allocated) == before + 4


def test_cache(fake: Callable[..., Fake], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder for an engine in a precision, one for the times of all; those used last stay."""
    runtime = fake(*ON_BOTH)
    root = tmp_path / "cache" / "tensorrt"
    made().runner().open(folder)
    assert not root.exists()
    for precision in ("fp16", "tf32", "fp16"):
        made({"precision": precision}).runner().open(folder)
        told = runtime.asked[-1][TENSORRT]
        assert (told["trt_engine_cache_enable"], told["trt_timing_cache_enable"]) == ("True", "True")
        assert told["trt_timing_cache_path"] == str(root / "times")
        place = Path(told["trt_engine_cache_path"])
        (place / "x.engine").write_bytes(bytes(1000))
    assert len(list(root.iterdir())) == 3
    made({"precision": "fp16", "cache": "off"}).runner().open(folder)
    assert runtime.asked[-1][TENSORRT]["trt_engine_cache_enable"] == "False"
    assert "trt_engine_cache_path" not in runtime.asked[-1][TENSORRT]
    monkeypatch.setattr(cuda, "_CACHE_LIMIT", 1500)
    made({"precision": "fp16"}).runner().open(folder)
    assert sorted(path.name for path in root.iterdir()) == sorted([place.name, "times"])
    # What is no finished engine has no name to keep it under.
    (folder / "engine.json").unlink()
    made({"precision": "fp16"}).runner().open(folder)
    assert runtime.asked[-1][TENSORRT]["trt_engine_cache_enable"] == "False"


def test_what_measurements_hold_for(fake: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    fake(CUDA)
    assert made().engine() == "ONNX Runtime 1.31.1 cuda fp32 nchw on no GPU"
    monkeypatch.setattr(
        "dnc.targets.cuda.onnxruntime.gpus", lambda: (Gpu("NVIDIA A", "sm_80", "1.2"), Gpu("NVIDIA B", "sm_90", "1"))
    )
    told = {"device": "1", "graphs": "on", "layout": "nhwc", "precision": "fp16"}
    assert made(told).engine() == "ONNX Runtime 1.31.1 cuda fp16 nhwc graphs on NVIDIA B, driver 1"


def test_autotune_needs_the_device(write: Write, tmp_path: Path, fake: Callable[..., Fake]) -> None:
    """What the CPU takes says nothing; the fall-back that is allowed is for running."""
    fake(CUDA, loads=())
    with pytest.raises(TargetError, match="cannot run on a GPU"):
        dnc.compile(
            write("depthwise", DEPTHWISE), out=tmp_path / "e", target="cuda", autotune=True, options={"fallback": "on"}
        )


def test_autotune_on_the_device(
    write: Write, tmp_path: Path, fake: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was timed is said, and on what."""
    for name in ("_LEAF_SECONDS", "_NETWORK_SECONDS", "_PEAK_SECONDS"):
        monkeypatch.setattr(f"dnc.compiler.autotuning.{name}", 0.01)
    fake(CUDA)
    engine = dnc.compile(write("depthwise", DEPTHWISE), out=tmp_path / "e", target="cuda", batch=1, autotune=True)
    tuning = engine.manifest.tuning
    assert "table" not in tuning
    assert len(tuning["layers"]) == 2
    said = f"grouped convolutions were timed on {tuning['device']}; the engine was not tried"
    assert engine.manifest.report["device"] == said
    assert "ONNX Runtime 1.31.1 cuda fp32 nchw on no GPU" in said


DEPTHWISE = """[net]
width=32
height=32
channels=3
[convolutional]
filters=64
size=1
activation=leaky
[convolutional]
filters=64
groups=64
size=3
pad=1
activation=leaky
[convolutional]
filters=64
groups=64
size=5
pad=1
activation=linear
"""


PHOTOGRAPH = ROOT / "dnc" / "graph" / "photograph.jpg"
NET = """[net]
width=16
height=16
channels=3
[convolutional]
filters=8
size=3
pad=1
activation=leaky
[convolutional]
filters=8
size=3
pad=1
activation=leaky
[shortcut]
from=-2
activation=linear
[convolutional]
filters=8
size=1
activation=leaky
[convolutional]
filters=4
size=1
activation=linear
"""


@pytest.fixture
def calibrations(write: Write, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A cfg, its symmetric and its asymmetric calibration."""
    cfg = write("net", NET)
    weights = cfg.with_suffix(".weights")
    network = Network.load(cfg, weights)
    preprocessing = preprocessing_for(network, weights)
    tables = []
    for symmetric in (True, False):
        tables.append(tmp_path / f"{symmetric}.json")
        calibrate(network, preprocessing, [PHOTOGRAPH], symmetric=symmetric).write(tables[-1])
    return cfg, tables[0], tables[1]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions(
    precision: str, calibrations: tuple[Path, Path, Path], tmp_path: Path, fake: Callable[..., Fake]
) -> None:
    """8 bits are signed, symmetric and around products alone, as TensorRT takes them; and the numbers are near."""
    cfg, symmetric, _ = calibrations
    told: dict[str, Any] = {"calibration": symmetric} if precision == "int8" else {}
    engine = dnc.compile(cfg, target="cuda", out=tmp_path / "e", precision=precision, **told)
    model = onnx.load(engine.folder / "model.onnx").graph
    kinds = {each.data_type for each in model.initializer}
    if precision == "int8":
        assert onnx.TensorProto.UINT8 not in kinds
        assert onnx.TensorProto.INT32 not in kinds
        zeros = [each for each in model.initializer if each.name.endswith(".zero")]
        assert zeros
        assert all(onnx.numpy_helper.to_array(each) == 0 for each in zeros)
        readers = {name: node.op_type for node in model.node for name in node.input}
        rounded = [node.output[0] for node in model.node if node.op_type == "DequantizeLinear"]
        assert {readers[name] for name in rounded} == {"Conv"}
    else:
        assert onnx.TensorProto.FLOAT16 in kinds
    fake(*ON_BOTH)
    plain = dnc.compile(cfg, target="onnx", out=tmp_path / "p")
    x = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    (found,), (expected,) = engine.forward(x), plain.forward(x)
    assert engine.device == "Tensorrt"
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    # A few roundings by 1/254 of a range each, or by 2^-11.
    assert 0 < error < (0.1 if precision == "int8" else 2e-3)


def test_the_calibration_is_symmetric(calibrations: tuple[Path, Path, Path], tmp_path: Path) -> None:
    cfg, _, asymmetric = calibrations
    with pytest.raises(CalibrationError, match=r"is asymmetric(.|\n)*dnc calibrate --symmetric"):
        dnc.compile(cfg, target="cuda", out=tmp_path / "e", precision="int8", calibration=asymmetric)
    assert not (tmp_path / "e").exists()


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert Cuda().missing() == ""
    assert made().runner().missing() == ""
    assert "onnxruntime-gpu[cuda,cudnn]" in Cuda().remedy()


def test_settings_are_all_text() -> None:
    """onnxruntime would turn them into text by itself, True into "True"."""
    for name in ("tensorrt", "cuda"):
        told = provider_options(name, options(graphs="on"), (Path("a"), Path("b")))
        assert json.loads(json.dumps(told)) == told
        assert all(isinstance(value, str) for value in told.values())
