"""Binary convolutions (xnor=1): signs times signs, held as bits.

A sign is a bit, 1 where a number is positive, 0 for -1. Of n products of signs, as many are -1 as bits differ:

    sum of s w  =  n - 2 popcount(bits of s xor bits of w)

Bits are held eight channels to a byte, channels last, (N, H, W, C / 8), the first channel in the lowest bit, for GPUs
32 to a word; bits that stand for no channel are 0 in both, so they never differ. So are those beyond the border, where
Darknet's padding counts as -1. They are made once for all that read them, and on CPUs by the function that computes the
numbers (`JOINS`): where binary convolutions alone read these, the numbers themselves are nowhere.

The sum is a whole number, hence the same in any order; with the filter's scale and bias it is computed as Darknet does,
each step rounded: a fence keeps LLVM from making one of the two, and an intrinsic NVIDIA's compilers, as the signs of
the next layer hang on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.targets.tvm.emit.builder import JOINS, SIGNS, Array, RelaxBuilder, Tensor, Value
from dnc.targets.tvm.emit.convolutions import convolved

__all__ = ["convolution", "signs"]

_BYTE, _WORD = 8, 32
_FENCE = "llvm.arithmetic.fence"
"""Its operand as it is, rounded."""


def signs(b: RelaxBuilder, value: Tensor) -> Tensor:
    """The bits of a tensor (N, C, H, W): (N, H, W, C / 8 or C / 32), held with its channels last."""
    tir, te = b.tir, b.te
    channels, count = value.shape[1], _WORD if b.gpu else _BYTE
    dtype = f"uint{count}"

    def packed(data: Any) -> Any:
        bit = te.reduce_axis((0, count), name="bit")

        def at(n: Any, y: Any, x: Any, place: Any) -> Any:
            channel = place * count + bit
            positive = data[n, y, x, channel] > tir.const(0, data.dtype)
            if channels % count:
                positive = tir.if_then_else(channel < channels, positive, tir.const(False, "bool"))
            return te.sum(positive.astype(dtype) << bit.astype(dtype), axis=[bit])

        return te.compute((*data.shape[:3], -(-channels // count)), at, name=SIGNS)

    given = b.last(value)
    joins = not b.gpu and isinstance(given.expr, b.relax.DataflowVar)
    attributes = {JOINS: "source"} if joins else None
    return b.compute(packed, given.expr, last=True, name=SIGNS, attributes=attributes)


def convolution(b: RelaxBuilder, node: ir.Node, bits: Tensor, inputs: Sequence[Value | None]) -> Tensor:
    """A composite BinaryConvolution of these bits; `inputs` are those of the node."""
    data, weights, scale, bias = inputs
    assert data is not None
    assert isinstance(weights, np.ndarray)
    assert isinstance(scale, np.ndarray)
    assert isinstance(bias, np.ndarray)
    if b.gpu:
        missing = -weights.shape[3] % (_WORD // _BYTE)
        weights = np.pad(weights, [(0, 0), (0, 0), (0, 0), (0, missing)]).view("<u4")

    def differing(read: Any, weight: Any) -> Any:
        return b.tir.popcount(read ^ weight).astype("int32")

    sums = convolved(b, node, bits, weights.transpose(0, 3, 1, 2), differing)
    return _reals(b, sums, data.shape[1] * math.prod(weights.shape[1:3]), scale, bias)


def _reals(b: RelaxBuilder, sums: Tensor, products: int, scale: Array, bias: Array) -> Tensor:
    """What so many products come to of which `sums` are -1."""
    tir = b.tir

    def reals(data: Any, factor: Any, shift: Any) -> Any:
        def at(*i: Any) -> Any:
            whole = (tir.const(products, "int32") - data(*i) * tir.const(2, "int32")).astype("float32")
            if b.gpu:
                product = tir.call_pure_extern("float32", "__fmul_rn", whole, factor(i[-1]))
            else:
                product = whole * factor(i[-1])
                if b.fences:
                    product = tir.call_llvm_pure_intrin("float32", _FENCE, product)
            return product + shift(i[-1])

        return b.te.compute(data.shape, at, name="reals")

    arguments = (sums.expr, b.relax.const(scale), b.relax.const(bias))
    return b.compute(reals, *arguments, last=True, name="reals", attributes={JOINS: "elements"})
