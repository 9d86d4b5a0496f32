"""Computes at compile time what depends on constants alone.

1. A node whose inputs are all initializers becomes an initializer, by ONNX's reference evaluator.
2. Shape of a value with known sides becomes an initializer.

Results over 1 MiB that are larger than what they are made of (an Expand of a small constant) stay computed.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.composites import is_composite
from dnc.graph.rewriting import Remarks, constant_array
from dnc.passes import Pass, passes

_LIMIT = 1 << 20


@passes.register
class FoldConstants(Pass):
    """Replaces nodes on constants by their results."""

    name: ClassVar[str] = "fold-constants"
    tolerance: ClassVar[float] = 1e-6
    """The reference evaluator may round a transcendental function differently from the engine."""

    applies_to: ClassVar[str] = "nodes whose inputs are all initializers; Shape of a static value"

    def rewrite(self, model: ir.Model) -> Remarks:
        """Applies both cases in topological order, so that chains fold at once."""
        remarks = Remarks()
        for node in list(model.graph):
            if _fold(node, model):
                remarks.apply(node, f"{node.op_type} computed")
        return remarks


def _fold(node: ir.Node, model: ir.Model) -> bool:
    if is_composite(node) or any(attr.type == ir.AttributeType.GRAPH for attr in node.attributes.values()):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False
    tensors = [None if value is None else constant_array(value) for value in node.inputs]
    limit = max(_LIMIT, sum(tensor.nbytes for tensor in tensors if tensor is not None))
    if any(_may_exceed(output, limit) for output in node.outputs):
        return False
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Shape" and source is not None and source.shape is not None and source.shape.is_static():
        results = [np.array(source.shape.numpy(), np.int64)]
    elif node.inputs and all(
        value is None or tensor is not None for value, tensor in zip(node.inputs, tensors, strict=True)
    ):
        results = _evaluate(node, model)
    else:
        return False
    if sum(result.nbytes for result in results) > limit:
        return False
    for output, result in zip(node.outputs, results, strict=True):
        name, output.name = output.name, f"{output.name}/folded"
        tensor = ir.Tensor(np.asarray(result, order="C"), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(value)
        output.replace_all_uses_with(value)
    model.graph.remove(node, safe=True)
    return True


def _may_exceed(output: ir.Value, limit: int) -> bool:
    """Whether the result is too large, as far as its shape tells before it is computed."""
    sides = [] if output.shape is None else [side for side in output.shape if isinstance(side, int)]
    return math.prod(sides) > limit


def _evaluate(node: ir.Node, model: ir.Model) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(ir.to_proto(node), opsets=dict(model.graph.opset_imports))
    constants = [value for value in node.inputs if value is not None]
    feeds = {value.name or "": value.const_value.numpy() for value in constants if value.const_value is not None}
    return [np.asarray(result) for result in evaluator.run(None, feeds)]
