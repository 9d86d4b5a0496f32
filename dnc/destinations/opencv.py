"""OpenCV: an ONNX file with the outputs that OpenCV 4's reader of Darknet's files made, which OpenCV 5 no longer has.

    net.cfg, net.weights ──readNetFromDarknet──▶ cv2.dnn.Net            OpenCV 4
    net.onnx             ──readNetFromONNX─────▶ the same cv2.dnn.Net   OpenCV 4 and 5

OpenCV still has the layer that its reader made of [yolo] and [region], `Region`, and its importer of ONNX makes one of
a node of that type. So the rows are computed by the same code as before: center x, center y, width, height in fractions
of the input, objectness, and for each class objectness times probability, 0 up to `thresh`. The new engine of OpenCV 5
does not take it, and leaves the file to the classic one, which is that of OpenCV 4.

Outputs are called as OpenCV 4 called them, by the kind of layer and the number of its section (yolo_82, softmax_77;
[region] detection_out), and the input `data`. Images may have any size where the network leaves it open: nothing in the
file depends on it then.

What OpenCV 4 refused comes in the same form, decoded by operators: `Region` of one cell and K anchors, to which boxes
(x, y, sqrt(w), sqrt(h)) are given, hands them on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from dnc.compiler.options import CompileOptions
from dnc.destinations import destinations
from dnc.destinations.base import Demand, Destination, Export
from dnc.destinations.readme import README, cropped, readme
from dnc.graph.boxes import emit_boxes
from dnc.graph.builder import where_of
from dnc.graph.extension import Extension
from dnc.graph.rewriting import add_initializer, constant_array
from dnc.graph.serialization import serialize_to
from dnc.passes import passes
from dnc.runtime.decoding import BoxHead, ClassifierHead, DetectionHead, Head, RegionHead, YoloHead

__all__ = ["INPUT", "LEGACY_NAMES", "OpenCV", "form"]

INPUT = "data"
"""What OpenCV 4's reader calls the image."""
LEGACY_NAMES = "OPENCV_DNN_ONNX_USE_LEGACY_NAMES"
"""With it in the environment, OpenCV calls layers by the names of their nodes, and adds none of its own to outputs."""
_THRESH = 0.2
"""Up to which OpenCV 4 sets the score of a class of [yolo] to 0."""
_REGION_THRESH = 0.001
"""The same of [region], where its section says nothing."""
_REGION_IOU = 0.4
"""From which overlap on OpenCV 4 suppresses the boxes of [region] in the layer itself."""
_KINDS = {
    "convolutional": "conv",
    "connected": "fullyConnected",
    "maxpool": "pool",
    "dropout": "identity",
    "cost": "identity",
    "Gaussian_yolo": "gaussian_yolo",
    "soft": "softmax",
}
"""What OpenCV 4 calls a layer, where not as its section."""
_ACTIVATIONS = {
    "LeakyRelu": "leaky",
    "Relu": "relu",
    "Tanh Mul": "mish",
    "Sigmoid Mul": "swish",
    "Tanh": "tanh",
    "Sigmoid": "logistic",
}
"""Operators of a section, and the name of its activation, a layer there with the number of the next section."""
_ACTIVATED = ("convolutional", "connected", "shortcut", "scale_channels")
_BOUND = {"Expand", "Flatten", "Gemm", "MatMul", "Pad", "Reshape", "Tile"}
"""Operators that hold the size of the image, or may."""
_FITTED = {
    "center-crop": ", mode=cv2.dnn.DNN_PMODE_CROP_CENTER",
    "letterbox": ", mode=cv2.dnn.DNN_PMODE_LETTERBOX, borderValue=(127.5, 127.5, 127.5)",
}
"""What Image2BlobParams is told where images are not stretched; its default border is black."""
_SMALL = 1024
"""Bytes up to which a constant may be a parameter of a node, or a number for all elements."""


