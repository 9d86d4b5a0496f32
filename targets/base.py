"""What every target is: how a model is made ready for an engine, written, opened again and run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from dnc.errors import TargetError, close_match

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.bundle import Bundle
    from dnc.passes import Pass
    from dnc.quantization import Recipe

__all__ = ["Option", "Progress", "Session", "Target", "one_of", "silent", "whole"]

Progress = Callable[[str], None]
"""Is told what happens now."""


def silent(_: str) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Option:
    """Something that the user may tell a target: `--option NAME=VALUE`."""

    name: str
    default: str
    """As the user would write it."""
    summary: str
    parse: Callable[[str], Any] = str
    """The value; raises ValueError, which says what is allowed."""
    at_load: bool = False
    """Whether it may be given anew when an engine is loaded: it changes nothing that `build` writes."""


def whole(low: int, high: int) -> Callable[[str], int]:
    """For `Option.parse`: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    """For `Option.parse`: one of some words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return parse


class Session(ABC):
    """An opened engine. `run` may be called from several threads at once."""

    device: str
    """What it really runs on, in the engine's own words."""

    @abstractmethod
    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The outputs in the model's order, for inputs by name."""

    def profile(self, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> list[tuple[str, float]]:
        """How long each node takes, for `dnc bench --layers`.

        Args:
            inputs: as for `run`.
            runs: how often to run; outliers among them do not count.

        Returns:
            Names and seconds, in order. A node that the engine made itself has the name of what it writes or reads
            behind its own, after a blank; nodes that it computes together are joined by +.

        Raises:
            TargetError: the engine does not tell.
        """
        raise TargetError(f"{self.device} does not tell how long its layers take", hint="measure on another target")


class Target(ABC):
    """One engine. A target's only state is its options: all else it needs is in the model or in the engine folder.

    Args:
        given: options by name, as text; those that are not given have their defaults.

    Raises:
        TargetError: an option is unknown, or has a value that is not allowed.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `dnc compile --help`."""
    extra: ClassVar[str]
    """The extra of the distribution that installs what it needs: `pip install darknet-compiler[extra]`."""
    known_options: ClassVar[Sequence[Option]] = ()
    faster: ClassVar[Sequence[str]] = ()
    """The values of its option `precision` that may be faster than float32 and cost accuracy."""
    batch: ClassVar[int | None] = None
    """The size of batches where the user asks for none; None for any size."""

    tunes: ClassVar[bool] = False
    """Whether `build_tuned` does anything."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        known = {option.name: option for option in self.known_options}
        for name in given or {}:
            if name not in known:
                hint = close_match(name, known) or (f"it has {', '.join(known)}" if known else "it has none")
                raise TargetError(f"target {self.name} has no option '{name}'", hint=hint)
        self.given: dict[str, str] = dict(given or {})
        """What was given, as text: it is kept in engine.json, and given again when the engine is opened."""
        self.options: dict[str, Any] = {}
        for name, option in known.items():
            text = self.given.get(name, option.default)
            try:
                self.options[name] = option.parse(text)
            except ValueError as error:
                raise TargetError(f"option {name}={text} of target {self.name} is not {error}") from error

    @abstractmethod
    def missing(self) -> str:
        """What has to be installed to build or run an engine; empty if nothing."""

    def missing_to_open(self) -> str:
        """What has to be installed to run an engine, if that is less."""
        return self.missing()

    def remedy(self) -> str:
        """The command that installs what is missing."""
        return f'pip install "darknet-compiler[{self.extra}]", or pip install {self.missing()}'

    @property
    def title(self) -> str:
        """Its name, and its precision where that is not float32."""
        precision = self.options.get("precision", "fp32")
        return self.name if precision == "fp32" else f"{self.name} {precision}"

    def candidates(self, allowed: Collection[str] = ()) -> Sequence[Target]:
        """The targets that may do the work, of those installed the fastest: itself, but for those that choose among
        others, and may do so among these precisions."""
        return [self]

    @abstractmethod
    def passes(self) -> Sequence[Pass]:
        """The passes that the engine profits from, in order."""

    def quantization(self) -> Recipe | None:
        """Where the engine wants 8-bit numbers; None if it computes with none."""
        return None

    def final_passes(self) -> Sequence[Pass]:
        """What follows them and --autotune: passes that store weights in a form that no other pass reads."""
        return []

    def unsupported(self, model: ir.Model) -> list[str]:
        """Everything in the model that the engine cannot run, each with its place in the cfg."""
        return []

    @abstractmethod
    def build(
        self, model: ir.Model, folder: Path, about: Bundle | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes the engine's files into a folder that exists.

        Args:
            model: what is left after the passes; it stays as it is.
            folder: the folder.
            about: the network's heads, labels and preprocessing; None for parts of networks that are only measured.
            progress: is told what happens now.

        Returns:
            What there is to say about the engine, by topic: it is kept in engine.json and shown.

        Raises:
            TargetError: the engine's compiler refuses the model.
        """

    def build_tuned(
        self,
        model: ir.Model,
        folder: Path,
        about: Bundle | None,
        trials: int,
        *,
        remote: str = "",
        cache: Path | None = None,
        progress: Progress = silent,
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """`build`, with parts of the engine chosen by measuring them, for targets that have such parts.

        Args:
            model, folder, about: as for `build`.
            trials: how many to measure.
            remote: where to measure, if not here.
            cache: the folder to keep measurements in; none are kept if not given.
            progress: is told what happens now.

        Returns:
            What `build` does; and for engine.json, under `tuning`, what was measured.

        Raises:
            TargetError: as `build`; the device does not answer.
        """
        raise TargetError(f"target {self.name} has nothing to tune", hint="--target tvm")

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that made the engine."""

    @abstractmethod
    def engine(self) -> str:
        """The library that runs the engine and its version, in words: what measurements hold for."""

    def taking_turns(self) -> Target:
        """This target for engines that are timed in turn with others: nothing of one may run on after its turn."""
        return self

    @abstractmethod
    def open(self, folder: Path, threads: int | None = None) -> Session:
        """Opens what `build` wrote.

        Args:
            folder: the engine folder.
            threads: how many threads one run uses; the engine's own choice if not given.

        Raises:
            TargetError: the engine's library is missing or refuses the model.
        """
