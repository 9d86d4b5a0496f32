"""8-bit numbers where the target computes with them: QuantizeLinear and DequantizeLinear around its operators.

    x  ->  DequantizeLinear(QuantizeLinear(x)):    scale (clamp(round(x / scale) + zero, 0, 255) - zero)

That is how every engine is told: it takes the pairs away again and computes with the integers between them. Which
operators, and what else the engine wants (signed integers, -128 to 127, for one), is the target's `Recipe`; the
intervals are measured (`dnc.quantization.calibration`).

1. What is quantized: the operators of the recipe, from the network's first product (Conv, Gemm) to the ones before its
   last. Float32 stay those last ones, which heads are made of, and all that comes after them; what was asked for; what
   computes a single pixel (squeeze and excitation: little work that decides on much); what has no interval. If the
   recipe is dense, so do products of several groups, and what moves numbers where any that reads them is float32.
2. An interval is known by the value's name: the network's input, and the output of each layer; or equalize left it
   with the value. What only moves numbers
   (MaxPool, Resize to the nearest, Slice, ...) has that of what it moves, or in a dense recipe that of the Concat which
   alone reads it, and a Concat all of its parts'. Between a
   product and its activation it is where the activation's results lie: of leaky, from low / slope to high; of swish,
   which hardly changes below -8, from there.
3. Inputs of quantized operators are rounded, once for all that read them; through what moves numbers, where it reads
   them. If the recipe says so, outputs are too, for all that reads them.
4. Weights become int8 numbers with one scale for each output channel, biases int32 numbers where the recipe says so.
   Both are computed when they are written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.quantization import MOVES, Grid, Interval, Recipe, least_scales, quantize_weights, weight_scales
from dnc.graph.rewriting import Remarks, add_initializer, add_node, attribute, constant_array, replace_uses, sole_user
from dnc.passes import Pass, passes
from dnc.passes.equalize import INTERVAL
from dnc.passes.shared.activations import recognise
from dnc.passes.shared.reduced_precision import KEEP, Keep, around_products
from dnc.runtime.options import Option
from dnc.typing import Array

if TYPE_CHECKING:
    from dnc.quantization.calibration import Range


_PRODUCTS = ("Conv", "Gemm")
_CLAMPS = ("Relu", "Clip")
_FIXED = {"Sigmoid": Interval(0, 1), "HardSigmoid": Interval(0, 1), "Tanh": Interval(-1, 1)}


@passes.register
class Quantize(Pass):
    """8-bit Conv, Gemm and what else the recipe has.

    Args:
        ranges: by the name of the value; without them, nothing is quantized.
        recipe: where the target wants 8-bit numbers.
        **values: options.
    """

    name: ClassVar[str] = "quantize"
    tolerance: ClassVar[float] = 1.0
    """No equality: what 8 bits cost is seen on images, by `dnc eval`. On noise and a photograph they change heads of
    yolo-fastest-1.1 and -xl, MobileNetV2-YOLOv3-Nano and yolov3-tiny, with trained weights, by 0.12 to 0.66 of the
    largest value. An output that differs by more than that value has nothing to do with what it was: a wrong scale, or
    a bias that is lost."""

    applies_to: ClassVar[str] = "Conv and Gemm with calibrated inputs; what the target computes with 8 bits beside them"
    known_options: ClassVar[Sequence[Option]] = (KEEP,)
    needs: ClassVar[str] = "operator that the target computes with 8 bits"

    def __init__(self, ranges: Mapping[str, Range] | None = None, recipe: Recipe | None = None, **values: Any) -> None:
        super().__init__(**values)
        self.ranges = dict(ranges or {})
        self.recipe = recipe or Recipe(frozenset({"Conv"}))
        Keep(self.options["keep"])

    def unmet(self, remarks: Remarks) -> str:
        """Without a calibration, that is why."""
        return super().unmet(remarks) if self.ranges else "it needs a calibration"

    def rewrite(self, model: ir.Model) -> Remarks:
        """Quantizes every operator that can be."""
        remarks, keep = Remarks(), Keep(self.options["keep"])
        intervals = _intervals(model.graph, self.ranges)
        rounding = _Rounding(model.graph, self.recipe, intervals)
        nodes = list(model.graph)
        after, before, _ = around_products(nodes)
        first = next((node for node in nodes if node.op_type in _PRODUCTS), None)
        reasons: dict[ir.Node, str] = {}
        for node in nodes:
            product = node.op_type in _PRODUCTS
            if node.op_type not in self.recipe.operators or node.domain or _is_quantized(node):
                continue
            if not product and (node not in before or node not in after):
                continue
            reasons[node] = keep.reason(node) or rounding.refusal(node)
            if node not in before:
                reasons[node] = "no product comes after it"
        if self.recipe.dense:
            _leave_moves(reasons)
            rounding.tie([node for node, reason in reasons.items() if not reason and node.op_type not in _PRODUCTS])
        for node, reason in reasons.items():
            if reason:
                remarks.miss(node, reason)
            elif rounding.quantize(node, self.recipe.first_limit if node is first else self.recipe.limit):
                remarks.apply(node, "8 bits")
        return remarks


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


def _intervals(graph: ir.Graph, ranges: Mapping[str, Range]) -> dict[ir.Value, Interval]:
    """Cases 2: the interval of every value that has one."""
    found: dict[ir.Value, Interval] = {}

    def measured(value: ir.Value) -> Interval | None:
        if INTERVAL in value.metadata_props:
            return Interval(*map(float, value.metadata_props[INTERVAL].split()))
        known = ranges.get(value.name or "")
        # What is symmetric about 0 reaches beyond what was seen.
        if known is None:
            return None
        return Interval(max(known.low, min(known.minimum, 0)), min(known.high, max(known.maximum, 0)))

    for value in graph.inputs:
        if (known := measured(value)) is not None:
            found[value] = known
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        for value in node.outputs:
            known = measured(value)
            if _moves(node):
                known = found.get(inputs[0], known)
            elif known is None and node.op_type == "Concat" and all(each in found for each in inputs):
                known = _union([found[each] for each in inputs])
            elif known is None:
                known = _FIXED.get(node.op_type)
            if known is not None and known.low < known.high:
                found[value] = known
    for node in graph:
        known = found.get(node.outputs[0])
        activation = recognise(node) if known is not None else None
        if known is not None and activation is not None:
            kind, _, match = activation
            found.setdefault(match.values["x"], _before(kind, match.numbers, known))
    return found


def _union(intervals: Collection[Interval]) -> Interval:
    return Interval(min(each.low for each in intervals), max(each.high for each in intervals))


def _moves(node: ir.Node) -> bool:
    """Whether its outputs are numbers of its first input, as they were."""
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") != "nearest":
        return False
    return node.op_type in MOVES and not node.domain and node.inputs[0] is not None


def _before(kind: str, numbers: Mapping[str, float], after: Interval) -> Interval:
    """What an activation is given where its results lie in an interval."""
    if kind == "leaky":
        return Interval(after.low / numbers["a"], after.high)
    if kind == "clip":
        return after
    if kind.endswith("sigmoid"):
        return Interval(-8, 8)
    # All others are x, or nearly so, from a few on, and flat at the other end; what they are further down is less than
    # half a step away.
    low = -3.0
    if kind in ("swish", "mish"):
        while low > -8 and -low * np.exp(low) > (after.high - low) / 510:
            low -= 0.5
    return Interval(low, after.high)


class _Rounding:
    """Puts the pairs into a graph."""

    def __init__(self, graph: ir.Graph, recipe: Recipe, intervals: Mapping[ir.Value, Interval]) -> None:
        self._graph = graph
        self._recipe = recipe
        self._intervals = dict(intervals)
        self._order = {node: number for number, node in enumerate(graph)}
        self._rounded: dict[tuple[ir.Value, Grid], ir.Value] = {}
        self._on_grid: set[ir.Value] = set()
        self._weights: dict[tuple[Any, ...], tuple[ir.Value, ir.Value | None]] = {}

    def refusal(self, node: ir.Node) -> str:
        """Why a node cannot be quantized; empty if it can."""
        for value in self._data(node):
            if constant_array(value) is not None:
                return "it reads a constant"
            if value not in self._intervals:
                return f"no interval of {value.name} was calibrated"
        if self._recipe.outputs:
            for value in map(self._clamped, node.outputs):
                if value not in self._intervals:
                    return f"no interval of its result {value.name} was calibrated"
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
        if self._recipe.dense and attribute(node, "group", 1) > 1:
            return "it has several groups"
        return ""

    @staticmethod
    def _data(node: ir.Node) -> list[ir.Value]:
        """What is rounded of what the node reads: not its weights, and not shapes."""
        every = node.op_type in ("Add", "Mul", "Concat")
        return [value for value in (node.inputs if every else node.inputs[:1]) if value is not None]

    def tie(self, nodes: Sequence[ir.Node]) -> None:
        """What passes from one of these nodes, which move or join numbers, to another alone has the latter's grid, so
        that it is rounded once."""
        for node in reversed(nodes):
            for value in self._data(node):
                if value.producer() in nodes and sole_user(value) is node:
                    self._intervals[value] = self._intervals[node.outputs[0]]

    def _clamped(self, value: ir.Value) -> ir.Value:
        """The value after the clamps that alone read it, which engines join with what computes it."""
        while (user := sole_user(value)) is not None and user.op_type in _CLAMPS:
            value = user.outputs[0]
        return value

    def quantize(self, node: ir.Node, limit: int) -> bool:
        """Cases 3 and 4 for one node, those before it being done; returns whether anything is new."""
        tied = self._recipe.tied and node.op_type == "Concat"
        own = tied or (self._recipe.dense and _moves(node))
        new = False
        for position, value in enumerate(self._data(node)):
            rounded = self._round(value, node, self._grid(node.outputs[0] if own else value))
            new |= rounded is not value
            node.replace_input_with(position, rounded)
        if node.op_type in _PRODUCTS:
            self._quantize_weights(node, limit)
            new = True
        if self._recipe.outputs:
            for value in map(self._clamped, node.outputs):
                users = [user for user, _ in value.uses()]
                if users and all(user.op_type != "QuantizeLinear" for user in users):
                    self._pair(value, self._grid(value), min(users, key=self._order.__getitem__), everywhere=True)
                    new = True
        elif _moves(node) or tied:
            self._on_grid.update(node.outputs)
        return new

    def _grid(self, value: ir.Value) -> Grid:
        return Grid.of(self._intervals[value], self._recipe.zeros, self._recipe.signed)

    def _round(self, value: ir.Value, reader: ir.Node, grid: Grid) -> ir.Value:
        """The value in 8 bits, for a reader."""
        if _is_dequantized(value) or (value in self._on_grid and grid == self._grid(value)):
            return value
        if (value, grid) not in self._rounded:
            self._rounded[value, grid] = self._pair(value, grid, reader)
        return self._rounded[value, grid]

    def _pair(self, value: ir.Value, grid: Grid, before: ir.Node, everywhere: bool = False) -> ir.Value:
        """DequantizeLinear(QuantizeLinear(value)); with `everywhere`, for all that reads the value."""
        name, shape, kind = value.name, value.shape, value.type
        numpy, onnx = (np.int8, ir.DataType.INT8) if self._recipe.signed else (np.uint8, ir.DataType.UINT8)
        constants = [
            add_initializer(self._graph, ir.Tensor(array, name=f"{name}.{what}"))
            for what, array in (("scale", np.array(grid.scale, np.float32)), ("zero", np.array(grid.zero, numpy)))
        ]
        quantize = add_node(self._graph, before, "QuantizeLinear", [value, *constants], name=f"{name}/QuantizeLinear")
        eight = quantize.outputs[0]
        eight.shape, eight.type = shape, ir.TensorType(onnx)
        back = add_node(self._graph, before, "DequantizeLinear", [eight, *constants], name=f"{name}/DequantizeLinear")
        result = back.outputs[0]
        result.shape, result.type = shape, kind
        if everywhere:
            replace_uses(value, result, self._graph)
            quantize.replace_input_with(0, value)
        self._intervals[result] = self._intervals[value]
        return result

    def _quantize_weights(self, node: ir.Node, limit: int) -> None:
        """Case 4."""
        value, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 and self._recipe.biases else None
        data = node.inputs[0]
        assert value is not None
        assert data is not None
        scale = self._grid(data).scale if bias is not None else None
        key = (value, limit, bias, scale)
        if key not in self._weights:
            self._weights[key] = self._integers(node, value, limit, bias, scale)
        weights, biases = self._weights[key]
        node.replace_input_with(1, weights)
        if biases is not None:
            node.replace_input_with(2, biases)

    def _integers(
        self, node: ir.Node, value: ir.Value, limit: int, bias: ir.Value | None, scale: float | None
    ) -> tuple[ir.Value, ir.Value | None]:
        """Weights as int8 and, if there are any in the recipe, biases as int32 numbers."""
        tensor, shift = constant_array(value), constant_array(bias)
        assert tensor is not None
        outputs = [tensor.shape.numpy()[0]]

        def scales() -> Array:
            least = None if shift is None or scale is None else least_scales(shift.numpy(), scale)
            return weight_scales(tensor.numpy(), limit, least)

        def integers() -> Array:
            return quantize_weights(tensor.numpy(), scales(), limit)

        def dequantized(like: ir.Value, numbers: ir.LazyTensor, steps: ir.LazyTensor) -> ir.Value:
            inputs = [add_initializer(self._graph, each) for each in (numbers, steps)]
            name = f"{like.name}/DequantizeLinear"
            (result,) = add_node(self._graph, node, "DequantizeLinear", inputs, {"axis": 0}, name=name).outputs
            result.shape, result.type = like.shape, like.type
            return result

        weights = dequantized(
            value,
            lazy(integers, tensor, f"{value.name}.int8", dtype=ir.DataType.INT8),
            lazy(scales, tensor, f"{value.name}.scale", shape=outputs),
        )
        if bias is None or shift is None or scale is None:
            return weights, None

        def units() -> Array:
            return (scales() * np.float32(scale)).astype(np.float32)

        def counts() -> Array:
            return np.round(shift.numpy().astype(np.float64) / units()).astype(np.int32)

        biases = dequantized(
            bias,
            lazy(counts, shift, f"{bias.name}.int32", dtype=ir.DataType.INT32),
            lazy(units, shift, f"{bias.name}.scale"),
        )
        return weights, biases
