"""Recognises activations in whatever operators they are written, and writes each as the target runs it fastest.

The writings are those of `dnc.passes.shared.activations`. What engines do with them was seen in their optimized graphs:

    onnx          the plain operators of opset 14; what an engine fuses, it fuses from these.
    onnxruntime   on the CPU. Relu, LeakyRelu, Clip, Sigmoid, Tanh, HardSigmoid and HardSwish go into its convolutions;
                  Mul(x, Sigmoid(x)) becomes QuickGelu and gelu FastGelu. Softplus costs as much as 100
                  additions, and Elu as 20: their forms by Exp do not.
    openvino      leaves HardSigmoid and Selu outside of convolutions; Clip, Elu and x tanh(softplus(x)) go in.
    myriad        knows neither HardSigmoid nor Selu.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from dnc.graph.rewriting import Remarks, replace_uses
from dnc.passes import Pass, passes
from dnc.passes.shared.activations import WRITINGS, Writing, recognise
from dnc.passes.shared.patterns import Match, Numbers, Writer, near, operators
from dnc.runtime.options import Option, one_of

__all__ = ["FORMS", "FuseActivation"]

FORMS: dict[str, dict[str, str]] = {
    "onnx": {},
    "onnxruntime": {"mish": "Exp", "elu": "Exp"},
    "openvino": {"hard sigmoid": "clip", "selu": "Elu"},
    "myriad": {"hard sigmoid": "clip", "selu": "Elu"},
}
"""By target, the writing of each activation where it is not the first."""


@passes.register
class FuseActivation(Pass):
    """Writes activations as the target fuses them. `form` may also be a mapping: the writing by activation."""

    name: ClassVar[str] = "fuse-activation"
    tolerance: ClassVar[float] = 1e-4
    """The forms are equal but for gelu, whose digits are 1e-5 off Darknet's (2.3e-5 was seen of a small output);
    each rounds in its own way, some 1e-7 a layer, which depth adds up."""

    applies_to: ClassVar[str] = "relu, relu6, leaky, elu, selu, hard-sigmoid, hard-swish, swish, mish, gelu in any form"
    known_options: ClassVar[Sequence[Option]] = (
        Option("form", "onnx", f"how they are written: {', '.join(FORMS)}", lambda text: FORMS[one_of(*FORMS)(text)]),
    )

    def rewrite(self, model: ir.Model) -> Remarks:
        """Goes from the outputs to the inputs, so that the largest pattern is seen first."""
        graph, remarks = model.graph, Remarks()
        writer = Writer(graph)
        done: set[ir.Node] = set()
        for node in reversed(list(graph)):
            found = None if node in done else recognise(node)
            if found is None:
                continue
            kind, writing, match = found
            wanted = self._wanted(kind, match.numbers)
            if writing.name == wanted.name and (kind != "clip" or _is_plain_clip(match)):
                done.update(match.nodes)
            elif not match.closed:
                remarks.miss(node, f"an inner value of the {kind} is read by others")
            else:
                done.update(match.nodes)
                replace_uses(node.outputs[0], writer.write(wanted.pattern, node, match), graph)
                graph.remove(match.nodes, safe=True)
                remarks.apply(node, f"{kind} written as {', '.join(operators(wanted.pattern, match.numbers))}")
        remarks.applied.reverse()
        remarks.missed.reverse()
        return remarks

    def _wanted(self, kind: str, numbers: Numbers) -> Writing:
        """The form's writing, or the plain one where its numbers do not fit into that."""
        for writing in WRITINGS[kind]:
            if writing.name == self.options["form"].get(kind):
                given = writing.numbers(numbers)
                if given is not None and all(near(given[name], numbers[name]) for name in numbers):
                    return writing
        return WRITINGS[kind][0]


def _is_plain_clip(match: Match) -> bool:
    """Whether it is one node, and that is Relu for 0 and no upper bound, and Clip for others."""
    relu = (match.numbers["low"], match.numbers["high"]) == (0, math.inf)
    return [node.op_type for node in match.nodes] == ["Relu" if relu else "Clip"]
