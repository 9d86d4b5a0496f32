"""Target `cuda`: NVIDIA's GPUs, by whichever of its back ends is the faster one on this machine's GPU.

    backend        the engine
    onnxruntime    model.onnx, portable; ONNX Runtime's TensorRT or CUDA provider runs it (onnxruntime.py)
    tvm            model.so: kernels compiled here for --option arch, by TVM and nvcc (kernels.py)

A back end is a target by itself, with the options of both: a class, and a line in `BACKENDS`. Where there is a GPU and
none is asked for, all are built and timed (`dnc.compiler.choosing`).

Compiling needs no GPU, and no ONNX Runtime either. With --autotune, on the device, grouped convolutions are measured in
all their forms; else they stay as they are, which on an H200 was the fastest in 86 of 86 cases.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import ClassVar

from dnc.errors import TargetError
from dnc.runtime.gpus import gpus
from dnc.runtime.options import Option
from dnc.targets import Destination, Target, targets
from dnc.targets.cuda.kernels import CudaKernels
from dnc.targets.cuda.onnxruntime import CudaOnnxRuntime
from dnc.targets.cuda.options import OPTIONS

__all__ = ["BACKENDS", "Cuda"]

BACKENDS: Mapping[str, type[Target]] = {"onnxruntime": CudaOnnxRuntime, "tvm": CudaKernels}


@targets.register
class Cuda(Destination):
    """A choice among the back ends."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "NVIDIA's GPUs: ONNX Runtime with TensorRT or CUDA; compiles without one"
    extra: ClassVar[str] = "cuda"
    known_options: ClassVar[Sequence[Option]] = OPTIONS

    def candidates(self, precisions: Collection[str] = ()) -> Sequence[Target]:
        """The back end that was asked for; else all that have the options, where there is a GPU to time them on, and
        onnxruntime where there is none."""
        backend = self.options["backend"]
        if backend != "auto":
            return [BACKENDS[backend](self.given)]
        if not gpus():
            return [BACKENDS["onnxruntime"](self.given)]
        found: list[Target] = []
        for name, kind in BACKENDS.items():
            # One that lacks an option or a precision is none.
            with suppress(TargetError):
                found.append(kind({**self.given, "backend": name}))
        return found

    def remedy(self) -> str:
        return self.candidates()[0].remedy()
