"""The graph as the Myriad X compiler takes it, and what it does not take.

`unsupported` looks at a model before anything is compiled, and finds everything at once. What the compiler takes was
tried operator by operator with OpenVINO 2022.1's own (the compiler is what counts: it is the last one). It stops at the
first thing that it does not know.

`prepare` makes of a model, which stays as it is, one to compile:

1. Rounding activations to integers is left out: the device computes in float16, and Q/DQ would only lose.
2. The image comes as bytes: (x std + mean) 255, in the order of its channels that the camera gives. A division by 255
   is folded into the first convolutions, another mean stays as a multiplication and an addition.
3. Weights are rounded to float16 as the compiler rounds them: to the nearest even, but what is below 2^-14, where
   float16 loses digits, becomes 0 or 2^-14, whichever is nearer. They stand in the model in float16, so what else reads
   it (the toolchain's CPU plugin, any ONNX engine) computes with the device's weights.
4. Slices of neighbouring channels are written as Split, which costs the device no copy. (The CPU plugin takes the wrong
   numbers for a Slice of what a Concat reads as well.)
5. An average over windows that reach into padding is written as a depthwise convolution with equal weights and, where
   padding does not count, a multiplication by the share of the window that is inside: the compiler makes the same of
   either kind of average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph.builder import lazy, where_of
from dnc.graph.composites import NON_MAX_SUPPRESSION, PREPROCESS, is_composite
from dnc.graph.rewriting import add_initializer, add_node, attribute, constant_array, producer_of, replace_uses
from dnc.passes import passes
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.runners.myriad.pixels import IMAGE, Pixels
from dnc.typing import Array

__all__ = ["halve", "pixels_for", "prepare", "tensors", "unsupported"]

_SMALLEST = np.float32(2.0**-14)
"""The smallest number that float16 has with all its digits."""

# fmt: off
_KNOWN = frozenset((
    "Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant",
    "Conv", "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool",
    "GlobalMaxPool", "Greater", "HardSwish", "Identity", "InstanceNormalization", "LRN", "LSTM", "LeakyRelu", "Less",
    "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mul", "Neg", "Not", "OneHot",
    "PRelu", "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Sigmoid", "Slice", "Softmax", "Softplus", "Softsign",
    "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose",
    "Unsqueeze", "Where",
))
# fmt: on
"""Operators that the compiler takes."""

_INSTEAD = {
    "HardSigmoid": "the pass fuse-activation writes it as Clip",
    "Selu": "the pass fuse-activation writes it as Elu",
    "Mish": "the pass fuse-activation writes it as x tanh(softplus(x))",
    "Gelu": "the pass fuse-activation writes it with Tanh",
    "GreaterOrEqual": "write it as not Less",
    "LessOrEqual": "write it as not Greater",
    "Sign": "write it as two comparisons",
    "CumSum": "write it as a product with a triangular matrix",
    "GRU": "write it as products, as dnc does for Darknet's",
}
"""What to do about operators that it does not take."""

_REFUSED = {
    PREPROCESS: "the device takes images of the network's size only: leave --input out, it takes bytes anyway",
    NON_MAX_SUPPRESSION: "the device does not suppress boxes: use --decode graph or host",
}
"""Why it does not take these steps, which are on the host."""


def _computed_weights(node: ir.Node) -> str:
    return "" if _is_constant(node.inputs[1]) else "its weights are computed, they must be constant"


def _float_resize(node: ir.Node) -> str:
    mode = attribute(node, "mode", "nearest")
    return f"mode {mode} is unknown: use nearest or linear" if mode not in ("nearest", "linear") else ""


def _to_byte(node: ir.Node) -> str:
    known = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32, ir.DataType.INT64)
    kind = ir.DataType(attribute(node, "to", 1))
    return f"a cast to {kind.name} is unknown" if kind not in known else ""


def _activation_rounded(node: ir.Node) -> str:
    # What `prepare` leaves out, and weights.
    if _is_constant(node.inputs[0]) or producer_of(node.inputs[0], "QuantizeLinear"):
        return ""
    return "it computes in integers: compile without quantization"


def _unpaired(node: ir.Node) -> str:
    pairs = all(user.op_type == "DequantizeLinear" for user, _ in node.outputs[0].uses())
    return "" if pairs and not node.outputs[0].is_graph_output() else "it computes in integers: compile without it"


_CONDITIONS: dict[str, Callable[[ir.Node], str]] = {
    "Cast": _to_byte,
    "Conv": _computed_weights,
    "ConvTranspose": _computed_weights,
    "DequantizeLinear": _activation_rounded,
    "QuantizeLinear": _unpaired,
    "Resize": _float_resize,
}
"""What an operator must fulfil besides: why it does not, "" if it does."""


def _is_constant(value: ir.Value | None) -> bool:
    """Whether it is an initializer, or nothing but a cast or a scaling of one."""
    node = producer_of(value, "Cast", "DequantizeLinear", "Identity")
    return constant_array(value) is not None if node is None else _is_constant(node.inputs[0])


def unsupported(model: ir.Model) -> list[str]:
    """Everything that the compiler would not take, as `a.cfg:12 [convolutional] #3: Sign: why, or what to do`."""
    found: dict[str, None] = {}
    for value in model.graph.inputs:
        sides = list(value.shape or ())
        host_size = value.dtype == ir.DataType.UINT8
        if not host_size and not all(isinstance(side, int) for side in sides):
            found[f"input {value.name}: its shape {sides} is not fixed: leave --batch out, which makes it 1"] = None
        elif not host_size and sides[:1] != [1]:
            found["the blob would take one image whatever the batch is: leave --batch out"] = None
    for node in model.graph:
        if is_composite(node):
            found[_REFUSED[node.op_type]] = None
        elif node.op_type not in _KNOWN or node.domain:
            hint = _INSTEAD.get(node.op_type, "the compiler does not know it")
            found[f"{where_of(node)}: {node.op_type}: {hint}"] = None
        elif node.op_type in _CONDITIONS and (why := _CONDITIONS[node.op_type](node)):
            found[f"{where_of(node)}: {node.op_type}: {why}"] = None
    return list(found)


def pixels_for(preprocessing: Preprocessing, color: str) -> Pixels:
    """For a network with this preprocessing, on images of `color`, "rgb" or "bgr"."""
    count = preprocessing.channels
    mean, std = (np.resize(np.array(numbers, np.float64), count) for numbers in (preprocessing.mean, preprocessing.std))
    # Other channels than a camera's come as they are.
    swapped = count in (3, 4) and preprocessing.color != color
    order = (2, 1, 0, *range(3, count)) if swapped else tuple(range(count))
    return Pixels(tuple((preprocessing.scale / std).tolist()), tuple((0 - mean / std).tolist()), order)


def prepare(model: ir.Model, pixels: Pixels | None) -> ir.Model:
    """A copy to compile.

    Args:
        model: what is left after the passes.
        pixels: what makes the network's image of bytes; None where it takes what the model takes.
    """
    copy = model.clone()
    _leave_out_rounding(copy.graph)
    for node in list(copy.graph):
        if node.op_type == "Slice":
            _split(node, copy.graph)
        elif node.op_type == "AveragePool" and any(attribute(node, "pads", [0])):
            _convolve(node, copy.graph)
    if pixels is not None:
        _take_bytes(copy, pixels)
    _halve_weights(copy.graph)
    passes["eliminate-dead-code"]().rewrite(copy)
    return copy


def tensors(model: ir.Model) -> dict[str, str]:
    """For each output of the model the name of the blob's tensor: two outputs with the same numbers are one there."""
    names = {}
    for output in model.graph.outputs:
        value = output
        while (value is output or not value.is_graph_output()) and (node := producer_of(value, "Identity")):
            assert node.inputs[0] is not None
            value = node.inputs[0]
        names[output.name or ""] = (value if value.is_graph_output() else output).name or ""
    return names


