"""What target `tvm` and back end `tvm` of target `cuda` have in common."""

from __future__ import annotations

import importlib.util
import shutil
from abc import abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dnc.graph.composites import NON_MAX_SUPPRESSION, PREPROCESS
from dnc.graph.pipeline import Step
from dnc.graph.quantization import DATA_MOVEMENT, QuantSpec
from dnc.runtime.runners.tvm import FFI
from dnc.targets.base import TunableTarget
from dnc.targets.onnx import rounded

__all__ = ["TvmTarget", "described"]


class TvmTarget(TunableTarget):
    """An engine that TVM's compiler makes, and TVM's runtime runs."""

    composites: frozenset[str] = frozenset({PREPROCESS, NON_MAX_SUPPRESSION})

    @abstractmethod
    def library(self) -> Path | None:
        """What an installed TVM must have; None where it is not there."""

    def missing(self) -> str:
        """TVM, and its interface for Python in the version that fits."""
        packages = {"apache-tvm": self.library() is not None, FFI: bool(importlib.util.find_spec("tvm_ffi"))}
        return " ".join(name for name, found in packages.items() if not found)

    def quantization(self) -> QuantSpec | None:
        """Convolutions of all channels and what lies between them; what computes single channels is limited by memory,
        and gains nothing."""
        operators = frozenset({"Conv", "Gemm", "Concat"}) | DATA_MOVEMENT
        return QuantSpec(operators, unified_concat=True, dense_only=True)

    def storage(self, keep: Collection[str] = ()) -> Sequence[Step]:
        return rounded("to-float16", keep) if self.options["precision"] == "fp16" else []

    def versions(self) -> dict[str, str]:
        """TVM's compiler, and the interface that the engine is called by."""
        from importlib.metadata import version

        return {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi")}

    @staticmethod
    def bundle(libraries: dict[str, Path], folder: Path) -> str:
        """Copies libraries of TVM's runtime into the engine, by the names that they have there, and its licence."""
        for name, library in libraries.items():
            shutil.copyfile(library, folder / name)
            licence = library.parent.parent / "LICENSE"
            if licence.is_file():
                shutil.copyfile(licence, folder / "LICENSE-tvm")
        size = sum((folder / name).stat().st_size for name in libraries)
        return f"bundled ({size / 1e6:.1f} MB)"


def described(values: Sequence[ir.Value]) -> list[dict[str, Any]]:
    """Inputs or outputs for model.json; of their free sides, the one for the images of a batch has its name, N."""
    return [
        {
            "name": value.name,
            "shape": [side if isinstance(side, int) else "N" if side == "N" else None for side in value.shape or ()],
            "dtype": "float32" if value.dtype is None else value.dtype.numpy().name,
        }
        for value in values
    ]
