"""Runs engines of target `cuda` on NVIDIA's GPUs: model.onnx in ONNX Runtime, or model.so on TVM's runtime.

Which of the two it is says option `backend`, which the compiler keeps in engine.json.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from dnc.errors import TargetError
from dnc.files.installed import is_whole, to_install
from dnc.runtime.gpus import arch
from dnc.runtime.options import CALIBRATED, Option, one_of, whole
from dnc.runtime.runners import Runner, Session, runners
from dnc.runtime.runners.tvm import FFI

__all__ = ["OPTIONS", "CudaRunner", "KernelsRunner"]

_SWITCH = one_of("on", "off")
OPTIONS: Sequence[Option] = (
    Option(
        "backend",
        "auto",
        "what runs the network: onnxruntime; tvm: kernels compiled ahead of time, here, for the GPU that arch names; "
        "auto: the faster one on this machine's GPU; where there is none, tvm if arch is given and it is installed, "
        "else onnxruntime",
        one_of("auto", "onnxruntime", "tvm"),
    ),
    Option(
        "provider",
        "auto",
        "tensorrt; cuda; auto: TensorRT where it is installed, but for fp32, else CUDA",
        one_of("auto", "tensorrt", "cuda"),
        at_load=True,
    ),
    Option(
        "precision",
        "fp32",
        "tf32: products in TF32; fp16: half precision; bf16: products in bfloat16, by tvm alone; int8, mixed: 8 bits, "
        "all over or where they cost little, by TensorRT, or by tvm (no GPU has run tvm's kernels for bf16, int8 and "
        "mixed yet)",
        one_of("fp32", "tf32", "fp16", "bf16", "int8", "mixed"),
    ),
    Option(
        "arch",
        "",
        "tvm: the GPU's generation, as sm_87, or several, as sm_75,sm_87; that of this machine's GPU if not given",
        arch,
    ),
    Option("device", "0", "the number of the GPU", whole(0, 63), at_load=True),
    Option(
        "layout",
        "nchw",
        "nhwc: the CUDA provider prefers it; measured 11 to 45 times slower than PyTorch in fp16 on an H200 for some "
        "networks, the cause is not known",
        one_of("nchw", "nhwc"),
        at_load=True,
    ),
    Option(
        "graphs",
        "auto",
        "on: a run is one CUDA graph, one run at a time; onnxruntime then needs --batch, and has none with auto; with "
        "auto tvm times both when the engine is opened",
        one_of("auto", "on", "off"),
        at_load=True,
    ),
    Option("cache", "on", "off: TensorRT builds its engine at every start", _SWITCH, at_load=True),
    Option("fallback", "off", "on: where no GPU can be used the CPU runs it, with a warning", _SWITCH, at_load=True),
)
"""Those that either back end reads when it compiles or runs."""
_FOREIGN = ("provider", "layout", "cache", "fallback")
"""Options that are ONNX Runtime's."""


@runners.register
class CudaRunner(Runner):
    """ONNX Runtime, with TensorRT's provider or with CUDA's."""

    name: ClassVar[str] = "cuda"
    extra: ClassVar[str] = "cuda"
    known_options: ClassVar[Sequence[Option]] = OPTIONS

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given)
        precision = self.options["precision"]
        # The CUDA provider would round to 8 bits, and multiply in float32.
        if self.options["provider"] == "cuda" and precision in CALIBRATED:
            what = f"precision {precision} is TensorRT's: the CUDA provider has no 8-bit convolutions"
            raise TargetError(what, hint="leave out provider=cuda, or backend=tvm, or --precision fp16")

    @classmethod
    def select(cls, given: Mapping[str, str]) -> type[Runner]:
        """Kernels of TVM's have another runtime."""
        return KernelsRunner if given.get("backend") == "tvm" else cls

    def missing(self) -> str:
        """Nothing: compiling may load an engine that it does not run; `open` says what is missing."""
        return ""

    def remedy(self) -> str:
        return to_install(self.extra) + ', or pip install "onnxruntime-gpu[cuda,cudnn]"'

    def open(self, folder: Path, threads: int | None = None) -> Session:
        from dnc.runtime.runners.cuda.onnxruntime import open_engine

        if importlib.util.find_spec("onnxruntime") is None:
            what = "target cuda needs onnxruntime-gpu to run engines, which is not installed"
            raise TargetError(what, folder, self.remedy())
        return open_engine(folder, self.options, threads)

    def taking_turns(self) -> Self:
        """Runs on the device or not at all: times of the CPU say nothing about it."""
        return self if self.options["fallback"] == "off" else type(self)({**self.given, "fallback": "off"})


class KernelsRunner(Runner):
    """TVM's runtime, with its part for CUDA."""

    name: ClassVar[str] = "cuda"
    extra: ClassVar[str] = "cuda-tvm"
    runs_code: ClassVar[bool] = True
    known_options: ClassVar[Sequence[Option]] = OPTIONS

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given)
        foreign = [name for name in _FOREIGN if self.given.get(name, "off") != "off"]
        if foreign:
            raise TargetError(f"back end tvm has no {', '.join(foreign)}", hint="leave it out, or backend=onnxruntime")

    def missing(self) -> str:
        """The interface for Python; what is in the engine or beside the driver, `open` looks for."""
        return "" if importlib.util.find_spec("tvm_ffi") else FFI

    def remedy(self) -> str:
        """TVM, with NVIDIA's compiler; what runs engines is less."""
        less = '; to run engines, "…[runtime-cuda-tvm]" is enough' if is_whole() else ""
        return to_install(self.extra) + less

    def open(self, folder: Path, threads: int | None = None) -> Session:
        from dnc.runtime.runners.cuda.kernels import GpuSession

        return GpuSession(folder, self.options["device"], self.options["graphs"])
