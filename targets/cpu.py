"""Target `cpu`: whichever of the targets for CPUs runs the network fastest on this machine (see `dnc.choose`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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

    def candidates(self, allowed: Collection[str] = ()) -> Sequence[Target]:
        """ONNX Runtime and OpenVINO, in the same precision; in float32 first where there is a choice."""
        kinds = (Onnx, Openvino)
        faster = [(kind, each) for each in allowed for kind in kinds if each in kind.faster]
        if "precision" in self.given:
            faster = []
        return [
            *(kind(self.given) for kind in kinds),
            *(kind({**self.given, "precision": each}) for kind, each in faster),
        ]
