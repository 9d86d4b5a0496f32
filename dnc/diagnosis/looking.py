"""One image through one engine, layer by layer: exact values, what the engine makes of them, and the noise of each
layer by itself.

    exact      the results of all layers in float32
    engine     the same as the engine computes them: it is built once more, with them as outputs, and runs as it does
    own        the noise of each layer by itself

A layer's own noise is that of its rounding, which its graph says (`parts.taken_apart`), if it is in 8 bits; the sums of
two products that saturate in the engine's arithmetic are computed in integers (`dnc.quantization.saturation`). Of other
layers it is what the engine makes of its own inputs, less what float32 makes of them: what bfloat16 or another
library's float16 round is in no graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dnc.diagnosis.parts import ALL, Parts, taken_apart, weights_of
from dnc.diagnosis.weighing import Powers
from dnc.graph.pairs import Pairing
from dnc.graph.quantization import quant_params_of
from dnc.graph.rewriting import attribute, constant_array
from dnc.graph.running import Running
from dnc.quantization.saturation import Saturation, saturation
from dnc.runtime.inputs import Inputs, Prepared
from dnc.runtime.memory import States
from dnc.runtime.runners import Session
from dnc.targets.base import Candidate
from dnc.typing import Array

__all__ = ["Looked", "Looker"]

_AT_ONCE = 1 << 24
"""Elements of the results of layers that are taken apart in one model: what is computed of them is held at the same
time."""


@dataclass
class Looked:
    """What one image shows. Arrays are by the names of results."""

    exact: Mapping[str, Array]
    engine: Mapping[str, Array]
    """Without those that are nowhere in the engine."""
    own: dict[str, Array] = field(default_factory=dict)
    """Noise from exact inputs, as its graph says; without those that have none."""
    kinds: dict[str, dict[str, Powers]] = field(default_factory=dict)
    """The power of each variant's noise in each channel."""
    real: dict[str, Array] = field(default_factory=dict)
    """Noise of the engine from its own inputs: all of it, without those that are nowhere in the engine."""
    saturations: dict[int, list[Saturation]] = field(default_factory=dict)
    """Of each layer with 8-bit weights, where sums of pairs may saturate."""


class Looker:
    """Looks into an engine. A network with memory sees its images as one sequence, from zero.

    Args:
        candidate: the network made ready for its target, for one image at a time.
        exact: the same before the passes that round.
        folder: an empty folder for the engine.
        pairing: which products are added up in 16 bits; None where sums are exact.

    Raises:
        TargetError: the engine's library refuses it with the results of its layers as outputs.
    """

    def __init__(self, candidate: Candidate, exact: ir.Model, folder: Path, pairing: Pairing | None = None) -> None:
        self.parts = parts = Parts(exact, candidate.model)
        self._products = (
            [] if pairing is None else [_Product(parts, layer, node, pairing) for layer, node in parts.products()]
        )
        saturating = {product.name for product in self._products}
        groups = list(self._groups())
        rounded = any(parts.pair(name) is not None for name in parts.results) or any(parts.products())
        self._apart = [_Apart(taken_apart(parts, group, saturating=saturating)) for group in groups] if rounded else []
        self._plain = [_Apart(taken_apart(parts, group, exact=True)) for group in groups]
        needed = {name for apart in (*self._apart, *self._plain) for name in apart.inputs}
        needed |= {product.data for product in self._products}
        self._exact = Running(exact, optimize=True, watch={*parts.results, *needed}, spin=False)
        self._inputs = Inputs(candidate.manifest)
        self._states: tuple[States, States] = ({}, {})
        self._plainly = len(candidate.model.graph.outputs)
        model, self._read = _with_results(parts)
        candidate.target.build(model, folder, candidate.manifest)
        self._session: Session = candidate.target.runner().open(folder)
        self._outputs = [value.name or "" for value in model.graph.outputs]

    def _groups(self) -> Iterator[list[int]]:
        """Layers whose models are made together."""
        group: list[int] = []
        size = 0
        for number, names in self.parts.by_layer.items():
            own = sum(math.prod(_sides(self.parts.results[name])) for name in names)
            if group and size + own > _AT_ONCE:
                yield group
                group, size = [], 0
            group.append(number)
            size += own
        yield group

    def __call__(self, image: Prepared) -> Looked:
        """Looks at one image."""
        feeds, theirs = (self._inputs.batch([image], states=states) for states in self._states)
        exact = {**feeds, **self._exact(feeds)}
        computed = self._session.run(theirs)
        outputs = dict(zip(self._outputs, computed, strict=True))
        engine = {name: outputs[read] for name, read in self._read.items() if outputs[read].shape == exact[name].shape}
        successors = [exact[name] for name in self._outputs[: self._plainly]]
        self._states = (self._inputs.following(successors), self._inputs.following(computed[: self._plainly]))
        looked = Looked(exact, engine)
        added = {}
        for product in self._products:
            found = product(exact)
            added[f"pairs/{product.name}"] = product.error(found)
            looked.saturations.setdefault(product.layer, []).append(found)
        for apart in self._apart:
            for name, array in apart({**exact, **added}).items():
                result, _, variant = name.rpartition("/")
                if variant == ALL:
                    looked.own[result] = array
                else:
                    looked.kinds.setdefault(result, {})[variant] = array.astype(np.float64)
        given = {**exact, **theirs, **engine}
        for apart in self._plain:
            looked.real |= {name: engine[name] - array for name, array in apart(given).items() if name in engine}
        return looked


