"""Operators on 8-bit numbers: what `dnc.passes.quantize` says with QuantizeLinear and DequantizeLinear, as integers.

    real = scale (number - zero)

DequantizeLinear computes nothing: it gives a `Dequantized`, and each reader decides. A convolution or a product of two
of them multiplies the numbers and adds them up as int32; what moves numbers moves these; anything else gets reals.

    sum over i of real data real weight  =  scale[o] sum[o] + shift[o],    shift[o] = bias[o] - scale[o] zero weights[o]

where weights[o] is the sum of those that are multiplied with a number of the data. At the borders these are fewer: what
lies outside is the real 0, and nothing is added for it. So there `shift` is one for each row and column of the output
whose window leaves the data, and one for all others: a table, in which `min(y, before) + max(y - last, 0)` is the row.

Rounding to even is an addition: 1.5 2^23 is so large that the sum has no bits behind the point, and the lowest bits of
the sum are the number.

Numbers are held in the type that the processor multiplies (`dnc.targets.tvm.schedules.machine`): uint8; int16, which
are the same numbers; or int8, where all are held as they are less 128, and so are their zeros. GPUs have int8.

What is in float16 beside that (GPUs) is rounded to 8 bits as it is, and becomes float16 where it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.quantization import DATA_MOVEMENT, QuantParams
from dnc.graph.rewriting import attribute
from dnc.targets.tvm.emit.builder import JOINS, Array, RelaxBuilder, Tensor, Value
from dnc.targets.tvm.emit.operators import OPERATORS, filled

__all__ = ["QUANTIZING", "Dequantized", "Held", "integers_of", "real"]

QUANTIZING = ("QuantizeLinear", "DequantizeLinear")

_ROUND = 12582912.0
"""1.5 * 2^23."""
_GROUP = 4
"""Inputs of which processors multiply all at once, or two. GPUs load that many at once at least."""


@dataclass(frozen=True)
class Dequantized:
    """Real numbers that are not computed yet."""

    numbers: Value
    """Of 8 bits, in the type that they are held in; int32 for biases."""
    params: QuantParams
    """Of the numbers as they are held."""


Held = Value | Dequantized | None


def integers_of(b: RelaxBuilder, node: ir.Node, held: Sequence[Held], dtype: str) -> list[Value | Dequantized] | None:
    """The node computed with integers.

    Args:
        held: its inputs.
        dtype: the type that 8-bit numbers are held in.

    Returns:
        Its outputs; None if reals are computed of reals.
    """
    if node.op_type == "QuantizeLinear":
        return [_quantize(b, node, held, dtype)]
    if node.op_type == "DequantizeLinear":
        return [_dequantize(node, held, dtype)]
    if node.op_type == "Cast":
        return _cast(b, node, held[0])
    if node.op_type in _PRODUCTS:
        data, weights = held[:2]
        if not isinstance(data, Dequantized) or not isinstance(weights, Dequantized):
            return None
        if not isinstance(data.numbers, Tensor) or not isinstance(weights.numbers, np.ndarray):
            return None
        bias = real(b, held[2]) if len(held) > 2 and held[2] is not None else None
        assert bias is None or isinstance(bias, np.ndarray)
        found = _PRODUCTS[node.op_type](b, node, data, weights, bias)
        return None if found is None else [found]
    return _moved(b, node, held)


def _dequantize(node: ir.Node, held: Sequence[Held], dtype: str) -> Dequantized:
    numbers = held[0]
    assert isinstance(numbers, Tensor | np.ndarray)
    # Constants are held as they are.
    return Dequantized(numbers, _params(node, held, _shift(dtype) if isinstance(numbers, Tensor) else 0))


def _shift(dtype: str) -> int:
    """How much less numbers are where they are held in this type."""
    return 128 if dtype == "int8" else 0


def _params(node: ir.Node, held: Sequence[Held], shift: int) -> QuantParams:
    """What the node says of its integers, which are held less `shift`."""
    scale, zero_point = held[1], held[2] if len(held) > 2 else None
    assert isinstance(scale, np.ndarray)
    assert zero_point is None or isinstance(zero_point, np.ndarray)
    params = QuantParams.read(scale, zero_point, attribute(node, "axis", 1))
    return replace(params, zero_point=params.zero_point - shift)


def _quantize(b: RelaxBuilder, node: ir.Node, held: Sequence[Held], dtype: str) -> Value:
    shift = _shift(dtype)
    value, params = held[0], _params(node, held, shift)
    if isinstance(value, Dequantized) and value.params == params:
        return value.numbers
    x = b.tensor_of(real(b, value))
    tir, zero = b.tir, params.zero_point
    # Added before rounding, an odd zero would turn ties to the other side.
    extra = zero % 2
    base, low = _ROUND + zero - extra, _ROUND - shift - extra
    factor = float(np.float32(1) / np.float32(params.scale[0]))

    def at(number: Any) -> Any:
        shifted = number.astype("float32") * tir.const(factor, "float32")
        shifted = shifted + tir.const(base, "float32")
        within = tir.min(tir.max(shifted, tir.const(low, "float32")), tir.const(low + 255, "float32"))
        bits = tir.reinterpret("int32", within)
        return (bits + tir.const(extra, "int32") if extra else bits).astype(dtype)

    def rounded(data: Any) -> Any:
        return b.te.compute(data.shape, lambda *i: at(data(*i)), name="round")

    return b.compute(rounded, x.expr, last=x.last, name="round", attributes=_from_source(b, x))


def _cast(b: RelaxBuilder, node: ir.Node, value: Held) -> list[Value | Dequantized] | None:
    """What goes from one float to another for, or beside, what is rounded to 8 bits."""
    if not isinstance(value, Tensor) or node.inputs[0] is None:
        return None
    users = [user for user, _ in node.outputs[0].uses()]
    if users and all(user.op_type == "QuantizeLinear" for user in users) and not node.outputs[0].is_graph_output():
        return [value]
    others = [user for user, _ in node.inputs[0].uses() if user is not node]
    to_half = value.dtype == "float32" and attribute(node, "to", 1) == ir.DataType.FLOAT16
    if not to_half or not any(user.op_type == "QuantizeLinear" for user in others):
        return None

    def half(data: Any) -> Any:
        return b.te.compute(data.shape, lambda *i: data(*i).astype("float16"), name="half")

    return [b.compute(half, value.expr, last=value.last, name="half", attributes=_from_source(b, value))]


def _from_source(b: RelaxBuilder, value: Tensor) -> Mapping[str, str] | None:
    """The attribute of a function that is computed with what gives its input, if something does."""
    return {JOINS: "source"} if isinstance(value.expr, b.relax.DataflowVar) else None


def real(b: RelaxBuilder, value: Held) -> Value:
    """The value in real numbers."""
    if not isinstance(value, Dequantized):
        assert value is not None
        return value
    if isinstance(value.numbers, np.ndarray):
        return value.params.dequantize(value.numbers)
    (scale,), zero = value.params.scale, value.params.zero_point
    tir = b.tir

    def reals(data: Any) -> Any:
        def at(*i: Any) -> Any:
            return (data(*i).astype("int32") - tir.const(zero, "int32")).astype("float32") * tir.const(scale, "float32")

        return b.te.compute(data.shape, at, name="real")

    return b.compute(reals, value.numbers.expr, last=value.numbers.last, name="real")


def _moved(b: RelaxBuilder, node: ir.Node, held: Sequence[Held]) -> list[Value | Dequantized] | None:
    """What moves numbers, or joins some that are on one grid."""
    several = node.op_type == "Concat"
    if not several and node.op_type not in DATA_MOVEMENT:
        return None
    first = held[0]
    data = held if several else held[:1]
    if not isinstance(first, Dequantized) or not isinstance(first.numbers, Tensor):
        return None
    if not all(isinstance(value, Dequantized) and value.params == first.params for value in data):
        return None
    numbers = [value.numbers if isinstance(value, Dequantized) else value for value in held]
    found = OPERATORS[node.op_type](b, node, numbers)
    return [replace(first, numbers=numbers) for numbers in (found if isinstance(found, list) else [found])]


def _conv(b: RelaxBuilder, node: ir.Node, data: Dequantized, weights: Dequantized, bias: Array | None) -> Tensor | None:
    if attribute(node, "group", 1) != 1:
        return None
    numbers, kernel = b.tensor_of(data.numbers), weights.numbers
    assert isinstance(kernel, np.ndarray)
    strides, pads = attribute(node, "strides", [1, 1]), attribute(node, "pads", [0] * 4)
    dilations = attribute(node, "dilations", [1, 1])
    places = [
        _places(numbers.shape[2 + axis], kernel.shape[2 + axis], strides[axis], dilations[axis], pads[axis::2])
        for axis in range(2)
    ]
    missing = -kernel.shape[1] % _GROUP
    if missing:
        # Numbers that are multiplied with 0.
        numbers = _filled(b, numbers, missing)
        kernel = np.pad(kernel, ((0, 0), (0, missing), (0, 0), (0, 0)))
    matrix = b.relax.const(np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)))

    def conv2d(x: Any, y: Any) -> Any:
        from tvm import topi

        return topi.nn.conv(x, y, strides, pads, dilations, 1, "NHWC", "HWIO", "int32")

    sums = b.compute(conv2d, b.last(numbers).expr, matrix, last=True, name="conv2d", attributes={JOINS: "sums"})
    reached = places if data.params.zero_point else None
    scale, shift = _factors(data, weights, bias, kernel.sum(axis=1, dtype=np.int64), reached)
    return _reals(b, sums, scale, shift, [_row(place) for place in places])


def _filled(b: RelaxBuilder, numbers: Tensor, missing: int) -> Tensor:
    """The numbers with more channels, and the channels last."""
    count, channels, height, width = numbers.shape
    if b.gpu and not numbers.last:
        return filled(b, numbers, channels + missing)
    if numbers.last or channels > _GROUP or width == 1:
        return b.emit(b.op.nn.pad(b.last(numbers).expr, [0] * 7 + [missing], pad_value=0), last=True)
    from dnc.targets.tvm.schedules.interleave import interleave

    function = b.block.add_func(interleave(numbers.shape, numbers.dtype), "interleave")
    kind = b.relax.TensorType((count, height, width * _GROUP), numbers.dtype)
    rows = b.emit(b.relax.call_tir(function, [numbers.expr], kind))
    return b.emit(b.op.reshape(rows.expr, (count, height, width, _GROUP)), last=True)


def _places(size: int, kernel: int, stride: int, dilation: int, pads: Sequence[int]) -> Array:
    """Which numbers of the kernel meet data, for each place of the output: (places, kernel)."""
    count = (size + sum(pads) - (kernel - 1) * dilation - 1) // stride + 1
    at = np.arange(count)[:, None] * stride - pads[0] + np.arange(kernel) * dilation
    inside: Array = (at >= 0) & (at < size)
    return inside


def _row(inside: Array) -> tuple[int, int]:
    """How many places come before the first whose window lies inside, and the last of these."""
    whole = np.flatnonzero(inside.all(axis=1))
    return (int(whole[0]), int(whole[-1])) if len(whole) else (len(inside), len(inside))


def _factors(
    data: Dequantized, weights: Dequantized, bias: Array | None, sums: Array, places: Sequence[Array] | None
) -> tuple[Array, Array]:
    """Scale (O,) and shift (rows, columns, O), of weights whose sums are (O, kh, kw)."""
    scale = np.broadcast_to(np.array(data.params.scale) * np.array(weights.params.scale), len(sums))
    tables = []
    for axis in range(2):
        inside = np.ones((1, sums.shape[1 + axis]), bool) if places is None else places[axis]
        before, last = _row(inside)
        tables.append(np.delete(inside, np.arange(before + 1, last + 1), axis=0).astype(np.int64))
    reached = np.einsum("yk,xl,okl->yxo", *tables, sums)
    shift = (0 if bias is None else bias.astype(np.float64)) - scale * data.params.zero_point * reached
    return scale.astype(np.float32), shift.astype(np.float32)


def _reals(b: RelaxBuilder, sums: Tensor, scale: Array, shift: Array, rows: Sequence[tuple[int, int]]) -> Tensor:
    """The reals of sums (..., O)."""
    tir = b.tir

    def place(i: Sequence[Any], axis: int) -> Any:
        side, (before, last) = shift.shape[axis], rows[axis]
        if side == 1:
            return tir.IntImm("int64", 0)
        return tir.min(i[axis + 1], tir.IntImm("int64", before)) + tir.max(i[axis + 1] - last, tir.IntImm("int64", 0))

    def reals(data: Any, factor: Any, shifts: Any) -> Any:
        def at(*i: Any) -> Any:
            return data(*i).astype("float32") * factor(i[-1]) + shifts(place(i, 0), place(i, 1), i[-1])

        return b.te.compute(data.shape, at, name="reals")

    arguments = (sums.expr, b.relax.const(scale), b.relax.const(shift))
    return b.compute(reals, *arguments, last=sums.last, name="reals", attributes={JOINS: "elements"})


def _gemm(b: RelaxBuilder, node: ir.Node, data: Dequantized, weights: Dequantized, bias: Array | None) -> Tensor | None:
    # Not transposed, the scales would be those of inputs; see `dnc.passes.quantize`.
    if not attribute(node, "transB", 0) or weights.params.axis != 0:
        return None
    matrix = weights.numbers
    assert isinstance(matrix, np.ndarray)
    rows = b.first(data.numbers)
    missing = -matrix.shape[1] % _GROUP
    if missing:
        rows = b.emit(b.op.nn.pad(rows.expr, [0, 0, 0, missing], pad_value=0))
        matrix = np.pad(matrix, ((0, 0), (0, missing)))

    def product(x: Any, y: Any) -> Any:
        k = b.te.reduce_axis((0, x.shape[1]), name="k")
        shape = (x.shape[0], y.shape[1])

        def at(n: Any, o: Any) -> Any:
            return b.te.sum(x[n, k].astype("int32") * y[k, o].astype("int32"), axis=k)

        return b.te.compute(shape, at, name="product")

    numbers = b.relax.const(np.ascontiguousarray(matrix.T))
    sums = b.compute(product, rows.expr, numbers, name="product", attributes={JOINS: "sums"})
    scale, shift = _factors(data, weights, bias, matrix.sum(axis=1, dtype=np.int64).reshape(-1, 1, 1), None)
    return _reals(b, sums, scale, shift, [(0, 0)] * 2)


_PRODUCTS: dict[str, Callable[..., Tensor | None]] = {"Conv": _conv, "Gemm": _gemm}
