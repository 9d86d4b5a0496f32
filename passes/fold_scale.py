"""Folds multiplications and additions of constants, one per channel or one for all, into convolutions and products.

    x * k, x / d, x + c, x - c, c - x    are    y = scale x + shift,    constant along all axes but the channels'

1. After a Conv or Gemm, or a Concat of them, that nothing else reads: into its weights and biases.
2. Before Convs or Gemms: the shift only where they pad nothing, because the zeros around their input are not shifted.
3. A scale alone also moves forward, through all that reads it, until only Convs and Gemms are left to take it:
       s x * w = s (x w),   s x / w = s (x / w),   s x + s z = s (x + z),   s x + c = s (x + c / s),
       Pad(s x, c) = s Pad(x, c / s),   and Gather, Slice, Transpose and Reshape only move numbers.
   This is how x / 255, in front of the resampling of pixels, and the division by the standard deviation behind it reach
   the first convolution. A factor per channel passes only what leaves axis 1 alone. A layer's output stops it, because
   its numbers are promised under its name.
4. From the composite Preprocess the same two factors move forward; their reciprocals go into its attribute `gain`.

Learned constants ([implicit]) count as constants, repeated for the batch or not. What depends on data
([scale_channels] by another layer) does not. passes/shared/affine.py has the algebra.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.composites import PREPROCESS, is_composite
from dnc.graph.preprocessing import Preprocess
from dnc.graph.rewriting import Remarks, add_initializer, attribute, constant_array, is_product, producer_of
from dnc.passes import Pass, passes
from dnc.passes.shared.affine import Affine, move_after, move_before, refusal_after, refusal_before, take_over
from dnc.typing import Array


@passes.register
class FoldScale(Pass):
    """Mul, Div, Add and Sub of constants -> weights and biases."""

    name: ClassVar[str] = "fold-scale"
    tolerance: ClassVar[float] = 1e-5
    """Rounding of the folded weights, some 1e-7 a layer, which depth adds up."""

    applies_to: ClassVar[str] = "Mul, Div, Add, Sub of constants beside Conv and Gemm; x / 255 of pixels"

    def rewrite(self, model: ir.Model) -> Remarks:
        """Folds until nothing is left to fold: what stood between a constant and a convolution may be gone by then."""
        remarks = Remarks()
        while True:
            count = remarks.count
            remarks.missed.clear()
            for node in list(model.graph):
                if is_composite(node, PREPROCESS):
                    for name, reason in _fold_pixels(node, model.graph).items():
                        if not reason:
                            remarks.apply(node, f"{name} folded into the weights")
                        elif any(is_product(user) for user, _ in node.outputs[0].uses()):
                            remarks.miss(node, reason)
                found = _affine(node)
                if found is None:
                    continue
                source, affine = found
                beside = [source.producer(), *(user for user, _ in node.outputs[0].uses())]
                reason = _fold(node, source, affine, model.graph)
                if not reason:
                    remarks.apply(node, f"{node.op_type} folded into the weights")
                elif any(is_product(node) for node in beside):
                    remarks.miss(node, reason)
            if remarks.count == count:
                return remarks


def _affine(node: ir.Node) -> tuple[ir.Value, Affine] | None:
    """What a node multiplies and adds, and to what; None where it is no such node."""
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or node.domain:
        return None
    first, second = node.inputs
    result = node.outputs[0]
    for source, other in ((first, second), (second, first)):
        if source is None or other is None or source.dtype != ir.DataType.FLOAT or constant_array(source) is not None:
            continue
        factors = _factors(other, source, result)
        if factors is None:
            continue
        one, zero = np.ones(1), np.zeros(1)
        if node.op_type == "Mul":
            return source, Affine(factors, zero)
        if node.op_type == "Add":
            return source, Affine(one, factors)
        if node.op_type == "Sub":
            return source, Affine(one, -factors) if source is first else Affine(-one, factors)
        if source is first and factors.all():
            return source, Affine(1 / factors, zero)
    return None


def _factors(value: ir.Value, source: ir.Value, result: ir.Value) -> Array | None:
    """The constant's numbers along axis 1 of source, (channels,) or (1,) in float64; None where it has no such form."""
    # [implicit] repeats its constant for the batch.
    expand = producer_of(value, "Expand")
    tensor = constant_array(value if expand is None else expand.inputs[0])
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or source.shape is None or result.shape is None:
        return None
    rank = len(source.shape)
    if not len(result.shape) == rank >= max(2, len(tensor.shape)):
        return None
    sides = (*[1] * (rank - len(tensor.shape)), *tensor.shape.numpy())
    if expand is not None and (value.shape is None or len(value.shape) != rank or tuple(value.shape)[1:] != sides[1:]):
        return None
    if math.prod(sides[2:]) != 1 or sides[1] not in (1, source.shape[1]):
        return None
    array = tensor.numpy().reshape(sides[:2])
    return array[0].astype(np.float64) if len(array) == 1 or (array == array[:1]).all() else None


