"""Checking a graph, and writing it as an .onnx file, weight after weight.

Weights stay where they are until they are written: an initializer wraps the memory-mapped array, or a function that
computes it (`dnc.graph.builder.lazy`), so that a pass may rewrite every weight of a network without a second copy of
it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnx_ir as ir

from dnc.errors import DncError, how_to_report

__all__ = ["check", "serialize", "serialize_to", "small_model", "with_outputs"]

_SMALL = 1024
"""Bytes up to which an initializer is kept when a model is checked: enough for every shape and axis."""


def small_model(model: ir.Model, watch: Collection[str] = ()) -> onnx.ModelProto:
    """The model without its large weights, which become inputs: for the checker, for shape inference, and to run it.

    Args:
        model: the model, which stays as it is.
        watch: as for `with_outputs`.
    """
    weights, kept = [], []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes > _SMALL:
            shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            weights.append(ir.Value(name=value.name, shape=shape, type=kind))
        else:
            kept.append(value)
    return _to_proto(model, kept, weights, _watched(model, watch))


def _to_proto(
    model: ir.Model, initializers: Sequence[ir.Value], inputs: Sequence[ir.Value] = (), outputs: Sequence[ir.Value] = ()
) -> onnx.ModelProto:
    """The model with these initializers alone, and with more inputs and outputs; without a copy of its nodes."""
    graph = model.graph
    view = ir.GraphView(
        [*graph.inputs, *inputs],
        [*graph.outputs, *outputs],
        nodes=graph,
        initializers=initializers,
        doc_string=graph.doc_string,
        opset_imports=graph.opset_imports,
        name=graph.name,
        metadata_props=graph.metadata_props,
    )
    whole = copy(model)
    whole.graph = cast(ir.Graph, view)
    return ir.to_proto(whole)


def _watched(model: ir.Model, watch: Collection[str]) -> list[ir.Value]:
    """The values of these names that nodes compute and that are no outputs."""
    return [
        value for node in model.graph for value in node.outputs if value.name in watch and not value.is_graph_output()
    ]


def with_outputs(model: ir.Model, watch: Collection[str]) -> ir.Model:
    """A copy of the model of which the values of these names, as far as it has them, are outputs as well."""
    changed = model.clone()
    changed.graph.outputs.extend(_watched(changed, watch))
    return changed


def check(model: ir.Model, after: str) -> None:
    """Runs ONNX's checker with shape inference, and stores the inferred shapes in the model. Raises DncError if the
    graph is invalid, or `after` says what made it so."""
    proto = small_model(model)
    try:
        onnx.checker.check_model(proto)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        hint = f"this is a bug of dnc; {how_to_report('the cfg')}"
        raise DncError(f"{after} made an invalid graph: {error}", hint=hint) from error
    infos = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in infos and infos[value.name].type.HasField("tensor_type"):
                typed = ir.from_proto(infos[value.name])
                value.type, value.shape = typed.type, typed.shape


def serialize_to(model: ir.Model, path: Path) -> None:
    """Writes the model as one .onnx file; raises DncError if it is over 2 GiB, before anything is written."""
    parts = serialize(model)
    with path.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def serialize(model: ir.Model) -> Iterator[bytes | memoryview]:
    """The model in ONNX's format, part by part, weight after weight, so that memory holds one weight at a time.

    A protobuf message is the concatenation of its fields in any order, so the graph is written as its skeleton followed
    by its initializers, each streamed from its own array.

    Raises:
        DncError: the model is over 2 GiB, protobuf's limit.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    proto = _to_proto(model, ())
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    headers, total = [], len(graph)
    for tensor in tensors:
        assert tensor is not None
        dtype = int(tensor.dtype)
        header = onnx.TensorProto(dims=list(tensor.shape.numpy()), data_type=dtype, name=tensor.name).SerializeToString(
            deterministic=True
        )
        raw = _tag(_RAW_DATA) + _varint(tensor.nbytes)
        size = len(header) + len(raw) + tensor.nbytes
        headers.append(_tag(_INITIALIZER) + _varint(size) + header + raw)
        total += len(headers[-1]) + tensor.nbytes
    if total >= 2**31 - 2**16:
        raise DncError("the network is over 2 GiB, more than one ONNX file holds", hint="is a size in the cfg wrong?")
    start = proto.SerializeToString(deterministic=True) + _tag(_GRAPH) + _varint(total) + graph

    def parts() -> Iterator[bytes | memoryview]:
        yield start
        for tensor, header in zip(tensors, headers, strict=True):
            assert tensor is not None
            yield header
            yield np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data

    return parts()


_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Field numbers in onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data."""


def _tag(field: int) -> bytes:
    return _varint(field << 3 | 2)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
