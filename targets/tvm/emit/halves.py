"""Convolutions in bfloat16: what `precision=bf16` computes with half the bits, and with sums in float32.

A bfloat16 is the upper half of a float32, rounded to even, and is held as that: an unsigned integer of 16 bits. Its
numbers reach as far as those of float32; of 24 binary digits, 8 are left. Data are rounded where they are computed,
once for all convolutions that read them, weights now.

Convolutions of all channels alone: what computes single channels is limited by memory, and multiplies in float32. So do
the last products, which heads are made of, and those of a single pixel (squeeze and excitation), little work that
decides on much; and all that a comparison depends on, as do the signs of binary convolutions. The first has three
channels, and would read more than it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.rewriting import attribute
from dnc.passes.shared.reduced_precision import around_products
from dnc.targets.tvm.emit.builder import JOINS, Array, RelaxBuilder, Tensor, Value
from dnc.targets.tvm.emit.convolutions import convolved

__all__ = ["convolution", "convolutions", "rounded"]

_PAIR = 2


def convolutions(graph: ir.Graph) -> frozenset[ir.Node]:
    """Those that are computed so."""
    nodes = list(graph)
    _, before, deciding = around_products(nodes)
    rounded = before - deciding
    return frozenset(node for node in nodes if node.op_type == "Conv" and node in rounded and _pays(node))


def _pays(node: ir.Node) -> bool:
    weights, result = node.inputs[1], node.outputs[0]
    if weights is None or weights.shape is None or result.shape is None or attribute(node, "group", 1) != 1:
        return False
    channels = weights.shape[1]
    return isinstance(channels, int) and channels % _PAIR == 0 and set(result.shape[2:]) != {1}


def rounded(b: RelaxBuilder, value: Tensor) -> Tensor:
    """The tensor in bfloat16."""
    tir = b.tir

    def at(x: Any) -> Any:
        bits = tir.reinterpret("uint32", x)
        # To the nearest; of two that are as near, to the one whose last digit is 0.
        bits = bits + ((bits >> tir.const(16, "uint32")) & tir.const(1, "uint32")) + tir.const(0x7FFF, "uint32")
        return (bits >> tir.const(16, "uint32")).astype("uint16")

    def halves(data: Any) -> Any:
        return b.te.compute(data.shape, lambda *i: at(data(*i)), name="half")

    computed = isinstance(value.expr, b.relax.DataflowVar)
    attributes = {JOINS: "source"} if computed else None
    return b.compute(halves, value.expr, last=value.last, name="half", attributes=attributes)


def _halves(array: Array) -> Array:
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    halves: Array = ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)
    return halves


def convolution(b: RelaxBuilder, node: ir.Node, data: Tensor, inputs: Sequence[Value | None]) -> Tensor:
    """One of them, of data in bfloat16; `inputs` are those of the node."""
    weights = inputs[1]
    assert isinstance(weights, np.ndarray)
    tir = b.tir

    def real(bits: Any) -> Any:
        return tir.reinterpret("float32", bits.astype("uint32") << tir.const(16, "uint32"))

    result = convolved(b, node, data, _halves(weights), lambda read, weight: real(read) * real(weight))
    if len(inputs) > 2 and inputs[2] is not None:
        assert isinstance(inputs[2], np.ndarray)
        result = b.emit(b.op.add(result.expr, b.constant(inputs[2].reshape(-1, 1, 1), "float32", True)), last=True)
    return result
