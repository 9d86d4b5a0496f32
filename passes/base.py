"""What every pass is: an in-place rewriting of an onnx_ir model that keeps its outputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import onnx_ir as ir

__all__ = ["Pass", "constant_array", "replace_uses"]


class Pass(ir.passes.InPlacePass):
    """A rewriting with a name, as on the command line, and a declared exactness."""

    name: ClassVar[str]
    exactness: ClassVar[float] = 0.0
    """By how much outputs may differ, relative to the largest of each: 0 where no number changes."""

    @abstractmethod
    def rewrite(self, model: ir.Model) -> int:
        """Rewrites the model in place; returns how often it applied."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """onnx_ir's own interface to `rewrite`."""
        return ir.passes.PassResult(model, bool(self.rewrite(model)))


def constant_array(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that nothing can override; None for any other value."""
    if value is None or value.const_value is None or value.is_graph_input() or value.producer() is not None:
        return None
    return value.const_value


def replace_uses(old: ir.Value, new: ir.Value, graph: ir.Graph) -> None:
    """Lets everything that reads `old`, the graph's outputs included, read `new`; `new` takes the name over.

    The names of layers' outputs and of graph outputs are what engines are compared and called by, so they stay; so do
    the names of graph inputs and initializers, which come first where a layer is nothing but one of them.
    """
    name = old.name
    replaced = False
    for position, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[position] = new
            replaced = True
    old.replace_all_uses_with(new)
    layer = (name or "").startswith("layer") and not (new.name or "").startswith("layer")
    if replaced or (layer and new.producer() is not None):
        old.name = f"{name}/replaced"
        new.name = name
    new.shape = new.shape or old.shape
    new.type = new.type or old.type
