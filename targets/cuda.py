"""Target `cuda`: NVIDIA's GPUs, by one of several back ends.

    backend        the engine
    onnxruntime    model.onnx, portable; ONNX Runtime's TensorRT or CUDA provider runs it (`dnc.cuda`)
    tvm            model.so: kernels compiled here for --option arch, by TVM and nvcc (`dnc.tvm.gpu`); float32, float16

A back end is a target by itself, with the options of this one: a class here, and a line in `BACKENDS`. Where there is a
GPU and none is asked for, all are built and timed (`dnc.choose`).

Compiling needs no GPU, and no ONNX Runtime either. What can be decided by measuring is decided so: with --autotune on
the device; else, of depthwise convolutions, by what was measured once for the GPU's generation (`dnc.depthwise`), which
--option arch names on a machine that has none.

    precision      model.onnx                               arithmetic
    fp32           float32                                  float32
    tf32           float32                                  TF32 in products, on GPUs from sm_80 on
    fp16           float16 between its ends                 the same; TensorRT may take it elsewhere too
    int8, mixed    8 bits, symmetric, around products       8 bits there, float32 elsewhere; TensorRT alone has it
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dnc.errors import TargetError
from dnc.gpu import arch, gpus
from dnc.targets import Option, Session, Target, targets
from dnc.targets.base import Progress, one_of, silent, whole
from dnc.targets.onnx import Onnx, optimizations
from dnc.tvm.gpu.target import OPTIONS, TvmGpu

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.bundle import Bundle
    from dnc.passes import Pass
    from dnc.quantization import Recipe

__all__ = ["BACKENDS", "Cuda", "OnnxRuntime"]

_SWITCH = one_of("on", "off")
_OPTIONS: Sequence[Option] = (
    Option(
        "backend",
        "auto",
        "what runs the network: onnxruntime; tvm: kernels compiled ahead of time, here, for the GPU that arch names; "
        "auto: the faster one on this machine's GPU, onnxruntime where there is none",
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
        "tf32: products in TF32; fp16: half precision; int8, mixed: 8 bits, all over or where they cost little, by "
        "TensorRT alone",
        one_of("fp32", "tf32", "fp16", "int8", "mixed"),
    ),
    Option(
        "arch",
        "",
        "the GPU's generation, as sm_87, for what was measured on one; tvm: or several, as sm_75,sm_87; that of this "
        "machine's GPU if not given",
        arch,
    ),
    Option("device", "0", "the number of the GPU", whole(0, 63), at_load=True),
    Option("layout", "nchw", "nhwc: the CUDA provider prefers it", one_of("nchw", "nhwc"), at_load=True),
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
    *OPTIONS,
)


class OnnxRuntime(Onnx):
    """Back end `onnxruntime`."""

    name: ClassVar[str] = "cuda"
    known_options: ClassVar[Sequence[Option]] = _OPTIONS

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given)
        from dnc.cuda import EIGHT_BITS

        precision = self.options["precision"]
        if self.options["provider"] == "cuda" and precision in EIGHT_BITS:
            what = f"precision {precision} is TensorRT's: the CUDA provider has no 8-bit convolutions"
            raise TargetError(what, hint="leave out provider=cuda, or --precision fp16")
        foreign = [option.name for option in OPTIONS if option.name in self.given]
        if foreign:
            raise TargetError(f"back end onnxruntime has no {', '.join(foreign)}", hint="--option backend=tvm has")
        if "," in self.options["arch"]:
            raise TargetError("back end onnxruntime has no use for more than one arch", hint="name one, or backend=tvm")

    def missing(self) -> str:
        """Nothing: onnx writes the engine."""
        return ""

    def remedy(self) -> str:
        """With NVIDIA's libraries."""
        return 'pip install "darknet-compiler[cuda]", or pip install "onnxruntime-gpu[cuda,cudnn]"'

    def passes(self) -> Sequence[Pass]:
        """Activations as ONNX has them: the form that is fastest on a CPU would be seven kernels instead of three."""
        return optimizations("onnx", "bits")

    def quantization(self) -> Recipe | None:
        """TensorRT wants the inputs of products, signed, with 0 as 0; what they are computed from it finds itself."""
        from dnc.quantization import Recipe

        return Recipe(frozenset({"Conv", "Gemm"}), signed=True)

    def unsupported(self, model: ir.Model) -> list[str]:
        """CUDA graphs of batches of any size."""
        free = [
            value.name
            for value in model.graph.inputs
            if value.shape is None or any(not isinstance(side, int) for side in value.shape)
        ]
        if self.options["graphs"] != "on" or not free:
            return []
        return [f"graphs=on: CUDA graphs need fixed shapes, and {free[0]} takes batches of any size: --batch N"]

    def build(
        self, model: ir.Model, folder: Path, about: Bundle | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes model.onnx, and says what no GPU has seen."""
        super().build(model, folder, about, progress)
        tuning = {} if about is None else about.tuning
        if tuning and not tuning.get("table"):
            return {"device": f"grouped convolutions were timed on {tuning['device']}; the engine was not tried"}
        report = {"device": "nothing was timed or tried on a GPU"}
        generation = self.options["arch"] or next((gpu.arch for gpu in gpus()[self.options["device"] :]), "")
        if tuning:
            report["depthwise"] = f"by {tuning['device']}"
        elif generation:
            report["depthwise"] = f"native: nothing was measured for {generation} under these conditions"
        else:
            report["depthwise"] = "native: for which GPU is unknown; --option arch=sm_87 names it"
        return report

    def engine(self) -> str:
        """ONNX Runtime, how it is told to compute, and on which GPU."""
        from dnc.cuda import providers_for

        gpu = next((f"{gpu.name}, driver {gpu.driver}" for gpu in gpus()[self.options["device"] :]), "no GPU")
        told = [self.options["precision"], self.options["layout"]] + ["graphs"] * (self.options["graphs"] == "on")
        return f"{super().engine()} {'/'.join(providers_for(self.options))} {' '.join(told)} on {gpu}"

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session on the GPU."""
        from dnc.cuda import open_engine

        if importlib.util.find_spec("onnxruntime") is None:
            # What compiles may load what it compiled, as long as it does not run it.
            what = "target cuda needs onnxruntime-gpu to run engines, which is not installed"
            raise TargetError(what, folder, self.remedy())
        return open_engine(folder, self.options, threads)


class Tvm(TvmGpu):
    """Back end `tvm`."""

    known_options: ClassVar[Sequence[Option]] = _OPTIONS


BACKENDS: Mapping[str, type[Target]] = {"onnxruntime": OnnxRuntime, "tvm": Tvm}


@targets.register
class Cuda(Target):
    """NVIDIA's GPUs: whatever is asked of it, its back end answers."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "NVIDIA's GPUs: ONNX Runtime with TensorRT or CUDA; compiles without one"
    extra: ClassVar[str] = "cuda"
    known_options: ClassVar[Sequence[Option]] = _OPTIONS

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given)
        backend = self.options["backend"]
        self._backend = BACKENDS["onnxruntime" if backend == "auto" else backend](given)
        # Of this one, not of all.
        self.batch, self.tunes = self._backend.batch, self._backend.tunes  # type: ignore[misc]

    @property
    def title(self) -> str:
        """With the back end that was asked for."""
        return " by ".join([super().title, *([self.given["backend"]] if "backend" in self.given else [])])

    def candidates(self, allowed: Collection[str] = ()) -> Sequence[Target]:
        """Each back end that has the options, where one of them can be timed; else what was asked for."""
        if self.options["backend"] != "auto" or not gpus():
            return [self]
        found: list[Target] = []
        for backend in BACKENDS:
            # One that lacks an option or a precision is none.
            with suppress(TargetError):
                found.append(type(self)({**self.given, "backend": backend}))
        return found

    def missing(self) -> str:
        """What the back end needs to compile."""
        return self._backend.missing()

    def missing_to_open(self) -> str:
        """What it needs to run."""
        return self._backend.missing_to_open()

    def remedy(self) -> str:
        """How that is installed."""
        return self._backend.remedy()

    def passes(self) -> Sequence[Pass]:
        """Its passes."""
        return self._backend.passes()

    def quantization(self) -> Recipe | None:
        """Its 8-bit numbers."""
        return self._backend.quantization()

    def final_passes(self) -> Sequence[Pass]:
        """Its precision."""
        return self._backend.final_passes()

    def unsupported(self, model: ir.Model) -> list[str]:
        """What it cannot run."""
        return self._backend.unsupported(model)

    def build(
        self, model: ir.Model, folder: Path, about: Bundle | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes its files."""
        return self._backend.build(model, folder, about, progress)

    def build_tuned(
        self,
        model: ir.Model,
        folder: Path,
        about: Bundle | None,
        trials: int,
        *,
        remote: str = "",
        cache: Path | None = None,
        progress: Progress = silent,
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """Writes them with kernels chosen by measuring, if its back end can."""
        return self._backend.build_tuned(model, folder, about, trials, remote=remote, cache=cache, progress=progress)

    def versions(self) -> dict[str, str]:
        """Versions of what makes them."""
        return self._backend.versions()

    def engine(self) -> str:
        """What runs them, and on which GPU."""
        return self._backend.engine()

    def taking_turns(self) -> Target:
        """On the device or not at all: the CPU's times say nothing about it."""
        return self if self.options["fallback"] == "off" else type(self)({**self.given, "fallback": "off"})

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session of the back end."""
        return self._backend.open(folder, threads)
