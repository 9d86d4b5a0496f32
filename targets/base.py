"""What every target is: which passes make a model ready for an engine, and how the engine is written.

What opens and runs the engine is apart, in dnc.runtime.runners: an application needs nothing of this package.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from dnc.errors import TargetError
from dnc.graph.pipeline import Applied, Decision, Pipeline, Step
from dnc.graph.quantization import QuantSpec
from dnc.passes import passes
from dnc.passes.equalize import Equalize
from dnc.passes.quantize import Quantize
from dnc.runtime.arithmetic import Arithmetic
from dnc.runtime.manifest import Manifest
from dnc.runtime.options import CALIBRATED, Configured
from dnc.runtime.runners import Runner
from dnc.typing import Array, Progress, silent

__all__ = ["Candidate", "Selectable", "Target", "TunableTarget", "Tuning", "UnsupportedError"]


class Selectable(Configured, ABC):
    """What can be compiled for: a target, or a choice among several. What was given is kept in engine.json, and given
    again when the engine is opened.

    Args:
        given: options by name, as text; those that are not given have their defaults.

    Raises:
        TargetError: an option is unknown, or has a value that is not allowed.
    """

    kind = "target"
    failure = TargetError
    summary: ClassVar[str]
    """One line for `dnc compile --help`."""
    extra: ClassVar[str]
    """The extra of the distribution that installs what it needs: `pip install darknet-compiler[extra]`."""

    @abstractmethod
    def candidates(self, precisions: Collection[str] = ()) -> Sequence[Target]:
        """The targets that may do the work, of which the fastest on this machine is taken.

        Args:
            precisions: other precisions than float32 that may be taken as well, where the user named none.
        """

    def reason(self) -> str:
        """Why its candidates are those, where no timing chooses among all that there are: for the report."""
        return ""

    def missing(self) -> str:
        """What has to be installed to build an engine; empty if nothing: of a choice, what its first candidate lacks
        if no candidate has all that it needs."""
        lacking = [target.missing() for target in self.candidates()]
        return lacking[0] if all(lacking) else ""

    def remedy(self) -> str:
        """The command that installs what is missing."""
        return f'pip install "darknet-compiler[{self.extra}]", or pip install {self.missing()}'


class Target(Selectable):
    """One engine. A target's only state is its options: all else it needs is in the model or in the engine folder."""

    runs: ClassVar[type[Runner]]
    """What opens and runs its engines."""
    faster: ClassVar[Sequence[str]] = ()
    """The values of its option `precision` that may be faster than float32 and cost accuracy."""
    builds_apart: ClassVar[bool] = False
    """Whether `build` works in a process of its own, so that other targets may build meanwhile."""
    composites: frozenset[str] = frozenset()
    """The composites (`dnc.graph.composites`) that it takes whole; the others it gets as operators."""
    batch: ClassVar[int | None] = None
    """The size of batches where the user asks for none; None for any size."""

    def runner(self) -> Runner:
        """What opens its engines, with the same options."""
        return self.runs.select(self.given)(self.given)

    def candidates(self, precisions: Collection[str] = ()) -> Sequence[Target]:
        return [self]

    def missing(self) -> str:
        """What has to be installed to build an engine; as much as to run it, unless the target says otherwise."""
        return self.runner().missing()

    @property
    def title(self) -> str:
        """Its name, and its precision where that is not float32."""
        precision = self.options.get("precision", "fp32")
        return self.name if precision == "fp32" else f"{self.name} {precision}"

    @abstractmethod
    def optimizations(self) -> Sequence[Step]:
        """The passes that the engine profits from, in order, and why."""

    def proven(self) -> Target | None:
        """The same target without what no device has run yet; None if it has nothing of that. Where both are
        candidates, `replaces` says which is one."""
        return None

    def replaces(
        self, folder: Path, proven: Path, feeds: Mapping[str, Array], progress: Progress = silent
    ) -> tuple[bool, str]:
        """Whether what was built takes the place of what `proven` built: if it gives the same outputs and is faster on
        the device, which another process tries; and that in words.

        Args:
            folder, proven: the engines.
            feeds: inputs by name.
        """
        raise NotImplementedError

    @property
    def needs_calibration(self) -> bool:
        """Whether its precision is one for which ranges have to be measured."""
        return self.options.get("precision") in CALIBRATED

    @property
    def arithmetic(self) -> Arithmetic | None:
        """The 8-bit arithmetic of the CPU that its engines are made for; None where no CPU computes them.

        Raises:
            TargetError: DNC_ISA says what no CPU has.
        """
        return None

    def quantization(self) -> QuantSpec | None:
        """Where the engine wants 8-bit numbers; None if it computes with none."""
        return None

    def storage(self, keep: Collection[str] = ()) -> Sequence[Step]:
        """Passes that store weights in a form that no other pass reads.

        Args:
            keep: what stays in float32.
        """
        return []

    def quantize(self, keep: Collection[str] = ()) -> Sequence[Step]:
        """The passes that put 8-bit numbers where the engine wants them, in a model whose values have ranges
        (`dnc.graph.quantization.attach_ranges`).

        Args:
            keep: what stays in float32: layer numbers, ranges of them, operators.

        Raises:
            TargetError: the engine computes with no 8-bit numbers.
        """
        spec = self.quantization()
        if spec is None:
            raise TargetError(f"target {self.name} has no 8-bit arithmetic that dnc knows of", hint="--target onnx")
        return [
            Step(Equalize(outputs=spec.outputs), "one scale then serves all channels of a tensor"),
            Step(Quantize(spec, keep=keep), "last, so that it sees the operators that run"),
            Step(passes["correct-bias"](), "weights were rounded"),
            Step(passes["eliminate-dead-code"](), "weights that were rounded are read no more"),
        ]

    def pipeline(
        self,
        keep: Collection[str] = (),
        *,
        tuning: Sequence[Decision] = (),
        quantization: Sequence[Step | Decision] | None = None,
    ) -> Pipeline:
        """All passes for an engine with these options, in order.

        Args:
            keep: what stays in float32.
            tuning: what measuring decides before weights are rounded.
            quantization: what quantizes, in place of `quantize`.

        Raises:
            TargetError: as `quantize`.
        """
        if quantization is None:
            quantization = self.quantize(keep) if self.needs_calibration else []
        supported = Decision("supported", self._check_supported, "what the engine cannot run is said before measuring")
        return Pipeline([*self.optimizations(), supported, *tuning, *quantization, *self.storage(keep)])

    def _check_supported(self, model: ir.Model) -> Sequence[Step]:
        found = self.unsupported(model)
        if found:
            raise UnsupportedError("cannot run this network:\n    " + "\n    ".join(found))
        return []

    def unsupported(self, model: ir.Model) -> list[str]:
        """Everything in the model that the engine cannot run, each with its place in the cfg."""
        return []

    @abstractmethod
    def build(
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes the engine's files into a folder that exists.

        Args:
            model: what is left after the passes; it stays as it is.
            manifest: the network's heads, labels and preprocessing; None for parts of networks that are only measured.

        Returns:
            Remarks on the engine, by topic: they are kept in engine.json and shown.

        Raises:
            TargetError: the engine's compiler refuses the model.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that made the engine."""

    @abstractmethod
    def engine(self) -> str:
        """The library that runs its engines, and its version, in words: what measurements hold for."""


@dataclass(frozen=True)
class Tuning:
    """How parts of an engine are chosen by measuring."""

    trials: int | None = None
    """How many to measure; None for as many as there are, or as the time suffices for."""
    seconds: float | None = None
    """How long it may take, all together."""
    remote: str = ""
    """Where to measure, if not here."""
    cache: Path | None = None
    """The folder to keep measurements in; None to keep none."""

    def deadline(self) -> float | None:
        """When it has to be over, by `time.monotonic`, if it begins now; None if it may take as long as it takes."""
        return None if self.seconds is None else time.monotonic() + self.seconds


class TunableTarget(Target):
    """A target whose engines have parts that can be chosen by measuring them: `--tune`."""

    def unproven(self) -> Target | None:
        """The same target with what no device has run yet, if tuning tries that as well: the opposite of `proven`."""
        return None

    @abstractmethod
    def build_tuned(
        self,
        model: ir.Model,
        folder: Path,
        manifest: Manifest | None,
        tuning: Tuning,
        progress: Progress = silent,
        unproven: ir.Model | None = None,
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """`build`, with parts of the engine chosen by measuring them.

        Args:
            model, folder, manifest, progress: as for `build`.
            unproven: the model as `unproven` wants it, where that is another.

        Returns:
            What `build` does; and for engine.json, under `tuning`, what was measured.

        Raises:
            TargetError: as `build`; the device does not answer.
        """


@dataclass(frozen=True)
class Candidate:
    """A network made ready for one target."""

    target: Target
    model: ir.Model
    manifest: Manifest
    """engine.json, but for what `Target.build` reports."""
    applied: tuple[Applied, ...] = ()
    """What each pass did."""
    unproven: ir.Model | None = None
    """See `TunableTarget.build_tuned`."""


class UnsupportedError(TargetError):
    """A target cannot run a network: the message lists why, by place in the cfg."""
