"""Target `cuda`: ONNX Runtime on an NVIDIA GPU, by its TensorRT provider or its CUDA provider.

The engine is the same model.onnx as target onnx's. Which provider really runs is only known where it is opened: what
the installed onnxruntime has, and whether its libraries load. A fall-back is a `DncWarning`, and is in `device`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dnc.cfg import warn
from dnc.errors import TargetError
from dnc.targets import Session, targets
from dnc.targets.onnx import MODEL, Onnx, OnnxSession, import_onnxruntime, optimizations

if TYPE_CHECKING:
    from dnc.passes import Pass
    from dnc.quantization import Recipe

_WANTED = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


@targets.register
class Cuda(Onnx):
    """ONNX Runtime with TensorRT, CUDA or, reported, the CPU."""

    name: ClassVar[str] = "cuda"
    summary: ClassVar[str] = "ONNX Runtime on an NVIDIA GPU (TensorRT, else CUDA; falls back to the CPU with a warning)"
    extra: ClassVar[str] = "cuda"

    def missing(self) -> str:
        """onnxruntime-gpu is needed to run; onnxruntime of any build says so when it opens the engine."""
        return "" if importlib.util.find_spec("onnxruntime") else "onnxruntime-gpu"

    def passes(self) -> Sequence[Pass]:
        """Activations as ONNX has them: the form that is fastest on a CPU would be seven kernels instead of three."""
        return optimizations("onnx", "bits")

    def quantization(self) -> Recipe | None:
        """None: TensorRT wants other numbers than ONNX Runtime's CPU provider, and nothing of it was measured."""
        return None

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session on the best provider that loads."""
        onnxruntime = import_onnxruntime()
        if hasattr(onnxruntime, "preload_dlls"):
            # CUDA and cuDNN from PyPI's nvidia-* wheels are not on the loader's path.
            onnxruntime.preload_dlls()
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in _WANTED if provider in available]
        # TensorRT is listed by every GPU build, whether its libraries are there or not: it is tried alone first.
        for first in range(len(providers)):
            session = OnnxSession(folder / MODEL, [*providers[first:], "CPUExecutionProvider"], threads)
            if session.providers[0] == providers[first]:
                if first:
                    missed = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers[:first])
                    warn(TargetError(f"{missed} did not load; running on {session.device}", folder))
                return session
        reason = "its libraries or the GPU's driver did not load" if providers else "onnxruntime has no CUDA provider"
        hint = "pip install onnxruntime-gpu in place of onnxruntime, and check nvidia-smi"
        warn(TargetError(f"no GPU: {reason}; running on the CPU", folder, hint))
        return OnnxSession(folder / MODEL, ["CPUExecutionProvider"], threads)
