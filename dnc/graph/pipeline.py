"""Runs passes one after the other, and proves after each that the graph is still a valid one and computes the same.

onnx_ir has a PassManager, but it hides which pass failed and why; this is all that is needed of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dnc.errors import BundleError, DncError, PassError
from dnc.graph.rewriting import Remarks
from dnc.graph.serialization import check, serialize_to
from dnc.graph.verification import Verifier
from dnc.passes import Pass

__all__ = ["Applied", "run_passes"]


@dataclass(frozen=True)
class Applied:
    """What one pass did."""

    name: str
    tolerance: float
    remarks: Remarks
    seconds: float
    error: float | None = None
    """By how much the outputs changed, relative to the largest of each; None where that was not measured."""

    @property
    def count(self) -> int:
        """How often it applied."""
        return self.remarks.count

    def to_json(self) -> dict[str, Any]:
        """Everything but the seconds, as JSON values."""
        return {
            "name": self.name,
            "applied": [remark._asdict() for remark in self.remarks.applied],
            "missed": [remark._asdict() for remark in self.remarks.missed],
            "tolerance": self.tolerance,
            "error": self.error,
        }


def run_passes(
    model: ir.Model,
    passes: Sequence[Pass],
    *,
    dump: Path | None = None,
    verify: Verifier | None = None,
    progress: Callable[[str], None] | None = None,
    before: int = 0,
) -> list[Applied]:
    """Applies the passes to the model in place, and checks it after each that changed something.

    Args:
        model: the model.
        passes: in order.
        dump: a folder for `00-lowered.onnx`, `.txt` and the same after each pass.
        verify: compares the outputs after each pass that changed something with those before it.
        progress: is told the name of each pass before it runs.
        before: how many passes ran earlier on the same model, with the same `dump` and `verify`.

    Raises:
        PassError: a pass failed, left an invalid graph, or changed the outputs by more than it declares; it is named.
        BundleError: the graphs cannot be written to `dump`.
    """
    if dump is not None and not before:
        _dump(model, dump, 0, "lowered")
    if verify is not None and not before:
        verify.start(model)
    applied = []
    for number, optimization in enumerate(passes, before + 1):
        if progress is not None:
            progress(optimization.name)
        start = time.perf_counter()
        try:
            remarks = optimization.rewrite(model)
            if remarks.count:
                check(model, "the pass")
            seconds = time.perf_counter() - start
            changed = verify.compare(model, optimization.tolerance) if verify is not None and remarks.count else None
        except DncError as error:
            hint = f"--skip {optimization.name} leaves the pass out"
            raise PassError(f"pass {optimization.name}: {error.message}", error.where, hint) from error
        except Exception as error:
            error.add_note(f"in pass {optimization.name}; --skip {optimization.name} leaves it out")
            raise
        applied.append(Applied(optimization.name, optimization.tolerance, remarks, seconds, changed))
        if dump is not None:
            _dump(model, dump, number, optimization.name)
    return applied


def _dump(model: ir.Model, folder: Path, number: int, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        serialize_to(model, folder / f"{number:02d}-{name}.onnx")
        (folder / f"{number:02d}-{name}.txt").write_text(str(model), encoding="utf-8")
    except OSError as error:
        hint = "is the disk full, or the folder read-only?"
        raise BundleError(f"cannot write the graph: {error.strerror or error}", folder, hint) from error
