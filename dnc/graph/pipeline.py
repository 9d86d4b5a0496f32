"""An ordered list of passes: why each stands where it does, what it did, and the proof that it kept the numbers.

A target makes one pipeline from its options (`Target.pipeline`); compile, explain, autotune and quantization run it.
Some steps are known only when the model has come so far: which form a convolution takes, which layers stay in float32.
Such a step is a `Decision`, which looks at the model and gives the steps that follow.

onnx_ir has a PassManager, but it hides which pass failed and why; this is all that is needed of it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dnc.errors import BundleError, DncError, PassError
from dnc.graph.rewriting import Pass, Remarks
from dnc.graph.serialization import check, serialize_to
from dnc.graph.verification import Verifier

__all__ = ["Applied", "Decision", "Pipeline", "Step"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A pass in its place."""

    rewriting: Pass
    why: str = ""
    """Why it stands here."""
    named: bool = False
    """Whether the user asked for this pass: then it is an error if it cannot do anything at all."""

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.rewriting.name


@dataclass(frozen=True)
class Decision:
    """Steps that depend on the model as it is at this place."""

    name: str
    decide: Callable[[ir.Model], Sequence[Step]]
    """Gives the steps; raises DncError where the pipeline must not go on. It leaves the model as it is."""
    why: str = ""


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


class Pipeline:
    """Steps in order; it is never changed.

    Args:
        steps: passes stand for steps without a reason.
    """

    def __init__(self, steps: Iterable[Step | Decision | Pass]) -> None:
        self.steps = tuple(Step(step) if isinstance(step, Pass) else step for step in steps)

    def __iter__(self) -> Iterator[Step | Decision]:
        return iter(self.steps)

    def expanded(self, skip: Collection[str] = ()) -> frozenset[str]:
        """The composites that its passes, but those of `skip`, put operators in the place of."""
        steps = (step.rewriting for step in self if isinstance(step, Step) and step.name not in skip)
        return frozenset(rewriting.expands for rewriting in steps if rewriting.expands)

    def run(
        self,
        model: ir.Model,
        *,
        skip: Collection[str] = (),
        dump: Path | None = None,
        verify: Verifier | None = None,
        progress: Callable[[str], None] = lambda _: None,
        watch: Callable[[Step, ir.Model], None] = lambda *_: None,
    ) -> list[Applied]:
        """Applies the passes to the model in place, and checks it after each that changed something.

        Args:
            skip: passes to leave out, also of those that a decision gives.
            dump: a folder for `00-lowered.onnx`, `.txt` and the same after each pass.
            verify: compares the outputs after each pass that changed something with those before it.
            progress: is told the name of each pass before it runs, and how many may follow.
            watch: is shown each step and the model as it is before it; it leaves the model as it is.

        Raises:
            PassError: a pass failed, left an invalid graph, changed the outputs by more than it declares, or was asked
                for and cannot do anything; it is named.
            BundleError: the graphs cannot be written to `dump`.
            DncError: whatever a decision raises.
        """
        if dump is not None:
            _dump(model, dump, 0, "lowered")
        if verify is not None:
            verify.start(model)
        applied: list[Applied] = []
        waiting = deque(self.steps)
        while waiting:
            step = waiting.popleft()
            if isinstance(step, Decision):
                waiting.extendleft(reversed(step.decide(model)))
            elif step.name not in skip:
                progress(f"pass {len(applied) + 1} of {len(applied) + 1 + len(waiting)}: {step.name}")
                watch(step, model)
                applied.append(_apply(model, step, verify))
                _LOG.debug("%s: applied %d times in %.3f s", step.name, applied[-1].count, applied[-1].seconds)
                if dump is not None:
                    _dump(model, dump, len(applied), step.name)
        return applied


def _apply(model: ir.Model, step: Step, verify: Verifier | None) -> Applied:
    rewriting = step.rewriting
    start = time.perf_counter()
    try:
        remarks = rewriting.rewrite(model)
        if remarks.count:
            check(model, "the pass")
        seconds = time.perf_counter() - start
        changed = verify.compare(model, rewriting.tolerance) if verify is not None and remarks.count else None
    except DncError as error:
        hint = f"--skip {step.name} leaves the pass out"
        raise PassError(f"pass {step.name}: {error.message}", error.where, hint) from error
    except Exception as error:
        error.add_note(f"in pass {step.name}; --skip {step.name} leaves it out")
        raise
    unmet = rewriting.unmet(remarks) if step.named else ""
    if unmet:
        raise PassError(f"pass {step.name}: {unmet}", hint="leave it out of --passes, or give it what it needs")
    return Applied(step.name, rewriting.tolerance, remarks, seconds, changed)


def _dump(model: ir.Model, folder: Path, number: int, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        serialize_to(model, folder / f"{number:02d}-{name}.onnx")
        (folder / f"{number:02d}-{name}.txt").write_text(str(model), encoding="utf-8")
    except OSError as error:
        hint = "is the disk full, or the folder read-only?"
        raise BundleError(f"cannot write the graph: {error.strerror or error}", folder, hint) from error
