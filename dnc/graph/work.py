"""What an engine's model computes and moves, section by section of the cfg.

    operations    two for each multiply-add of a convolution or product, the window for each number of a pool, one for
                  each number that any other operator computes, none where numbers are only moved
    bits          operations on single bits, two for each product of signs that a BinaryConvolution adds up; what it
                  multiplies and adds afterwards are operations
    bytes         the least that has to be moved: every value that crosses the border of a section, once on either side,
                  and the section's weights once; what stays inside is taken to stay in registers or in the cache

A section is found by the names that the graph has from its lowering on: `036_convolutional/Conv`, `layer036`; what
belongs to none goes by the first part of its name (`decode`, `nms`). model.onnx is read, or OpenVINO's model.xml; of
other engines, what was written into their model.json when they were compiled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnc.errors import TargetError
from dnc.files.reading import read_json
from dnc.graph.composites import BINARY_CONVOLUTION, inline_composites
from dnc.graph.serialization import small_model
from dnc.runtime.manifest import Manifest
from dnc.runtime.runners.openvino import import_openvino, openvino_core

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["Node", "Work", "described_work", "place_of", "read_places", "read_work", "work_of"]

_MOVES = frozenset(
    [
        *("Cast", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather"),
        *("GatherND", "Identity", "NonZero", "Pad", "QuantizeLinear", "Range", "Reshape", "Resize", "Shape", "Slice"),
        *("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        *("Broadcast", "Convert", "FakeQuantize", "Interpolate", "Parameter", "Result", "ShapeOf", "StridedSlice"),
        "VariadicSplit",
    ]
)
_REDUCTIONS = frozenset(["ReduceSum", "ReduceMean", "ReduceMax", "GlobalAveragePool", "TopK"])
_NO_WORK = frozenset(["Constant", "Parameter", "Result"])
_EIGHT_BITS = frozenset(["DequantizeLinear", "FakeQuantize"])
"""What these give is read as 8 bits by an engine that computes with them."""
_NAMED = re.compile(r"(?<![0-9A-Za-z])([0-9]{3,})_([A-Za-z][\w-]*?)(?=[/.]|$)")
_VALUE = re.compile(r"\blayer([0-9]{3,})")


@dataclass(frozen=True)
class Node:
    """An operator of a model."""

    name: str
    kind: str
    reads: Sequence[str]
    writes: Sequence[str]
    operations: float
    where: str = ""
    """Its section, `a.cfg:22 [convolutional] #0`, where the model tells."""
    bits: float = 0.0


@dataclass
class Work:
    """What one section computes in one run."""

    place: str
    """`#36`, or `nms`: see `place_of`."""
    where: str
    operations: float = 0.0
    bytes: float = 0.0
    bits: float = 0.0
    kinds: list[str] = field(default_factory=list)
    """Its operators, in order."""


def place_of(name: str) -> str:
    """The section that a name belongs to: `#36` by its number; else the first part of the name; "" without one."""
    for pattern in (_NAMED, _VALUE):
        found = pattern.search(name)
        if found:
            return f"#{int(found[1])}"
    first, slash, _ = name.partition("/")
    return first if slash else ""


def read_work(folder: Path, manifest: Manifest, batch: int = 1) -> list[Work]:
    """What the model in an engine folder computes, in order. Raises TargetError if the folder has no model that is
    known."""
    model = _read_model(folder, manifest, batch)
    if model is not None:
        return work_of(*model)
    try:
        described = read_json(folder / "model.json")["work"]
        images = 1 if isinstance(manifest.batch, int) else batch
        # Older engines have no operations on bits.
        amounts = [(entry["operations"], entry["bytes"], entry.get("bits", 0.0)) for entry in described]
        return [
            Work(entry["place"], entry["where"], *(images * amount for amount in each))
            for entry, each in zip(described, amounts, strict=True)
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        what = f"the layers of an engine of target {manifest.target} are not known"
        raise TargetError(what, folder, "build the engine again") from error


def read_places(folder: Path, manifest: Manifest) -> dict[str, str]:
    """The section of each node of the model in an engine folder, by the node's name, in order: `#36`, see `place_of`.

    Raises TargetError if the folder has no model that names its nodes.
    """
    model = _read_model(folder, manifest, 1)
    if model is None:
        raise TargetError(f"an engine of target {manifest.target} has no graph that others read", folder)
    nodes = model[0]
    places = zip(nodes, _places(nodes), strict=True)
    return {node.name: place for node, place in places if node.name and node.kind not in _NO_WORK}


def described_work(model: ir.Model, manifest: Manifest) -> list[dict[str, Any]]:
    """What `read_work` finds in the model.json of an engine that keeps no graph: for its batch, and where that is free
    for one image, as each runs by itself."""
    batch = manifest.batch if isinstance(manifest.batch, int) else 1
    whole = model.clone()
    inline_composites(whole, keep=[BINARY_CONVOLUTION])
    nodes, sizes, constants = _read_onnx(small_model(whole), manifest, batch)
    found = work_of(nodes, sizes, [*constants, *whole.graph.initializers])
    return [
        {"place": work.place, "where": work.where, "operations": work.operations, "bytes": work.bytes}
        | ({"bits": work.bits} if work.bits else {})
        for work in found
    ]


def work_of(nodes: Sequence[Node], sizes: Mapping[str, float], constants: Iterable[str] = ()) -> list[Work]:
    """What nodes compute, by section.

    Args:
        nodes: in order.
        sizes: bytes of each value.
        constants: the values that are weights.
    """
    fixed = set(constants)
    places = _places(nodes)
    # Through what turns 8 bits into real numbers, and the other way round, weights and values are what is stored.
    stored = {node.writes[0]: node.reads[0] for node in nodes if node.kind == "DequantizeLinear"}
    found: dict[str, Work] = {}
    homes: dict[str, str] = {}
    readers: dict[str, set[str]] = {}
    for node, place in zip(nodes, places, strict=True):
        work = found.setdefault(place, Work(place, ""))
        work.where = work.where or node.where
        if node.kind in _NO_WORK:
            continue
        work.kinds.append(node.kind)
        work.operations += node.operations
        work.bits += node.bits
        for name in node.writes:
            homes[name] = place
        # To ask for a shape moves nothing.
        for name in node.reads if node.kind not in ("Shape", "ShapeOf", "Size") else ():
            readers.setdefault(stored.get(name, name), set()).add(place)
    outputs = {name for node in nodes if node.kind == "Result" for name in node.reads}
    for name, users in readers.items():
        home = homes.get(name, "")
        for place in users:
            if place != home and (name in fixed or place in found):
                found[place].bytes += sizes.get(name, 0.0)
    # A value and what it is stored as are one.
    for name in {stored.get(name, name) for name in homes}:
        home = homes.get(name, "")
        if name in fixed:
            continue
        if readers.get(name, set()) - {home} or name in outputs or name not in readers:
            found[home].bytes += sizes.get(name, 0.0)
    for work in found.values():
        number = work.place.removeprefix("#")
        kind = next((match[2] for node in nodes if (match := _NAMED.search(node.name)) and _is(match, number)), "")
        work.where = work.where or (f"[{kind}] {work.place}" if kind else work.place)
    return [work for work in found.values() if work.kinds]


def _places(nodes: Sequence[Node]) -> list[str]:
    """The section of each node. What OpenVINO made itself, `Reshape/12`, belongs to who reads it."""
    read_in: dict[str, str] = {}
    found: list[str] = []
    for node in reversed(nodes):
        place = next(filter(None, map(place_of, (node.name, *node.writes))), "")
        if place in ("", node.kind):
            place = next((read_in[name] for name in node.writes if name in read_in), node.kind)
        for name in node.reads:
            read_in[name] = place
        found.append(place)
    return found[::-1]


def _is(match: re.Match[str], number: str) -> bool:
    return number.isdecimal() and int(match[1]) == int(number)


def _operations(kind: str, output: float, read: float, per_output: float) -> float:
    """Of one operator: numbers of its first output and of its first input; multiply-adds or window for each output."""
    if per_output:
        return output * per_output
    if kind in _MOVES:
        return 0.0
    return read if kind in _REDUCTIONS else output


def _read_model(folder: Path, manifest: Manifest, batch: int) -> tuple[list[Node], dict[str, float], list[str]] | None:
    """Nodes, bytes of each value, constants; None where there is neither a model.xml nor a model.onnx."""
    if (folder / "model.xml").exists():
        return _read_openvino(folder / "model.xml", manifest, batch)
    if (folder / "model.onnx").exists():
        import onnx

        return _read_onnx(onnx.load(str(folder / "model.onnx")), manifest, batch)
    return None


def _read_onnx(
    model: onnx.ModelProto, manifest: Manifest, batch: int
) -> tuple[list[Node], dict[str, float], list[str]]:
    import onnx

    graph = model.graph
    for value in graph.input:
        sides = value.type.tensor_type.shape.dim
        pixels = manifest.input_dtype == "uint8" and value.name == "input"
        # Pixels may have any size; those that are timed have that of the photograph, these the network's.
        wanted = (batch, *manifest.input_shape[1:], manifest.input_shape[0]) if pixels else (batch,)
        for side, number in zip(sides, wanted, strict=False):
            if not side.HasField("dim_value"):
                side.dim_value = number
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    constants = list(shapes)
    for value in graph.value_info:
        # They were inferred for a free batch.
        value.Clear()
    del graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        shapes[value.name] = tuple(side.dim_value or 1 for side in tensor.shape.dim)
        types[value.name] = tensor.elem_type
    widths = {name: onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize for name, kind in types.items() if kind}
    sizes = {name: float(math.prod(shape)) * widths.get(name, 4) for name, shape in shapes.items()}
    nodes = []
    for node in graph.node:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        reads, writes = [name for name in node.input if name], [name for name in node.output if name]
        sides = [shapes.get(name, ()) for name in node.input]
        per_output = 0.0
        if node.op_type in ("Conv", "ConvInteger", "ConvTranspose") and len(sides) > 1:
            per_output = 2.0 * math.prod(sides[1][1:])
            if node.op_type == "ConvTranspose":
                # Every input meets every weight, rather than every output.
                per_output *= math.prod(sides[0]) / max(1, math.prod(shapes.get(writes[0], ())))
        elif node.op_type in ("Gemm", "MatMul") and sides[0]:
            per_output = 2.0 * sides[0][-1]
        elif node.op_type in ("MaxPool", "AveragePool"):
            per_output = float(math.prod(attributes["kernel_shape"]))
        elif node.op_type == BINARY_CONVOLUTION:
            per_output = 2.0
        output, read = math.prod(shapes.get(writes[0], ())), math.prod(sides[0]) if sides else 0
        products = math.prod(sides[1][1:3]) * sides[0][1] if node.op_type == BINARY_CONVOLUTION else 0
        operations = _operations(node.op_type, output, read, per_output)
        where = next((entry.value for entry in node.metadata_props if entry.key == "dnc.where"), "")
        nodes.append(Node(node.name, node.op_type, reads, writes, operations, where, 2.0 * products * output))
    nodes.append(Node("", "Result", [value.name for value in graph.output], [], 0.0))
    return nodes, sizes, constants


def _read_openvino(path: Path, manifest: Manifest, batch: int) -> tuple[list[Node], dict[str, float], list[str]]:
    openvino = import_openvino()
    model = openvino_core().read_model(path)
    shapes = {}
    for port in model.inputs:
        free = [side.get_length() if side.is_static else batch for side in port.partial_shape]
        if manifest.input_dtype == "uint8" and port.node.friendly_name == "input":
            free = [batch, *manifest.input_shape[1:], manifest.input_shape[0]]
        shapes[port.any_name] = openvino.PartialShape(free)
    model.reshape(shapes)
    half = manifest.precision in ("fp16", "bf16")
    nodes, sizes, constants = [], {}, []
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.friendly_name
        writes = [f"{name}:{port.get_index()}" for port in op.outputs()]
        sources = [port.get_source_output() for port in op.inputs()]
        reads = [f"{source.get_node().friendly_name}:{source.get_index()}" for source in sources]
        for written, port in zip(writes, op.outputs(), strict=True):
            width = port.element_type.size
            if kind in _EIGHT_BITS:
                width = 1
            elif half and width == 4 and port.element_type.is_real():
                width = 2
            sizes[written] = _count(port) * width
        if kind == "Constant":
            constants += writes
        output, read = (_count(op.outputs()[0]) if writes else 0.0), (_count(sources[0]) if sources else 0.0)
        per_output = 0.0
        if kind in ("Convolution", "GroupConvolution"):
            per_output = 2.0 * math.prod(sources[1].get_shape()[2 if kind == "GroupConvolution" else 1 :])
        elif kind == "ConvolutionBackpropData":
            per_output = 2.0 * math.prod(sources[1].get_shape()[1:]) * read / max(1.0, output)
        elif kind == "MatMul":
            per_output = 2.0 * sources[0].get_shape()[-1]
        elif kind in ("MaxPool", "AvgPool"):
            per_output = float(math.prod(op.get_attributes()["kernel"]))
        nodes.append(Node(name, kind, reads, writes, _operations(kind, output, read, per_output)))
    return nodes, sizes, constants


def _count(port: Any) -> float:
    """Numbers of a value; the free sides of what depends on the data count as 1."""
    return float(math.prod(side.get_length() if side.is_static else 1 for side in port.get_partial_shape()))
