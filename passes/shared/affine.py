"""The algebra that fold-batchnorm and fold-scale share: y = scale x + shift, per channel, as a part of the
convolutions and matrix products beside it.

1. After the product, y = scale (W x + b) + shift:      W' = scale W over the output channels, b' = scale b + shift.
2. After a concatenation of products, along the channels: each takes its own slice of scale and shift.
3. Before the product, W (scale x + shift) + b:         W' = W scale over the input channels, b' = b + W shift.
   With padding, y is padded with zeros: they stay zeros under scale, but shift would have to be missing from the
   border. So shift must be zero where there is padding.

The factors are float64 and each weight is rounded once, as in Darknet's fuse_conv_batchnorm. Weights, and the biases
that depend on them, are computed when they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.rewriting import add_initializer, attribute, constant_array, is_product, rename, replace_uses
from dnc.typing import Array

__all__ = ["Affine", "move_after", "move_before", "refusal_after", "refusal_before", "take_over"]


class Affine(NamedTuple):
    """y = scale x + shift: both float64, of shape (channels,) or (1,) for all."""

    scale: Array
    shift: Array

    @property
    def finite(self) -> bool:
        """Whether all of it are numbers."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def part(self, start: int, stop: int) -> Affine:
        """That of some of the channels."""
        return Affine(*(array if array.size == 1 else array[start:stop] for array in self))


def refusal_after(value: ir.Value, graph: ir.Graph) -> str:
    """Why cases 1 and 2 do not reach what computes the value; empty if they do."""
    node = value.producer()
    if node is not None and _is_concat(node):
        sources = [source for source in node.inputs if source is not None]
        if not all(_is_sum_of_products(source) for source in sources):
            return "not every part of the concatenation is a convolution"
        if any(source.shape is None or not isinstance(source.shape[1], int) for source in sources):
            return "the parts of the concatenation have no known channels"
        if not _has_one_reader(value):
            return "the concatenation is read by others"
        return next(filter(None, (refusal_after(source, graph) for source in sources)), "")
    if node is None or not is_product(node) or node.graph is not graph:
        return "no convolution or matrix product before it"
    if not _has_one_reader(value):
        return "the convolution's result is read by others"
    return _refusal(node)


def _has_one_reader(value: ir.Value) -> bool:
    """Whether one node reads its numbers; any may read its shape."""
    return not value.is_graph_output() and sum(user.op_type != "Shape" for user, _ in value.uses()) == 1


def _is_sum_of_products(value: ir.Value) -> bool:
    node = value.producer()
    return _is_concat(node) or is_product(node)


