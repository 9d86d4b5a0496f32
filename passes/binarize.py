"""Writes the convolutions of xnor=1, sign times sign, in the form that an engine runs fastest.

The composite `BinaryConvolution` (`dnc.graph.binary`) convolves s = sign(x), 1 where x > 0 and else -1, with the
weights' signs w, and pads s by -1. `form` says how that is computed for an engine that does not multiply bits:

    sum of s * w = sum of b * 2 w - sum of w,    bits b = (x > 0) in {0, 1}, padded by 0

1. `bits`: Conv on float32, with 2 w as weights and -(sum of w) as biases. Any engine runs it. On OpenVINO a layer is
   1.0 to 1.07 times as fast as on signs.
2. `integer`: ConvInteger on uint8, then -(sum of w) is added in float32. The weights are uint8 with the zero point 2,
   hence 0 and 4, because ONNX Runtime's kernel for int8 weights is 4 to 6 times slower. On its CPU a layer is 1.05 to
   1.7 times as fast as on signs (yolov3-tiny 1.23, Darknet-19 1.18, EfficientNet-B0 1.16), on a 7 x 7 map 0.97; of 1 to
   20 channels it takes 0.61 to 0.95 of what bits take. OpenVINO gains nothing by it, TVM does not import it, and on
   CUDA and Myriad X it was not tried.

All sums are of whole numbers below 2^24, so both forms give what the composite does, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.binary import Binary
from dnc.graph.bits import signs
from dnc.graph.composites import BINARY_CONVOLUTION, is_composite, remove_uncalled
from dnc.graph.rewriting import Remarks
from dnc.passes import Pass, passes
from dnc.runtime.options import Option, one_of

_ZERO = np.uint8(2)
"""The zero point of the weights; 2 w is -2 or 2."""


@passes.register
class Binarize(Pass):
    """BinaryConvolution -> Conv of bits, on floats or on integers."""

    name: ClassVar[str] = "binarize"
    tolerance: ClassVar[float] = 0.0

    applies_to: ClassVar[str] = "convolutions of signs with signs (xnor=1)"
    expands: ClassVar[str] = BINARY_CONVOLUTION
    known_options: ClassVar[Sequence[Option]] = (
        Option("form", "bits", "what is multiplied: bits, integer", one_of("bits", "integer")),
    )

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        write, what = {"bits": (_bits, "on bits"), "integer": (_integers, "on integers")}[self.options["form"]]
        for node in list(model.graph):
            if is_composite(node, BINARY_CONVOLUTION):
                binary = Binary(node, model.graph)
                binary.finish(write(binary))
                remarks.apply(node, what)
        remove_uncalled(model)
        return remarks


def _bits(binary: Binary) -> ir.Value:
    """Form 1."""
    bits = _positive(binary, ir.DataType.FLOAT)
    less = binary.initializer(-binary.totals, ".total")
    weights = binary.weights(lambda bits: 2 * signs(bits), ir.DataType.FLOAT, ".doubled")
    return binary.convolve("Conv", bits, weights, less)


def _integers(binary: Binary) -> ir.Value:
    """Form 2."""
    bits = _positive(binary, ir.DataType.UINT8)
    less = binary.initializer(-binary.totals.reshape(1, -1, 1, 1), ".total")
    weights = binary.weights(lambda bits: 2 * _ZERO * bits, ir.DataType.UINT8, ".integers")
    zeros = [binary.constant(number) for number in (np.uint8(0), _ZERO)]
    sums = binary.convolve("ConvInteger", bits, weights, *zeros)
    return binary.node("Add", binary.node("Cast", sums, to=int(ir.DataType.FLOAT)), less, name="ConvInteger/Add")


def _positive(binary: Binary, dtype: ir.DataType) -> ir.Value:
    positive = binary.node("Greater", binary.x, binary.constant(np.float32(0)))
    return binary.node("Cast", positive, to=int(dtype))
