"""Computes several 1x1 convolutions of one input as one.

    [y1; y2] = act([W1; W2] x + [b1; b2]),    y1, y2 = Split

for convolutions with stride 1, no padding, no groups, constant weights and equal activations, of those that
`dnc.passes.shared.activations` knows. CSP networks have such pairs: Darknet writes [route] layers=-2 before the second.

What it saves is one launch and one reading of x; what it costs is the Split, which copies, and on ONNX Runtime's CPU
takes the result out of the layout that convolutions are computed in. There it loses: pairs as in yolov4 and yolov7-tiny
take 14 to 17 % longer at 152 x 152, 2 to 5 % from 104 x 104 to 13 x 13, 0 to 4 % below; yolov7-tiny as a whole 9 %. On
OpenVINO's CPU no difference can be told from noise. So no CPU target asks for it: it is for engines where a launch is
dear. Maps of more than `pixels` pixels are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.rewriting import (
    Remarks,
    add_initializer,
    add_node,
    attribute,
    constant_array,
    is_pointwise,
    replace_uses,
)
from dnc.passes import Pass, passes
from dnc.passes.shared.activations import recognise
from dnc.runtime.options import Option, whole

_Array = npt.NDArray[Any]


@passes.register
class ShareConvs(Pass):
    """1x1 convolutions of one input -> one of all their filters, and Split."""

    name: ClassVar[str] = "share-convs"
    tolerance: ClassVar[float] = 1e-6
    """The same products and sums, in an order that may depend on the number of filters."""

    applies_to: ClassVar[str] = "1x1 Conv with one input and equal activations"
    known_options: ClassVar[Sequence[Option]] = (
        Option("pixels", "784", "the most (height times width) that a map may have", whole(1, 1 << 30)),
    )

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        graph = model.graph
        readers: dict[ir.Value, list[ir.Node]] = {}
        places = {node: number for number, node in enumerate(graph)}
        for node in places:
            if node.op_type == "Conv" and node.inputs[0] is not None and is_pointwise(node):
                readers.setdefault(node.inputs[0], []).append(node)
        for nodes in readers.values():
            if len(nodes) > 1:
                _merge_alike(nodes, graph, remarks, self.options["pixels"], places)
        return remarks


class _Branch(NamedTuple):
    """A convolution and its activation."""

    conv: ir.Node
    activation: Sequence[ir.Node]
    result: ir.Value
    kind: tuple[Any, ...]
    """Equal for equal activations."""


def _merge_alike(
    nodes: Sequence[ir.Node], graph: ir.Graph, remarks: Remarks, pixels: int, places: Mapping[ir.Node, int]
) -> None:
    """Merges those of the convolutions of one input that have the same activation."""
    alike: dict[tuple[Any, ...], list[_Branch]] = {}
    for node in nodes:
        reason = _unsuitable(node, pixels)
        if reason:
            remarks.miss(node, reason)
            continue
        branch = _branch(node, places)
        alike.setdefault(branch.kind, []).append(branch)
    for branches in alike.values():
        if len(branches) == 1:
            remarks.miss(branches[0].conv, "no other convolution of its input has the same activation")
        else:
            _merge(branches, graph)
            remarks.apply(branches[0].conv, f"{len(branches)} convolutions in one")


def _unsuitable(node: ir.Node, pixels: int) -> str:
    """Why a convolution cannot be merged with others; empty where it can."""
    if attribute(node, "group", 1) != 1:
        return "it has groups"
    if any(constant_array(value) is None for value in node.inputs[1:]):
        return "its weights are no constants"
    sides = [] if node.outputs[0].shape is None else list(node.outputs[0].shape)[2:]
    known = [side for side in sides if isinstance(side, int)]
    if not known or len(known) < len(sides):
        return "the size of its map is not known"
    return "its map is too large for a Split to pay" if math.prod(known) > pixels else ""


def _branch(conv: ir.Node, places: Mapping[ir.Node, int]) -> _Branch:
    """A convolution with its activation, in the graph's order; without it where its result is read in any other way."""
    value = conv.outputs[0]
    readers = [user for user, _ in value.uses()]
    for kind, writing, match in filter(None, map(recognise, readers)):
        alone = match.closed and not value.is_graph_output() and set(readers) <= set(match.nodes)
        if alone and match.values["x"] is value:
            nodes = sorted(match.nodes, key=lambda node: places[node])
            return _Branch(conv, nodes, match.nodes[0].outputs[0], (kind, writing.name, *match.numbers.items()))
    return _Branch(conv, [], value, ())


def _merge(branches: Sequence[_Branch], graph: ir.Graph) -> None:
    """Lets the first convolution compute what all of them do."""
    first = branches[0]
    tensors = [_tensor(branch.conv) for branch in branches]
    counts = [tensor.shape.numpy()[0] for tensor in tensors]
    name = f"{first.conv.inputs[1].name if first.conv.inputs[1] is not None else 'weights'}.shared"
    shape = [sum(counts), *tensors[0].shape.numpy()[1:]]
    biases = np.concatenate([_biases(branch.conv, count) for branch, count in zip(branches, counts, strict=True)])
    sizes = add_initializer(graph, ir.tensor(counts, ir.DataType.INT64, name=f"{name}.sizes"))
    conv = first.conv
    for node in first.activation:
        graph.remove(node)
    graph.insert_after(conv, first.activation)
    last = first.activation[-1] if first.activation else conv
    split = add_node(graph, last, "Split", [first.result, sizes], {"axis": 1}, outputs=len(branches))
    graph.remove(split)
    graph.insert_after(last, split)
    for branch, part in zip(branches, split.outputs, strict=True):
        replace_uses(branch.result, part, graph)
        if branch is not first:
            graph.remove([branch.conv, *branch.activation], safe=True)
    split.replace_input_with(0, first.result)
    conv.resize_inputs(3)
    conv.replace_input_with(1, add_initializer(graph, lazy(_joined(tensors), tensors[0], name, shape=shape)))
    conv.replace_input_with(2, add_initializer(graph, ir.Tensor(biases, name=f"{name}.biases")))
    for node in (conv, *first.activation):
        value = node.outputs[0]
        value.shape = None if value.shape is None else ir.Shape([value.shape[0], sum(counts), *value.shape[2:]])


def _tensor(conv: ir.Node) -> ir.TensorProtocol:
    tensor = constant_array(conv.inputs[1])
    assert tensor is not None
    return tensor


def _biases(conv: ir.Node, count: int) -> _Array:
    tensor = constant_array(conv.inputs[2]) if len(conv.inputs) > 2 else None
    return np.zeros(count, np.float32) if tensor is None else tensor.numpy()


def _joined(tensors: Sequence[ir.TensorProtocol]) -> Callable[[], _Array]:
    def joined() -> _Array:
        return np.concatenate([tensor.numpy() for tensor in tensors])

    return joined
