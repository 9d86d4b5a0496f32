"""Convolutions of signs with signs: the composite `BinaryConvolution`, and the operators that stand for it.

    y = scale * (sum of s * w) + bias        s = 1 where x > 0, else -1; w = 1 or -1; padding counts as -1

    x        float32 (N, C, H, W)
    weights  uint8 (O, kh, kw, ceil(C / 8)): a bit for each channel, see `dnc.graph.bits.pack`
    scale    float32 (O,)
    bias     float32 (O,)

Attributes are `strides`, `pads` and `dilations`, as those of Conv. The sum is a whole number, C kh kw less twice the
bits in which signs and weights differ, and exact in float32 below 2^24, so all who compute it see the same; it is
multiplied, then added to, each rounded to float32.

With bits b = (x > 0) in {0, 1}, s = 2 b - 1, and padding b by 0 is padding s by -1:

    sum of s * w = sum of b * 2 w - sum of w
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph.bits import signs, unpack
from dnc.graph.builder import Builder, lazy
from dnc.graph.rewriting import add_initializer, add_node, replace_uses, shared_constant

__all__ = ["Binary", "expand", "write_body"]

_Array = npt.NDArray[Any]
_SPATIAL = ("strides", "pads", "dilations")


def write_body(b: Builder, x: ir.Value, weights: ir.Value, scale: ir.Value, bias: ir.Value) -> Sequence[ir.Value]:
    """The nodes of the composite's function. What differs from call to call they read from its attributes."""
    b.enter("BinaryConvolution")
    bits = b.op("Cast", b.op("Greater", x, b.constant(0.0)), to=int(ir.DataType.FLOAT))
    # 2 w of a byte's eight channels by its number: (O, kh, kw, bytes, 8).
    table = b.constant(2 * signs(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")))
    w = b.op("Gather", table, b.op("Cast", weights, to=int(ir.DataType.INT32)))
    w = b.op("Reshape", w, b.constant(np.array([0, 0, 0, -1], np.int64)))
    zero, one = (b.constant(np.int64(number)) for number in (0, 1))
    # Not Slice: of that, shape inference knows no side where it does not know the end.
    w = b.op("Gather", w, b.op("Range", zero, b.op("Gather", b.op("Shape", x), one), one), axis=3)
    w = b.op("Transpose", w, perm=[0, 3, 1, 2])
    sides = b.constant(np.array([1, 2, 3], np.int64))
    less = b.op("Mul", b.op("ReduceSum", w, sides, keepdims=0), b.constant(-0.5))
    spatial: dict[str, Any] = {name: ir.RefAttr(name, name, ir.AttributeType.INTS) for name in _SPATIAL}
    sums = b.op("Conv", bits, w, less, **spatial)
    column = b.constant(np.array([1, -1, 1, 1], np.int64))
    y = b.op("Mul", sums, b.op("Reshape", scale, column))
    return [b.op("Add", y, b.op("Reshape", bias, column))]


@dataclass(frozen=True)
class Binary:
    """A BinaryConvolution in a graph, in whose place operators are written."""

    call: ir.Node
    graph: ir.Graph

    @property
    def x(self) -> ir.Value:
        """What it reads."""
        value = self.call.inputs[0]
        assert value is not None
        return value

    @property
    def channels(self) -> int:
        """How many channels it reads."""
        assert self.x.shape is not None
        channels = self.x.shape[1]
        assert isinstance(channels, int)
        return channels

    @property
    def packed(self) -> ir.TensorProtocol:
        """The weights."""
        return self._tensor(1)

    @property
    def totals(self) -> npt.NDArray[np.float32]:
        """The sum of each filter's signs, (O,)."""
        packed = self.packed.numpy()
        ones = np.unpackbits(packed, axis=3).sum(axis=(1, 2, 3), dtype=np.int64)
        totals: npt.NDArray[np.float32] = (2 * ones - self.channels * packed[0, ..., 0].size).astype(np.float32)
        return totals

    def node(self, op_type: str, *inputs: ir.Value, name: str = "", **attributes: Any) -> ir.Value:
        """The output of a new operator, called as the layer's own are."""
        prefix = (self.call.name or "").rpartition("/")[0]
        made = add_node(self.graph, self.call, op_type, inputs, attributes, name=f"{prefix}/{name or op_type}")
        return made.outputs[0]

    def constant(self, array: npt.ArrayLike) -> ir.Value:
        """A small constant, of which the graph has one."""
        return shared_constant(self.graph, np.asarray(array))

    def initializer(self, array: _Array, suffix: str) -> ir.Value:
        """A constant that is made of the weights; `suffix` is added to their name."""
        return add_initializer(self.graph, ir.Tensor(array, name=f"{self.packed.name}{suffix}"))

    def weights(self, of_bits: Callable[[_Array], _Array], dtype: ir.DataType, suffix: str = "") -> ir.Value:
        """The weights as (O, C, kh, kw), computed of their bits when they are read; `suffix` is added to their name."""
        packed, channels = self.packed, self.channels

        def compute() -> _Array:
            return of_bits(unpack(packed.numpy(), channels))

        outputs, *kernel, _ = packed.shape.numpy()
        tensor = lazy(compute, packed, f"{packed.name}{suffix}", shape=[outputs, channels, *kernel], dtype=dtype)
        return self._in_place_of(1, tensor)

    def convolve(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The sums by a Conv, or by what has the attributes of one, with those of the call but for `attributes`.

        After a Conv, Round changes none of them. It keeps the scale out of the weights, into which passes and engines
        would multiply it: such products add up to nearly 0 where signs do to 0, and the sign of that is any.
        """
        given = {key: self.call.attributes[key].as_ints() for key in _SPATIAL} | attributes
        kernel = self.packed.shape.numpy()[1:3]
        sums = self.node(op_type, *inputs, kernel_shape=kernel, group=1, **given)
        return self.node("Round", sums) if op_type == "Conv" else sums

    def finish(self, sums: ir.Value) -> None:
        """Scales the sums, adds the biases, and puts what comes of it in the place of the call."""
        y = self.node("Mul", sums, self._column(2))
        y = self.node("Add", y, self._column(3))
        replace_uses(self.call.outputs[0], y, self.graph)
        self.graph.remove(self.call, safe=True)

    def _column(self, place: int) -> ir.Value:
        tensor = self._tensor(place)

        def compute() -> _Array:
            return tensor.numpy().reshape(1, -1, 1, 1)

        shape = [1, tensor.size, 1, 1]
        return self._in_place_of(place, lazy(compute, tensor, tensor.name or "", shape=shape))

    def _tensor(self, place: int) -> ir.TensorProtocol:
        value = self.call.inputs[place]
        assert value is not None
        assert value.const_value is not None
        return value.const_value

    def _in_place_of(self, place: int, tensor: ir.TensorProtocol) -> ir.Value:
        """An initializer that takes the name of one that the call reads, if nothing else reads that."""
        value = self.call.inputs[place]
        assert value is not None
        if len(value.uses()) == 1:
            self.graph.initializers.pop(value.name or "", None)
        return add_initializer(self.graph, tensor)


def expand(call: ir.Node, graph: ir.Graph) -> None:
    """Puts float32 operators in the place of a BinaryConvolution that say what it means, on signs."""
    binary = Binary(call, graph)
    one, minus = binary.constant(np.float32(1)), binary.constant(np.float32(-1))
    x = binary.node("Where", binary.node("Greater", binary.x, binary.constant(np.float32(0))), one, minus)
    pads = call.attributes["pads"].as_ints()
    if any(pads):
        borders = binary.constant(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64))
        x = binary.node("Pad", x, borders, minus)
    weights = binary.weights(signs, ir.DataType.FLOAT)
    binary.finish(binary.convolve("Conv", x, weights, pads=[0] * 4))
