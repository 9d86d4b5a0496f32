"""Target `cpu`: the fastest engine for the CPU. ONNX Runtime is the only one there is so far."""

from __future__ import annotations

from typing import ClassVar

from dnc.targets import Target, targets
from dnc.targets.onnx import Onnx


@targets.register
class Cpu(Onnx):
    """Chooses among the targets for CPUs."""

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "the best engine for this machine's CPU"

    def resolve(self) -> Target:
        """ONNX Runtime."""
        return Onnx()