def _sides(value: ir.Value) -> list[int]:
    return [side for side in value.shape or () if isinstance(side, int)]


class _Product:
    """A convolution or matrix product with 8-bit weights, whose sums of two products saturate."""

    def __init__(self, parts: Parts, layer: int, node: ir.Node, pairing: Pairing) -> None:
        self.layer, self.name = layer, node.name or ""
        self._pairing = pairing
        read, made = node.inputs[0], weights_of(node.inputs[1])
        assert read is not None
        assert made is not None
        params = quant_params_of(read)
        assert params is not None
        self._params = params
        source = parts.before_rounding(read)
        self.data = source.name or ""
        integers, scales = (constant_array(value) for value in made.inputs[:2])
        assert integers is not None
        assert scales is not None
        self._weights = integers.numpy()
        self._scales = scales.numpy().reshape(-1).astype(np.float64) * params.scale[0]
        keys = {"strides": "strides", "pads": "pads", "dilations": "dilations"} if node.op_type == "Conv" else {}
        self._attributes = {name: attribute(node, key, []) for name, key in keys.items()}
        self._groups = int(attribute(node, "group", 1))

    def __call__(self, exact: Mapping[str, Array]) -> Saturation:
        """What saturates for exact inputs."""
        return saturation(
            self._params.quantize(exact[self.data]),
            self._weights,
            self._pairing,
            zero_point=self._params.zero_point,
            groups=self._groups,
            **self._attributes,
        )

    def error(self, found: Saturation) -> Array:
        """What that adds to its results; a single 0 for nothing."""
        if not found.saturated:
            return np.zeros(1, np.float32)
        scales = np.broadcast_to(self._scales, (found.error.shape[1],))
        return (found.error * scales.reshape(1, -1, *[1] * (found.error.ndim - 2))).astype(np.float32)


class _Apart:
    """A model of `taken_apart` that is open."""

    def __init__(self, model: ir.Model) -> None:
        self.inputs = [value.name or "" for value in model.graph.inputs]
        # Node by node, as the graph says: this machine's 8-bit arithmetic has no part in it.
        self._running = Running(model, spin=False) if model.graph.outputs else None

    def __call__(self, values: Mapping[str, Array]) -> dict[str, Array]:
        if self._running is None:
            return {}
        outputs = self._running({name: values[name] for name in self.inputs})
        return {name.removesuffix("/output"): array for name, array in outputs.items()}


def _with_results(parts: Parts) -> tuple[ir.Model, dict[str, str]]:
    """`ready` with the results of all layers as outputs in float32, as others read them; and their names there."""
    copy = parts.ready.clone()
    graph = copy.graph
    values = {value.name: value for node in graph for value in node.outputs}
    known = {value.name for value in graph.outputs}
    names: dict[str, str] = {}
    for name in parts.results:
        read = parts.as_read(name)
        value = values.get(read.name) if read is not None else None
        if value is None or read is None:
            continue
        if value.dtype not in (None, ir.DataType.FLOAT):
            wide = ir.Value(name=f"{value.name}/wide", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
            cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, outputs=[wide], name=wide.name)
            producer = value.producer()
            assert producer is not None
            graph.insert_after(producer, cast)
            value = wide
        names[name] = value.name or ""
        if value.name not in known:
            known.add(value.name)
            graph.outputs.append(value)
    return copy, names