def _is_concat(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Concat" and attribute(node, "axis", 0) == 1


def _refusal(node: ir.Node) -> str:
    """Why a product cannot take anything."""
    tensors = [constant_array(value) for value in node.inputs[1:] if value is not None]
    if not tensors or any(tensor is None or tensor.dtype != ir.DataType.FLOAT for tensor in tensors):
        return "weights or biases are no constants"
    if node.op_type == "Gemm":
        if not attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0:
            return "the matrix product is scaled"
        assert tensors[0] is not None
        outputs = _outputs(node, tensors[0])
        if any(tensor is not None and tensor.shape.numpy() not in ((outputs,), (1, outputs)) for tensor in tensors[1:]):
            return "the matrix product has no bias per output"
    return ""


def move_after(value: ir.Value, affine: Affine, graph: ir.Graph) -> None:
    """Cases 1 and 2: lets the products that compute the value compute scale * value + shift.

    `refusal_after` must have allowed it.
    """
    node = value.producer()
    assert node is not None
    if node.op_type == "Concat":
        start = 0
        for source in node.inputs:
            assert source is not None
            assert source.shape is not None
            channels = source.shape[1]
            assert isinstance(channels, int)
            move_after(source, affine.part(start, start + channels), graph)
            # It is another number now, and no longer the layer's.
            rename(source, f"folded/{source.name}")
            start += channels
        return
    weights, bias = constant_array(node.inputs[1]), _bias(node)
    assert weights is not None
    axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
    column = affine.scale.reshape([-1 if i == axis else 1 for i in range(len(weights.shape))])
    biases = None
    if bias is not None or affine.shift.any():
        before = 0.0 if bias is None else bias.numpy().reshape(-1).astype(np.float64)
        moved = np.broadcast_to(affine.scale * before + affine.shift, [_outputs(node, weights)])
        biases = ir.Tensor(moved.astype(np.float32))
    _replace(node, graph, weights, column, biases)


def _outputs(node: ir.Node, weights: ir.TensorProtocol) -> int:
    return int(weights.shape.numpy()[0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1])


def refusal_before(node: ir.Node, position: int, affine: Affine, graph: ir.Graph) -> str:
    """Why case 3 does not reach a node that reads y as input `position`; empty if it does."""
    if not is_product(node) or node.graph is not graph or position != 0:
        return "it is read by other than convolutions and matrix products"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "the matrix product is transposed"
    if node.op_type == "Conv" and affine.shift.any() and not _is_free_of_padding(node):
        return "padding: the zeros around the input would be shifted"
    return _refusal(node)


def _is_free_of_padding(node: ir.Node) -> bool:
    return not any(attribute(node, "pads", [])) and attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")


def move_before(node: ir.Node, affine: Affine, graph: ir.Graph) -> None:
    """Case 3: lets a product that read y compute the same from x. `refusal_before` must have allowed it."""
    weights, bias = constant_array(node.inputs[1]), _bias(node)
    assert weights is not None
    spread = _spread(node, weights)
    axes = tuple(range(1, len(weights.shape))) if node.op_type == "Conv" else _input_axis(node)

    def moved() -> Array:
        before = 0.0 if bias is None else bias.numpy().reshape(-1).astype(np.float64)
        sums: Array = np.sum(weights.numpy() * spread(affine.shift), axis=axes)
        return (before + sums).astype(np.float32)

    biases = None
    if affine.shift.any():
        like = ir.Tensor(np.zeros(_outputs(node, weights), np.float32))
        biases = lazy(moved, like, "biases")
    _replace(node, graph, weights, spread(affine.scale), biases)


def _input_axis(node: ir.Node) -> int:
    return 1 if attribute(node, "transB", 0) else 0


def _spread(node: ir.Node, weights: ir.TensorProtocol) -> Callable[[Array], Array]:
    """What gives factors of the input channels a shape that multiplies the weights of a product."""
    rank = len(weights.shape)
    if node.op_type == "Gemm":
        shape = [-1 if axis == _input_axis(node) else 1 for axis in range(rank)]
        return lambda factors: factors.reshape(shape)
    groups, (outputs, own) = attribute(node, "group", 1), weights.shape.numpy()[:2]

    def spread(factors: Array) -> Array:
        if factors.size == 1:
            return factors.reshape([1] * rank)
        # Output channel o of group g sees the input channels of that group.
        return factors.reshape(groups, own).repeat(outputs // groups, axis=0).reshape(outputs, own, *[1] * (rank - 2))

    return spread


def _bias(node: ir.Node) -> ir.TensorProtocol | None:
    return constant_array(node.inputs[2]) if len(node.inputs) > 2 else None


def _replace(
    node: ir.Node, graph: ir.Graph, weights: ir.TensorProtocol, factor: Array, biases: ir.TensorProtocol | None
) -> None:
    """Gives a product weights * factor and, if given, biases. The old ones stay: they may have other readers."""

    def scaled() -> Array:
        plain = weights.numpy()
        # Computed in float64, buffer by buffer: the whole product would be twice as large as the weights.
        product: Array = np.empty_like(plain)
        np.multiply(plain, factor, out=product, dtype=np.float64, casting="same_kind")
        return product

    name = (weights.name or "weights").removesuffix(".folded") + ".folded"
    if (factor != 1).any():
        node.replace_input_with(1, add_initializer(graph, lazy(scaled, weights, name)))
    if biases is not None:
        biases.name = f"{name}.biases"
        node.resize_inputs(3)
        node.replace_input_with(2, add_initializer(graph, biases))


def take_over(result: ir.Value, source: ir.Value, graph: ir.Graph) -> None:
    """Lets `source`, which computes `result` now, take its place, and removes what computed it.

    Its own name goes, because that number is no more; the name of a layer or of an output stays with `result`'s.
    """
    node = result.producer()
    assert node is not None
    rename(source, f"folded/{result.name}")
    replace_uses(result, source, graph)
    graph.remove(node, safe=True)
