"""Target `onnx`: ONNX Runtime on the CPU. The engine is one model.onnx, which any other ONNX tool reads as well."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from dnc.graph.pairs import Pairing
from dnc.graph.pipeline import Step
from dnc.graph.quantization import DATA_MOVEMENT, QuantSpec
from dnc.graph.serialization import serialize_to
from dnc.passes import passes
from dnc.runtime.arithmetic import OPTION as ISA
from dnc.runtime.arithmetic import Arithmetic, of_isa
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import Option, one_of
from dnc.runtime.runners import Runner
from dnc.runtime.runners.onnx import MODEL, OnnxRunner, import_onnxruntime
from dnc.targets import Target, targets
from dnc.typing import Progress, silent

__all__ = ["Onnx", "optimizations", "rounded"]


def optimizations(activations: str, signs: str) -> list[Step]:
    """The passes of an engine that reads ONNX.

    Args:
        activations: the form of fuse-activation that the engine runs fastest.
        signs: that of binarize; empty if the engine takes convolutions of signs as they are.
    """
    return [
        Step(passes["eliminate-identity"](), "so that no other pass has to look through it"),
        Step(
            passes["eliminate-dead-code"](), "sections that nothing reads go first: they read what others could change"
        ),
        Step(passes["fold-constants"](), "what depends on no input is seen as a constant by the passes after it"),
        Step(passes["trim-kernels"](), "zero borders are seen in weights that no other pass has changed yet"),
        Step(passes["simplify-concat"](), "joined parts are seen once nothing stands between them"),
        Step(passes["merge-pools"](), "equal pools are seen then, too"),
        *([Step(passes["binarize"](form=signs), "signs are written as the engine runs them fastest")] if signs else []),
        Step(passes["fuse-activation"](form=activations), "an activation's operators as well"),
        Step(passes["fold-batchnorm"](), "after what changes convolutions: it goes into those that are left"),
        Step(passes["fold-scale"](), "takes the factors and offsets that the two before it leave"),
        Step(passes["eliminate-dead-code"](), "what was folded is read no more"),
    ]


def rounded(name: str, keep: Collection[str]) -> list[Step]:
    """The pass that stores another precision, all but what stays in float32, and what it leaves behind."""
    return [
        Step(passes[name](keep=keep), "last: no other pass reads weights of this precision"),
        Step(passes["eliminate-dead-code"](), "float32 weights are read no more"),
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
        ISA,
        *OnnxRunner.known_options,
    )

    def optimizations(self) -> Sequence[Step]:
        """What ONNX Runtime's CPU provider profits from: see benchmarks/passes.md. It fuses most activations itself."""
        return optimizations("onnxruntime", "integer")

    @property
    def arithmetic(self) -> Arithmetic | None:
        """As named; the file runs on any CPU."""
        return of_isa(self.options["isa"])

    def quantization(self) -> QuantSpec | None:
        """Its kernels for 8 bits compute one operator each and round what it gives; Relu and Clip are that rounding."""
        operators = frozenset({"Conv", "Gemm", "Add", "Mul", "LeakyRelu", "Sigmoid", "Concat"})
        arithmetic = self.arithmetic
        # MLAS multiplies matrices, whose rows are by row, column and channel.
        pairs = (Pairing.ROWS,) if arithmetic is not None and arithmetic.saturates else ()
        return QuantSpec(operators | DATA_MOVEMENT, outputs=True, int32_biases=True, thin=16, pairs=pairs)

    def storage(self, keep: Collection[str] = ()) -> Sequence[Step]:
        name = {"fp16": "to-float16", "bf16": "to-bfloat16"}.get(self.options["precision"])
        return [] if name is None else rounded(name, keep)

    def build(
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        serialize_to(model, folder / MODEL)
        return {}

    def versions(self) -> dict[str, str]:
        """ONNX and its Python representation: the runtime leaves no trace in the file."""
        from importlib.metadata import version

        return {"onnx": version("onnx"), "onnx-ir": version("onnx-ir")}

    def engine(self) -> str:
        """ONNX Runtime, which has several distributions."""
        return f"ONNX Runtime {import_onnxruntime().__version__}"
