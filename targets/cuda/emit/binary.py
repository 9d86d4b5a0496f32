"""Convolutions of signs with signs, as bits: the composite `BinaryConvolution` (`dnc.graph.binary`).

    bits[n, y, x, word]   bit k says whether x > 0 in channel 32 word + k
    differ[n, y, x, o]    in how many bits the words of a window and those of a filter differ
    y                     scale (C kh kw - 2 differ) + bias

Padding counts as -1, whose bits are 0; so are those beyond the last channel, of signs and of weights, which then do not
differ. The product is rounded before the bias is added, as everywhere else: where the two cancel, the next layer's sign
depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.composites import attributes_of
from dnc.targets.tvm.emit.builder import JOINS, Array, RelaxBuilder, Tensor, Value

__all__ = ["binary_convolution"]

_WORD = 32


def binary_convolution(b: RelaxBuilder, call: ir.Node, inputs: Sequence[Value]) -> Tensor:
    """What the composite computes."""
    x, weights, scale, bias = inputs
    assert isinstance(x, Tensor)
    assert isinstance(weights, np.ndarray)
    assert isinstance(scale, np.ndarray)
    assert isinstance(bias, np.ndarray)
    spatial = attributes_of(call)
    differing = _differing(b, _signs(b, x), _words(weights), **spatial)
    taps = x.shape[1] * weights.shape[1] * weights.shape[2]
    tir = b.tir

    def reals(counts: Any, factors: Any, shifts: Any) -> Any:
        def at(n: Any, h: Any, w: Any, o: Any) -> Any:
            total = tir.const(taps, "int32") - counts[n, h, w, o] * tir.const(2, "int32")
            # An intrinsic, because NVIDIA's compilers make one operation of a product and a sum.
            product = tir.call_pure_extern("float32", "__fmul_rn", total.astype("float32"), factors[o])
            return product + shifts[o]

        return b.te.compute(counts.shape, at, name="reals")

    given = (differing.expr, b.relax.const(scale), b.relax.const(bias))
    return b.compute(reals, *given, last=True, name="reals", attributes={JOINS: "elements"})


def _words(weights: Array) -> Array:
    """(O, kh, kw, bytes) -> (kh, kw, words, O)."""
    missing = -weights.shape[3] % (_WORD // 8)
    padded = np.pad(weights, [(0, 0), (0, 0), (0, 0), (0, missing)])
    words: Array = np.ascontiguousarray(padded.view("<u4").transpose(1, 2, 3, 0), np.uint32)
    return words


def _signs(b: RelaxBuilder, x: Tensor) -> Tensor:
    """The bits of a map."""
    te, tir = b.te, b.tir
    channels = x.shape[1]

    def signs(data: Any) -> Any:
        k = te.reduce_axis((0, _WORD), name="k")

        def at(n: Any, h: Any, w: Any, word: Any) -> Any:
            channel = word * _WORD + k
            number = data[n, h, w, channel]
            if channels % _WORD:
                number = tir.if_then_else(channel < channels, number, tir.const(0, x.dtype))
            return te.sum((number > tir.const(0, x.dtype)).astype("uint32") << k.astype("uint32"), axis=k)

        shape = (*data.shape[:3], -(-channels // _WORD))
        return te.compute(shape, at, name="signs")

    return b.compute(signs, b.last(x).expr, last=True, name="signs")


def _differing(
    b: RelaxBuilder,
    bits: Tensor,
    weights: Array,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """In how many bits the windows of a map and the filters differ."""
    te, tir = b.te, b.tir
    (down, across), (tall, wide), (top, left, bottom, right) = strides, dilations, pads

    def conv2d(data: Any, kernel: Any) -> Any:
        from tvm import topi

        padded = topi.nn.pad(data, (0, top, left, 0), (0, bottom, right, 0), name="pad_temp")
        count, height, width, _ = padded.shape
        ky, kx, i = (te.reduce_axis((0, kernel.shape[axis]), name=name) for axis, name in enumerate(("ky", "kx", "i")))
        shape = (
            count,
            (height - (kernel.shape[0] - 1) * tall - 1) // down + 1,
            (width - (kernel.shape[1] - 1) * wide - 1) // across + 1,
            kernel.shape[3],
        )

        def at(n: Any, y: Any, x: Any, o: Any) -> Any:
            word = padded[n, y * down + ky * tall, x * across + kx * wide, i]
            return te.sum(tir.popcount(word ^ kernel[ky, kx, i, o]).astype("int32"), axis=[ky, kx, i])

        return te.compute(shape, at, name="conv2d")

    given = (bits.expr, b.relax.const(weights))
    return b.compute(conv2d, *given, last=True, name="conv2d", attributes={JOINS: "sums"})
