"""Destination `nnarchive`: Luxonis' NN Archive, a .tar.xz of a model and config.json, which DepthAI 3 opens.

    NAME.tar.xz
        config.json    the schema of luxonis-ml's `nn_archive`: image, outputs, and which parser reads them how
        NAME.blob      --target myriad: what an OAK camera with the Myriad X (RVC2) runs as it is
        NAME.onnx      --target onnx: what Luxonis' ModelConverter makes a model of for other cameras

A cfg is compiled for the Myriad X if not told otherwise: DepthAI runs no ONNX, so that alone is an archive to be used.

DepthAI's DetectionParser, on the device or on the host, decodes the maps of each grid by one of four formulas. That of
YOLOv5 is the only one that is the same in all of its implementations and takes numbers that are activated already. Of
an anchor (aw, ah), at a cell (column, row) of `stride` pixels, the channels x, y, w, h, objectness, classes give

    (column + 2 x - 0.5) stride, (row + 2 y - 0.5) stride, 4 w^2 aw, 4 h^2 ah        score: objectness * best class

so the graph ends with what that formula makes Darknet's boxes of, whatever head they are from. (As YOLOv3 it would take
the logistic of numbers that have gone through it; as YOLOv4 it does not know them.) Of each place it keeps the best
class, and suppresses by overlap without regard to classes. It reads outputs with "yolo" in their names, sorted by them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from dnc.compiler.compiling import find_target
from dnc.compiler.options import CompileOptions
from dnc.destinations import destinations
from dnc.destinations.base import Demand, Destination, Export, one_image
from dnc.destinations.readme import README, cropped, readme
from dnc.files.writing import scratch_folder
from dnc.graph.boxes import emit_maps
from dnc.graph.extension import Extension
from dnc.graph.rewriting import attribute, for_one_image
from dnc.runtime.decoding import BoxHead, DetectionHead, RegionHead, YoloHead
from dnc.runtime.runners.myriad import BLOB, Description, read_description
from dnc.targets.myriad import Myriad
from dnc.targets.myriad.graph import prepare
from dnc.typing import Array

__all__ = ["NnArchive"]

CONFIG = "config.json"
_VERSION = "1.0"
"""Of the schema."""
_MOST_BOXES = 300
"""What the parser gives at most; Luxonis' own archives say the same."""
_COMPRESSION = [{"id": lzma.FILTER_LZMA2, "preset": 0, "mf": lzma.MF_HC3, "depth": 1, "dict_size": 1 << 16}]
"""Weights are noise: looking further for what repeats takes four times as long and finds nothing."""
_PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8", "mixed": "int8"}
"""Names of weights' types in the schema, which has no bfloat16."""
_RESIZES = {"letterbox": "LETTERBOX", "center-crop": "CROP"}
_FRAMES = {"rgb": "RGB888p", "bgr": "BGR888p", "gray": "GRAY8"}
_PIPELINE = """\
>>> import depthai as dai
>>> with dai.Pipeline() as pipeline:
>>>     archive = dai.NNArchive("{archive}")
>>>     camera = pipeline.create(dai.node.Camera).build()
>>>     network = pipeline.create(dai.node.{node}).build(camera, archive, resizeMode=dai.ImgResizeMode.{fit})
>>>     queue = {parser}.out.createOutputQueue()
>>>     pipeline.start()
>>>     while pipeline.isRunning():
>>>         found = queue.get()
>>>         {say}"""


class _Grid(NamedTuple):
    """A head as the parser reads it."""

    head: BoxHead
    shape: tuple[int, int, int]
    """Anchors, height and width of its grid."""
    stride: int
    anchors: Array
    """(anchors, 2): width and height in pixels of the input."""


