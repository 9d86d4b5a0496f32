"""Target `cpu`: whichever target for CPUs runs the network fastest on this machine (see `dnc.compiler.choosing`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from dnc.runtime.arithmetic import HOST
from dnc.runtime.options import Option
from dnc.targets import Selectable, Target, targets
from dnc.targets.onnx import Onnx
from dnc.targets.openvino import Openvino
from dnc.targets.tvm.target import PRECISIONS, Tvm

__all__ = ["Cpu"]


@targets.register
class Cpu(Selectable):
    """A choice among the targets for CPUs. The engine is the chosen one's."""

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "the fastest engine for this machine's CPU, by timing those that are installed"
    extra: ClassVar[str] = "onnx"
    known_options: ClassVar[Sequence[Option]] = [
        option for option in Onnx.known_options if option.name in ("precision", "isa")
    ]

    def candidates(self, precisions: Collection[str] = ()) -> Sequence[Target]:
        """ONNX Runtime, OpenVINO and, where it has the precision, TVM; in float32 first where there is a choice.

        TVM's code is for one CPU, by its own option `mcpu`: it is no candidate where `isa` names another than this one.
        """
        kinds: list[type[Target]] = [Onnx, Openvino]
        if self.options["precision"] in PRECISIONS and self.options["isa"] == HOST:
            kinds.append(Tvm)
        faster = [(kind, precision) for precision in precisions for kind in kinds if precision in kind.faster]
        if "precision" in self.given:
            faster = []
        return [
            *(self._candidate(kind, {}) for kind in kinds),
            *(self._candidate(kind, {"precision": precision}) for kind, precision in faster),
        ]

    def _candidate(self, kind: type[Target], more: Mapping[str, str]) -> Target:
        """A target with the options that it shares with this choice."""
        known = {option.name for option in kind.known_options}
        return kind({**{name: text for name, text in self.given.items() if name in known}, **more})