def _fold(node: ir.Node, source: ir.Value, affine: Affine, graph: ir.Graph) -> str:
    """Folds one; returns why not."""
    result = node.outputs[0]
    if not affine.finite:
        return "its factors are no numbers"
    before = refusal_after(source, graph)
    if not before:
        move_after(source, affine, graph)
        take_over(result, source, graph)
        return ""
    if result.is_graph_output():
        return before
    region = _Region(affine, graph)
    after = region.grow(result)
    if after:
        return before if is_product(source.producer()) else after
    region.move()
    result.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return ""


def _fold_pixels(call: ir.Node, graph: ir.Graph) -> dict[str, str]:
    """Case 4: folds what is not folded yet; returns, by the name of each factor, why not."""
    given, result = Preprocess.of(call), call.outputs[0]
    if (given.gain != 1).any() or result.is_graph_output():
        return {}
    gain = given.gain
    reasons = {}
    for name, numbers in (("divisor", (given.divisor,)), ("std", given.std)):
        divisors = np.array(numbers)
        region = _Region(Affine(1 / divisors, np.zeros(1)), graph)
        if (divisors == 1).all():
            continue
        reasons[name] = region.grow(result)
        if not reasons[name]:
            region.move()
            gain = gain * divisors.astype(np.float32).reshape(1, -1, 1, 1)
    call.attributes.add(ir.AttrTensor("gain", ir.Tensor(gain, name="gain")))
    return reasons


class _Region:
    """The values that a scale passes on its way forward, and the products that take it in the end."""

    def __init__(self, affine: Affine, graph: ir.Graph) -> None:
        self._affine = affine
        self._graph = graph
        self._values: list[ir.Value] = []
        self._products: list[ir.Node] = []
        self._added: list[tuple[ir.Node, int]] = []
        """Nodes and the position of the constant that they add or pad with."""

    def grow(self, start: ir.Value) -> str:
        """Follows all readers; returns why the factors do not get into products everywhere."""
        self._values = [start]
        factors: list[ir.Value | None] = []
        terms: list[ir.Value | None] = []
        for value in self._values:
            for user, position in value.uses():
                if is_product(user):
                    reason = refusal_before(user, position, self._affine, self._graph)
                    self._products.append(user)
                    if reason:
                        return reason
                    continue
                if user.op_type == "Shape":
                    continue
                if self._affine.shift.any() or not self._passes(user, position, value):
                    return "it is read by other than convolutions and matrix products"
                result = user.outputs[0]
                if result.is_graph_output() or (result.name or "").startswith("layer"):
                    return "a layer's own numbers would change"
                if user.op_type in ("Mul", "Div"):
                    factors.append(user.inputs[1 - position])
                elif user.op_type in ("Add", "Sub") and constant_array(user.inputs[1 - position]) is None:
                    terms.append(user.inputs[1 - position])
                elif user.op_type in ("Add", "Sub"):
                    self._added.append((user, 1 - position))
                elif user.op_type == "Pad" and len(user.inputs) > 2:
                    self._added.append((user, 2))
                if result not in self._values:
                    self._values.append(result)
        if any(value in self._values for value in factors) or any(value not in self._values for value in terms):
            return "it is multiplied by itself, or added to what is not scaled"
        return "" if self._products else "no convolution or matrix product beside it"

    def _passes(self, node: ir.Node, position: int, value: ir.Value) -> bool:
        """Whether node(s x) is s node(x), but for the constants that it adds."""
        scale, result = self._affine.scale, node.outputs[0]
        if value.shape is None or result.shape is None or node.domain or node.graph is not self._graph:
            return False
        same_rank = len(result.shape) == len(value.shape)
        if node.op_type == "Mul" or (node.op_type == "Div" and position == 0):
            return same_rank
        if node.op_type in ("Add", "Sub"):
            return same_rank and bool(scale.all())
        if position != 0:
            return False
        if scale.size == 1 and node.op_type == "Pad":
            constant = len(node.inputs) < 3 or constant_array(node.inputs[2]) is not None
            return constant and attribute(node, "mode", "constant") == "constant" and bool(scale.all())
        if scale.size == 1:
            return node.op_type in ("Gather", "Reshape", "Slice", "Transpose")
        sides = (value.shape[0], value.shape[1])
        known = isinstance(sides[0], int) or sides[0].value is not None
        return node.op_type == "Reshape" and same_rank and known and sides == tuple(result.shape)[:2]

    def move(self) -> None:
        """Hands the factors over; `grow` must have found the way."""
        scale = self._affine.scale
        for node, position in self._added:
            value, tensor = node.inputs[position], constant_array(node.inputs[position])
            assert value is not None
            assert tensor is not None
            assert node.outputs[0].shape is not None
            inner = [1] * (len(node.outputs[0].shape) - 2)
            divided = tensor.numpy() / (float(scale[0]) if scale.size == 1 else scale.reshape(-1, *inner))
            new = ir.Tensor(np.asarray(divided, np.float32), name=f"{value.name}/unscaled")
            node.replace_input_with(position, add_initializer(self._graph, new))
        for node in self._products:
            move_before(node, self._affine, self._graph)
