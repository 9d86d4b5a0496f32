"""Weights and activations in half precision, with float32 inputs and outputs.

1. Every operator between the first and the last product is computed in float16, as far as ONNX has it in float16 and
   `reduced_precision` does not name a reason to stay in float32.
2. A weight or constant of such an operator becomes float16, computed when it is written. Numbers below 6e-8 become 0.
   Where one is over 65504, float16's largest, its operator stays in float32.
3. A Cast stands where a value goes from float32 to float16 or back, one for all that read it. No value goes there and
   back: what is float16 and read in float16 is read directly. Graph inputs and outputs stay float32 under their names.

The file is half as large. Speed is the engine's: it is for GPUs with half-precision units. ONNX Runtime on x86 CPUs
computes in float32 all the same, neither faster nor slower, and without the roundings in between
(`dnc.graph.rounding`).

Activations over 65504 become infinite: no pass can see that without data, so the comparison after the pass on a
photograph is what catches it (`dnc.graph.verification`); `keep` is for the layers where it happens. Trained detectors
stay far below; random weights of deep residual networks (darknet53, yolov4) do not. Products are expected to add up in
float32, as the engines do by default; one that adds in float16 is less exact than what is declared here.

Comes after everything that changes weights: fold-batchnorm and the like, which compute in float32. The old weights go
with eliminate-dead-code.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx.defs
import onnx_ir as ir

from dnc.graph.builder import lazy
from dnc.graph.rewriting import Remarks, add_initializer, constant_array
from dnc.passes import passes
from dnc.passes.shared.reduced_precision import ReducedPrecision, float32_nodes

_LARGEST = float(np.finfo(np.float16).max)
_NAME = "tensor(float16)"


@passes.register
class ToFloat16(ReducedPrecision):
    """float32 -> float16 between the first and the last product, Casts at the borders."""

    name: ClassVar[str] = "to-float16"
    tolerance: ClassVar[float] = 6e-2
    """Each weight and value is rounded by up to 2^-11 = 4.9e-4 of itself, and depth adds it up. Of 8 inputs of noise
    and 16 photographs through yolo-fastest-1.1 and -xl, MobileNetV2-YOLOv3-Nano and yolov3-tiny, each with its trained
    weights, the worst changes a head by 3.3e-2 of its largest value, half of the photographs by 1e-2 or less; declared
    is nearly twice the worst. A random EfficientNet-B0 changes by 7e-4."""

    applies_to: ClassVar[str] = "operators between the first and the last Conv, Gemm or MatMul"
    needs: ClassVar[str] = "operator that may be in float16"

    def rewrite(self, model: ir.Model) -> Remarks:
        """Chooses the operators, then changes the types of what they give and read."""
        graph = model.graph
        remarks = Remarks()
        stay = float32_nodes(model, self.kept())
        opset = model.graph.opset_imports.get("", 0)
        chosen: dict[ir.Node, list[int]] = {}
        ranges: dict[ir.Value, bool] = {}
        for node in graph:
            places = _places(node, opset)
            if not places:
                continue
            reason = stay.get(node) or _out_of_range(node, places, ranges)
            if remarks.tell(node, f"{node.op_type} in float16", reason):
                chosen[node] = places
        halves = [value for node in chosen for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        for value in halves:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
        _widen(halves, chosen, graph)
        _narrow(chosen, graph)
        return remarks


def _places(node: ir.Node, opset: int) -> list[int]:
    """Which inputs would be float16 if the node were; none if it has no form in float16, or is in it already."""
    if node.domain or not onnx.defs.has(node.op_type) or node.op_type == "Cast":
        return []
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return []
    schema = onnx.defs.get_schema(node.op_type, opset)
    narrow = {
        constraint.type_param_str for constraint in schema.type_constraints if _NAME in constraint.allowed_type_strs
    }
    places, types = [], set()
    for place, value in enumerate(node.inputs):
        kind = schema.inputs[min(place, len(schema.inputs) - 1)].type_str
        if value is not None and value.dtype == ir.DataType.FLOAT and kind in narrow:
            places.append(place)
            types.add(kind)
    for place, value in enumerate(node.outputs):
        kind = schema.outputs[min(place, len(schema.outputs) - 1)].type_str
        if value.dtype == ir.DataType.FLOAT and kind not in types:
            return []
    return places


def _out_of_range(node: ir.Node, places: Collection[int], known: dict[ir.Value, bool]) -> str:
    for place in places:
        value = node.inputs[place]
        tensor = constant_array(value)
        if value is None or tensor is None:
            continue
        if value not in known:
            known[value] = _overflows(tensor.numpy())
        if known[value]:
            return f"{value.name} has a number over {_LARGEST:.0f}"
    return ""


def _overflows(array: npt.NDArray[Any]) -> bool:
    if not array.size or max(-float(array.min()), float(array.max())) <= _LARGEST:
        return False
    # NaN and infinities are what they were.
    return bool((np.abs(array[np.isfinite(array)]) > _LARGEST).any())


def _widen(halves: Collection[ir.Value], chosen: dict[ir.Node, list[int]], graph: ir.Graph) -> None:
    """Gives float32 to what reads the values and is not in float16, inner graphs and graph outputs included."""
    for value in halves:
        uses = [use for use in value.uses() if use.idx not in chosen.get(use.node, ())]
        if not uses and not value.is_graph_output():
            continue
        producer = value.producer()
        assert producer is not None
        cast = _cast(value, ir.DataType.FLOAT, producer)
        graph.insert_after(producer, cast)
        wide = cast.outputs[0]
        for use in uses:
            use.node.replace_input_with(use.idx, wide)
        for place, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[place] = wide
                value.name, wide.name = f"{value.name}/float16", value.name


def _narrow(chosen: dict[ir.Node, list[int]], graph: ir.Graph) -> None:
    """Gives float16 to the inputs that the nodes read in float16."""
    narrow: dict[ir.Value, ir.Value] = {}
    for node, places in chosen.items():
        for place in places:
            value = node.inputs[place]
            if value is None or value.dtype != ir.DataType.FLOAT:
                continue
            if value not in narrow:
                narrow[value] = _narrowed(value, node, graph)
            node.replace_input_with(place, narrow[value])


def _narrowed(value: ir.Value, reader: ir.Node, graph: ir.Graph) -> ir.Value:
    tensor = constant_array(value)
    if tensor is None:
        cast = _cast(value, ir.DataType.FLOAT16, reader)
        graph.insert_before(reader, cast)
        return cast.outputs[0]
    plain = tensor

    def half() -> npt.NDArray[Any]:
        return plain.numpy().astype(np.float16)

    return add_initializer(graph, lazy(half, tensor, f"{value.name}.float16", dtype=ir.DataType.FLOAT16))


def _cast(value: ir.Value, dtype: ir.DataType, place: ir.Node) -> ir.Node:
    """A Cast with the place in the cfg of another node; its output has the value's shape."""
    name = f"{value.name}/{dtype.name.lower()}"
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    return ir.node(
        "Cast", [value], {"to": int(dtype)}, outputs=[output], name=name, metadata_props=dict(place.metadata_props)
    )
