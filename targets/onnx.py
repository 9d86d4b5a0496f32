"""Target `onnx`: ONNX Runtime on the CPU. The engine is one model.onnx, which any other ONNX tool reads as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dnc.runtime.options import Option, one_of
from dnc.runtime.runners import Runner
from dnc.runtime.runners.onnx import MODEL, OnnxRunner, import_onnxruntime
from dnc.targets import Target, targets
from dnc.typing import Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.graph.quantization import Recipe
    from dnc.passes import Pass
    from dnc.runtime.manifest import Manifest

__all__ = ["Onnx", "optimizations"]


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
        passes["binarize"](form=signs),
        passes["fuse-activation"](form=activations),
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
    runs: ClassVar[type[Runner]] = OnnxRunner
    faster: ClassVar[Sequence[str]] = ("mixed",)
    known_options: ClassVar[Sequence[Option]] = (
        Option(
            "precision",
            "fp32",
            "fp16: half precision; bf16: weights in bfloat16; int8, mixed: 8 bits, all over or where they cost little",
            one_of("fp32", "fp16", "bf16", "int8", "mixed"),
        ),
        *OnnxRunner.known_options,
    )

    def passes(self) -> Sequence[Pass]:
        """What ONNX Runtime's CPU provider profits from: see benchmarks/passes.md. It fuses most activations itself."""
        return optimizations("onnxruntime", "integer")

    def quantization(self) -> Recipe | None:
        """Its kernels for 8 bits compute one operator each and round what it gives; Relu and Clip are that rounding."""
        from dnc.graph.quantization import MOVES, Recipe

        operators = frozenset({"Conv", "Gemm", "Add", "Mul", "LeakyRelu", "Sigmoid", "Concat"})
        return Recipe(operators | MOVES, outputs=True, biases=True)

    def final_passes(self) -> Sequence[Pass]:
        """What stores another precision."""
        from dnc.passes import passes

        rounding = {"fp16": "to-float16", "bf16": "to-bfloat16"}.get(self.options["precision"])
        return [] if rounding is None else [passes[rounding](), passes["eliminate-dead-code"]()]

    def build(
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes model.onnx."""
        from dnc.graph.serialization import serialize_to

        serialize_to(model, folder / MODEL)
        return {}

    def versions(self) -> dict[str, str]:
        """ONNX and its Python representation: the runtime leaves no trace in the file."""
        from importlib.metadata import version

        return {"onnx": version("onnx"), "onnx-ir": version("onnx-ir")}

    def engine(self) -> str:
        """ONNX Runtime, which has several distributions."""
        return f"ONNX Runtime {import_onnxruntime().__version__}"
