"""The noise that each layer brings into the heads if it alone is quantized.

    noise of layer l  =  |heads(l alone in 8 bits) - heads|^2 / |heads|^2,    the mean over the heads, over all images

Noises of layers add up, so that they tell which layers are worth most in float32, and where accuracy is lost.

Engines with one quantized layer each would take longer to make than to run. Here all of them are one graph:

1. For each layer the passes that quantize run with all others kept in float32. What they change are a few nodes around
   the layer: the roundings, and those whose inputs became others.
2. Their results become rows of a batch: the graph computes the float32 network in row 0, computes what changed of
   layer l by itself, from that row, and appends it as another row where the next product reads it. From there on it is
   one of the batch. So a layer costs its own nodes and one image of all that comes after it, half a network in the
   mean, and everything is opened once.
3. A row is a whole image: every node before the heads' outputs treats the images of a batch alike, each by itself.
   Detections, which are of any number, are none: in their place count the results of the last products.

Roundings are computed as the graph says, and not with a processor's 8-bit instructions: the noise is the same on every
machine, and that of sums that saturate is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.pipeline import Pipeline, Step
from dnc.graph.running import Running
from dnc.passes.shared.reduced_precision import PRODUCTS, around_products, layer_of
from dnc.quantization.remembered import Remembered, digest_of, digest_of_model
from dnc.typing import Array, Progress, is_number, silent

__all__ = ["Quantization", "enough_images", "noises"]

Quantization = Callable[[Collection[str]], Sequence[Step]]
"""The passes that quantize all but some layers, as `Target.quantize`."""

_ROWS = 32
"""Layers of one graph, at most: each holds one more image's values."""
_IMAGES = 4
"""Their order was the same with 16."""
_RUNS = 400
"""Layers times images, at most: half of it is what they cost in runs of the network, twice the 100 of a calibration."""
_ADDING = frozenset({*PRODUCTS, "Add", "Mul"})
"""What brings noise in. What moves and joins numbers passes on what others round."""
_SHAPES = frozenset({"Shape", "Size"})
"""They read no numbers, and have to give those of one image."""


def noises(
    model: ir.Model,
    quantization: Quantization,
    feeds: Iterable[Mapping[str, Array]],
    *,
    cache: Path | None = None,
    progress: Progress = silent,
) -> dict[int, float]:
    """The noise of each layer that would be quantized, by its number, if only it is: the power of what changes in the
    heads as a share of their signal's, 0.01 for -20 dB.

    Args:
        model: after the target's passes, in float32, with ranges on its values; it stays as it is.
        quantization: makes the passes.
        feeds: inputs of several runs, by name. Of a batch only the first image counts.
        cache: the folder in which measurements are kept (`dnc.files.places.cache_dir`); none are if not given.
        progress: is told what happens now.

    Raises:
        TargetError: ONNX Runtime is not installed.
    """
    steps = list(quantization([]))
    first = next((place for place, step in enumerate(steps) if step.name == "quantize"), len(steps))
    base = model.clone()
    for step in steps[:first]:
        # What comes before is the same whatever stays in float32.
        step.rewriting.rewrite(base)
    layers, every = _quantized_layers(base, steps[first:])
    given = list(feeds)
    remembered = Remembered(cache)
    arrays = (part for feed in given for name in feed for part in (name, np.ascontiguousarray(feed[name]).data))
    key = digest_of(["noise", digest_of_model(model), digest_of_model(every), *arrays])
    known = _known(remembered.get(key), layers)
    if known is not None:
        return known
    last = max((number for node in base.graph if (number := layer_of(node)) is not None), default=0)
    sums: dict[str, _Power] = {}
    for start in range(0, len(layers), _ROWS):
        joined = _Joined(base)
        for number, layer in enumerate(layers[start : start + _ROWS], start + 1):
            progress(f"quantizing layer {layer} alone, {number} of {len(layers)}")
            others = [f"{low}-{high}" for low, high in ((0, layer - 1), (layer + 1, last)) if low <= high]
            alone = base.clone()
            for step in quantization(others)[first:]:
                # They were checked above, on all layers at once.
                step.rewriting.rewrite(alone)
            joined.add(layer, alone)
        running = Running(joined.finish(), optimize=True, integers=False, spin=False)
        for number, feed in enumerate(given, 1):
            shown = f"{layers[start]} to {layers[min(start + _ROWS, len(layers)) - 1]}"
            progress(f"noise of layers {shown}, image {number} of {len(given)}")
            outputs = running(joined.one_image(feed))
            for name, rows in joined.rows.items():
                sums.setdefault(name, _Power()).add(outputs[name], rows, counts=start == 0)
    found = {layer: float(np.mean([power.share(layer) for power in sums.values()])) for layer in layers}
    remembered.put(key, {str(layer): noise for layer, noise in found.items() if math.isfinite(noise)})
    return found


