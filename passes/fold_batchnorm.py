"""Folds batch normalisation into the convolution or matrix product before it.

    y = (W x + b - mean) / sqrt(variance + epsilon) * scale + bias
      = (k W) x + k (b - mean) + bias,    k = scale / sqrt(variance + epsilon)

k multiplies the output channels of W: axis 0 of Conv and of Gemm with transB=1. As Darknet's fuse_conv_batchnorm, k is
computed in float64 and the products are rounded to float32 once. The new weights are computed when they are written.

Refuses where the convolution's result is read by anything else, its weights are no constants, or a factor of Gemm or
the training mode of the normalisation changes the formula.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph import lazy
from dnc.passes import Pass, passes
from dnc.passes.base import constant_array, replace_uses


@passes.register
class FoldBatchNorm(Pass):
    """Conv + BatchNormalization, Gemm + BatchNormalization -> Conv, Gemm."""

    name: ClassVar[str] = "fold-batchnorm"
    exactness: ClassVar[float] = 1e-5
    """Rounding of the folded weights, some 1e-7 a layer, which depth adds up."""

    def rewrite(self, model: ir.Model) -> int:
        """Folds every batch normalisation that it can."""
        return sum(_fold(node, model.graph) for node in list(model.graph) if node.op_type == "BatchNormalization")


def _fold(norm: ir.Node, graph: ir.Graph) -> bool:
    source = norm.inputs[0]
    node = source.producer() if source is not None else None
    if source is None or node is None or node.op_type not in ("Conv", "Gemm"):
        return False
    if node.op_type == "Gemm" and not (
        _attribute(node, "transB", 0) and _attribute(node, "alpha", 1.0) == _attribute(node, "beta", 1.0) == 1.0
    ):
        return False
    if _attribute(norm, "training_mode", 0):
        return False
    if len(source.uses()) != 1 or source.is_graph_output():
        return False
    tensors = [constant_array(value) for value in norm.inputs[1:5]]
    weights = constant_array(node.inputs[1])
    bias = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if weights is None or any(tensor is None for tensor in tensors) or (len(node.inputs) > 2 and bias is None):
        return False
    scale, shift, mean, variance = (tensor.numpy().astype(np.float64) for tensor in tensors if tensor is not None)
    factor = scale / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
    before = bias.numpy() if bias is not None else 0.0
    folded_bias = (factor * (before - mean) + shift).astype(np.float32)
    column = factor.reshape(-1, *[1] * (len(weights.shape) - 1))

    def folded() -> npt.NDArray[Any]:
        plain = weights.numpy()
        # Computed in float64, buffer by buffer: the whole product would be twice as large as the weights.
        product: npt.NDArray[Any] = np.empty_like(plain)
        np.multiply(plain, column, out=product, dtype=np.float64, casting="same_kind")
        return product

    name = f"{node.inputs[1].name}.folded" if node.inputs[1] is not None else "folded"
    new_weights = _initializer(graph, lazy(folded, weights, name))
    new_bias = _initializer(graph, ir.Tensor(folded_bias, name=f"{name}.biases"))
    node.replace_input_with(1, new_weights)
    if len(node.inputs) > 2:
        node.replace_input_with(2, new_bias)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, new_bias)
    replace_uses(norm.outputs[0], source, graph)
    graph.remove(norm, safe=True)
    return True


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    # A shared convolution folds the same weights more than once.
    name, count = tensor.name or "folded", 0
    while name in graph.initializers:
        count += 1
        name = f"{tensor.name}_{count}"
    tensor.name = name
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
