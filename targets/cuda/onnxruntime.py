"""Back end `onnxruntime` of target `cuda`: model.onnx, portable, for ONNX Runtime's TensorRT or CUDA provider.

precision      model.onnx                               arithmetic
fp32           float32                                  float32
tf32           float32                                  TF32 in products, on GPUs from sm_80 on
fp16           float16 between its ends                 the same; TensorRT may take it elsewhere too
int8, mixed    8 bits, symmetric, around products       8 bits there, float32 elsewhere; TensorRT alone has it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from dnc.errors import TargetError
from dnc.graph.pipeline import Step
from dnc.graph.quantization import QuantSpec
from dnc.runtime.arithmetic import Arithmetic
from dnc.runtime.gpus import gpus
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import Option
from dnc.runtime.runners import Runner
from dnc.runtime.runners.cuda import CudaRunner
from dnc.runtime.runners.cuda.onnxruntime import providers_for
from dnc.targets.cuda.options import KERNELS, OPTIONS
from dnc.targets.onnx import Onnx, optimizations
from dnc.typing import Progress, silent

__all__ = ["CudaOnnxRuntime"]


class CudaOnnxRuntime(Onnx):
    """ONNX Runtime on a GPU."""

    name: ClassVar[str] = "cuda"
    runs: ClassVar[type[Runner]] = CudaRunner
    known_options: ClassVar[Sequence[Option]] = OPTIONS

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given)
        self.runner()  # Refuses what is not for it.
        foreign = [option.name for option in KERNELS if option.name in self.given]
        if foreign:
            raise TargetError(f"back end onnxruntime has no {', '.join(foreign)}", hint="--option backend=tvm has")
        if self.options["precision"] == "bf16":
            raise TargetError("back end onnxruntime has no precision bf16", hint="--option backend=tvm has")
        if self.options["arch"]:
            hint = "leave it out, or backend=tvm"
            raise TargetError("back end onnxruntime has no use for arch: its engines run on every GPU", hint=hint)

    @property
    def title(self) -> str:
        return super().title + (" by onnxruntime" if "backend" in self.given else "")

    def missing(self) -> str:
        """Nothing: onnx writes the engine."""
        return ""

    def remedy(self) -> str:
        return self.runner().remedy()

    def optimizations(self) -> Sequence[Step]:
        """Activations as ONNX has them: the form that is fastest on a CPU would be seven kernels instead of three."""
        return optimizations("onnx", "bits")

    @property
    def arithmetic(self) -> Arithmetic | None:
        """GPUs add up 8-bit numbers in 32 bits."""
        return None

    def quantization(self) -> QuantSpec | None:
        """TensorRT wants the inputs of products, signed, with 0 as 0; what they are computed from it finds itself."""
        return QuantSpec(frozenset({"Conv", "Gemm"}), symmetric=True)

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
        gpu = next((f"{gpu.name}, driver {gpu.driver}" for gpu in gpus()[self.options["device"] :]), "no GPU")
        told = [self.options["precision"], self.options["layout"]] + ["graphs"] * (self.options["graphs"] == "on")
        return f"{super().engine()} {'/'.join(providers_for(self.options))} {' '.join(told)} on {gpu}"