def _known(content: object, layers: Sequence[int]) -> dict[int, float] | None:
    """What was measured of these layers, or None. An infinite noise is none of JSON's numbers."""
    if not isinstance(content, dict) or not content.keys() <= set(map(str, layers)):
        return None
    if not all(is_number(noise) and noise >= 0 for noise in content.values()):
        return None
    return {layer: float(content.get(str(layer), math.inf)) for layer in layers}


def enough_images(model: ir.Model) -> int:
    """On how many images layers are compared with each other: fewer of a deep network."""
    layers = {layer_of(node) for node in model.graph if node.op_type in _ADDING}
    return max(1, min(_IMAGES, _RUNS // max(len(layers), 1)))


def _quantized_layers(base: ir.Model, steps: Sequence[Step]) -> tuple[list[int], ir.Model]:
    """The layers in which these passes quantize what brings noise in, in order; and the network with all of them."""
    every = base.clone()
    applied = Pipeline(steps).run(every)
    noted = {remark.where for item in applied if item.name == "quantize" for remark in item.remarks.applied}
    numbers = {
        layer_of(node)
        for node in base.graph
        if node.op_type in _ADDING and node.metadata_props.get("dnc.where") in noted
    }
    return sorted(number for number in numbers if number is not None), every


@dataclass
class _Power:
    """Of one output: that of its signal, and of each layer's noise in it."""

    signal: float = 0.0
    noise: dict[int, float] = field(default_factory=dict)

    def add(self, array: Array, layers: Sequence[int], *, counts: bool) -> None:
        """Adds one image: row 0 without noise, and one for each layer. `counts` says whether the signal is new."""
        clean = array[0].astype(np.float64)
        self.signal += float(np.square(clean).sum()) if counts else 0.0
        for layer, row in zip(layers, array[1:], strict=True):
            self.noise[layer] = self.noise.get(layer, 0.0) + float(np.square(row - clean).sum())

    def share(self, layer: int) -> float:
        """The noise of a layer relative to the signal."""
        noise = self.noise.get(layer, 0.0)
        return noise / self.signal if self.signal else math.inf if noise else 0.0


@dataclass
class _Rows:
    """A value of the network in the joined graph."""

    value: ir.Value
    """Row 0 is without noise."""
    layers: tuple[int, ...] = ()
    """Those whose rows come after it, in order. A layer that is in neither place has row 0."""
    single: dict[int, ir.Value] = field(default_factory=dict)
    """The rows of others, which are values of their own."""

    @property
    def order(self) -> tuple[int, ...]:
        """All layers that differ from row 0."""
        return (*self.layers, *self.single)


class _Joined:
    """Makes the graph of cases 2 and 3.

    Args:
        base: the network in float32.
    """

    def __init__(self, base: ir.Model) -> None:
        self._base = base
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._names = {value.name for node in base.graph for value in node.outputs}
        self._originals = {node.outputs[0].name: node for node in base.graph}
        self._alone: dict[int, ir.Model] = {}
        self._changed: dict[str | None, dict[int, ir.Node]] = {}
        """What differs in a layer's graph, by the name of what it gives."""
        self._fresh: dict[int, dict[str, ir.Value]] = {}
        """What only a layer's graph has, once computed."""
        self._taken: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}
        self._values: dict[str, _Rows] = {}
        self.rows: dict[str, tuple[int, ...]] = {}
        """Once finished: the layers of each output's rows after the first one."""

    def add(self, layer: int, alone: ir.Model) -> None:
        """Adds the network with one layer quantized, whose values have the names that they have in float32."""
        self._alone[layer], self._fresh[layer] = alone, {}
        for node in alone.graph:
            original = self._originals.get(node.outputs[0].name)
            if original is None or not self._equal(node, original):
                self._changed.setdefault(node.outputs[0].name, {})[layer] = node

    @staticmethod
    def _equal(node: ir.Node, other: ir.Node) -> bool:
        """Whether nodes of two copies of a graph are the same. Copies share attributes and tensors."""

        def reads(value: ir.Value | None) -> tuple[Any, ...]:
            return () if value is None else (value.name, id(value.const_value))

        return (
            node.op_identifier() == other.op_identifier()
            and list(map(reads, node.inputs)) == list(map(reads, other.inputs))
            and {name: id(item) for name, item in node.attributes.items()}
            == {name: id(item) for name, item in other.attributes.items()}
        )

    def one_image(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The first image of a batch."""
        names = {value.name for value in self._base.graph.inputs if self._is_batch(value)}
        return {name: array[:1] if name in names else array for name, array in feed.items()}

    def _is_batch(self, value: ir.Value) -> bool:
        sizes = [None if item.shape is None else item.shape[:1] for item in (value, self._base.graph.inputs[0])]
        return sizes[0] == sizes[1]

    def finish(self) -> ir.Model:
        """The joined graph."""
        graph = self._base.graph
        inputs = []
        for value in graph.inputs:
            assert value.shape is not None
            shape = ir.Shape([1, *value.shape[1:]]) if self._is_batch(value) else value.shape
            inputs.append(ir.Value(name=value.name, shape=shape, type=value.type))
            self._values[value.name or ""] = _Rows(inputs[-1])
        measured = self._measured()
        needed: set[ir.Node] = set()
        waiting = [value.producer() for value in measured]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in needed:
                needed.add(node)
                waiting += node.predecessors()
        for node in graph:
            if node in needed:
                self._spread(node)
        outputs = []
        for value in measured:
            rows, name = self._values[value.name or ""], f"rows/{value.name}"
            self.rows[name] = rows.order
            output = self._emit("Identity", [self._joined(rows, rows.order)], name)
            output.type = ir.TensorType(ir.DataType.FLOAT)
            outputs.append(output)
        made = ir.Graph(
            inputs,
            outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=graph.opset_imports,
            name="noise",
        )
        functions = [function.clone() for function in self._base.functions.values()]
        return ir.Model(made, ir_version=self._base.ir_version, producer_name="dnc", functions=functions)

    def _measured(self) -> list[ir.Value]:
        """What noise is measured in: case 3. The passes keep the names of outputs."""
        graph = self._base.graph
        found = [value for value in graph.outputs if self._is_batch(value)]
        if len(found) < len(graph.outputs):
            _, before, _ = around_products(list(graph))
            found += [node.outputs[0] for node in graph if node.op_type in PRODUCTS and node not in before]
        return found

    def _spread(self, node: ir.Node) -> None:
        """Computes a node of the network: for all rows at once, and by itself where it changed or is cheap."""
        changed = self._changed.get(node.outputs[0].name, {})
        reads = [rows for value in node.inputs if (rows := self._rows_of(value)) is not None]
        if node.op_type in _SHAPES:
            reads = []
        # The rows of the input that has the most stay in their order.
        orders = sorted((rows.order for rows in reads), key=len, reverse=True)
        layers = [layer for layer in dict.fromkeys(sum(orders, ())) if layer not in changed]
        batch = tuple(
            layer for layer in layers if node.op_type in PRODUCTS or any(layer in rows.layers for rows in reads)
        )
        inputs = [self._together(value, batch, node) for value in node.inputs]
        names = [value.name or "" for value in node.outputs]
        results = self._copy(node, inputs, names)
        for name, result in zip(names, results, strict=True):
            self._values[name] = _Rows(result, batch)
        single = {layer: node for layer in layers if layer not in batch} | changed
        for layer, own in single.items():
            for name, result in zip(names, self._compute(own, layer), strict=True):
                self._values[name].single[layer] = result

    def _rows_of(self, value: ir.Value | None) -> _Rows | None:
        return None if value is None else self._values.get(value.name or "")

    def _together(self, value: ir.Value | None, layers: tuple[int, ...], node: ir.Node) -> ir.Value | None:
        """An input of a node that computes row 0 and those of these layers."""
        rows = self._rows_of(value)
        if value is None or rows is None:
            held = None if value is None else self._held(value, "")
            # A constant that is joined to images has to be as many.
            return self._take(held, (0,) * (len(layers) + 1)) if held and node.op_type == "Concat" and layers else held
        return self._joined(rows, () if node.op_type in _SHAPES else layers)

    def _joined(self, rows: _Rows, layers: tuple[int, ...]) -> ir.Value:
        """Row 0 and those of these layers."""
        single = [layer for layer in layers if layer in rows.single]
        key = (rows.value, tuple(-layer - 1 for layer in single))
        if single and key not in self._taken:
            parts = [rows.value, *(rows.single[layer] for layer in single)]
            self._taken[key] = self._emit("Concat", parts, axis=0)
        value = self._taken[key] if single else rows.value
        order = (*rows.layers, *single)
        place = {layer: number for number, layer in enumerate(order, 1)}
        return value if order == layers else self._take(value, (0, *(place.get(layer, 0) for layer in layers)))

    def _row(self, value: ir.Value | None, layer: int) -> ir.Value | None:
        """A value of a layer's own graph."""
        if value is None:
            return None
        name = value.name or ""
        rows = self._values.get(name)
        if rows is not None:
            if layer in rows.single:
                return rows.single[layer]
            place = rows.layers.index(layer) + 1 if layer in rows.layers else 0
            return self._take(rows.value, (place,)) if rows.layers else rows.value
        node = value.producer()
        if node is None:
            return self._held(value, f"alone{layer}/")
        if name not in self._fresh[layer]:
            results = self._compute(node, layer)
            self._fresh[layer].update(zip((item.name or "" for item in node.outputs), results, strict=True))
        return self._fresh[layer][name]

    def _compute(self, node: ir.Node, layer: int) -> Sequence[ir.Value]:
        """What a node of a layer's own graph gives."""
        inputs = [self._row(value, layer) for value in node.inputs]
        return self._copy(node, inputs, [f"alone{layer}/{value.name}" for value in node.outputs])

    def _held(self, value: ir.Value, prefix: str) -> ir.Value:
        """An initializer; of a layer's own graph with the prefix, if it is another one there."""
        tensor, known = value.const_value, self._base.graph.initializers.get(value.name or "")
        assert tensor is not None
        if known is not None and known.const_value is tensor:
            return self._initializer(tensor)
        name, plain = f"{prefix}{value.name}", tensor
        return self._initializer(
            ir.LazyTensor(
                lambda: ir.Tensor(plain.numpy(), name=name),
                dtype=plain.dtype,
                shape=ir.Shape(plain.shape.numpy()),
                name=name,
            )
        )

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """One of the joined graph, by the tensor's name."""
        name = tensor.name or ""
        shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        return self._initializers.setdefault(name, ir.Value(name=name, shape=shape, type=kind, const_value=tensor))

    def _take(self, value: ir.Value, places: tuple[int, ...]) -> ir.Value:
        """These rows of a value."""
        if (value, places) not in self._taken:
            name = f"rows/{'-'.join(map(str, places))}"
            index = self._initializer(ir.Tensor(np.array(places, np.int64), name=name))
            self._taken[value, places] = self._emit("Gather", [value, index], axis=0)
        return self._taken[value, places]

    def _emit(self, op_type: str, inputs: Sequence[ir.Value], name: str = "", **attributes: Any) -> ir.Value:
        result = ir.Value(name=name or f"rows/{op_type}{len(self._nodes)}")
        self._nodes.append(ir.node(op_type, inputs, attributes, outputs=[result], name=result.name))
        return result

    def _copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], names: Sequence[str]) -> Sequence[ir.Value]:
        """The same node with other inputs and outputs of these names."""
        outputs = [ir.Value(name=name) for name in names]
        attributes = list(node.attributes.values())
        self._nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                attributes,
                overload=node.overload,
                outputs=outputs,
                name=f"{names[0]}/node",
            )
        )
        return outputs
