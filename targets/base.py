"""What every target is: how a model is made ready for an engine, and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dnc.errors import TargetError
from dnc.runtime.options import Option, check_names, parse_options
from dnc.runtime.runners import Runner
from dnc.typing import Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.graph.quantization import Recipe
    from dnc.passes import Pass
    from dnc.runtime.manifest import Manifest

__all__ = ["Target"]


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
    runs: ClassVar[type[Runner]]
    """What opens and runs its engines."""
    known_options: ClassVar[Sequence[Option]] = ()
    faster: ClassVar[Sequence[str]] = ()
    """The values of its option `precision` that may be faster than float32 and cost accuracy."""
    batch: ClassVar[int | None] = None
    """The size of batches where the user asks for none; None for any size."""

    tunes: ClassVar[bool] = False
    """Whether `build_tuned` does anything."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self.given: dict[str, str] = dict(given or {})
        """What was given, as text: it is kept in engine.json, and given again when the engine is opened."""
        title = f"target {self.name}"
        check_names(title, self.known_options, self.given)
        self.options: dict[str, Any] = parse_options(title, self.known_options, self.given)

    def runner(self) -> Runner:
        """What opens the engines."""
        return self.runs.select(self.given)(self.given)

    def missing(self) -> str:
        """What has to be installed to build an engine, which is what runs it if not said otherwise; empty if nothing."""
        return self.runner().missing()

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
        self, model: ir.Model, folder: Path, manifest: Manifest | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes the engine's files into a folder that exists.

        Args:
            model: what is left after the passes; it stays as it is.
            folder: the folder.
            manifest: the network's heads, labels and preprocessing; None for parts of networks that are only measured.
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
        manifest: Manifest | None,
        trials: int,
        *,
        remote: str = "",
        cache: Path | None = None,
        progress: Progress = silent,
    ) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        """`build`, with parts of the engine chosen by measuring them, for targets that have such parts.

        Args:
            model, folder, manifest: as for `build`.
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
        """The library that runs its engines, and its version, in words: what measurements hold for."""
