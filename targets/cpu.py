"""Target `cpu`: whichever of the targets for CPUs runs the network fastest on this machine (see `dnc.compiler.choosing`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from dnc.runtime.options import Option
from dnc.targets import Target, targets
from dnc.targets.onnx import Onnx
from dnc.targets.openvino import Openvino
from dnc.targets.tvm.target import PRECISIONS, Tvm


@targets.register
class Cpu(Onnx):
    """Chooses among the targets for CPUs. The engine is the chosen one's; by itself, this one is ONNX Runtime."""

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "the fastest engine for this machine's CPU, by timing those that are installed"
    known_options: ClassVar[Sequence[Option]] = [each for each in Onnx.known_options if each.name == "precision"]

    def missing(self) -> str:
        """The first candidate's library, if there is none of any."""
        missing = [each.missing() for each in self.candidates()]
        return missing[0] if all(missing) else ""

    def candidates(self, allowed: Collection[str] = ()) -> Sequence[Target]:
        """ONNX Runtime, OpenVINO and, where it has the precision, TVM; in float32 first where there is a choice."""
        kinds: list[type[Target]] = [Onnx, Openvino]
        if self.options["precision"] in PRECISIONS:
            kinds.append(Tvm)
        faster = [(kind, each) for each in allowed for kind in kinds if each in kind.faster]
        if "precision" in self.given:
            faster = []
        return [
            *(kind(self.given) for kind in kinds),
            *(kind({**self.given, "precision": each}) for kind, each in faster),
        ]
