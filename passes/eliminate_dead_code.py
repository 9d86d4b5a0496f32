"""Removes nodes and initializers that no output depends on: the leftovers of other passes, and sections that nothing
reads. Graph inputs stay."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from dnc.graph.composites import remove_uncalled
from dnc.graph.rewriting import Remark, Remarks
from dnc.passes import Pass, passes


@passes.register
class EliminateDeadCode(Pass):
    """Removes what no output depends on."""

    name: ClassVar[str] = "eliminate-dead-code"

    applies_to: ClassVar[str] = "nodes and initializers that nothing reads"

    def rewrite(self, model: ir.Model) -> Remarks:
        """One walk backwards finds every dead node: a node comes after what it reads."""
        graph = model.graph
        remarks = Remarks()
        for node in reversed(list(graph)):
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                graph.remove(node, safe=True)
                remarks.apply(node, f"{node.op_type} removed")
        remove_uncalled(model)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
                remarks.applied.append(Remark("", "unread initializer removed"))
        return remarks
