"""8-bit numbers where the target computes with them: QuantizeLinear and DequantizeLinear around its operators.

    x  ->  DequantizeLinear(QuantizeLinear(x)):    scale (clamp(round(x / scale) + zero_point, 0, 255) - zero_point)

That is how every engine is told: it takes the pairs away again and computes with the integers between them. Which
operators, and what else the engine wants (int8 activations, for one), is the target's `QuantSpec`; the ranges are those
on the values (`dnc.graph.quantization`).

1. What is quantized: the operators of the spec, from the network's first product (Conv, Gemm) to the ones before its
   last. Float32 stay those last ones, which heads are made of, and all that comes after them; what was asked for; what
   computes a single pixel (squeeze and excitation: little work that decides on much); what has no range. If the spec is
   for dense products only, so do products of several groups, and what moves numbers where any that reads them is
   float32; and if it says so, thin convolutions at the network's start, with their activations (`_thin`).
2. Ranges are calibrated for the network's input and the output of each layer; all others follow from these. What only
   moves numbers (MaxPool, Resize to the nearest, Slice, ...) has the range of what it moves, or in a spec for dense
   products that of the Concat which alone reads it, and a Concat all of its parts'. Between a product and its
   activation it is where the activation's results lie: of leaky, from low / slope to high; of swish, which hardly
   changes below -8, from there.
3. Inputs of quantized operators are rounded, once for all that read them; through what moves numbers, where it reads
   them. If the spec says so, outputs are too, for all that reads them.
4. Weights become int8 numbers with one scale for each output channel, biases int32 numbers where the spec says so.
   Both are computed when they are written.
5. Where the engine's kernels add up pairs of products in 16 bits, weights are looked at first. If any pair of a layer
   could be cut off, each output gets the finest scale with which none of its pairs can, and weights of kernels with
   several places are rounded so that their sum stays (`dnc.graph.pairs`). Outputs whose pairs fit keep their scale, and
   layers as well their weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.pairs import LIMIT, Pairing, adds_pairs, fit, largest_sums, pairs_fit
from dnc.graph.quantization import (
    DATA_MOVEMENT,
    LEVELS,
    QuantParams,
    QuantSpec,
    Range,
    least_weight_scales,
    quant_params_of,
    range_of,
    set_quant_params,
    set_range,
    set_reals,
)
from dnc.graph.rewriting import Remarks, add_initializer, add_node, attribute, constant_array, replace_uses, sole_user
from dnc.passes import passes
from dnc.passes.shared.activations import recognise
from dnc.passes.shared.reduced_precision import ReducedPrecision, around_products
from dnc.typing import Array

_PRODUCTS = ("Conv", "Gemm")
_CLAMPS = ("Relu", "Clip")
_FIXED = {"Sigmoid": Range(0, 1), "HardSigmoid": Range(0, 1), "Tanh": Range(-1, 1)}


@passes.register
class Quantize(ReducedPrecision):
    """8-bit Conv, Gemm and what else the spec has, where values have ranges (`attach_ranges`).

    Args:
        spec: where the target wants 8-bit numbers.
    """

    name: ClassVar[str] = "quantize"
    tolerance: ClassVar[float] = 1.0
    """No equality: what 8 bits cost is seen on images, by `dnc eval`. On noise and a photograph they change heads of
    yolo-fastest-1.1 and -xl, MobileNetV2-YOLOv3-Nano and yolov3-tiny, with trained weights, by 0.12 to 0.66 of the
    largest value. An output that differs by more than that value has nothing to do with what it was: a wrong scale, or
    a bias that is lost."""

    applies_to: ClassVar[str] = "Conv and Gemm with calibrated inputs; what the target computes with 8 bits beside them"
    needs: ClassVar[str] = "operator that the target computes with 8 bits"

    def __init__(self, spec: QuantSpec | None = None, **values: Any) -> None:
        super().__init__(**values)
        self.spec = spec or QuantSpec(frozenset({"Conv"}))

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks, keep = Remarks(), self.kept()
        _complete_ranges(model.graph)
        rounding = _Rounding(model.graph, self.spec)
        nodes = list(model.graph)
        after, before, _ = around_products(nodes)
        reasons: dict[ir.Node, str] = {}
        for node in nodes:
            product = node.op_type in _PRODUCTS
            if node.op_type not in self.spec.operators or node.domain or _is_quantized(node):
                continue
            if not product and (node not in before or node not in after):
                continue
            reasons[node] = keep.reason(node) or rounding.refusal(node)
            if node not in before:
                reasons[node] = "no product comes after it"
        for node in _thin(nodes, after, self.spec.thin):
            reasons[node] = reasons.get(node) or "it is one of the first, with few channels and a leaky"
        if self.spec.dense_only:
            _leave_moves(reasons)
            rounding.tie([node for node, reason in reasons.items() if not reason and node.op_type not in _PRODUCTS])
        for node, reason in reasons.items():
            if reason:
                remarks.miss(node, reason)
            elif rounding.quantize(node):
                remarks.apply(node, rounding.text(node))
        return remarks


def _thin(nodes: Sequence[ir.Node], after: Collection[ir.Node], channels: int) -> list[ir.Node]:
    """The network's first convolutions of up to so many input channels, each with the leaky that alone reads it: the
    first of all, where only such read it, and those behind it of one place (1 x 1) or one channel.

    Args:
        nodes: of the graph, in order.
        after: those that come after a product.
        channels: the most; 0 for none.
    """
    found: dict[ir.Node, ir.Node] = {}
    for node in nodes:
        if node.op_type != "Conv" or (activation := sole_user(node.outputs[0])) is None:
            continue
        weights, data = constant_array(node.inputs[1]), node.inputs[0]
        if weights is None or data is None or activation.op_type != "LeakyRelu":
            continue
        (_, inputs, *kernel), groups = weights.shape.numpy(), attribute(node, "group", 1)
        behind = data.producer() in found.values() and (groups > 1 or set(kernel) == {1})
        if inputs * groups <= channels and (node not in after or behind):
            found[node] = activation
    alone = all(
        user in found
        for node, activation in found.items()
        if node not in after
        for user, _ in activation.outputs[0].uses()
    )
    return [node for pair in found.items() for node in pair] if alone else []


def _leave_moves(reasons: dict[ir.Node, str]) -> None:
    """Refuses what moves numbers for others than quantized operators. `reasons` are those against each node, in order;
    empty where there are none."""
    for node in reversed(list(reasons)):
        readers = [user for value in node.outputs for user, _ in value.uses()]
        eight = all(reasons.get(user, "float32") == "" for user in readers)
        if node.op_type not in _PRODUCTS and not (eight and readers):
            reasons[node] = reasons[node] or "it is read in float32"


def _is_quantized(node: ir.Node) -> bool:
    """Whether a product has 8-bit weights already."""
    weights = node.inputs[1] if node.op_type in _PRODUCTS else None
    return weights is not None and _is_dequantized(weights)


def _is_dequantized(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _complete_ranges(graph: ir.Graph) -> None:
    """Case 2: gives a range to every value that can have one, and takes it from those where all numbers are 0."""
    for value in graph.inputs:
        _set_seen(value, range_of(value))
    for node in graph:
        inputs = [range_of(value) for value in node.inputs if value is not None]
        for value in node.outputs:
            known = range_of(value)
            if _moves(node) and inputs[0] is not None:
                known = replace(inputs[0], channels=None if known is None else known.channels)
            elif known is None and node.op_type == "Concat":
                known = _union(inputs)
            elif known is None:
                known = _FIXED.get(node.op_type)
            _set_seen(value, known)
    for node in graph:
        known = range_of(node.outputs[0])
        activation = recognise(node) if known is not None else None
        if known is not None and activation is not None:
            kind, _, match = activation
            if range_of(match.values["x"]) is None:
                set_range(match.values["x"], _before(kind, match.numbers, known))


def _union(parts: Sequence[Range | None]) -> Range | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Range(min(part.low for part in known), max(part.high for part in known))


def _set_seen(value: ir.Value, known: Range | None) -> None:
    """Gives a value its range as far as numbers were seen in it."""
    seen = None if known is None else known.seen
    set_range(value, seen if seen is not None and seen.low < seen.high else None)


def _moves(node: ir.Node) -> bool:
    """Whether its outputs are numbers of its first input, as they were."""
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") != "nearest":
        return False
    return node.op_type in DATA_MOVEMENT and not node.domain and node.inputs[0] is not None


def _before(kind: str, numbers: Mapping[str, float], after: Range) -> Range:
    """The range of what an activation is given, from that of its results."""
    if kind == "leaky":
        return Range(after.low / numbers["a"], after.high)
    if kind == "clip":
        return after
    if kind.endswith("sigmoid"):
        return Range(-8, 8)
    # All others are x, or nearly so, from a few on, and flat at the other end; what they are further down is less than
    # half a step away.
    low = -3.0
    if kind in ("swish", "mish"):
        while low > -8 and -low * np.exp(low) > (after.high - low) / 510:
            low -= 0.5
    return Range(low, after.high)


class _Rounding:
    """Puts the pairs into a graph."""

    def __init__(self, graph: ir.Graph, spec: QuantSpec) -> None:
        self._graph = graph
        self._spec = spec
        self._order = {node: number for number, node in enumerate(graph)}
        self._rounded: dict[tuple[ir.Value, QuantParams], ir.Value] = {}
        self._weights: dict[tuple[Any, ...], tuple[ir.Value, ir.Value | None]] = {}
        self._texts: dict[ir.Node, str] = {}

    def refusal(self, node: ir.Node) -> str:
        """Why a node cannot be quantized; empty if it can."""
        for value in self._data(node):
            if constant_array(value) is not None:
                return "it reads a constant"
            if range_of(value) is None:
                return f"no range of {value.name} was calibrated"
        if self._spec.outputs:
            for value in map(self._clamped, node.outputs):
                if range_of(value) is None:
                    return f"no range of its result {value.name} was calibrated"
        return self._refusal_of_product(node) if node.op_type in _PRODUCTS else ""

    def _refusal_of_product(self, node: ir.Node) -> str:
        tensors = [constant_array(value) for value in node.inputs[1:] if value is not None]
        if any(tensor is None or tensor.dtype != ir.DataType.FLOAT for tensor in tensors):
            return "weights or biases are no constants"
        shape = node.outputs[0].shape
        if node.op_type == "Conv" and shape is not None and set(shape[2:]) == {1}:
            return "it computes a single pixel"
        factors = [attribute(node, key, 1.0) for key in ("alpha", "beta")]
        if node.op_type == "Gemm" and (factors != [1, 1] or attribute(node, "transA", 0)):
            return "the matrix product is scaled or transposed"
        if node.op_type == "Gemm" and not attribute(node, "transB", 0):
            return "its weights are not transposed"
        if self._spec.dense_only and attribute(node, "group", 1) > 1:
            return "it has several groups"
        return ""

    @staticmethod
    def _data(node: ir.Node) -> list[ir.Value]:
        """What is rounded of what the node reads: not its weights, and not shapes."""
        every = node.op_type in ("Add", "Mul", "Concat")
        return [value for value in (node.inputs if every else node.inputs[:1]) if value is not None]

    def tie(self, nodes: Sequence[ir.Node]) -> None:
        """What passes from one of these nodes, which move or join numbers, to another alone has the latter's range, so
        that it is rounded once."""
        for node in reversed(nodes):
            for value in self._data(node):
                if value.producer() in nodes and sole_user(value) is node:
                    set_range(value, range_of(node.outputs[0]))

    def _clamped(self, value: ir.Value) -> ir.Value:
        """The value after the clamps that alone read it, which engines join with what computes it."""
        while (user := sole_user(value)) is not None and user.op_type in _CLAMPS:
            value = user.outputs[0]
        return value

    def text(self, node: ir.Node) -> str:
        """What was done to a node."""
        return self._texts.get(node, "8 bits")

    def quantize(self, node: ir.Node) -> bool:
        """Cases 3 and 4 for one node, those before it being done; returns whether anything is new."""
        unified = self._spec.unified_concat and node.op_type == "Concat"
        own = unified or (self._spec.dense_only and _moves(node))
        new = False
        for position, value in enumerate(self._data(node)):
            rounded = self._round(value, node, self._params(node.outputs[0] if own else value))
            new |= rounded is not value
            node.replace_input_with(position, rounded)
        if node.op_type in _PRODUCTS:
            self._quantize_weights(node)
            new = True
        if self._spec.outputs:
            for value in map(self._clamped, node.outputs):
                users = [user for user, _ in value.uses()]
                if users and all(user.op_type != "QuantizeLinear" for user in users):
                    self._pair(value, self._params(value), min(users, key=self._order.__getitem__), everywhere=True)
                    new = True
        elif _moves(node) or unified:
            for value in node.outputs:
                set_quant_params(value, self._params(value))
        return new

    def _params(self, value: ir.Value) -> QuantParams:
        known = range_of(value)
        assert known is not None
        return self._spec.activations(known)

    def _round(self, value: ir.Value, reader: ir.Node, params: QuantParams) -> ir.Value:
        """The value in 8 bits, for a reader."""
        if _is_dequantized(value) or quant_params_of(value) == params:
            return value
        if (value, params) not in self._rounded:
            self._rounded[value, params] = self._pair(value, params, reader)
        return self._rounded[value, params]

    def _pair(self, value: ir.Value, params: QuantParams, before: ir.Node, everywhere: bool = False) -> ir.Value:
        """DequantizeLinear(QuantizeLinear(value)); with `everywhere`, for all that reads the value."""
        name, known = value.name, range_of(value)
        constants = [
            add_initializer(self._graph, ir.Tensor(array, name=f"{name}.{what}"))
            for what, array in (
                ("scale", np.array(params.scale[0], np.float32)),
                ("zero", np.array(params.zero_point, params.dtype)),
            )
        ]
        quantize = add_node(self._graph, before, "QuantizeLinear", [value, *constants], name=f"{name}/QuantizeLinear")
        integers = quantize.outputs[0]
        integers.shape, integers.type = value.shape, ir.TensorType(ir.DataType[params.dtype.upper()])
        back = add_node(
            self._graph, before, "DequantizeLinear", [integers, *constants], name=f"{name}/DequantizeLinear"
        )
        result = back.outputs[0]
        result.shape, result.type = value.shape, value.type
        if everywhere:
            replace_uses(value, result, self._graph)
            quantize.replace_input_with(0, value)
        set_range(result, known)
        for rounded in (integers, result):
            set_quant_params(rounded, params)
        return result

    def _quantize_weights(self, node: ir.Node) -> None:
        """Cases 4 and 5."""
        value, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 and self._spec.int32_biases else None
        data = node.inputs[0]
        assert value is not None
        assert data is not None
        scale = self._params(data).scale[0] if bias is not None else None
        pairs = self._pairs(node, value)
        key = (value, bias, scale, pairs)
        if key not in self._weights:
            self._weights[key] = self._integers(node, value, bias, scale, pairs)
        weights, biases = self._weights[key]
        node.replace_input_with(1, weights)
        if biases is not None:
            node.replace_input_with(2, biases)

    def _pairs(self, node: ir.Node, value: ir.Value) -> tuple[Pairing, ...]:
        """The pairs for which the weights of a product have to be made to fit: case 5."""
        tensor = constant_array(value)
        assert tensor is not None
        if not self._spec.pairs or not adds_pairs(tensor.shape.numpy(), attribute(node, "group", 1)):
            return ()
        weights = tensor.numpy()
        plain = QuantParams.of_weights(weights)
        if pairs_fit(plain.quantize(weights), self._spec.pairs):
            self._texts[node] = "8 bits: its pairs fit"
            return ()
        scales = np.maximum(plain.scale, largest_sums(weights, self._spec.pairs) / LIMIT)
        bits = 1 + np.log2(LEVELS * np.mean(plain.scale / scales))
        self._texts[node] = f"8 bits: weights of {bits:.1f} bits, so that its pairs fit"
        return self._spec.pairs

    def _integers(
        self,
        node: ir.Node,
        value: ir.Value,
        bias: ir.Value | None,
        scale: float | None,
        pairs: tuple[Pairing, ...],
    ) -> tuple[ir.Value, ir.Value | None]:
        """Weights as int8 and, if the spec wants them, biases as int32 numbers."""
        tensor, shift = constant_array(value), constant_array(bias)
        assert tensor is not None
        outputs = [tensor.shape.numpy()[0]]

        def params() -> QuantParams:
            assert tensor is not None
            least = 0.0 if shift is None or scale is None else least_weight_scales(shift.numpy(), scale)
            weights = tensor.numpy()
            if pairs:
                least = np.maximum(least, largest_sums(weights, pairs) / LIMIT)
            return QuantParams.of_weights(weights, least)

        def scales() -> Array:
            return np.array(params().scale, np.float32)

        def integers() -> Array:
            assert tensor is not None
            weights = tensor.numpy()
            return fit(params().steps(weights), pairs) if pairs else params().quantize(weights)

        def dequantized(like: ir.Value, numbers: ir.TensorProtocol, steps: ir.TensorProtocol) -> ir.Value:
            inputs = [add_initializer(self._graph, tensor) for tensor in (numbers, steps)]
            name = f"{like.name}/DequantizeLinear"
            (result,) = add_node(self._graph, node, "DequantizeLinear", inputs, {"axis": 0}, name=name).outputs
            result.shape, result.type = like.shape, like.type
            return result

        weights = dequantized(
            value,
            lazy(integers, tensor, f"{value.name}.int8", dtype=ir.DataType.INT8),
            lazy(scales, tensor, f"{value.name}.scale", shape=outputs),
        )
        set_reals(weights, tensor)
        if bias is None or shift is None or scale is None:
            return weights, None

        def units() -> Array:
            return scales() * np.float32(scale)

        def counts() -> Array:
            return QuantParams(tuple(units().tolist()), 0, "int32", 0).quantize(shift.numpy().astype(np.float64))

        biases = dequantized(
            bias,
            lazy(counts, shift, f"{bias.name}.int32", dtype=ir.DataType.INT32),
            lazy(units, shift, f"{bias.name}.scale"),
        )
        return weights, biases