@destinations.register
class OpenCV(Destination):
    """One .onnx file for cv2.dnn."""

    name: ClassVar[str] = "opencv"
    summary: ClassVar[str] = "OpenCV 5 (and 4): an ONNX file with the outputs of OpenCV 4's readNetFromDarknet"
    suffix: ClassVar[str] = ".onnx"
    demands: ClassVar[Sequence[Demand]] = (
        *Destination.demands,
        Demand("precision", ("fp32",), "OpenCV reads float32, and no {}"),
    )

    def prepared(self, options: CompileOptions) -> CompileOptions:
        # OpenCV has no ConvInteger, by which signs are multiplied, and puts mish together from what it is defined by.
        skipped = (*options.skip, "binarize", "fuse-activation")
        return options if options.passes else dataclasses.replace(options, skip=skipped)

    def check(self, export: Export) -> None:
        super().check(export)
        export.check_maps()
        if any(step["name"] == "binarize" and step["applied"] for step in export.manifest.passes):
            raise export.form.refusal("OpenCV cannot multiply signs as bits", "skip", "binarize")
        for head in export.manifest.heads:
            if getattr(head, "tree", ()):
                what = "OpenCV knows no class trees"
                raise export.refusal(what, head.where, "`dnc detect` and `dnc classify` run it")

    def write(self, export: Export, folder: Path) -> None:
        model, file = form(export), f"{export.name}.onnx"
        serialize_to(model, folder / file)
        files = {file: "the network, for cv2.dnn.readNetFromONNX"}
        if export.labels:
            files[f"{export.name}.names"] = "the names of the classes"
            (folder / f"{export.name}.names").write_text("".join(f"{label}\n" for label in export.labels), "utf-8")
        text = readme(export, "OpenCV", files, _command(export, file), list(_notes(export, model)))
        (folder / README).write_text(text, encoding="utf-8")


def _command(export: Export, file: str) -> str:
    p = export.preprocessing()
    # A number for each channel: of fewer, OpenCV takes the others for 0.
    factors = [p.scale / number for number in (p.std if len(p.std) > 1 else p.std * p.channels)]
    means = [number / p.scale for number in (p.mean if len(p.mean) > 1 else p.mean * p.channels)]
    size = f"({p.width}, {p.height})"
    more = f", mean={_numbers(means)}" if any(means) else ""
    more += ", swapRB=True" if p.color == "rgb" and p.channels == 3 else ""
    if len(set(factors)) == 1 and p.mode != "letterbox":
        crop = ", crop=True" if p.mode == "center-crop" else ""
        blob = f"blobFromImage(image, {factors[0]:.7g}, {size}{more}{crop})"
    else:
        said = f"scalefactor={_numbers(factors)}, size={size}{more}{_FITTED.get(p.mode, '')}"
        blob = f"blobFromImageWithParams(image, cv2.dnn.Image2BlobParams({said}))"
    lines = [
        "import cv2",
        f'image = cv2.imread("image.jpg"{", cv2.IMREAD_GRAYSCALE" if p.channels == 1 else ""})',
        f"blob = cv2.dnn.{blob}",
        f'net = cv2.dnn.readNetFromONNX("{file}")',
        "net.setInput(blob)",
        "outputs = net.forward(net.getUnconnectedOutLayersNames())",
    ]
    return "\n".join(f">>> {line}" for line in lines)


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.7g}' for value in values)}{',' if len(values) == 1 else ''})"


def _notes(export: Export, model: ir.Model) -> Iterator[str]:
    names = ", ".join(f"`{value.name}`" for value in model.graph.outputs)
    yield from cropped(export, "OpenCV")
    if export.is_classifier:
        yield f"Outputs: {names}."
        return
    yield "The thresholds are for `cv2.dnn.NMSBoxes`, or for `detect` of `cv2.dnn.DetectionModel`."
    yield (
        f"Outputs: {names}; a row for each box: center x, center y, width, height in fractions of the input, "
        "objectness, and a score for each class, 0 where it is no higher than OpenCV 4 wanted it (0.2 for [yolo])."
    )
    yield (
        f"For cv2.dnn.DetectionModel, {LEGACY_NAMES}=1 must be in the environment when the file is read; `import "
        "dnc.opencv` does without."
    )


