"""A graph taken apart by layer, so that each is looked at by itself.

Two models of one network are looked at: `exact` in float32, and `ready`, what the passes that round made of it. Nodes
of both that have the same name compute the same value. A layer's *results* are those of its values in `exact` that
other layers read, or the network's outputs; nearly always there is one.

    `taken_apart`   a model that is given the results of all layers, and in which no layer reads anything else: what is
                    wrong in one of them does not reach another
    `with_noise`    `exact`, to whose results noise can be added: what it does to the heads

Rounding to 8 bits is a pair, QuantizeLinear and DequantizeLinear. It belongs to the layer that computes what it rounds,
whichever layer reads the pair: what a range does is told of the layer whose range it is. Of several pairs on one value,
the coarsest counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.quantization import DATA_MOVEMENT, QuantParams, quant_params_of
from dnc.graph.rewriting import add_initializer, constant_array
from dnc.passes.shared.reduced_precision import layer_of

__all__ = ["ALL", "ENTRY", "VARIANTS", "Pair", "Parts", "pairs_of", "taken_apart", "weights_of", "with_noise"]

ENTRY = -1
"""Stands for the network's input among the numbers of layers."""

_WEIGHTS, _CUT, _STEP, _PAIRS, ALL = VARIANTS = ("weights", "cut", "step", "pairs", "all")
"""What `taken_apart` tells of each result: the noise of rounded weights alone; of ranges that cut values off, alone; of
values rounded within their ranges, alone; of sums that saturate, alone; of all together."""

_ROUNDED = "rounded"


@dataclass(frozen=True)
class Pair:
    """The rounding of a value to 8 bits."""

    quantize: ir.Node
    dequantize: ir.Node
    params: QuantParams

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest number that the integers stand for."""
        limits = np.iinfo(self.params.dtype)
        low, high = (self.params.scale[0] * (end - self.params.zero_point) for end in (limits.min, limits.max))
        return float(low), float(high)


class Parts:
    """Both models of a network, by layer.

    Args:
        exact: in float32.
        ready: after the passes that round.
    """

    def __init__(self, exact: ir.Model, ready: ir.Model) -> None:
        self.exact, self.ready = exact, ready
        self._numbers = {**_numbers(ready), **_numbers(exact)}
        self._twins: dict[int, dict[str | None, ir.Node]] = {
            id(exact): {node.name: node for node in ready.graph},
            id(ready): {node.name: node for node in exact.graph},
        }

    def number(self, value: ir.Value) -> int | None:
        """The layer that computes a value of either model; `ENTRY` for the network's inputs, None for constants."""
        node = value.producer()
        if node is None:
            return ENTRY if value.is_graph_input() else None
        return self._numbers.get(node)

    @cached_property
    def results(self) -> dict[str, ir.Value]:
        """The results of all layers by name, in the order of the graph; the network's input is the first."""
        every = (*self.exact.graph.inputs, *(value for node in self.exact.graph for value in node.outputs))
        return {value.name or "": value for value in every if self._is_result(value)}

    def _is_result(self, value: ir.Value) -> bool:
        if value.dtype != ir.DataType.FLOAT:
            return False
        own = self.number(value)
        return value.is_graph_output() or any(self._numbers.get(use.node) != own for use in value.uses())

    @cached_property
    def by_layer(self) -> dict[int, list[str]]:
        """The names of each layer's results, the main one first; states, which are inputs, are none."""
        found: dict[int, list[str]] = {}
        for name, value in self.results.items():
            number = self.number(value)
            if number is not None and not name.startswith(("state", "next")):
                found.setdefault(number, []).append(name)
        # The main one has the layer's name.
        return {
            number: sorted(found[number], key=lambda name: not name.rpartition("/")[2].startswith("layer"))
            for number in sorted(found)
        }

    def numbers(self, node: ir.Node) -> list[int]:
        """The layer of a node, if it has one."""
        return [self._numbers[node]] if node in self._numbers else []

    def twin(self, node: ir.Node) -> ir.Node | None:
        """The node of the other model that has its name."""
        return self._twins[id(self.exact if node.graph is self.exact.graph else self.ready)].get(node.name)

    def other(self, value: ir.Value) -> ir.Value | None:
        """What a value is in the other model, before it is rounded; None where it is not there."""
        node = value.producer()
        if node is None:
            own = self.exact if any(item is value for item in self.exact.graph.inputs) else self.ready
            graph = (self.ready if own is self.exact else self.exact).graph
            return next((item for item in graph.inputs if item.name == value.name), None)
        twin, place = self.twin(node), node.outputs.index(value)
        return twin.outputs[place] if twin is not None and place < len(twin.outputs) else None

    def pair(self, name: str) -> Pair | None:
        """How a result is rounded; None where it is not."""
        value = self.other(self.results[name])
        pairs = [] if value is None else list(pairs_of(value))
        pair = max(pairs, key=lambda pair: pair.params.scale[0], default=None)
        if pair is None or value is None or not _moves_rounded(value, pair):
            return pair
        return None

    def as_read(self, name: str) -> ir.Value | None:
        """What other layers of `ready` read of a result; None where it is nowhere."""
        pair = self.pair(name)
        return self.other(self.results[name]) if pair is None else pair.dequantize.outputs[0]

    def before_rounding(self, value: ir.Value) -> ir.Value:
        """The value of `exact` that a value of `ready` is before it is rounded."""
        node = value.producer()
        pair = pair_of(node) if node is not None and node.op_type == "DequantizeLinear" else None
        source = value if pair is None else pair.quantize.inputs[0]
        assert source is not None
        return self.other(source) or source

    def products(self) -> Iterator[tuple[int, ir.Node]]:
        """Convolutions and matrix products of `ready` whose weights are 8-bit numbers, and their layers."""
        for node in self.ready.graph:
            number = self._numbers.get(node)
            if node.op_type in ("Conv", "Gemm") and number is not None and weights_of(node.inputs[1]) is not None:
                yield number, node


