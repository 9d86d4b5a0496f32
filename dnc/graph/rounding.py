"""16-bit floats spelled out: the same model in float32, with a Cast to 16 bits and back wherever a value is rounded.

ONNX Runtime's CPU provider has few kernels for float16. It computes in float32 instead, and leaves the rounding between
two such operators out: a network in half precision then looks more exact than it is, and numbers over 65504 stay what
they are. Casts that stand in the model are carried out, so here every 16-bit result gets them:

    y: float16 = op(a, b)    ->    y: float32 = Cast(Cast(op(a, b), float16), float32)

It is what an engine computes that has 16-bit values and adds up products in float32. Inner graphs stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

__all__ = ["spell_out"]

_FULL = onnx.TensorProto.FLOAT
_HALVES = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


def spell_out(proto: onnx.ModelProto) -> set[str]:
    """Rewrites a model in place so that no input, output or initializer has 16 bits; returns the inputs that had.

    Args:
        proto: the model; the values that its nodes give must have types (value_info).
    """
    graph = proto.graph
    kinds: dict[str, int] = {}
    for info in (*graph.input, *graph.output, *graph.value_info):
        tensor = info.type.tensor_type
        if tensor.elem_type in _HALVES:
            kinds[info.name] = tensor.elem_type
            tensor.elem_type = _FULL
    for initializer in graph.initializer:
        if initializer.data_type in _HALVES:
            array = onnx.numpy_helper.to_array(initializer).astype(np.float32)
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    original = onnx.GraphProto()
    original.node.extend(graph.node)
    del graph.node[:]
    for node in original.node:
        rounded = [name for name in node.output if name in kinds]
        node.output[:] = [f"{name}/exact" if name in kinds else name for name in node.output]
        graph.node.append(node)
        for name in rounded:
            graph.node.append(onnx.helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=kinds[name]))
            graph.node.append(onnx.helper.make_node("Cast", [f"{name}/rounded"], [name], to=_FULL))
    return {info.name for info in graph.input if info.name in kinds}