def form(export: Export) -> ir.Model:
    """The engine's graph with OpenCV 4's outputs. Raises as `Export.model`."""
    model = export.model()
    graph, b = model.graph, Extension(model)
    heads = {head.output: head for head in export.manifest.heads}
    shapes = export.shapes
    thresh = export.confidence if export.confidence < _THRESH else None
    outputs: dict[str, ir.Value] = {}
    for value in [value for value in graph.outputs if value.name in shapes]:
        head = heads.get(value.name or "")
        name = _name(export, value, head)
        if name in outputs:
            name += f"_{len(outputs)}"
        b.enter(name, where_of(next(iter(_section(value)))) if head is None else head.where)
        made = (
            _rows(b, head, value, shapes[head.output], thresh) if isinstance(head, BoxHead) else _plain(b, head, value)
        )
        # The layer has the output's name, so that OpenCV can take the layer for the output.
        node = made.producer()
        assert node is not None
        node.name = made.name = name
        outputs[name] = made
    graph.outputs[:] = outputs.values()
    graph.inputs[0].name = INPUT
    passes["eliminate-dead-code"]().rewrite(model)
    _part_constants(graph)
    if not any(_is_bound(node) for node in graph):
        sides = graph.inputs[0].shape
        assert sides is not None
        graph.inputs[0].shape = ir.Shape([sides[0], sides[1], "height", "width"])
    return model


def _name(export: Export, value: ir.Value, head: Head | None) -> str:
    """What OpenCV 4 called an output."""
    node = value.producer()
    if isinstance(head, RegionHead):
        return "detection_out"
    place = head.where if head is not None else "" if node is None else where_of(node)
    found = re.search(r"\[(\w+)\] #(\d+)$", place)
    if found is None:
        return value.name or ""
    kind, number, last = found[1], int(found[2]), export.manifest.network.get("layers", 0) - 1
    if isinstance(head, ClassifierHead) and number < last:
        # Nothing but [cost] and [dropout] comes after the classes.
        kind, number = "cost", last
    operators = {node.op_type for node in _section(value)} if kind in _ACTIVATED else set()
    for needed, activation in _ACTIVATIONS.items():
        if operators.issuperset(needed.split()):
            return f"{activation}_{number + 1}"
    return f"{_KINDS.get(kind, kind)}_{number}"


def _plain(b: Extension, head: Head | None, value: ir.Value) -> ir.Value:
    """An output that is no boxes: [softmax] of a map is one of a single pixel for OpenCV 4, and [connected] is none."""
    row: list[int] = []
    if isinstance(head, ClassifierHead) and "[soft" in head.where and len(_sides(_read_by(value))) == 4:
        row = [head.classes, 1, 1]
    elif isinstance(head, ClassifierHead) and "[connected]" in head.where:
        row = [head.classes]
    made = b.reshape(value, row) if row else b.op("Identity", value)
    # OpenCV 5 reads no output without a type.
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([b.batch, *row]) if row else value.shape
    return made


def _rows(b: Extension, head: BoxHead, value: ir.Value, shape: Sequence[int], thresh: float | None) -> ir.Value:
    """(K, 5 + classes), or for batches (N, K, 5 + classes), of a head's map."""
    if thresh is None:
        said = head.thresh if isinstance(head, RegionHead) else _THRESH
        thresh = _REGION_THRESH if said is None else said
    raw = _raw(head, value)
    if raw is not None and isinstance(head, YoloHead):
        told = {"logistic": 1, "nms_threshold": 0.0, "scale_x_y": head.scale_x_y, "new_coords": int(head.new_coords)}
        return _region(b, [raw, b.inputs[0]], head.anchors, head.classes, thresh, told)
    if raw is not None and isinstance(head, RegionHead):
        told = {"softmax": 1, "nms_threshold": _REGION_IOU, "classfix": head.classfix}
        return _region(b, [raw], head.anchors, head.classes, thresh, told)
    boxes, objectness, classes = emit_boxes(b, head, value, shape)
    sizes = b.op("Sqrt", b.op("Relu", b.slice(boxes, 2, 2, 4)))
    x = b.op("Concat", b.slice(boxes, 2, 0, 2), sizes, objectness, classes, axis=2)
    count = head.side**2 * head.num if isinstance(head, DetectionHead) else _anchors(head) * shape[1] * shape[2]
    x = b.reshape(x, [count * (5 + head.classes), 1, 1])
    # With new_coords a side is 4 t^2 anchor.
    iou = _REGION_IOU if isinstance(head, RegionHead) else 0.0
    told = {"logistic": 1, "new_coords": 1, "nms_threshold": iou}
    return _region(b, [x], [(0.25, 0.25)] * count, head.classes, thresh, told)


