"""Removes what does nothing at inference.

1. Identity and Dropout (dropout, DropBlock, [cost], [empty]).
2. Concat of one input, Reshape to the shape that its input has.

y = x holds exactly. One node stays: an Identity between a graph input or one graph output and another output, because a
graph output must have a name, and a producer, of its own.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from dnc.graph.rewriting import Remarks, replace_uses
from dnc.passes import Pass, passes


@passes.register
class EliminateIdentity(Pass):
    """Removes Identity, Dropout, and Concat and Reshape that change nothing."""

    name: ClassVar[str] = "eliminate-identity"

    applies_to: ClassVar[str] = "Identity, Dropout, Concat of one input, Reshape to the same shape"

    def rewrite(self, model: ir.Model) -> Remarks:
        graph = model.graph
        remarks = Remarks()
        for node in list(graph):
            if not _does_nothing(node):
                continue
            source, result = node.inputs[0], node.outputs[0]
            assert source is not None
            pinned = source.producer() is None or source.is_graph_output()
            if result.is_graph_output() and pinned:
                remarks.miss(node, "a graph output needs a name and a producer of its own")
                continue
            replace_uses(result, source, graph)
            graph.remove(node, safe=True)
            remarks.apply(node, f"{node.op_type} removed")
        return remarks


def _does_nothing(node: ir.Node) -> bool:
    if node.op_type in ("Identity", "Dropout"):
        return not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    if node.op_type == "Concat":
        return len(node.inputs) == 1
    source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
    if node.op_type != "Reshape" or source is None or source.shape is None or source.shape != result.shape:
        return False
    # Two sides of which nothing is known compare as equal.
    return all(isinstance(side, int) or side.value is not None for side in source.shape)
