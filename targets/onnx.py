"""Target `onnx`: ONNX Runtime on the CPU. The engine is one model.onnx, which any other ONNX tool reads as well."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from dnc.errors import TargetError
from dnc.targets import Session, Target, targets

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.passes import Pass

__all__ = ["MODEL", "Onnx", "OnnxSession"]

MODEL = "model.onnx"


def import_onnxruntime() -> ModuleType:
    """onnxruntime; raises TargetError where it is installed but its libraries do not load."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise TargetError(f"onnxruntime cannot be loaded: {error}", hint="install it again") from error


class OnnxSession(Session):
    """An onnxruntime.InferenceSession."""

    def __init__(self, path: Path, providers: Sequence[str], threads: int | None) -> None:
        onnxruntime = import_onnxruntime()
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            if threads is not None:
                options.intra_op_num_threads = threads
            self._session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:
            # onnxruntime raises classes of its own that have no common base but Exception.
            raise TargetError(f"ONNX Runtime refuses the model: {error}", path, "build the engine again") from error
        self.providers: list[str] = self._session.get_providers()
        self.device = self.providers[0].removesuffix("ExecutionProvider")

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """InferenceSession.run, which is thread-safe."""
        try:
            return list(self._session.run(None, dict(inputs)))
        except Exception as error:
            raise TargetError(f"ONNX Runtime failed: {error}") from error


@targets.register
class Onnx(Target):
    """ONNX Runtime."""

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "ONNX Runtime on the CPU; model.onnx is portable"
    extra: ClassVar[str] = "onnx"

    def missing(self) -> str:
        """onnxruntime, of any build."""
        return "" if importlib.util.find_spec("onnxruntime") else "onnxruntime"

    def passes(self) -> Sequence[Pass]:
        """What holds for every engine. Fusing activations is ONNX Runtime's own business."""
        from dnc.passes import passes

        order = ("eliminate-identity", "fold-constants", "fold-batchnorm", "eliminate-dead-code")
        return [passes[name]() for name in order]

    def build(self, model: ir.Model, folder: Path) -> None:
        """Writes model.onnx."""
        from dnc.graph import serialize_to

        serialize_to(model, folder / MODEL)

    def versions(self) -> dict[str, str]:
        """ONNX and its Python representation: the runtime leaves no trace in the file."""
        from importlib.metadata import version

        return {"onnx": version("onnx"), "onnx-ir": version("onnx-ir")}

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session on the CPU."""
        return OnnxSession(folder / MODEL, ["CPUExecutionProvider"], threads)
