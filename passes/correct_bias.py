"""Bias correction: what rounding the weights of a convolution adds to its results on average is taken from its biases.

    sum (W + dW) x + b  =  sum W x + b  +  sum dW x,        dW: what rounding changed the weights by

An output's weights are all rounded for good, and what they read has a mean: after relu or swish it is far from 0. So
the last term has one too, the same for every pixel, which the layers after it take for signal. With the means m of the
input's channels, which the calibration has measured (`dnc.graph.quantization.Channels`),

    b'  =  b  -  sum dW m,      over all weights of the output

leaves the part of it that varies (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.2, there with means that follow from batch normalisation). Nothing is run for it, and
nothing of the engine's time depends on it. The zeros of padding count as if they were m.

A bias of 32 bits stays one, to half its step, the product of the scales of weights and input.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.quantization import range_of, reals_of
from dnc.graph.rewriting import Remarks, add_initializer, add_node, attribute, constant_array
from dnc.passes import Pass, passes
from dnc.typing import Array

__all__ = ["CorrectBias"]


@passes.register
class CorrectBias(Pass):
    """Conv with rounded weights -> the same with biases that make up for it."""

    name: ClassVar[str] = "correct-bias"
    tolerance: ClassVar[float] = 1.0
    """As that of `quantize`, of whose error it is a part."""

    applies_to: ClassVar[str] = "Conv with 8-bit weights, whose input's channels were calibrated"
    needs: ClassVar[str] = "convolution with 8-bit weights"

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        for node in list(model.graph):
            weights = node.inputs[1] if node.op_type == "Conv" and not node.domain else None
            reals = None if weights is None else reals_of(weights)
            if weights is not None and reals is not None:
                remarks.tell(node, "its biases make up for rounding", _correct(node, weights, reals, model.graph))
        return remarks


def _correct(node: ir.Node, weights: ir.Value, reals: ir.TensorProtocol, graph: ir.Graph) -> str:
    """Corrects the biases of one convolution; returns why not."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    known = None if node.inputs[0] is None else range_of(node.inputs[0])
    means = np.array(() if known is None or known.channels is None else known.channels.mean)
    groups, (outputs, own) = attribute(node, "group", 1), reals.shape.numpy()[:2]
    if bias is None:
        return "it has no biases"
    if not means.size:
        return "the means of what it reads were not calibrated"
    if means.size != groups * own:
        return "another number of channels was calibrated"
    rounded = _parts(weights)

    def error() -> Array:
        """What rounding adds to each output on average."""
        changed = _multiplied(*rounded) - reals.numpy()
        sums = changed.reshape(groups, outputs // groups, own, -1).sum(axis=3)
        added: Array = np.einsum("goc,gc->go", sums, means.reshape(groups, own)).reshape(-1)
        return added

    producer = bias.producer()
    before, scales = (constant_array(bias), None) if producer is None else _parts(bias)
    assert before is not None
    name = f"{before.name}.corrected"

    def moved() -> Array:
        if scales is None:
            return (before.numpy() - error()).astype(np.float32)
        limits = np.iinfo(np.int32)
        integers: Array = np.clip(np.round(before.numpy() - error() / scales.numpy()), limits.min, limits.max)
        return integers.astype(np.int32)

    result = add_initializer(graph, lazy(moved, before, name))
    if producer is not None:
        inputs = [result, *producer.inputs[1:]]
        (result,) = add_node(
            graph, node, "DequantizeLinear", inputs, {"axis": 0}, name=f"{bias.name}.corrected"
        ).outputs
        result.shape, result.type = bias.shape, bias.type
    node.replace_input_with(2, result)
    return ""


def _parts(value: ir.Value) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
    """The integers and the scales of a constant that comes out of a DequantizeLinear."""
    producer = value.producer()
    integers, scales = (constant_array(item) for item in (() if producer is None else producer.inputs[:2]))
    assert integers is not None
    assert scales is not None
    return integers, scales


def _multiplied(integers: ir.TensorProtocol, scales: ir.TensorProtocol) -> Array:
    numbers = integers.numpy().astype(np.float64)
    plain: Array = numbers * scales.numpy().reshape(-1, *[1] * (numbers.ndim - 1))
    return plain
