"""Takes detours out of routes: concatenations, slices of them, and upsampling.

1. Concat of a Concat along the same axis becomes one, where nothing else reads the inner one (else it is computed
   anyway, and to read its parts gains nothing).
2. A Slice of a Concat along its axis reads the parts: one whole part, or several joined, or a slice of one part.
3. A Slice that keeps everything is removed.
4. Resize to a multiple with the nearest pixel, then what acts on each pixel alone, becomes that, then Resize:

       f(up(x)) = up(f(x)),    f: 1x1 Conv, batch normalisation, scale and shift, activation

   With factors a and b, f is computed for 1 / (a b) of the pixels; each number is computed from the same ones. All of f
   up to the last value that everything else depends on moves, however often the way forks in between (x * sigmoid(x)).

Refuses, in case 4, upsampled values that are concatenated before the next 1x1 convolution (as in YOLOv3 and v4). That
convolution could be split in two with a sum, which would save 0.2 % of the multiplications there.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

import onnx_ir as ir

from dnc.graph.rewriting import (
    Remarks,
    add_initializer,
    add_node,
    attribute,
    constant_array,
    is_pointwise,
    producer_of,
    rename,
    replace_uses,
    sole_user,
)
from dnc.passes import Pass, passes

# fmt: off
_PIXELWISE = frozenset((
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "Div", "Elu", "Exp", "Floor", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub",
    "Tanh",
))
# fmt: on
"""What computes each pixel from that pixel alone, if its other inputs are constants without extent."""


@passes.register
class SimplifyConcat(Pass):
    """Joins concatenations, reads their parts directly, and upsamples after 1x1 convolutions instead of before."""

    name: ClassVar[str] = "simplify-concat"
    tolerance: ClassVar[float] = 1e-6
    """Cases 1 to 3 move numbers. In case 4 each is computed from the same ones, but an engine may sum up a smaller map
    in another order."""

    applies_to: ClassVar[str] = "Concat of Concat, Slice of Concat, upsampling before 1x1 Conv and activations"

    def rewrite(self, model: ir.Model) -> Remarks:
        """Cases 1 to 3, which make room for one another, until none applies; then case 4, from the end."""
        remarks = Remarks()
        graph = model.graph
        before = -1
        while remarks.count > before:
            before = remarks.count
            remarks.missed.clear()
            for node in list(graph):
                if node.op_type == "Concat":
                    _join(node, graph, remarks)
            for node in list(graph):
                if node.op_type == "Slice":
                    _simplify_slice(node, graph, remarks)
        for node in reversed(list(graph)):
            if node.op_type == "Resize":
                _upsample_later(node, graph, remarks)
        return remarks


def _join(node: ir.Node, graph: ir.Graph, remarks: Remarks) -> None:
    """Case 1; the inner ones, which come before, are joined already."""
    axis = _axis(node)
    parts: list[ir.Value | None] = []
    inner: list[ir.Node] = []
    for value in node.inputs:
        producer = producer_of(value, "Concat")
        if value is None or producer is None or _axis(producer) != axis or axis is None:
            parts.append(value)
        elif sole_user(value) is None:
            remarks.miss(node, "the inner one is read by others")
            parts.append(value)
        else:
            parts += producer.inputs
            inner.append(producer)
    if not inner:
        return
    node.resize_inputs(len(parts))
    for position, part in enumerate(parts):
        node.replace_input_with(position, part)
    for inner_node in inner:
        graph.remove(inner_node, safe=True)
    remarks.apply(node, f"joined with {len(inner)} before it")


def _axis(node: ir.Node) -> int | None:
    """A Concat's axis, counted from the front; None where its rank is unknown."""
    axis: int = attribute(node, "axis", 0)
    shape = node.outputs[0].shape
    if axis >= 0:
        return axis
    return None if shape is None else axis + len(shape)


def _simplify_slice(node: ir.Node, graph: ir.Graph, remarks: Remarks) -> None:
    """Cases 2 and 3."""
    source, result = node.inputs[0], node.outputs[0]
    part = _range(node)
    if source is None or part is None:
        return
    axis, start, stop, length = part
    if (start, stop) == (0, length):
        if result.is_graph_output():
            remarks.miss(node, "a graph output needs a name of its own")
            return
        replace_uses(result, source, graph)
        graph.remove(node, safe=True)
        remarks.apply(node, "kept everything: removed")
        return
    concat = producer_of(source, "Concat")
    if concat is None or _axis(concat) != axis:
        return
    begin, whole = 0, []
    for value in concat.inputs:
        side = _side(value, axis)
        if value is None or side is None:
            remarks.miss(node, "a part's size is not known")
            return
        end = begin + side
        if begin <= start and stop <= end and (start, stop) != (begin, end):
            node.replace_input_with(0, value)
            for position, number in ((1, start - begin), (2, stop - begin)):
                node.replace_input_with(position, _number(graph, number))
            remarks.apply(node, "reads a part of the concatenation")
            _remove_dead(concat, graph)
            return
        if start <= begin and end <= stop:
            whole.append((begin, end, value))
        begin = end
    if not whole or (whole[0][0], whole[-1][1]) != (start, stop):
        remarks.miss(node, "its ends lie within parts of the concatenation")
        return
    values = [value for _, _, value in whole]
    if len(values) == 1 and not result.is_graph_output():
        replace_uses(result, values[0], graph)
    else:
        replace_uses(result, add_node(graph, node, "Concat", values, {"axis": axis}).outputs[0], graph)
    graph.remove(node, safe=True)
    remarks.apply(node, f"reads {len(values)} whole part{'s' * (len(values) > 1)} of the concatenation")
    _remove_dead(concat, graph)


