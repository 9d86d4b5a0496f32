"""Each operator of ONNX in Relax: `OPERATORS` by name, and `unsuitable` for what none of them takes.

A function here gets the node and its inputs, tensors or constants, and gives a tensor or, for several outputs, a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.rewriting import attribute, constant_array
from dnc.targets.tvm.emit.builder import RelaxBuilder, Tensor, Value, integers
from dnc.targets.tvm.emit.convolutions import convolved
from dnc.targets.tvm.functions import softplus
from dnc.targets.tvm.minimal_filtering import WINOGRAD

__all__ = ["OPERATORS", "filled", "unsuitable"]

Inputs = Sequence[Value | None]
_Handler = Callable[[RelaxBuilder, ir.Node, Inputs], Tensor | list[Tensor]]
OPERATORS: dict[str, Any] = {}


def _operator(*names: str) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        OPERATORS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _plain(name: str) -> _Handler:
    """An operator of Relax that works element by element."""

    def handler(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
        expressions, last = b.broadcast(inputs)
        return b.emit(getattr(b.op, name)(*expressions), last)

    return handler


_SAME = (
    *("Abs", "Add", "Ceil", "Equal", "Exp", "Floor", "Greater"),
    *("Less", "Log", "Round", "Sigmoid", "Sqrt", "Tanh", "Where"),
)
_OTHER = {
    "And": "logical_and",
    "Div": "divide",
    "GreaterOrEqual": "greater_equal",
    "LessOrEqual": "less_equal",
    "Mul": "multiply",
    "Neg": "negative",
    "Not": "logical_not",
    "Or": "logical_or",
    "Pow": "power",
    "Sub": "subtract",
}
OPERATORS |= {name: _plain(_OTHER.get(name, name.lower())) for name in (*_SAME, *_OTHER)}


@_operator("Relu")
def _relu(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    (x,), last = b.broadcast(inputs)
    return b.emit(b.op.nn.relu(x), last)


@_operator("Identity", "Dropout")
def _identity(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    return b.tensor_of(inputs[0])


@_operator("Reciprocal")
def _reciprocal(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    (one, x), last = b.broadcast([np.array(1.0, np.float32), inputs[0]])
    return b.emit(b.op.divide(one, x), last)


@_operator("Max", "Min")
def _extreme(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    function = b.op.maximum if node.op_type == "Max" else b.op.minimum
    result = inputs[0]
    for other in inputs[1:]:
        (x, y), last = b.broadcast([result, other])
        result = b.emit(function(x, y), last)
    return b.tensor_of(result)


@_operator("Cast")
def _cast(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.tensor_of(inputs[0])
    return b.emit(b.op.astype(x.expr, ir.DataType(attribute(node, "to", 1)).numpy().name), x.last)


@_operator("Clip")
def _clip(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.tensor_of(inputs[0])
    for bound, function in zip(inputs[1:], (b.op.maximum, b.op.minimum), strict=False):
        if bound is not None:
            (y, limit), last = b.broadcast([x, bound])
            x = b.emit(function(y, limit), last)
    return x


@_operator("LeakyRelu")
def _leaky(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.tensor_of(inputs[0])
    return b.emit(b.op.nn.leakyrelu(x.expr, attribute(node, "alpha", 0.01)), x.last)


@_operator("PRelu")
def _prelu(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    (x, slope, zero), last = b.broadcast([*inputs, np.array(0, np.float32)])
    return b.emit(b.op.where(b.op.less(x, zero), b.op.multiply(x, slope), x), last)


@_operator("Elu", "Selu")
def _elu(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    # gamma max(x, alpha (e^min(x, 0) - 1)), for positive numbers
    selu = node.op_type == "Selu"
    alpha = attribute(node, "alpha", 1.67326319217681884765625 if selu else 1.0)
    gamma = attribute(node, "gamma", 1.05070102214813232421875) if selu else 1.0
    numbers = [np.array(number, np.float32) for number in (0, 1, alpha, gamma)]
    (x, zero, one, alpha, gamma), last = b.broadcast([inputs[0], *numbers])
    op = b.op
    negative = op.multiply(alpha, op.subtract(op.exp(op.minimum(x, zero)), one))
    return b.emit(op.multiply(gamma, op.where(op.less(x, zero), negative, x)), last)


@_operator("HardSigmoid", "HardSwish")
def _hard(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    swish = node.op_type == "HardSwish"
    alpha = 1 / 6 if swish else attribute(node, "alpha", 0.2)
    beta = 0.5 if swish else attribute(node, "beta", 0.5)
    numbers = [np.array(number, np.float32) for number in (alpha, beta, 0, 1)]
    (x, alpha, beta, zero, one), last = b.broadcast([inputs[0], *numbers])
    op = b.op
    gate = op.minimum(op.maximum(op.add(op.multiply(x, alpha), beta), zero), one)
    return b.emit(op.multiply(x, gate) if swish else gate, last)


@_operator("Softplus")
def _softplus(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.tensor_of(inputs[0])
    return b.compute(softplus, x.expr, last=x.last, name="softplus")


@_operator("BatchNormalization")
def _batch_normalization(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.tensor_of(inputs[0])
    scale, bias, mean, variance = (np.asarray(value, np.float64) for value in inputs[1:])
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    sides = (-1, *(1,) * (len(x.shape) - 2))
    factors, shifts = (array.reshape(sides).astype(x.dtype) for array in (factor, bias - mean * factor))
    (y, a, c), last = b.broadcast([x, factors, shifts])
    return b.emit(b.op.add(b.op.multiply(y, a), c), last)


@_operator("Conv")
def _conv(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x, weights = b.tensor_of(inputs[0]), inputs[1]
    assert isinstance(weights, np.ndarray)
    channels = weights.shape[1]
    if b.fill and x.dtype == "float16" and channels % 2 and channels < b.fill and x.shape[1] == channels:
        x = filled(b, x, b.fill)
        weights = np.pad(weights, [(0, 0), (0, b.fill - channels), (0, 0), (0, 0)])
    if WINOGRAD in node.metadata_props:
        result = convolved(b, node, x, weights, marks={WINOGRAD: int(node.metadata_props[WINOGRAD])})
    else:
        y = b.op.nn.conv2d(
            b.last(x).expr,
            b.relax.const(np.ascontiguousarray(weights.transpose(2, 3, 1, 0))),
            strides=attribute(node, "strides", [1, 1]),
            padding=attribute(node, "pads", [0] * 4),
            dilation=attribute(node, "dilations", [1, 1]),
            groups=attribute(node, "group", 1),
            data_layout="NHWC",
            kernel_layout="HWIO",
        )
        result = b.emit(y, last=True)
    if len(inputs) > 2 and inputs[2] is not None:
        assert isinstance(inputs[2], np.ndarray)
        result = b.emit(b.op.add(result.expr, b.constant(inputs[2].reshape(-1, 1, 1), result.dtype, True)), last=True)
    return result


def filled(b: RelaxBuilder, x: Tensor, wanted: int) -> Tensor:
    """The tensor with its channels last, so many, of which those that it has not are zeros."""
    te, tir = b.te, b.tir

    def fill(data: Any) -> Any:
        count, *sides = data.shape
        channels, height, width = sides if not x.last else (sides[2], *sides[:2])

        def at(n: Any, h: Any, w: Any, c: Any) -> Any:
            held = data[n, h, w, c] if x.last else data[n, c, h, w]
            return tir.if_then_else(c < channels, held, tir.const(0, x.dtype))

        return te.compute((count, height, width, wanted), at, name="fill")

    return b.compute(fill, x.expr, last=True, name="fill")


@_operator("ConvTranspose")
def _spread(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    # Kernels of one tap alone: see `_unsuitable`.
    x, weights = b.last(inputs[0]), inputs[1]
    assert isinstance(weights, np.ndarray)
    down, across = attribute(node, "strides", [1, 1])
    factors = b.relax.const(np.ascontiguousarray(weights.reshape(-1), x.dtype))
    tir, te = b.tir, b.te

    def spread(data: Any, factor: Any) -> Any:
        count, height, width, channels = data.shape
        zero = tir.const(0, x.dtype)

        def at(n: Any, h: Any, w: Any, c: Any) -> Any:
            inside = tir.all(h % down == 0, w % across == 0)
            return tir.if_then_else(inside, data[n, h // down, w // across, c] * factor[c], zero)

        return te.compute((count, height * down, width * across, channels), at, name="spread")

    return b.compute(spread, x.expr, factors, last=True, name="spread")


@_operator("Resize")
def _resize(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    # Whole factors alone: see `_unsuitable`.
    x = b.last(inputs[0])
    scales = inputs[2]
    assert isinstance(scales, np.ndarray)
    down, across = (int(number) for number in scales[2:])

    def repeat(data: Any) -> Any:
        count, height, width, channels = data.shape
        shape = (count, height * down, width * across, channels)
        return b.te.compute(shape, lambda n, h, w, c: data[n, h // down, w // across, c], name="repeat")

    return b.compute(repeat, x.expr, last=True, name="repeat")


@_operator("MaxPool", "AveragePool")
def _pool(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    function = b.op.nn.max_pool2d if node.op_type == "MaxPool" else b.op.nn.avg_pool2d
    y = function(
        b.last(inputs[0]).expr,
        pool_size=attribute(node, "kernel_shape", []),
        strides=attribute(node, "strides", [1, 1]),
        padding=attribute(node, "pads", [0] * 4),
        count_include_pad=bool(attribute(node, "count_include_pad", 0)),
        layout="NHWC",
    )
    return b.emit(y, last=True)


@_operator("GlobalAveragePool")
def _global_pool(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    return _summed(b, b.last(inputs[0]), [1, 2], mean=True)


def _summed(b: RelaxBuilder, x: Tensor, axes: Sequence[int], *, kept: bool = True, mean: bool = False) -> Tensor:
    """The sum or the mean along axes: of float16, where many terms would overflow, in float32 until it is done."""
    if x.dtype != "float16":
        return b.emit((b.op.mean if mean else b.op.sum)(x.expr, axis=list(axes), keepdims=kept), x.last)

    def wide(data: Any) -> Any:
        summed = {axis: b.te.reduce_axis((0, data.shape[axis]), name=f"k{axis}") for axis in axes}
        shape = [1 if axis in summed else side for axis, side in enumerate(data.shape) if kept or axis not in summed]

        def term(*places: Any) -> Any:
            left = iter(places)
            if kept:
                return data(*(summed.get(axis, place) for axis, place in enumerate(places)))
            return data(*(summed[axis] if axis in summed else next(left) for axis in range(len(data.shape))))

        total = b.te.compute(
            shape, lambda *i: b.te.sum(term(*i).astype("float32"), axis=list(summed.values())), name="total"
        )
        count = math.prod(int(data.shape[axis]) for axis in axes) if mean else 1
        return b.te.compute(
            shape, lambda *i: (total(*i) / b.tir.const(float(count), "float32")).astype("float16"), name="result"
        )

    return b.compute(wide, x.expr, last=x.last, name="mean" if mean else "sum")


@_operator("Gemm")
def _gemm(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x, weights = b.first(inputs[0]), inputs[1]
    assert isinstance(weights, np.ndarray)
    matrix = weights.T if attribute(node, "transB", 0) else weights
    y = b.emit(b.op.matmul(x.expr, b.relax.const(np.ascontiguousarray(matrix))))
    if len(inputs) > 2 and inputs[2] is not None:
        (z, bias), _ = b.broadcast([y, inputs[2]])
        y = b.emit(b.op.add(z, bias))
    return y


@_operator("MatMul")
def _matmul(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    return b.emit(b.op.matmul(*(b.first(value).expr for value in inputs)))


@_operator("Softmax")
def _softmax(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.tensor_of(inputs[0])
    axis, op = b.axis(x, attribute(node, "axis", -1)), b.op
    top = b.emit(op.max(x.expr, axis=axis, keepdims=True), x.last)
    power = b.emit(op.exp(op.subtract(x.expr, top.expr)), x.last)
    total = _summed(b, power, [axis])
    return b.emit(op.divide(power.expr, total.expr), x.last)


@_operator("ReduceMax", "ReduceMean", "ReduceSum")
def _reduce(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    given = integers(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else attribute(node, "axes", None)
    x = b.tensor_of(inputs[0])
    kept = bool(attribute(node, "keepdims", 1))
    if not kept:
        x = b.first(x)
    axes = [b.axis(x, axis) for axis in (range(len(x.shape)) if given is None else given)]
    if node.op_type == "ReduceMax":
        return b.emit(b.op.max(x.expr, axis=axes, keepdims=kept), x.last)
    return _summed(b, x, axes, kept=kept, mean=node.op_type == "ReduceMean")


@_operator("Concat")
def _concat(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    # Of other ranks, all are in ONNX's order.
    turn = b.last if any(isinstance(value, Tensor) and value.last for value in inputs) else b.first
    parts = [turn(value) for value in inputs]
    axis = b.axis(parts[0], attribute(node, "axis", 0))
    return b.emit(b.op.concat([part.expr for part in parts], axis=axis), parts[0].last)


@_operator("Split")
def _split(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    x = b.tensor_of(inputs[0])
    axis = attribute(node, "axis", 0)
    count = len(node.outputs)
    sizes = integers(inputs[1]) if len(inputs) > 1 else [x.shape[axis] // count] * count
    stops = np.cumsum(sizes).tolist()
    return [_part(b, x, [(axis, stop - size, stop, 1)]) for size, stop in zip(sizes, stops, strict=True)]


@_operator("Slice")
def _slice(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.tensor_of(inputs[0])
    starts, stops = integers(inputs[1]), integers(inputs[2])
    axes = integers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = integers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    return _part(b, x, zip(axes, starts, stops, steps, strict=True))


def _part(b: RelaxBuilder, x: Tensor, ranges: Iterable[tuple[int, int, int, int]]) -> Tensor:
    # (axis, start, stop, step), as ONNX has them
    axes, begins, ends, strides = [], [], [], []
    for axis, start, stop, step in ranges:
        begin, end, _ = slice(start, stop, step).indices(x.shape[axis])
        axes.append(b.axis(x, axis))
        begins.append(begin)
        ends.append(end)
        strides.append(step)
    y = b.op.strided_slice(x.expr, axes, begins, ends, strides)
    return b.emit(y, x.last)


@_operator("Pad")
def _pad(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.tensor_of(inputs[0])
    pads = integers(inputs[1])
    rank = len(x.shape)
    fill = float(np.asarray(inputs[2]).reshape(-1)[0]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    pairs = [(0, 0)] * rank
    for axis in range(rank):
        pairs[b.axis(x, axis)] = (pads[axis], pads[rank + axis])
    return b.emit(b.op.nn.pad(x.expr, [side for pair in pairs for side in pair], pad_value=fill), x.last)


@_operator("Gather")
def _gather(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x, axis = b.first(inputs[0]), attribute(node, "axis", 0)
    assert isinstance(inputs[1], np.ndarray)
    places = inputs[1] % x.shape[axis]
    return b.emit(b.op.take(x.expr, b.relax.const(places), axis=axis))


@_operator("Reshape")
def _reshape(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.first(inputs[0])
    sides = integers(inputs[1])
    goal = [x.shape[place] if side == 0 else side for place, side in enumerate(sides)]
    return b.emit(b.op.reshape(x.expr, goal))


@_operator("Squeeze", "Unsqueeze", "Flatten")
def _reshape_to_result(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    shape = node.outputs[0].shape
    assert shape is not None
    return b.emit(b.op.reshape(b.first(inputs[0]).expr, tuple(shape.numpy())))


@_operator("Transpose")
def _transpose(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.first(inputs[0])
    return b.emit(b.op.permute_dims(x.expr, attribute(node, "perm", [*reversed(range(len(x.shape)))])))


@_operator("Expand")
def _expand(b: RelaxBuilder, node: ir.Node, inputs: Inputs) -> Tensor:
    x = b.first(inputs[0])
    goal = np.broadcast_shapes(x.shape, tuple(integers(inputs[1])))
    return b.emit(b.op.broadcast_to(x.expr, goal))


_CONSTANTS = {
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DequantizeLinear": (1, 2),
    "Expand": (1,),
    "Gather": (1,),
    "Gemm": (1,),
    "Pad": (1, 2),
    "QuantizeLinear": (1, 2),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
}
"""The inputs that must be known now."""


def unsuitable(node: ir.Node, known: Collection[ir.Value]) -> str:
    """Why an operator cannot be written, though its kind can."""
    for place in _CONSTANTS.get(node.op_type, ()):
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is not None and value not in known:
            return f"its input {place} is computed, it must be constant"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scale, zero = (constant_array(value) for value in (*node.inputs, None)[1:3])
        if scale is None or scale.size != 1 or zero is None or zero.size != 1 or zero.dtype != ir.DataType.UINT8:
            return "only one scale and one zero of uint8 are known here"
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attribute(node, "ceil_mode", 0):
        return "its padding must be given in numbers"
    if node.op_type in ("MaxPool", "AveragePool") and set(attribute(node, "dilations", [1])) != {1}:
        return "dilated windows are not known here"
    if node.op_type == "Pad" and attribute(node, "mode", "constant") != "constant":
        return "only constant borders are known here"
    if node.op_type == "ConvTranspose":
        weights = constant_array(node.inputs[1])
        taps = weights.shape.numpy()[1:] if weights is not None else ()
        rest = [side - 1 for side in attribute(node, "strides", [1, 1])]
        if taps != (1, 1, 1) or attribute(node, "output_padding", [0, 0]) != rest or len(node.inputs) > 2:
            return "with more than one tap it is not known here"
    if node.op_type == "Resize":
        scales = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
        whole = scales is not None and scales.size == 4 and np.all(scales.numpy() == np.rint(scales.numpy()))
        nearest = attribute(node, "mode", "nearest"), attribute(node, "nearest_mode", "")
        if not whole or nearest != ("nearest", "floor"):
            return "only the repetition of pixels is known here"
    return ""
