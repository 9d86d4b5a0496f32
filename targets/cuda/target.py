"""Target `cuda`: NVIDIA's GPUs, by whichever of its back ends is the faster one on this machine's GPU.

    backend        the engine
    onnxruntime    model.onnx, portable; ONNX Runtime's TensorRT or CUDA provider runs it (onnxruntime.py)
    tvm            model.so: kernels compiled here for --option arch, by TVM and nvcc (kernels.py)

A back end is a target by itself, with the options of both: a class, and a line in `BACKENDS`. Where there is a GPU and
none is asked for, all are built and timed as an application runs them, copies included (`dnc.compiler.choosing`); tvm
once more with kinds of kernels that no GPU has run (option `kernels`), which take the place of the others if here they
give the same outputs in less time of the device. Without a GPU measurements of another one decide: tvm, which was the
faster one, where --option arch says what it is to be compiled for and it is installed; else onnxruntime, whose engine
runs on every GPU.

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
from dnc.targets import Selectable, Target, targets
from dnc.targets.cuda.kernels import CudaKernels
from dnc.targets.cuda.onnxruntime import CudaOnnxRuntime
from dnc.targets.cuda.options import OPTIONS

__all__ = ["BACKENDS", "Cuda"]

_MEASURED_ON = "NVIDIA H200"
_RATIOS = {"fp32": "0.29 to 0.47", "fp16": "0.04 to 0.54"}
"""Of four or five networks, one image and 16, on the device, by ONNX Runtime 1.31's CUDA provider with graphs; in fp16
with layout=nhwc but for one. TF32 and 8 bits were not compared."""

BACKENDS: Mapping[str, type[Target]] = {"onnxruntime": CudaOnnxRuntime, "tvm": CudaKernels}


@targets.register
class Cuda(Selectable):
    """A choice among the back ends."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "NVIDIA's GPUs: ONNX Runtime with TensorRT or CUDA; compiles without one"
    extra: ClassVar[str] = "cuda"
    known_options: ClassVar[Sequence[Option]] = OPTIONS

    def candidates(self, precisions: Collection[str] = ()) -> Sequence[Target]:
        """The back end that was asked for; else all that have the options, where there is a GPU to time them on, and
        where there is none the one that was faster elsewhere, if it can be had."""
        return self._chosen()[0]

    def reason(self) -> str:
        return self._chosen()[1]

    def _chosen(self) -> tuple[list[Target], str]:
        backend = self.options["backend"]
        if backend != "auto":
            return [BACKENDS[backend](self.given)], ""
        if not gpus():
            return self._without_gpu()
        found: list[Target] = []
        for name, kind in BACKENDS.items():
            # One that lacks an option or a precision is none.
            with suppress(TargetError):
                found.append(kind({**self._given_to(name), "backend": name}))
        if "kernels" not in self.given and any(isinstance(one, CudaKernels) for one in found):
            found.append(CudaKernels({**self.given, "backend": "tvm", "kernels": "new"}))
        return found, ""

    def _given_to(self, backend: str) -> dict[str, str]:
        """An engine of onnxruntime's is for no generation of GPUs."""
        return {name: text for name, text in self.given.items() if (backend, name) != ("onnxruntime", "arch")}

    def _without_gpu(self) -> tuple[list[Target], str]:
        """By what was measured on another machine."""
        ratio = _RATIOS.get(self.options["precision"])
        took = "was the faster one in fp32 and fp16" if ratio is None else f"took {ratio} of onnxruntime's time"
        measured = f"on an {_MEASURED_ON} tvm {took}"
        try:
            kernels = CudaKernels({**self.given, "backend": "tvm"})
        except TargetError as error:
            why = f"onnxruntime, untimed: {error.message}"
        else:
            if not self.options["arch"]:
                why = f"onnxruntime, for every GPU, untimed; {measured}: --arch names a GPU to compile for"
            elif lacking := kernels.lacking():
                why = f"onnxruntime, untimed: {measured}, but {lacking}"
            else:
                if kernels.needs_calibration:
                    # The other way is TensorRT's, which has to be there.
                    measured = "no GPU has run its kernels of 8 bits yet; --backend onnxruntime leaves them to TensorRT"
                return [kernels], f"tvm, untimed here: {measured}"
        return [BACKENDS["onnxruntime"](self._given_to("onnxruntime"))], why

    def remedy(self) -> str:
        return self.candidates()[0].remedy()
