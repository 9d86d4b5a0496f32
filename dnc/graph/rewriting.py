"""What every pass is: an in-place rewriting of an onnx_ir model that keeps its outputs and says what it did."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.errors import PassError
from dnc.graph.builder import constant_name, where_of
from dnc.runtime.options import Option, check_names, parse_options

__all__ = [
    "Pass",
    "Remark",
    "Remarks",
    "add_initializer",
    "add_node",
    "attribute",
    "constant_array",
    "constant_scalar",
    "for_one_image",
    "is_pointwise",
    "is_product",
    "producer_of",
    "rename",
    "replace_uses",
    "shared_constant",
    "sole_user",
]


class Remark(NamedTuple):
    """What a pass did at one place, or why it did nothing there."""

    where: str
    """The cfg section that the node came from: `a.cfg:12 [convolutional] #3`."""
    text: str


class Remarks:
    """What a pass applied and what it missed, node by node in the order of the graph: the answer of `dnc explain`."""

    def __init__(self) -> None:
        self.applied: list[Remark] = []
        self.missed: list[Remark] = []

    @property
    def count(self) -> int:
        """How often the pass applied; 0 means that the model is as it was."""
        return len(self.applied)

    def apply(self, node: ir.Node, what: str) -> None:
        """Remarks a rewriting of `node`."""
        self.applied.append(Remark(where_of(node), what))

    def miss(self, node: ir.Node, reason: str) -> None:
        """Remarks that `node` is of the pass's kind, but stays as it is."""
        self.missed.append(Remark(where_of(node), reason))

    def tell(self, node: ir.Node, what: str, reason: str) -> bool:
        """Remarks a rewriting of `node`, or the reason against it; returns whether there was none."""
        (self.miss if reason else self.apply)(node, reason or what)
        return not reason


class Pass(ir.passes.InPlacePass):
    """A rewriting with a name, as on the command line, a declared tolerance, and options.

    Args:
        **values: options by name: as `Option.parse` makes them, or as text; those left out have their defaults.

    Raises:
        PassError: there is no such option, or it has no such value.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float] = 0.0
    """By how much outputs may differ, relative to the largest of each: 0 where no number changes."""
    applies_to: ClassVar[str] = ""
    """Where it applies, for `dnc passes`."""
    known_options: ClassVar[Sequence[Option]] = ()
    expands: ClassVar[str] = ""
    """The composite (`dnc.graph.composites`) that it puts operators in the place of, which then stays until it runs."""
    needs: ClassVar[str] = ""
    """What a model must have, if it is in vain to name the pass where that is missing; empty for an optimization, which
    may find nothing to do."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        owner = f"pass {self.name}"
        check_names(owner, self.known_options, values, PassError)
        text = {name: value for name, value in values.items() if isinstance(value, str)}
        self.options: dict[str, Any] = parse_options(owner, self.known_options, text, PassError)
        self.options |= {name: value for name, value in values.items() if name not in text}

    @classmethod
    def from_text(cls, given: Mapping[str, str]) -> Self:
        """The pass with options as the user wrote them, by name. Raises PassError if there is no such option, or it has
        no such value."""
        check_names(f"pass {cls.name}", cls.known_options, given, PassError)
        return cls(**given)

    def configured(self, given: Mapping[str, str]) -> Self:
        """The same pass with some options anew, as the user wrote them; raises PassError as `from_text`."""
        fresh = type(self).from_text(given)
        copied = copy.copy(self)
        copied.options = {**self.options, **{name: fresh.options[name] for name in given}}
        return copied

    def unmet(self, remarks: Remarks) -> str:
        """Why `rewrite`, which gave the remarks, did not do what was asked for by naming the pass; empty if it did."""
        if remarks.count or not self.needs:
            return ""
        return remarks.missed[0].text if remarks.missed else f"there is no {self.needs}"

    @abstractmethod
    def rewrite(self, model: ir.Model) -> Remarks:
        """Rewrites the model in place; a second run on the result applies nowhere."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """onnx_ir's own interface to `rewrite`."""
        return ir.passes.PassResult(model, bool(self.rewrite(model).count))