@destinations.register
class NnArchive(Destination):
    """Luxonis' cameras."""

    name: ClassVar[str] = "nnarchive"
    summary: ClassVar[str] = "Luxonis' OAK cameras: an NN Archive for DepthAI 3, of a blob or (--target onnx) of ONNX"
    target: ClassVar[str] = "myriad"
    runners: ClassVar[frozenset[str]] = frozenset({"myriad", "onnx"})
    suffix: ClassVar[str] = ".tar.xz"
    overlap: ClassVar[str] = "a higher --iou keeps more"
    demands: ClassVar[Sequence[Demand]] = (
        *Destination.demands,
        one_image("a camera gives one image"),
        Demand("precision", _PRECISIONS, "an NN Archive knows no weights in {}", "fp16"),
    )

    def prepared(self, options: CompileOptions) -> CompileOptions:
        """One image, as cameras give them. What the engine's own blob computes nobody wants to know."""
        told = {"numerics": "no", **options.options} if options.target == "myriad" else options.options
        return dataclasses.replace(options, batch=1 if options.batch is None else options.batch, options=told)

    def check(self, export: Export) -> None:
        super().check(export)
        if _is_blob(export):
            # Its maps become others, which are compiled once more.
            find_target("myriad", export.manifest.options)
            if _described(export).pixels is None:
                what = "the blob takes numbers that a program prepared, and cameras give bytes"
                raise export.refusal(what, hint="leave --option input out")
        if export.is_classifier:
            export.classifier()
        else:
            _grids(export)

    def write(self, export: Export, folder: Path) -> None:
        blob = _is_blob(export)
        model = for_one_image(export.model())
        heads, outputs = _classify(export, model) if export.is_classifier else _detect(export, model)
        kind = "blob" if blob else "onnx"
        inner, archive = f"{export.name}.{kind}", f"{export.name}{self.suffix}"
        with scratch_folder("nnarchive") as scratch:
            file = scratch / inner
            if blob:
                description = _described(export)
                target = find_target("myriad", export.manifest.options)
                assert isinstance(target, Myriad)
                target.write_blob(prepare(model, None), scratch, description.pixels)
                file = scratch / BLOB
            else:
                export.save(model, file)
            config = {
                "config_version": _VERSION,
                "model": {
                    "metadata": {
                        "name": export.name,
                        "path": inner,
                        "precision": "float16" if blob else _PRECISIONS[export.manifest.precision],
                    },
                    "inputs": [_input(export, model)],
                    "outputs": [
                        {"name": name, "dtype": "float16" if blob else "float32", **of} for name, of in outputs
                    ],
                    "heads": heads,
                },
            }
            _pack(folder / archive, config, inner, file)
        (folder / README).write_text(_readme(export, archive), encoding="utf-8")


def _is_blob(export: Export) -> bool:
    return export.manifest.runner_name == "myriad"


def _described(export: Export) -> Description:
    with export.engine.reading() as folder:
        return read_description(folder)


def _grids(export: Export) -> list[_Grid]:
    """The heads, finest first: programs that sort outputs by their sizes find them as those that sort names do."""
    p = export.preprocessing()
    found = []
    for head in export.box_heads():
        height, width = (head.side, head.side) if isinstance(head, DetectionHead) else export.shapes[head.output][-2:]
        stride = p.width // width
        if (stride * width, stride * height) != (p.width, p.height):
            what = f"a grid of {width} x {height} cells on {p.width} x {p.height} pixels has no whole stride"
            raise export.refusal(what, head.where, "DepthAI wants one: another size of the input gives it")
        unit = np.array([p.width, p.height], np.float32)
        if isinstance(head, YoloHead):
            anchors = np.array(head.anchors, np.float32)
        elif isinstance(head, RegionHead):
            anchors = np.array(head.anchors, np.float32) * np.float32(stride)
        else:
            assert isinstance(head, DetectionHead)
            anchors = np.tile(unit, (head.num, 1))
        found.append(_Grid(head, (len(anchors), height, width), stride, np.where(anchors > 0, anchors, unit)))
    return sorted(found, key=lambda grid: grid.stride)


def _detect(export: Export, model: ir.Model) -> tuple[list[dict[str, Any]], list[tuple[str, dict[str, Any]]]]:
    """Makes the parser's maps the outputs of a detector; returns heads and outputs for config.json."""
    grids = _grids(export)
    p = export.preprocessing()
    maps = {value.name: value for value in model.graph.outputs}
    b = Extension(model)
    b.outputs.clear()
    outputs: list[tuple[str, dict[str, Any]]] = []
    for number, grid in enumerate(grids):
        head = grid.head
        name = f"output{number + 1:0{len(str(len(grids)))}}_yolov5"
        b.enter(f"boxes/{head.output}", head.where)
        parts = emit_maps(b, head, maps[head.output], export.shapes[head.output])
        centers = b.op("Add", b.op("Mul", parts.shifts, b.constant(0.5)), b.constant(0.25))
        scale = np.array([p.width, p.height], np.float32) / (4 * grid.anchors)
        sizes = b.op("Mul", parts.sizes, b.constant(scale.reshape(1, -1, 2, 1, 1), "scale"))
        if isinstance(head, DetectionHead) and not head.sqrt:
            # Sides are as the network gives them; boxes with negative ones are none.
            sizes = b.op("Relu", sizes)
        rows = b.op("Concat", centers, b.op("Sqrt", sizes), parts.objectness, parts.classes, axis=2)
        anchors, height, width = grid.shape
        shape = [1, anchors * (5 + head.classes), height, width]
        b.output(b.reshape(rows, shape[1:]), name, shape)
        outputs.append((name, {"shape": shape, "layout": "NCHW"}))
    names = [name for name, _ in outputs]
    metadata = {
        "yolo_outputs": names,
        "subtype": "yolov5",
        "classes": list(export.labels),
        "n_classes": len(export.labels),
        "conf_threshold": export.confidence,
        "iou_threshold": export.iou,
        "max_det": _MOST_BOXES,
        "anchors": [grid.anchors.astype(float).round(4).tolist() for grid in grids],
        "strides": [grid.stride for grid in grids],
    }
    return [{"name": "detections", "parser": "YOLO", "outputs": names, "metadata": metadata}], outputs


