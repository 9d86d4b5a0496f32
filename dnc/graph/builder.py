"""How layers make nodes: a thin builder over onnx_ir.

The intermediate graph is an `onnx_ir.Model` in ONNX opset 14 (the newest that every engine dnc emits for can read, the
Myriad X compiler included). Each node carries the place of its section in `metadata_props["dnc.where"]`.

Weights stay where they are: an initializer wraps the memory-mapped array, or a function that computes it when it is
written (`lazy`), so that a pass may rewrite every weight of a network without holding two copies of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.errors import Where

__all__ = ["BINARY_CONVOLUTION", "DOMAIN", "OPSET", "WHERE", "Builder", "constant_name", "lazy", "where_of"]

OPSET = 14
DOMAIN = "dnc"
"""That of composites."""
BINARY_CONVOLUTION = "BinaryConvolution"
IR_VERSION = 8
WHERE = "dnc.where"
_CHAIN = 16
"""More tensors than that are not computed one of the other: a layer's weights are changed by a few passes each, unless
a network has a thousand normalisations in a row."""
_SMALL = 1024
"""Bytes up to which equal constants are one initializer."""


def constant_name(data: npt.NDArray[Any]) -> str:
    """What a small constant is called: the same for equal ones, so that they are one initializer; without a slash."""
    text = "_".join(map(str, data.ravel().tolist()))
    shape = "x".join(map(str, data.shape))
    return f"constant_{data.dtype.name}_{shape}_{text}".replace("/", "_")


def where_of(node: ir.Node) -> str:
    """The cfg section that a node came from, or its name where a pass or the decoder made it."""
    return node.metadata_props.get(WHERE) or f"node {node.name}"


class Builder:
    """Collects the nodes and initializers of a graph; layers call `op` and `constant`.

    `batch` is the first dimension of every input: a number, or a name for a batch of any size.
    """

    def __init__(self, batch: int | str = "N") -> None:
        self.batch = batch
        self.nodes: list[ir.Node] = []
        self.inputs: MutableSequence[ir.Value] = []
        self.outputs: MutableSequence[ir.Value] = []
        self.states: dict[str, ir.Value] = {}
        """The states of the recurrent layer that is being emitted; it puts their successors in `next_states`."""
        self.next_states: dict[str, ir.Value] = {}
        self.functions: list[ir.Function] = []
        """Those that the nodes call: see `dnc.graph.composites`."""
        self._initializers: dict[str, ir.Value] = {}
        self._names: dict[str, int] = {}
        self._prefix = ""
        self._metadata: dict[str, str] = {}

    def enter(self, prefix: str, where: Where | str = "") -> None:
        """Names and places of what is added from now on."""
        self._prefix = prefix
        place = where.short if isinstance(where, Where) else where
        self._metadata = {WHERE: place} if place else {}

    def _unique(self, hint: str) -> str:
        name = f"{self._prefix}/{hint}" if self._prefix else hint
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name

    def input(self, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """A graph input of shape (batch, *shape)."""
        value = ir.Value(name=name, shape=ir.Shape([self.batch, *shape]), type=ir.TensorType(dtype))
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, shape: Sequence[int | str] | None = None) -> ir.Value:
        """Makes `value` a graph output called `name`; one that has another name already goes through Identity."""
        if value in self.outputs or value.producer() is None or (value.name or "").startswith("layer"):
            value = self.op("Identity", value)
        value.name = name
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        if shape is not None:
            value.shape = ir.Shape(list(shape))
        self.outputs.append(value)
        return value

    def constant(self, array: npt.ArrayLike, name: str = "constant") -> ir.Value:
        """An initializer; a Python float becomes float32, a Python int int64. Small equal ones are shared."""
        data = np.asarray(array)
        if data.dtype == np.float64:
            data = data.astype(np.float32)
        # One scalar serves the whole graph: engines fuse no worse, and the graph is easier to read.
        shared = name == "constant" and data.nbytes <= _SMALL
        key = constant_name(data) if shared else self._unique(name)
        if key not in self._initializers:
            self._initializers[key] = self._hold(ir.Tensor(np.asarray(data, order="C"), name=key))
        return self._initializers[key]

    def _hold(self, tensor: ir.TensorProtocol) -> ir.Value:
        """The value of a constant."""
        return ir.Value(
            name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )

    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        """Adds a node and returns its first output. Attributes that are None are left out."""
        return self.ops(op_type, *inputs, outputs=outputs, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Adds a node with several outputs and returns them."""
        name = self._unique(op_type)
        values = [ir.Value(name=name if i == 0 else f"{name}:{i}") for i in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        metadata = dict(self._metadata)
        node = ir.node(op_type, list(inputs), given, domain=domain, outputs=values, name=name, metadata_props=metadata)
        self.nodes.append(node)
        return values

    def binary_convolution(
        self,
        x: ir.Value,
        weights: ir.Value,
        scale: ir.Value,
        bias: ir.Value,
        *,
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
    ) -> ir.Value:
        """A convolution of signs with signs, see `dnc.graph.binary`."""
        spatial: dict[str, Any] = {"strides": strides, "pads": pads, "dilations": dilations}
        return self.ops(BINARY_CONVOLUTION, x, weights, scale, bias, domain=DOMAIN, **spatial)[0]

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Reshapes everything but the batch axis, which stays as it is (ONNX: a 0 copies the dimension)."""
        return self.op("Reshape", x, self.constant(np.array([0, *shape], np.int64)))

    def slice(self, x: ir.Value, axis: int, start: int, stop: int, step: int = 1) -> ir.Value:
        """x[start:stop:step] along one axis."""
        numbers = [np.array([number], np.int64) for number in (start, stop, axis, step)]
        return self.op("Slice", x, *(self.constant(number) for number in numbers))

    def reduce_sum(self, x: ir.Value, axis: int) -> ir.Value:
        """The sum along an axis, which stays with length 1 (axes are an input from opset 13 on)."""
        return self.op("ReduceSum", x, self.constant(np.array([axis], np.int64)), keepdims=1)

    def model(self, name: str, metadata: Mapping[str, str]) -> ir.Model:
        """The finished model. Unused initializers are left out."""
        used = {value.name for node in self.nodes for value in _reads(node)}
        initializers = [value for key, value in self._initializers.items() if key in used]
        opsets = {"": OPSET} | {function.domain: 1 for function in self.functions}
        graph = ir.Graph(
            self.inputs, self.outputs, nodes=self.nodes, initializers=initializers, opset_imports=opsets, name=name
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="dnc", functions=self.functions)
        model.metadata_props.update(metadata)
        return model


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _reads(inner)
            yield from attribute.as_graph().outputs


def lazy(
    function: Callable[[], npt.NDArray[Any]],
    like: ir.TensorProtocol,
    name: str,
    *,
    shape: Sequence[int] | None = None,
    dtype: ir.DataType | None = None,
) -> ir.TensorProtocol:
    """A tensor that is computed whenever it is read: nothing is held in between. Shape and type are `like`'s, if not
    given.

    `like` is what it is computed of. Of a long chain of such tensors each _CHAIN-th is computed at once and held.
    """

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(function(), order="C"), name=name)

    chain = like.chain + 1 if isinstance(like, _Lazy) else 1
    if chain == _CHAIN:
        return compute()
    sides = ir.Shape(like.shape.numpy() if shape is None else shape)
    tensor = _Lazy(compute, dtype=dtype or like.dtype, shape=sides, cache=False, name=name)
    tensor.chain = chain
    return tensor


class _Lazy(ir.LazyTensor):
    """Knows how many are computed, one of the other, when it is read."""

    chain: int
