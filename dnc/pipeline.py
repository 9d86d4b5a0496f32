"""Runs passes one after the other, and proves after each that the graph is still a valid one.

onnx_ir has a PassManager, but it hides which pass failed and why; this is all that is needed of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from dnc.errors import BundleError, DncError, PassError
from dnc.graph import check, serialize_to
from dnc.passes import Pass

__all__ = ["Applied", "run_passes"]


@dataclass(frozen=True)
class Applied:
    """What one pass did."""

    name: str
    count: int
    seconds: float


def run_passes(
    model: ir.Model,
    passes: Sequence[Pass],
    *,
    dump: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Applied]:
    """Applies the passes to the model in place, and checks it after each that changed something.

    Args:
        model: the model.
        passes: in order.
        dump: a folder for `00-lowered.onnx`, `.txt` and the same after each pass.
        progress: is told the name of each pass before it runs.

    Raises:
        PassError: a pass failed or left an invalid graph; the pass is named.
        BundleError: the graphs cannot be written to `dump`.
    """
    if dump is not None:
        _dump(model, dump, 0, "lowered")
    applied = []
    for number, optimization in enumerate(passes, 1):
        if progress is not None:
            progress(optimization.name)
        start = time.perf_counter()
        try:
            count = optimization.rewrite(model)
            if count:
                check(model, "the pass")
        except DncError as error:
            hint = f"--skip {optimization.name} leaves the pass out"
            raise PassError(f"pass {optimization.name}: {error.message}", error.where, hint) from error
        except Exception as error:
            error.add_note(f"in pass {optimization.name}; --skip {optimization.name} leaves it out")
            raise
        applied.append(Applied(optimization.name, count, time.perf_counter() - start))
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