def _classify(export: Export, model: ir.Model) -> tuple[list[dict[str, Any]], list[tuple[str, dict[str, Any]]]]:
    """Makes the classes the only output; returns heads and outputs for config.json."""
    scores, count = export.scores(model), len(export.labels)
    metadata = {
        "classes": list(export.labels),
        "n_classes": count,
        "is_softmax": _are_probabilities(scores, count),
    }
    b = Extension(model)
    b.outputs.clear()
    b.output(scores, "classes", [1, count])
    parser = {"name": "classes", "parser": "ClassificationParser", "outputs": ["classes"], "metadata": metadata}
    return [parser], [("classes", {"shape": [1, count], "layout": "NC"})]


def _are_probabilities(value: ir.Value, classes: int) -> bool:
    """Whether a softmax over all classes is what gives them."""
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Flatten", "Identity", "Reshape"):
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    if node is None or node.op_type != "Softmax":
        return False
    shape = node.outputs[0].shape or (node.inputs[0].shape if node.inputs[0] is not None else None)
    return shape is not None and shape[attribute(node, "axis", -1)] == classes


def _input(export: Export, model: ir.Model) -> dict[str, Any]:
    p = export.preprocessing()
    preparing: dict[str, Any] = {"resize_mode": _RESIZES.get(p.mode, "STRETCH")}
    if _is_blob(export):
        # It knows mean and scale itself.
        color = _described(export).color or p.color
        mean, scale = [0.0], [1.0]
    else:
        color = p.color
        mean, scale = [value / p.scale for value in p.mean], [value / p.scale for value in p.std]
    preparing["mean"] = [round(float(value), 6) for value in np.resize(mean, p.channels)]
    preparing["scale"] = [round(float(value), 6) for value in np.resize(scale, p.channels)]
    image = p.channels in (1, 3)
    if image:
        preparing["dai_type"] = _FRAMES["gray" if p.channels == 1 else color]
    return {
        "name": model.graph.inputs[0].name,
        "dtype": "uint8" if _is_blob(export) else "float32",
        "input_type": "image" if image else "raw",
        "shape": [1, p.channels, p.height, p.width],
        "layout": "NCHW",
        "preprocessing": preparing,
    }


def _pack(archive: Path, config: Mapping[str, Any], name: str, model: Path) -> None:
    """Writes the archive, whose bytes depend on nothing else."""
    text = json.dumps(config, indent=1).encode()
    with (
        lzma.open(archive, "wb", filters=_COMPRESSION) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
        model.open("rb") as file,
    ):
        _add(tar, CONFIG, len(text), io.BytesIO(text))
        _add(tar, name, model.stat().st_size, file)


def _add(tar: tarfile.TarFile, name: str, size: int, file: BinaryIO) -> None:
    # A new entry is of nobody, of 1970, and of mode 644.
    entry = tarfile.TarInfo(name)
    entry.size = size
    tar.addfile(entry, file)


def _readme(export: Export, archive: str) -> str:
    p = export.preprocessing()
    what = "a classifier" if export.is_classifier else "a detector"
    notes = []
    if _is_blob(export):
        text = f"{what} for cameras with the Myriad X (RVC2)"
        notes.append("The blob takes bytes as the camera gives them, and makes the network's input of them itself.")
        if export.is_classifier:
            node, say = "NeuralNetwork", "print(found.getTopClass(), found.getTopScore())"
            parser = "pipeline.create(dai.beta.node.ClassificationParser).build(network.out, archive)"
        else:
            node, parser = "DetectionNetwork", "network"
            say = "print([(box.labelName, box.confidence, box.xmin, box.ymin, box.xmax, box.ymax)"
            say += " for box in found.detections])"
        fit = _RESIZES.get(p.mode, "STRETCH")
        command = _PIPELINE.format(archive=archive, fit=fit, node=node, parser=parser, say=say)
    else:
        text = f"{what}, as ModelConverter takes it"
        command = f"pip install modelconv\nmodelconverter convert rvc4 --path {archive}"
        notes.append(
            "`rvc4` is the camera's processor; for the Myriad X of RVC2, `dnc export --target myriad` needs no more."
        )
    if not export.is_classifier:
        notes.append(
            "DepthAI keeps the best class of each box, and of boxes that overlap the best one, whatever their classes "
            "are; Darknet looks at each class alone."
        )
        notes.append("Strides are in config.json, which DepthAI reads from 3.9 on.")
    if p.mode == "letterbox":
        notes.append("DepthAI pads with black, not with gray.")
    notes += cropped(export, "DepthAI")
    return readme(export, "DepthAI 3", {archive: f"{text}: model and {CONFIG}"}, command, notes)