def _leave_out_rounding(graph: ir.Graph) -> None:
    for node in list(graph):
        source = producer_of(node.inputs[0], "QuantizeLinear") if node.op_type == "DequantizeLinear" else None
        if source is not None:
            assert source.inputs[0] is not None
            replace_uses(node.outputs[0], source.inputs[0], graph)
            graph.remove(node, safe=True)


def _split(node: ir.Node, graph: ir.Graph) -> None:
    source = node.inputs[0]
    tensors = [constant_array(value) for value in node.inputs[1:]]
    numbers = [int(tensor.numpy().reshape(-1)[0]) for tensor in tensors if tensor is not None and tensor.size == 1]
    if source is None or source.shape is None or len(numbers) < len(tensors) or len(numbers) < 3:
        return
    start, stop, axis, step = (*numbers, 1)[:4]
    axis %= len(source.shape)
    side = source.shape[axis]
    if axis == 0 or step != 1 or not isinstance(side, int):
        return
    start, stop, _ = slice(start, stop).indices(side)
    sizes = [size for size in (start, stop - start, side - stop) if size]
    if min(sizes) < 0 or len(sizes) == 1:
        return
    lengths = add_initializer(graph, ir.Tensor(np.array(sizes, np.int64), name=f"{node.name}.sizes"))
    split = add_node(graph, node, "Split", [source, lengths], {"axis": axis}, outputs=len(sizes))
    replace_uses(node.outputs[0], split.outputs[1 if start else 0], graph)
    graph.remove(node, safe=True)


