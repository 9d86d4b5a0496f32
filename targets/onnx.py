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
from dnc.targets import Option, Session, Target, targets
from dnc.targets.base import one_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.bundle import Bundle
    from dnc.passes import Pass
    from dnc.quantization import Recipe

__all__ = ["MODEL", "Onnx", "OnnxSession", "optimizations"]

MODEL = "model.onnx"


def import_onnxruntime() -> ModuleType:
    """onnxruntime; raises TargetError where it is installed but its libraries do not load."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise TargetError(f"onnxruntime cannot be loaded: {error}", hint="install it again") from error


class OnnxSession(Session):
    """An onnxruntime.InferenceSession."""

    def __init__(self, path: Path, providers: Sequence[str], threads: int | None, spin: bool = True) -> None:
        onnxruntime = import_onnxruntime()
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            if threads is not None:
                options.intra_op_num_threads = threads
            if not spin:
                options.add_session_config_entry("session.force_spinning_stop", "1")
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


def optimizations(activations: str, signs: str) -> list[Pass]:
    """The passes of an engine that reads ONNX, with the forms of fuse-activation and of binarize that it runs fastest.

    The order matters: sections that nothing reads go first, for they read what others could change; zero borders are
    seen in weights that no other pass has changed yet, equal pools and joined parts once nothing stands between them;
    and fold-scale takes what the two before it leave.
    """
    from dnc.passes import passes

    return [
        passes["eliminate-identity"](),
        passes["eliminate-dead-code"](),
        passes["fold-constants"](),
        passes["trim-kernels"](),
        passes["simplify-concat"](),
        passes["merge-pools"](),
        passes["binarize"](form=signs),  # type: ignore[call-arg]
        passes["fuse-activation"](form=activations),  # type: ignore[call-arg]
        passes["fold-batchnorm"](),
        passes["fold-scale"](),
        passes["eliminate-dead-code"](),
    ]


@targets.register
class Onnx(Target):
    """ONNX Runtime."""

    name: ClassVar[str] = "onnx"
    summary: ClassVar[str] = "ONNX Runtime on the CPU; model.onnx is portable"
    extra: ClassVar[str] = "onnx"
    faster: ClassVar[Sequence[str]] = ("mixed",)
    known_options: ClassVar[Sequence[Option]] = (
        Option(
            "precision",
            "fp32",
            "fp16: half precision; bf16: weights in bfloat16; int8, mixed: 8 bits, all over or where they cost little",
            one_of("fp32", "fp16", "bf16", "int8", "mixed"),
        ),
        Option(
            "spin",
            "on",
            "off: threads do not wait busily after a run: 5 % slower for an engine that runs all the time, several "
            "times as fast for engines that take turns",
            one_of("on", "off"),
            at_load=True,
        ),
    )

    def missing(self) -> str:
        """onnxruntime, of any build."""
        return "" if importlib.util.find_spec("onnxruntime") else "onnxruntime"

    def passes(self) -> Sequence[Pass]:
        """What ONNX Runtime's CPU provider profits from: see benchmarks/passes.md. It fuses most activations itself."""
        return optimizations("onnxruntime", "integer")

    def quantization(self) -> Recipe | None:
        """Its kernels for 8 bits compute one operator each and round what it gives; Relu and Clip are that rounding."""
        from dnc.quantization import MOVES, Recipe

        operators = frozenset({"Conv", "Gemm", "Add", "Mul", "LeakyRelu", "Sigmoid", "Concat"})
        return Recipe(operators | MOVES, outputs=True, biases=True)

    def final_passes(self) -> Sequence[Pass]:
        """What stores another precision."""
        from dnc.passes import passes

        rounding = {"fp16": "to-float16", "bf16": "to-bfloat16"}.get(self.options["precision"])
        return [] if rounding is None else [passes[rounding](), passes["eliminate-dead-code"]()]

    def build(self, model: ir.Model, folder: Path, about: Bundle | None = None) -> Mapping[str, str]:
        """Writes model.onnx."""
        from dnc.graph import serialize_to

        serialize_to(model, folder / MODEL)
        return {}

    def versions(self) -> dict[str, str]:
        """ONNX and its Python representation: the runtime leaves no trace in the file."""
        from importlib.metadata import version

        return {"onnx": version("onnx"), "onnx-ir": version("onnx-ir")}

    def engine(self) -> str:
        """ONNX Runtime, which has several distributions."""
        return f"ONNX Runtime {import_onnxruntime().__version__}"

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session on the CPU."""
        return OnnxSession(folder / MODEL, ["CPUExecutionProvider"], threads, self.options["spin"] == "on")

    def taking_turns(self) -> Target:
        """Without busy waiting."""
        return type(self)({**self.given, "spin": "off"})