def constant_array(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer that nothing can override; None for any other value."""
    if value is None or value.const_value is None or value.is_graph_input() or value.producer() is not None:
        return None
    return value.const_value


def constant_scalar(value: ir.Value | None) -> float | None:
    """The number in an initializer of one element; None for any other value."""
    tensor = constant_array(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value (ints as a list), or the default where the node leaves it out."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return list(found.value) if isinstance(found.value, tuple) else found.value


def is_pointwise(conv: ir.Node) -> bool:
    """Whether a Conv computes each pixel from that pixel alone: 1x1 taps, stride 1, no padding; groups may be."""
    weights = conv.inputs[1]
    return (
        weights is not None
        and weights.shape is not None
        and set(weights.shape[2:]) == {1}
        and set(attribute(conv, "strides", [1])) == {1}
        and not any(attribute(conv, "pads", [0]))
        and attribute(conv, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def is_product(node: ir.Node | None) -> bool:
    """Whether it is a convolution or a matrix product."""
    return node is not None and node.op_type in ("Conv", "Gemm") and node.domain == ""


def producer_of(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that computes a value, if it is one of these operators of ONNX; else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in operators and not node.domain else None


def sole_user(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, once; None where it is a graph output, or read by others as well."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def add_node(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Iterable[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    outputs: int = 1,
    name: str | None = None,
) -> ir.Node:
    """A new node that stands before `before` in the graph and carries its place in the cfg.

    Its output values have no shapes: the pipeline's check infers them; a pass that needs one at once sets it.
    """
    name = name or f"{before.name}/{op_type}"
    taken = _names_of(graph)
    number, unique = 0, name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    values = [ir.Value(name=unique if i == 0 else f"{unique}:{i}") for i in range(outputs)]
    node = ir.node(
        op_type,
        list(inputs),
        dict(attributes or {}),
        outputs=values,
        name=unique,
        metadata_props=dict(before.metadata_props),
    )
    graph.insert_before(before, node)
    taken.add(unique)
    graph.meta[_NAMES] = (taken, len(graph))
    return node


_NAMES = "dnc.names"


def _names_of(graph: ir.Graph) -> set[str | None]:
    """The names of all nodes, and of some that are gone: looked for once, not for each node that is added."""
    names, count = graph.meta.get(_NAMES, (set(), 0))
    # Others add nodes, too; who only removes some leaves names that are taken as far as this goes.
    return names if len(graph) <= count else {node.name for node in graph}


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer that holds the tensor, under its name or, where that is taken, the next free one."""
    name, number = tensor.name or "constant", 0
    while name in graph.initializers:
        number += 1
        name = f"{tensor.name}_{number}"
    tensor.name = name
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def shared_constant(graph: ir.Graph, array: npt.NDArray[Any]) -> ir.Value:
    """A small initializer, the same for equal arrays."""
    name = constant_name(array)
    known = graph.initializers.get(name)
    if known is None or known.const_value is None or not np.array_equal(known.const_value.numpy(), array):
        known = add_initializer(graph, ir.Tensor(np.asarray(array, order="C"), name=name))
    return known


def for_one_image(model: ir.Model) -> ir.Model:
    """A copy of the model for one image alone, where its batch is free (N); itself where it is not."""
    if not any(value.shape and value.shape[0] == "N" for value in model.graph.inputs):
        return model
    alone = model.clone()
    inner = (value for node in alone.graph for value in node.outputs)
    for value in (*alone.graph.inputs, *inner):
        if value.shape is not None:
            value.shape = ir.Shape([1 if side == "N" else side for side in value.shape])
    return alone


def rename(value: ir.Value, name: str) -> None:
    """Gives a name to a value that holds other numbers now. What was known of the old ones, as their range, goes."""
    value.name = name
    value.meta.clear()


def replace_uses(old: ir.Value, new: ir.Value, graph: ir.Graph) -> None:
    """Lets everything that reads `old`, the graph's outputs included, read `new`; `new` takes the name over, and what
    is known of the numbers under it (`dnc.graph.quantization`).

    The names of layers' outputs and of graph outputs are what engines are compared and called by, so they stay; so do
    the names of graph inputs and initializers, which come first where a layer is nothing but one of them.
    """
    name = old.name
    replaced = False
    for position, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[position] = new
            replaced = True
    old.replace_all_uses_with(new)
    layer = (name or "").startswith("layer") and not (new.name or "").startswith("layer")
    if replaced or (layer and new.producer() is not None):
        known = dict(old.meta)
        rename(old, f"{name}/replaced")
        new.name = name
        new.meta.clear()
        new.meta.update(known)
    new.shape = new.shape or old.shape
    new.type = new.type or old.type
