"""Adding to a graph that is finished: what an engine computes, followed by what another program wants of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.builder import Builder
from dnc.graph.rewriting import add_initializer

__all__ = ["Extension"]


class Extension(Builder):
    """Adds nodes and initializers to a model, under names that it does not have yet. `inputs` and `outputs` are the
    model's own."""

    def __init__(self, model: ir.Model) -> None:
        graph = model.graph
        side = graph.inputs[0].shape[0] if graph.inputs and graph.inputs[0].shape else "N"
        super().__init__(side if isinstance(side, int) else str(side))
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph = graph
        self._taken = {node.name for node in graph} | {value.name for node in graph for value in node.outputs}
        self._taken |= {value.name for value in graph.inputs} | set(graph.initializers)

    def _unique(self, hint: str) -> str:
        name = super()._unique(hint)
        while name in self._taken:
            name = super()._unique(hint)
        return name

    def _hold(self, tensor: ir.TensorProtocol) -> ir.Value:
        known = self._graph.initializers.get(tensor.name or "")
        if known is not None and known.const_value is not None and known.const_value.dtype == tensor.dtype:
            held = known.const_value.numpy()
            if np.array_equal(held, tensor.numpy()) and not known.is_graph_input():
                return known
        return add_initializer(self._graph, tensor)

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        values = super().ops(op_type, *inputs, outputs=outputs, domain=domain, **attributes)
        self._graph.append(self.nodes.pop())
        return values