def pairs_of(value: ir.Value) -> Iterator[Pair]:
    """Every pair that rounds a value."""
    for use in value.uses():
        node = use.node
        if node.op_type != "QuantizeLinear" or use.idx:
            continue
        scale, zero = (constant_array(item) for item in (*node.inputs[1:3], None)[:2])
        back = next((user.node for user in node.outputs[0].uses() if user.node.op_type == "DequantizeLinear"), None)
        if back is not None and scale is not None:
            yield Pair(node, back, QuantParams.read(scale.numpy(), None if zero is None else zero.numpy()))


def pair_of(back: ir.Node) -> Pair | None:
    """The pair that a DequantizeLinear ends; None where it has constants."""
    integers = back.inputs[0]
    quantize = integers.producer() if integers is not None else None
    value = quantize.inputs[0] if quantize is not None else None
    return next((pair for pair in pairs_of(value) if pair.quantize is quantize), None) if value is not None else None


def _moves_rounded(value: ir.Value, pair: Pair) -> bool:
    """Whether it only moves numbers that were rounded in the same way before."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type in DATA_MOVEMENT else None
    return source is not None and quant_params_of(source) == pair.params


def weights_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a value of constant integers; None where there is none."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or constant_array(node.inputs[0]) is None:
        return None
    return node


def _numbers(model: ir.Model) -> dict[ir.Node, int]:
    """The layer of each node; of one without a place in the cfg, that of what it reads, else of what reads it."""
    numbers: dict[ir.Node, int] = {}
    rest: list[ir.Node] = []
    for node in model.graph:
        found = layer_of(node)
        if found is None:
            before = [made for value in node.inputs if value is not None and (made := value.producer()) in numbers]
            found = max((numbers[made] for made in before if made is not None), default=None)
        if found is None:
            rest.append(node)
        else:
            numbers[node] = found
    for node in reversed(rest):
        after = [numbers[use.node] for value in node.outputs for use in value.uses() if use.node in numbers]
        numbers[node] = min(after, default=0)
    return numbers


def taken_apart(
    parts: Parts, layers: Collection[int], *, exact: bool = False, saturating: Collection[str] = ()
) -> ir.Model:
    """A model that computes the results of some layers, each from exact results of others.

    Its inputs have the names of results; besides, `pairs/NODE` is what a saturating product adds to what it computes.
    Its outputs are, for each result of these layers, with `exact`

        NAME            what the layer makes of it in float32

    else, for each of `VARIANTS` in which there is noise,

        NAME/all        the noise
        NAME/VARIANT    for the others, the sum of its squares in each channel: (channels,), without channels (1,)

    Args:
        saturating: names of nodes of `ready` to whose results something is added.
    """
    apart = _Apart(parts, saturating)
    for layer in layers:
        for name in parts.by_layer[layer]:
            value = parts.results[name]
            right = apart.exact(value, layer)
            if exact:
                apart.output(right, name)
            elif (ready := parts.other(value)) is not None:
                apart.noise(name, right, ready, layer, parts.pair(name))
    functions = [function.clone() for function in parts.ready.functions.values()]
    return ir.Model(apart.graph, ir_version=parts.ready.ir_version, functions=functions)


class _Apart:
    """Makes the model of `taken_apart`. What is computed twice in the same way is one value."""

    def __init__(self, parts: Parts, saturating: Collection[str]) -> None:
        self._parts, self._saturating = parts, saturating
        opsets = dict(parts.ready.graph.opset_imports)
        self.graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name="apart")
        self._made: dict[Any, ir.Value] = {}

    def noise(self, name: str, right: ir.Value, ready: ir.Value, layer: int, pair: Pair | None) -> None:
        """Outputs of one result, which is `right` in float32."""
        made = {
            variant: self._rounded(self._variant(ready, layer, variant), pair, variant)
            for variant in (_WEIGHTS, _CUT, _ROUNDED, _PAIRS, ALL)
        }
        differences = {
            _WEIGHTS: (made[_WEIGHTS], right),
            _CUT: (made[_CUT], right),
            _STEP: (made[_ROUNDED], made[_CUT]),
            _PAIRS: (made[_PAIRS], made[_WEIGHTS]),
        }
        rank = len(self._parts.results[name].shape or ())
        axes = [0, *range(2, rank)] if rank > 2 else list(range(rank))
        for variant, (value, other) in differences.items():
            if value is not other:
                squares = self._op("ReduceSumSquare", self._op("Sub", value, other), axes=axes, keepdims=0)
                self.output(self._op("Reshape", squares, self._constant(np.array([-1]))), f"{name}/{variant}")
        if made[ALL] is not right:
            self.output(self._op("Sub", made[ALL], right), f"{name}/{ALL}")

    def output(self, value: ir.Value, name: str) -> None:
        """Makes a value an output of this name."""
        result = ir.Value(name=f"{name}/output", type=ir.TensorType(ir.DataType.FLOAT))
        self.graph.append(ir.node("Identity", [value], outputs=[result], name=result.name))
        self.graph.outputs.append(result)

    def exact(self, value: ir.Value, layer: int) -> ir.Value:
        """A value of `exact`, which this layer reads or computes."""
        node = value.producer()
        tensor = constant_array(value)
        if tensor is not None:
            return self._initializer(tensor)
        if node is None or (self._parts.number(value) != layer and value.dtype == ir.DataType.FLOAT):
            return self._input(value.name or "", value.dtype)
        return self._copied(node, value, [None if item is None else self.exact(item, layer) for item in node.inputs])

    def _variant(self, value: ir.Value, layer: int, variant: str) -> ir.Value:
        """A value of `ready`, which this layer reads or computes, with what the variant has of its rounding."""
        tensor, node = constant_array(value), value.producer()
        if tensor is not None:
            return self._initializer(tensor)
        if node is not None and node.op_type == "DequantizeLinear":
            pair = pair_of(node)
            if pair is not None:
                source = pair.quantize.inputs[0]
                assert source is not None
                inner = self._variant(source, layer, variant)
                return self._rounded(inner, pair, variant) if self._parts.number(source) == layer else inner
        twin = self._parts.other(value)
        if node is None or (self._parts.number(value) != layer and twin is not None):
            return self._input(value.name or "", value.dtype) if twin is None else self.exact(twin, layer)
        with_weights = variant in (_WEIGHTS, _PAIRS, ALL)
        mirror = self._parts.twin(node)
        inputs: list[ir.Value | None] = []
        for place, item in enumerate(node.inputs):
            plain = mirror.inputs[place] if mirror is not None and place < len(mirror.inputs) else None
            fixed = item is not None and (constant_array(item) is not None or weights_of(item) is not None)
            if item is None:
                inputs.append(None)
            elif not fixed:
                inputs.append(self._variant(item, layer, variant))
            elif plain is not None and not with_weights and (tensor := constant_array(plain)) is not None:
                inputs.append(self._initializer(tensor))
            else:
                inputs.append(self._fixed(item))
        result = self._copied(node, value, inputs)
        if node.name in self._saturating and variant in (_PAIRS, ALL):
            result = self._op("Add", result, self._input(f"pairs/{node.name}", ir.DataType.FLOAT))
        return result

    def _fixed(self, value: ir.Value) -> ir.Value:
        """A constant, or weights that are stored as integers."""
        tensor, node = constant_array(value), weights_of(value)
        if tensor is not None:
            return self._initializer(tensor)
        assert node is not None
        return self._copied(node, value, [None if item is None else self._fixed(item) for item in node.inputs])

    def _rounded(self, value: ir.Value, pair: Pair | None, variant: str) -> ir.Value:
        """A value as a variant rounds it."""
        if pair is None or variant in (_WEIGHTS, _PAIRS):
            return value
        if variant == _CUT:
            low, high = (self._constant(np.array(end, np.float32)) for end in pair.ends)
            return self._op("Clip", value, low, high)
        numbers = [self._fixed(item) for item in pair.quantize.inputs[1:] if item is not None]
        return self._op("DequantizeLinear", self._op("QuantizeLinear", value, *numbers), *numbers)

    def _input(self, name: str, dtype: ir.DataType | None) -> ir.Value:
        if ("input", name) not in self._made:
            value = ir.Value(name=name, type=ir.TensorType(dtype or ir.DataType.FLOAT))
            self.graph.inputs.append(value)
            self._made["input", name] = value
        return self._made["input", name]

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A constant of either model: both may have one of its name."""
        if id(tensor) not in self._made:
            plain = lazy(lambda: tensor.numpy(), tensor, f"constant{len(self._made)}")
            self._made[id(tensor)] = add_initializer(self.graph, plain)
        return self._made[id(tensor)]

    def _constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        key = (array.dtype.name, array.tobytes())
        if key not in self._made:
            self._made[key] = add_initializer(self.graph, ir.Tensor(array, name=f"number{len(self._made)}"))
        return self._made[key]

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        key = (op_type, tuple(map(id, inputs)), str(attributes))
        if key not in self._made:
            output = ir.Value(name=f"value{len(self._made)}")
            self.graph.append(ir.node(op_type, inputs, attributes, outputs=[output], name=output.name))
            self._made[key] = output
        return self._made[key]

    def _copied(self, node: ir.Node, value: ir.Value, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """The value that a node of this kind computes of these inputs."""
        # Both models have a node of this name, with the same attributes.
        key = (node.name, node.op_type, tuple(map(id, inputs)))
        if (key, 0) not in self._made:
            name = f"value{len(self._made)}"
            outputs = [ir.Value(name=f"{name}:{place}") for place in range(len(node.outputs))]
            kept = [item for item in node.attributes.values() if isinstance(item, ir.Attr)]
            self.graph.append(ir.Node(node.domain, node.op_type, inputs, kept, outputs=outputs, name=name))
            self._made |= {(key, place): output for place, output in enumerate(outputs)}
        return self._made[key, node.outputs.index(value)]


def with_noise(parts: Parts, heads: Collection[str]) -> ir.Model:
    """`exact`, with an input `noise/NAME` for each result that a layer reads, which is added to it.

    Args:
        heads: names of the results that become its only outputs.
    """
    copy = parts.exact.clone()
    graph = copy.graph
    values = {value.name: value for value in (*graph.inputs, *(item for node in graph for item in node.outputs))}
    graph.outputs.clear()
    for name in parts.results:
        value = values[name]
        if name in heads:
            graph.outputs.append(value)
            continue
        noise = ir.Value(name=f"noise/{name}", type=ir.TensorType(ir.DataType.FLOAT))
        noisy = ir.Value(name=f"noisy/{name}", type=value.type, shape=value.shape)
        add = ir.node("Add", [value, noise], outputs=[noisy], name=noisy.name)
        producer, reader = value.producer(), next((use.node for use in value.uses()), None)
        if reader is None:
            continue
        value.replace_all_uses_with(noisy)
        add.replace_input_with(0, value)
        graph.inputs.append(noise)
        if producer is not None:
            graph.insert_after(producer, add)
        else:
            graph.insert_before(graph[0], add)
    return copy
