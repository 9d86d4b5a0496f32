"""What every target is: how a model is made ready for an engine, written, opened again and run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.passes import Pass

__all__ = ["Session", "Target"]


class Session(ABC):
    """An opened engine. `run` may be called from several threads at once."""

    device: str
    """What it really runs on, in the engine's own words."""

    @abstractmethod
    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The outputs in the model's order, for inputs by name."""


class Target(ABC):
    """One engine. A target has no state: everything it needs is in the model or in the engine folder."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `dnc compile --help`."""
    extra: ClassVar[str]
    """The extra of the distribution that installs what it needs: `pip install darknet-compiler[extra]`."""

    @abstractmethod
    def missing(self) -> str:
        """What has to be installed to build or run an engine; empty if nothing."""

    def resolve(self) -> Target:
        """The target that does the work: itself, but for those that choose among others."""
        return self

    @abstractmethod
    def passes(self) -> Sequence[Pass]:
        """The passes that the engine profits from, in order."""

    def unsupported(self, model: ir.Model) -> list[str]:
        """Everything in the model that the engine cannot run, each with its place in the cfg."""
        return []

    @abstractmethod
    def build(self, model: ir.Model, folder: Path) -> None:
        """Writes the engine's files into a folder that exists."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that made the engine."""

    @abstractmethod
    def open(self, folder: Path, threads: int | None = None) -> Session:
        """Opens what `build` wrote.

        Args:
            folder: the engine folder.
            threads: how many threads one run uses; the engine's own choice if not given.

        Raises:
            TargetError: the engine's library is missing or refuses the model.
        """
