"""Folds batch normalisation into the convolutions and matrix products beside it.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias
      = k x + (bias - k mean),    k = scale / sqrt(variance + epsilon)

1. After a Conv (of any groups) or Gemm: over its output channels, as Darknet's fuse_conv_batchnorm.
2. After a Concat of them: each takes the factors of its channels.
3. Before Convs or Gemms, if they alone read it and pad nothing: over their input channels.

The rest stays as it is, and is refused with the reason: engines run a batch normalisation that stands alone in one go,
which as Mul and Add would be two. passes/shared/affine.py has the algebra.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.rewriting import Remarks, attribute, constant_array, is_product
from dnc.passes import Pass, passes
from dnc.passes.shared.affine import Affine, move_after, move_before, refusal_after, refusal_before, take_over


@passes.register
class FoldBatchNorm(Pass):
    """Conv + BatchNormalization, Gemm + BatchNormalization and the other way round -> Conv, Gemm."""

    name: ClassVar[str] = "fold-batchnorm"
    tolerance: ClassVar[float] = 1e-5
    """Rounding of the folded weights, some 1e-7 a layer, which depth adds up."""

    applies_to: ClassVar[str] = "BatchNormalization after Conv, Gemm or their Concat; before them without padding"

    def rewrite(self, model: ir.Model) -> Remarks:
        """Folds until nothing is left to fold: a normalisation between another and its convolution may be gone then."""
        remarks = Remarks()
        while True:
            count = remarks.count
            remarks.missed.clear()
            for node in list(model.graph):
                if node.op_type == "BatchNormalization":
                    remarks.tell(node, "folded into the weights", _fold(node, model.graph))
            if remarks.count == count:
                return remarks


def _fold(norm: ir.Node, graph: ir.Graph) -> str:
    """Folds one; returns why not."""
    source, result = norm.inputs[0], norm.outputs[0]
    assert source is not None
    if attribute(norm, "training_mode", 0):
        return "in training mode"
    tensors = [constant_array(value) for value in norm.inputs[1:5]]
    if any(tensor is None for tensor in tensors):
        return "its statistics are no constants"
    scale, shift, mean, variance = (tensor.numpy().astype(np.float64) for tensor in tensors if tensor is not None)
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        affine = Affine(factor, shift - factor * mean)
    if not affine.finite:
        return "its factors are no numbers"
    reason = refusal_after(source, graph)
    if not reason:
        move_after(source, affine, graph)
        take_over(result, source, graph)
        return ""
    uses = list(result.uses())
    if result.is_graph_output() or not any(is_product(user) for user, _ in uses):
        return reason
    after = [refusal_before(user, position, affine, graph) for user, position in uses]
    if any(after):
        # What stands before it is what a reader looks at first, unless nothing there could ever take it.
        return next(filter(None, after)) if reason.startswith("no convolution") else reason
    for user, _ in uses:
        move_before(user, affine, graph)
    result.replace_all_uses_with(source)
    graph.remove(norm, safe=True)
    return ""