def _convolve(node: ir.Node, graph: ir.Graph) -> None:
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    assert source.shape is not None
    assert result.shape is not None
    channels, *sides = (int(side) for side in source.shape[1:])  # type: ignore[arg-type]
    kernel = attribute(node, "kernel_shape", [])
    strides, pads = attribute(node, "strides", [1, 1]), attribute(node, "pads", [0] * 4)
    array = np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
    weights = add_initializer(graph, ir.Tensor(array, name=f"{node.name}.weights"))
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "group": channels}
    value = _like(result, add_node(graph, node, "Conv", [source, weights], attributes))
    if not attribute(node, "count_include_pad", 0):
        axes = zip(sides, kernel, strides, pads[:2], result.shape[2:], strict=True)
        inside = [_inside(side, size, stride, pad, int(count)) for side, size, stride, pad, count in axes]  # type: ignore[arg-type]
        share = (np.prod(kernel) / np.outer(*inside)).astype(np.float32)[None, None]
        constant = add_initializer(graph, ir.Tensor(share, name=f"{node.name}.share"))
        value = _like(result, add_node(graph, node, "Mul", [value, constant]))
    replace_uses(result, value, graph)
    graph.remove(node, safe=True)


def _inside(side: int, size: int, stride: int, pad: int, count: int) -> npt.NDArray[np.intp]:
    """How many places of each window along an axis are no padding."""
    starts = np.arange(count) * stride - pad
    return np.minimum(starts + size, side) - np.maximum(starts, 0)


def _take_bytes(model: ir.Model, pixels: Pixels) -> None:
    graph = model.graph
    image = next(value for value in graph.inputs if value.name == IMAGE)
    uses = list(image.uses())
    if not uses:
        return
    first = next(node for node in graph if any(node is use.node for use in uses))
    order = list(pixels.order)
    value = image
    folds = all(use.node.op_type == "Conv" and attribute(use.node, "group", 1) == 1 for use in uses)
    reorders = order != sorted(order)
    if reorders and not folds:
        indices = add_initializer(graph, ir.Tensor(np.array(order, np.int64), name="pixels.order"))
        value = _like(image, add_node(graph, first, "Gather", [value, indices], {"axis": 1}, name="pixels/Gather"))
    # Where weights are reordered instead, what comes before them is in the order of the image.
    places = np.argsort(order) if reorders and folds else np.arange(len(order))
    for name, operator, numbers in (
        ("scale", "Mul", np.array(pixels.scale)[places]),
        ("shift", "Add", np.array(pixels.shift)[places]),
    ):
        if operator == "Mul" or numbers.any():
            array = numbers.astype(np.float32).reshape(1, -1, 1, 1)
            constant = add_initializer(graph, ir.Tensor(array, name=f"pixels.{name}"))
            value = _like(image, add_node(graph, first, operator, [value, constant], name=f"pixels/{operator}"))
    for use in uses:
        use.node.replace_input_with(use.idx, value)
        if reorders and folds:
            _reorder(use.node, order, graph)
    if not any(pixels.shift):
        passes["fold-scale"]().rewrite(model)


def _like(image: ir.Value, node: ir.Node) -> ir.Value:
    (value,) = node.outputs
    value.shape, value.type = image.shape, image.type
    return value


def _reorder(convolution: ir.Node, order: Sequence[int], graph: ir.Graph) -> None:
    """Lets a convolution read channel order[c] where it read channel c."""
    tensor = constant_array(convolution.inputs[1])
    assert tensor is not None
    places = np.argsort(order)
    weights = lazy(partial(_taken, tensor, places), tensor, f"{tensor.name}.reordered")
    convolution.replace_input_with(1, add_initializer(graph, weights))


def _taken(tensor: ir.TensorProtocol, places: npt.NDArray[np.intp]) -> Array:
    return tensor.numpy()[:, places]


def halve(array: Array) -> npt.NDArray[np.float16]:
    """Rounds to float16 as the Myriad X compiler does."""
    whole = np.asarray(array, np.float32)
    size = np.abs(whole)
    small = np.copysign(np.where(size < _SMALLEST / 2, np.float32(0), _SMALLEST), whole)
    with np.errstate(over="ignore"):
        return np.where(size < _SMALLEST, small, whole).astype(np.float16)


def _halve_weights(graph: ir.Graph) -> None:
    first = next(iter(graph))
    halves: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        for place, value in enumerate(node.inputs):
            tensor = constant_array(value)
            if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            if value not in halves:
                rounded = lazy(partial(_halved, tensor), tensor, f"{value.name}.half", dtype=ir.DataType.FLOAT16)
                half = add_initializer(graph, rounded)
                cast = add_node(graph, first, "Cast", [half], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}/Cast")
                halves[value] = _like(value, cast)
            node.replace_input_with(place, halves[value])


def _halved(tensor: ir.TensorProtocol) -> npt.NDArray[np.float16]:
    return halve(tensor.numpy())
