"""Target `cpu`: whichever of the targets for CPUs runs the network fastest on this machine (see `dnc.choose`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dnc.targets import Target, targets
from dnc.targets.onnx import Onnx
from dnc.targets.openvino import Openvino


@targets.register
class Cpu(Onnx):
    """Chooses among the targets for CPUs. The engine is the chosen one's; by itself, this one is ONNX Runtime."""

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "the fastest engine for this machine's CPU, by timing those that are installed"

    def missing(self) -> str:
        """The first candidate's library, if there is none of any."""
        missing = [each.missing() for each in self.candidates()]
        return missing[0] if all(missing) else ""

    def candidates(self) -> Sequence[Target]:
        """ONNX Runtime and OpenVINO, in the same precision."""
        return [Onnx(self.given), Openvino(self.given)]
