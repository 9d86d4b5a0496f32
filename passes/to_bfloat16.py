"""Weights in bfloat16, for half the file; arithmetic in float32.

    W -> Cast(bfloat16(W), float32)

for the constant weights of Conv, Gemm and MatMul, rounded to nearest even when they are written. Biases stay float32,
as bfloat16 hardware adds them. So do the weights of products that add up 64 terms or less (depthwise ones, the first
one): the rounding errors of few terms do not average out, and such weights are few in all but the smallest networks.
It cuts the error of yolo-fastest-1.1 to a sixth, with 64 % of the weights in bfloat16, and that of yolov3-tiny to a
quarter, with all but 0.01 %.

This is not a network computed in bfloat16, because ONNX has none: Conv, MaxPool, LeakyRelu, Softplus and AveragePool
take no bfloat16 in opset 14, and ONNX Runtime has kernels for few of the others. Where arithmetic in bfloat16 pays, it
is an option of the engine (OpenVINO's INFERENCE_PRECISION_HINT, and its default where the CPU has it), which rounds the
weights just so. What this pass gives is the smaller file, for any engine that reads opset 13, and a proof of what the
rounding does to the outputs. Engines compute the Cast once, when they load the model, so the speed is float32's.

`keep` and what else must stay as it is are those of `reduced_precision`, but for its case 4: bfloat16 has the range of
float32. Comes last: neither fold-batchnorm nor another pass sees constant weights afterwards, and fold-constants
would turn them into float32 again. The old weights go with eliminate-dead-code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import ml_dtypes
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.rewriting import Remarks, add_initializer, add_node, attribute, constant_array
from dnc.passes import passes
from dnc.passes.shared.reduced_precision import ReducedPrecision, float32_nodes

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_FEW = 64


@passes.register
class ToBfloat16(ReducedPrecision):
    """Weights of Conv, Gemm, MatMul -> bfloat16 and a Cast."""

    name: ClassVar[str] = "to-bfloat16"
    tolerance: ClassVar[float] = 8e-2
    """Each weight is rounded by up to 2^-9 = 2e-3 of itself. Of 8 inputs of noise and 16 photographs through
    yolo-fastest-1.1 and -xl, MobileNetV2-YOLOv3-Nano and yolov3-tiny, each with its trained weights, the worst changes
    a head by 3.9e-2 of its largest value, half of them by less than 2e-2; declared is twice the worst."""

    applies_to: ClassVar[str] = "constant weights of Conv, Gemm and MatMul"
    needs: ClassVar[str] = "weight that may be in bfloat16"

    def rewrite(self, model: ir.Model) -> Remarks:
        graph = model.graph
        remarks = Remarks()
        stay = float32_nodes(model, self.kept(), wide=True)
        casts: dict[ir.Value, ir.Value] = {}
        for node in list(graph):
            value = node.inputs[1] if node.op_type in _PRODUCTS else None
            tensor = constant_array(value)
            if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            terms = _terms(node, tensor.shape.numpy())
            if node in stay:
                remarks.miss(node, stay[node])
            elif terms <= _FEW:
                remarks.miss(node, f"only {terms} terms, whose errors do not average out")
            else:
                if value not in casts:
                    casts[value] = _stored(value, tensor, node, graph)
                node.replace_input_with(1, casts[value])
                remarks.apply(node, "weights in bfloat16")
        return remarks


def _terms(node: ir.Node, shape: Sequence[int]) -> int:
    """How many products one number of the result adds up."""
    if node.op_type == "MatMul":
        return shape[max(len(shape) - 2, 0)]
    if node.op_type == "Gemm":
        return shape[1] if attribute(node, "transB", 0) else shape[0]
    return math.prod(shape[1:])


def _stored(value: ir.Value, tensor: ir.TensorProtocol, reader: ir.Node, graph: ir.Graph) -> ir.Value:
    """The value, which holds the tensor, as a Cast of its bfloat16 form."""

    def rounded() -> npt.NDArray[Any]:
        return tensor.numpy().astype(ml_dtypes.bfloat16)

    name = f"{value.name}.bfloat16"
    half = add_initializer(graph, lazy(rounded, tensor, name, dtype=ir.DataType.BFLOAT16))
    cast = add_node(graph, reader, "Cast", [half], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}/Cast").outputs[0]
    cast.shape, cast.type = value.shape, value.type
    return cast
