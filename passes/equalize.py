"""Cross-layer equalization: channels of one tensor made equally large, so that one 8-bit scale serves them all.

    conv2(f(conv1(x)))  =  (W2 s) f((W1 / s) x + b1 / s),    f(x / s) = f(x) / s    for s > 0, one s for each channel

holds for f linear, relu and leaky. It is exact but for rounding, and matters where conv1 or conv2 is depthwise: the
largest of their channels is often a hundred times the smallest (Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019). Here the tensor's own channels are measured
(`dnc.graph.quantization.Range`).

1. conv2 is depthwise. Its weights have a scale for each channel already, so all become as large as the largest:
       s = a / max a,    a: the largest value of the channel, within the tensor's calibrated range
2. conv2 adds channels up. What makes a channel larger makes its weights smaller beside those of others, so the two are
   weighed against each other, as in SmoothQuant (Xiao et al., ICML 2023):
       s = sqrt(a / max a) / sqrt(w),    w: the channel's largest weight as a share of the largest of its output
3. Where the tensor before a leaky f is rounded as well, its negative values, which f makes small, need a range too.
   They count as half of what they were there: a = max(high, -low / (2 slope)).

The result is another tensor: it gives up the layer's name, and has a range of its own.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.quantization import Channels, Range, range_of, set_range
from dnc.graph.rewriting import Remarks, attribute, constant_array, rename, sole_user
from dnc.passes import Pass, passes
from dnc.passes.shared.affine import Affine, move_after, move_before, refusal_after, refusal_before
from dnc.typing import Array

__all__ = ["Equalize"]

_SMALLEST = 1e-3
"""Channels, and weights, that are smaller beside the largest are not enlarged further: they may be noise."""


@passes.register
class Equalize(Pass):
    """Conv, an activation, Conv -> the same with factors moved from the first to the second.

    Args:
        outputs: results are rounded before their activation: case 3.
    """

    name: ClassVar[str] = "equalize"
    tolerance: ClassVar[float] = 1e-5
    """Rounding of the weights, some 1e-7 a layer, which depth adds up."""

    applies_to: ClassVar[str] = "Conv, then Relu, LeakyRelu or nothing, then Conv, whose channels were calibrated"
    needs: ClassVar[str] = "pair of convolutions whose channels were calibrated"

    def __init__(self, *, outputs: bool = False) -> None:
        super().__init__()
        self.outputs = outputs

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        for node in list(model.graph):
            value, slope = _activated(node.outputs[0])
            reader = sole_user(value)
            if node.op_type != "Conv" or reader is None or reader.op_type != "Conv":
                continue
            reason = self._equalize(node, value, reader, slope, model.graph)
            remarks.tell(node, "its channels are equally large", reason)
        return remarks

    def _equalize(self, node: ir.Node, value: ir.Value, reader: ir.Node, slope: float, graph: ir.Graph) -> str:
        """Equalizes one tensor; returns why not."""
        own = range_of(value)
        if own is None or own.channels is None or not own.channels.minimum:
            return "its channels were not calibrated"
        channels = own.channels
        low, high = np.clip(channels.minimum, own.low, 0), np.clip(channels.maximum, 0, own.high)
        size = np.maximum(high, -low / (2 * slope) if self.outputs and slope < 1 else -low)
        if not size.any():
            return "it is 0"
        size = np.maximum(size / size.max(), _SMALLEST)
        reason = refusal_after(node.outputs[0], graph)
        reason = reason or refusal_before(reader, 0, Affine(size, np.zeros(1)), graph)
        weights = constant_array(reader.inputs[1])
        if reason or weights is None or attribute(reader, "group", 1) * weights.shape.numpy()[1] != len(size):
            return reason or "another number of channels was calibrated"
        factors = size if weights.shape.numpy()[1] == 1 else np.sqrt(size / _shares(weights.numpy(), len(size)))
        factors = np.maximum(factors / factors.max(), _SMALLEST)
        move_after(node.outputs[0], Affine(1 / factors, np.zeros(1)), graph)
        move_before(reader, Affine(factors, np.zeros(1)), graph)
        rename(value, f"equalized/{value.name}")
        # Nine digits: where a zero point lies between two integers, as in case 3, rounding errors must not decide.
        ends = _nine_digits((low / factors).min()), _nine_digits((high / factors).max())
        means = tuple((np.array(channels.mean) / factors[: len(channels.mean)]).tolist())
        # Without their ends: they are as large as they are to be.
        set_range(value, Range(*ends, channels=Channels((), (), means)))
        return ""


def _nine_digits(number: float) -> float:
    return float(f"{number:.9g}")


def _activated(value: ir.Value) -> tuple[ir.Value, float]:
    """What comes out of the proportional activation that alone reads the value, and its slope below 0."""
    user = sole_user(value)
    if user is None or user.op_type not in ("Relu", "LeakyRelu"):
        return value, 1.0
    slope = float(attribute(user, "alpha", 0.01)) if user.op_type == "LeakyRelu" else 1.0
    return user.outputs[0], slope


def _shares(weights: Array, channels: int) -> Array:
    """How large the weights of each input channel are beside the largest of an output: of all outputs the most."""
    largest = np.abs(weights.reshape(*weights.shape[:2], -1)).max(axis=2)
    shares = largest / np.maximum(largest.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    groups = channels // weights.shape[1]
    most: Array = shares.reshape(groups, -1, weights.shape[1]).max(axis=1).reshape(-1)
    return np.maximum(most, _SMALLEST)