def _anchors(head: BoxHead) -> int:
    return len(head.anchors) if isinstance(head, YoloHead | RegionHead) else 0


def _raw(head: BoxHead, value: ir.Value) -> ir.Value | None:
    """What the section of a head reads, if that is what OpenCV 4 gave its layer: (N, n * (5 + classes), h, w)."""
    if isinstance(head, RegionHead) and all(node.op_type != "Softmax" for node in _section(value)):
        return None
    # With new_coords the layer before has activated it, and the section may do nothing.
    idle = isinstance(head, YoloHead) and head.new_coords and head.scale_x_y == 1
    raw = value if idle else _read_by(value)
    return raw if _sides(raw)[1:2] == [_anchors(head) * (5 + head.classes)] and len(_sides(raw)) == 4 else None


def _part_constants(graph: ir.Graph) -> None:
    """Gives each node that reads a small constant one of its own: where OpenCV made a layer of it for one node, it
    fails to read it as a parameter of another."""
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes > _SMALL:
            continue
        for number, (node, index) in enumerate(list(value.uses())[1:], 1):
            own = add_initializer(graph, ir.Tensor(tensor.numpy(), name=f"{name}/{number}"))
            node.replace_input_with(index, own)


def _region(
    b: Extension,
    inputs: Sequence[ir.Value],
    anchors: Sequence[tuple[float, float]],
    classes: int,
    thresh: float,
    told: Mapping[str, Any],
) -> ir.Value:
    """OpenCV's layer of a map (N, n * (5 + classes), h, w) and, where anchors are pixels, of the image for its size."""
    cells = b.op("Transpose", inputs[0], perm=[0, 2, 3, 1])
    sides = b.constant(np.array(anchors, np.float32).reshape(1, -1), "anchors")
    common: dict[str, Any] = {"anchors": len(anchors), "classes": classes, "thresh": float(thresh)}
    made = b.op("Region", cells, *inputs[1:], sides, **common, **told)
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["boxes", 5 + classes])
    return made


def _section(value: ir.Value) -> list[ir.Node]:
    """The nodes of the section that computes a value, as far back from it as they are of that section."""
    last = value.producer()
    if last is None:
        return []
    place, found, waiting = where_of(last), list[ir.Node](), [last]
    while waiting:
        node = waiting.pop()
        if node not in found and where_of(node) == place:
            found.append(node)
            waiting.extend(
                before for read in node.inputs if read is not None and (before := read.producer()) is not None
            )
    return found


def _read_by(value: ir.Value) -> ir.Value | None:
    """What the section that computes a value reads; None if it is more than one thing."""
    nodes = _section(value)
    read = {
        item
        for node in nodes
        for item in node.inputs
        if item is not None and item.const_value is None and item.producer() not in nodes
    }
    return read.pop() if len(read) == 1 else None


def _sides(value: ir.Value | None) -> list[Any]:
    """The shape; empty where it is not known."""
    return [] if value is None or value.shape is None else list(value.shape)


def _is_bound(node: ir.Node) -> bool:
    """Whether a node holds the size of the image, or may."""
    if node.op_type == "Reshape" and _sides(node.inputs[0])[2:] == [1, 1]:
        # What averages the whole image leaves no size.
        return False
    if node.op_type == "Slice":
        axes = constant_array(node.inputs[3])
        return axes is None or axes.numpy().tolist() != [1]
    if node.op_type == "Resize":
        return len(node.inputs) > 3 and node.inputs[3] is not None
    if node.op_type in ("Conv", "Region"):
        return False
    # OpenCV's importer refuses Reduce… of sides that it does not know.
    maps = [_sides(item)[2:] for item in node.inputs if item is not None and item.const_value is not None]
    return node.op_type in _BOUND or node.op_type.startswith("Reduce") or any(set(sides) - {1} for sides in maps)
