"""Target `cpu`: whichever target for CPUs runs the network fastest on this machine (see `dnc.compiler.choosing`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from dnc.runtime.options import Option
from dnc.targets import Destination, Target, targets
from dnc.targets.onnx import Onnx
from dnc.targets.openvino import Openvino
from dnc.targets.tvm.target import PRECISIONS, Tvm

__all__ = ["Cpu"]


@targets.register
class Cpu(Destination):
    """A choice among the targets for CPUs. The engine is the chosen one's."""

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "the fastest engine for this machine's CPU, by timing those that are installed"
    extra: ClassVar[str] = "onnx"
    known_options: ClassVar[Sequence[Option]] = [option for option in Onnx.known_options if option.name == "precision"]

    def candidates(self, precisions: Collection[str] = ()) -> Sequence[Target]:
        """ONNX Runtime, OpenVINO and, where it has the precision, TVM; in float32 first where there is a choice."""
        kinds: list[type[Target]] = [Onnx, Openvino]
        if self.options["precision"] in PRECISIONS:
            kinds.append(Tvm)
        faster = [(kind, precision) for precision in precisions for kind in kinds if precision in kind.faster]
        if "precision" in self.given:
            faster = []
        return [
            *(kind(self.given) for kind in kinds),
            *(kind({**self.given, "precision": precision}) for kind, precision in faster),
        ]
