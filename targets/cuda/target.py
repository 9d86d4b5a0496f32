"""Target `cuda`: NVIDIA's GPUs, by one of several back ends.

    backend        the engine
    onnxruntime    model.onnx, portable; ONNX Runtime's TensorRT or CUDA provider runs it (`dnc.runtime.runners.cuda.onnxruntime`)
    tvm            model.so: kernels compiled here for --option arch, by TVM and nvcc (`dnc.targets.cuda`); float32, float16

A back end is a target by itself, with the options of this one: a class here, and a line in `BACKENDS`. Where there is a
GPU and none is asked for, all are built and timed (`dnc.compiler.choosing`).

Compiling needs no GPU, and no ONNX Runtime either. With --autotune, on the device, grouped convolutions are measured in
each of their forms; else they stay as they are, which on an H200 was the fastest of 86 in 86.

    precision      model.onnx                               arithmetic
    fp32           float32                                  float32
    tf32           float32                                  TF32 in products, on GPUs from sm_80 on
    fp16           float16 between its ends                 the same; TensorRT may take it elsewhere too
    int8, mixed    8 bits, symmetric, around products       8 bits there, float32 elsewhere; TensorRT alone has it
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dnc.errors import TargetError
from dnc.runtime.gpus import gpus
from dnc.runtime.options import Option
from dnc.runtime.runners import Runner
from dnc.runtime.runners.cuda import OPTIONS as RUNNER_OPTIONS
from dnc.runtime.runners.cuda import CudaRunner
from dnc.targets import Target, targets
from dnc.targets.cuda.kernels import OPTIONS, TvmGpu
from dnc.targets.onnx import Onnx, optimizations
from dnc.typing import Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.graph.quantization import Recipe
    from dnc.passes import Pass
    from dnc.runtime.manifest import Manifest

__all__ = ["BACKENDS", "Cuda", "OnnxRuntime"]

_OPTIONS: Sequence[Option] = (*RUNNER_OPTIONS, *OPTIONS)


class OnnxRuntime(Onnx):
    """Back end `onnxruntime`."""

    name: ClassVar[str] = "cuda"
    runs: ClassVar[type[Runner]] = CudaRunner
    known_options: ClassVar[Sequence[Option]] = _OPTIONS

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given)
        from dnc.runtime.runners.cuda.onnxruntime import EIGHT_BITS

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
        return self.runner().remedy()

    def passes(self) -> Sequence[Pass]:
        """Activations as ONNX has them: the form that is fastest on a CPU would be seven kernels instead of three."""
        return optimizations("onnx", "bits")

    def quantization(self) -> Recipe | None:
        """TensorRT wants the inputs of products, signed, with 0 as 0; what they are computed from it finds itself."""
        from dnc.graph.quantization import Recipe

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
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes model.onnx, and says what no GPU has seen."""
        super().build(model, folder, manifest, progress)
        tuning = {} if manifest is None else manifest.tuning
        if tuning:
            return {"device": f"grouped convolutions were timed on {tuning['device']}; the engine was not tried"}
        return {"device": "nothing was timed or tried on a GPU"}

    def engine(self) -> str:
        """ONNX Runtime, how it is told to compute, and on which GPU."""
        from dnc.runtime.runners.cuda.onnxruntime import providers_for

        gpu = next((f"{gpu.name}, driver {gpu.driver}" for gpu in gpus()[self.options["device"] :]), "no GPU")
        told = [self.options["precision"], self.options["layout"]] + ["graphs"] * (self.options["graphs"] == "on")
        return f"{super().engine()} {'/'.join(providers_for(self.options))} {' '.join(told)} on {gpu}"


class Tvm(TvmGpu):
    """Back end `tvm`."""

    known_options: ClassVar[Sequence[Option]] = _OPTIONS


BACKENDS: Mapping[str, type[Target]] = {"onnxruntime": OnnxRuntime, "tvm": Tvm}


@targets.register
class Cuda(Target):
    """NVIDIA's GPUs: whatever is asked of it, its back end answers."""

    name: ClassVar[str] = "cuda"
    runs: ClassVar[type[Runner]] = CudaRunner
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
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes its files."""
        return self._backend.build(model, folder, manifest, progress)

    def build_tuned(
        self,
        model: ir.Model,
        folder: Path,
        manifest: Manifest | None,
        trials: int,
        *,
        remote: str = "",
        cache: Path | None = None,
        progress: Progress = silent,
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """Writes them with kernels chosen by measuring, if its back end can."""
        return self._backend.build_tuned(model, folder, manifest, trials, remote=remote, cache=cache, progress=progress)

    def versions(self) -> dict[str, str]:
        """Versions of what makes them."""
        return self._backend.versions()

    def engine(self) -> str:
        """What runs them, and on which GPU."""
        return self._backend.engine()