def _remove_dead(node: ir.Node, graph: ir.Graph) -> None:
    """Removes a node that nothing reads any more."""
    if not any(output.uses() or output.is_graph_output() for output in node.outputs):
        graph.remove(node, safe=True)


def _number(graph: ir.Graph, number: int) -> ir.Value:
    return add_initializer(graph, ir.tensor([number], ir.DataType.INT64, name=f"constant_int64_1_{number}"))


def _range(node: ir.Node) -> tuple[int, int, int, int] | None:
    """Axis, start, stop and length of a Slice along one axis of known length in steps of 1; None for any other."""
    numbers = []
    for value in node.inputs[1:]:
        tensor = constant_array(value)
        if tensor is None or tensor.size != 1:
            return None
        numbers.append(int(tensor.numpy()[0]))
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or len(numbers) < 3 or numbers[3:] not in ([], [1]):
        return None
    start, stop, axis = numbers[:3]
    axis %= len(shape)
    length = _side(node.inputs[0], axis)
    if length is None:
        return None
    start, stop = (min(max(end + length * (end < 0), 0), length) for end in (start, stop))
    return (axis, start, stop, length) if start < stop else None


def _side(value: ir.Value | None, axis: int) -> int | None:
    """A side of a value's shape; None where it is not known."""
    side = value.shape[axis] if value is not None and value.shape is not None else None
    return side if isinstance(side, int) else None


def _upsample_later(node: ir.Node, graph: ir.Graph, remarks: Remarks) -> None:
    """Case 4."""
    if reason := _unsuitable(node):
        remarks.miss(node, reason)
        return
    source, upsampled = node.inputs[0], node.outputs[0]
    moved, last = _pixelwise(upsampled)
    if not moved:
        remarks.miss(node, f"read by {', '.join(sorted({use.node.op_type for use in upsampled.uses()})) or 'no node'}")
        return
    shape, small = upsampled.shape, source.shape if source is not None else None
    assert shape is not None
    assert small is not None
    rename(upsampled, f"{node.name}/moved")
    upsampled.shape = None if last.shape is None else ir.Shape([*last.shape[:2], *shape[2:]])
    upsampled.type = last.type
    for follower in moved:
        for position, value in enumerate(follower.inputs):
            if value is upsampled:
                follower.replace_input_with(position, source)
        result = follower.outputs[0]
        result.shape = None if result.shape is None else ir.Shape([*result.shape[:2], *small[2:]])
    replace_uses(last, upsampled, graph)
    node.replace_input_with(0, last)
    graph.remove(node)
    graph.insert_after(moved[-1], node)
    remarks.apply(node, f"after {', '.join(follower.op_type for follower in moved)}")


def _pixelwise(start: ir.Value) -> tuple[Sequence[ir.Node], ir.Value]:
    """The nodes that act on each pixel of `start`, up to the last value that all of them lead to, and that value."""
    region: list[ir.Node] = []
    inside, open_values = {start}, {start: len(start.uses()) + start.is_graph_output()}
    best, last = 0, start
    # In the graph's order, so that a node comes after everything that it may read.
    for node in _following(start):
        if not _acts_on_pixels(node, inside):
            continue
        region.append(node)
        result = node.outputs[0]
        inside.add(result)
        for value in node.inputs:
            if value in open_values:
                assert value is not None
                open_values[value] -= 1
        open_values[result] = len(result.uses()) + result.is_graph_output()
        if all(value is result or not left for value, left in open_values.items()):
            best, last = len(region), result
    return region[:best], last


def _following(start: ir.Value) -> Iterator[ir.Node]:
    """The nodes of the graph after the producer of `start`, in order."""
    producer = start.producer()
    assert producer is not None
    assert producer.graph is not None
    return itertools.islice(itertools.dropwhile(lambda node: node is not producer, producer.graph), 1, None)


def _acts_on_pixels(node: ir.Node, inside: Collection[ir.Value]) -> bool:
    """Whether a node computes each pixel of its result from that pixel of the values `inside` alone."""
    others = [value for value in node.inputs if value is not None and value not in inside]
    if len(others) == len(node.inputs) or len(node.outputs) > 1:
        return False
    if node.op_type == "Conv":
        return node.inputs[1] not in inside and is_pointwise(node)
    if node.op_type not in _PIXELWISE:
        return False
    return node.op_type == "BatchNormalization" or all(_has_no_extent(value) for value in others)


def _has_no_extent(value: ir.Value) -> bool:
    """Whether a value is the same for all pixels."""
    return value.shape is not None and all(side == 1 for side in list(value.shape)[-2:])


def _unsuitable(node: ir.Node) -> str:
    """Why a Resize is not case 4; empty where it may be."""
    source, scales = node.inputs[0], constant_array(node.inputs[2]) if len(node.inputs) == 3 else None
    usual = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}
    kind = tuple(attribute(node, name, default) for name, default in usual.items())
    if kind != ("nearest", "asymmetric", "floor") or node.inputs[1] is not None or scales is None:
        return "does not repeat pixels"
    if source is None or source.shape is None or len(source.shape) != 4:
        return "its input is no map of known size"
    factors = scales.numpy().tolist()
    return "" if factors[:2] == [1, 1] and all(f >= 1 and f == int(f) for f in factors) else "does not repeat pixels"
