"""Composites: steps of several operators that stay one node of the graph until a target takes or expands them.

    Preprocess          pixels -> the network's input        dnc.graph.preprocessing
    DecodeBoxes         the heads' maps -> boxes, scores      dnc.graph.suppression
    NonMaxSuppression   boxes, scores -> detections           dnc.graph.suppression
    BinaryConvolution   signs times signs (xnor=1)            dnc.graph.binary

A composite is a call of a model-local function of ONNX in the domain `dnc`: ONNX Runtime runs it as it is, by the nodes
of the function's body. A target that has something better for a step names it in `Target.composites`, and reads from
the attributes of the call what the step does; for all others `inline_composites` puts the body in its place before the
passes run. The nodes of the body have the names, and the line of the cfg, that they would have in the graph.

Attributes say what the body was written for. A pass may change none of them but a tensor that the body reads by
reference (`Body.scaled`). A composite computes in float32, whatever surrounds it.

A model has as many BinaryConvolution as it has such layers. They share a function, whose body unpacks the weights, and
these are initializers; what takes their place elsewhere is written by `dnc.graph.binary.expand` or, in the form that an
engine runs fastest, by the pass binarize (`Pass.expands`). Of the others there is at most one each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from dnc.graph.binary import expand, write_body
from dnc.graph.builder import BINARY_CONVOLUTION, DOMAIN, OPSET, Builder
from dnc.graph.rewriting import add_initializer, shared_constant
from dnc.graph.serialization import check

__all__ = [
    "BINARY_CONVOLUTION",
    "DECODE_BOXES",
    "NON_MAX_SUPPRESSION",
    "PREPROCESS",
    "Body",
    "attributes_of",
    "add_functions",
    "call_composite",
    "inline_composites",
    "is_composite",
    "remove_uncalled",
]

DECODE_BOXES, NON_MAX_SUPPRESSION, PREPROCESS = "DecodeBoxes", "NonMaxSuppression", "Preprocess"


class Body(Builder):
    """Collects the nodes of a composite's function. Its names go on from those of the graph that calls it.

    A function has no initializers: constants are nodes.
    """

    def __init__(self, caller: Builder) -> None:
        super().__init__(caller.batch)
        self._names, self._prefix, self._metadata = caller._names, caller._prefix, caller._metadata

    def _hold(self, tensor: ir.TensorProtocol) -> ir.Value:
        return self._constant(tensor.name or "", ir.AttrTensor("value", tensor))

    def scaled(self, x: ir.Value, attribute: str) -> ir.Value:
        """x times the tensor in an attribute of the call; once inlined, x itself where that is 1 everywhere."""
        reference = ir.RefAttr("value", attribute, ir.AttributeType.TENSOR)
        return self.op("Mul", x, self._constant(attribute, reference))

    def _constant(self, name: str, attribute: ir.Attr) -> ir.Value:
        value = ir.Value(name=name)
        self.nodes.append(ir.Node("", "Constant", [], [attribute], outputs=[value], name=name))
        return value


def call_composite(
    b: Builder,
    kind: str,
    inputs: Sequence[ir.Value],
    write: Callable[..., Sequence[ir.Value]],
    shapes: Sequence[Sequence[int | str]],
    **attributes: Any,
) -> Sequence[ir.Value]:
    """Adds a composite and its function.

    Args:
        b: the graph that calls it.
        kind: its name.
        inputs: the values that it reads.
        write: makes the outputs of a `Body` and the function's own inputs.
        shapes: those of its outputs, which are float32.
        attributes: of the call; those that are None are left out.

    Returns:
        Its outputs.
    """
    body = Body(b)
    parameters = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in inputs]
    results = write(body, *parameters)
    given = {name: value for name, value in attributes.items() if value is not None}
    b.functions.append(_function(kind, parameters, results, body, given))
    outputs = b.ops(kind, *inputs, outputs=len(results), domain=DOMAIN, **given)
    for value, result, shape in zip(outputs, results, shapes, strict=True):
        value.name, value.shape, value.type = result.name, ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return outputs


def add_functions(b: Builder) -> None:
    """Adds the function of the BinaryConvolutions that layers called."""
    calls = [node for node in b.nodes if is_composite(node, BINARY_CONVOLUTION)]
    if not calls:
        return
    body = Body(b)
    parameters = [ir.Value(name=name) for name in ("x", "weights", "scale", "bias")]
    results = write_body(body, *parameters)
    b.functions.append(_function(BINARY_CONVOLUTION, parameters, results, body, calls[0].attributes))


def _function(
    kind: str, parameters: Sequence[ir.Value], results: Sequence[ir.Value], body: Body, attributes: Iterable[str]
) -> ir.Function:
    graph = ir.Graph(parameters, results, nodes=body.nodes, opset_imports={"": OPSET}, name=kind)
    declared = [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in attributes]
    return ir.Function(DOMAIN, kind, graph=graph, attributes=declared)


def is_composite(node: ir.Node, kind: str = "") -> bool:
    """Whether a node is a composite; of one kind, if that is given."""
    return node.domain == DOMAIN and kind in ("", node.op_type)


def attributes_of(call: ir.Node) -> Mapping[str, Any]:
    """What a composite was called with, tensors as arrays."""
    return {
        name: attribute.as_tensor().numpy() if attribute.type == ir.AttributeType.TENSOR else attribute.value
        for name, attribute in call.attributes.items()
    }


def inline_composites(model: ir.Model, keep: Collection[str] = ()) -> None:
    """Puts the nodes of their bodies in the place of all composites but those kinds that are kept."""
    calls = [node for node in model.graph if is_composite(node) and node.op_type not in keep]
    if not calls:
        return
    bodies = []
    for call in calls:
        if call.op_type == BINARY_CONVOLUTION:
            expand(call, model.graph)
        else:
            _leave_out_neutral(model.functions[call.op_identifier()], attributes_of(call))
            bodies.append(call.op_identifier())
    others = set(model.graph)
    InlinePass(lambda function: function.identifier() in bodies)(model)
    for node in list(model.graph):
        if node not in others and node.op_type == "Constant":
            _lift(node, model.graph)
    remove_uncalled(model)
    check(model, "inlining")


def remove_uncalled(model: ir.Model) -> None:
    """Removes the functions of composites that are no more in the graph."""
    called = {node.op_identifier() for node in model.graph if is_composite(node)}
    for identifier in [identifier for identifier in model.functions if identifier not in called]:
        del model.functions[identifier]
    if not model.functions:
        model.graph.opset_imports.pop(DOMAIN, None)


def _leave_out_neutral(function: ir.Function, attributes: Mapping[str, Any]) -> None:
    for node in list(function):
        factor = node.inputs[1].producer() if node.op_type == "Mul" and node.inputs[1] is not None else None
        reference = None if factor is None else factor.attributes.get("value")
        if reference is not None and reference.is_ref() and (attributes[reference.ref_attr_name or ""] == 1).all():
            assert node.inputs[0] is not None
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            function.remove(node, safe=True)


def _lift(node: ir.Node, graph: ir.Graph) -> None:
    """Makes a constant an initializer; a small one the same as equal ones of the graph."""
    value, data = node.outputs[0], node.attributes["value"].as_tensor().numpy()
    if value.uses():
        small = (value.name or "").startswith("constant_")
        tensor = ir.Tensor(data, name=value.name)
        value.replace_all_uses_with(shared_constant(graph, data) if small else add_initializer(graph, tensor))
    graph.remove(node, safe=True)
