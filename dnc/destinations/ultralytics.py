"""Destination `ultralytics`: an .onnx as Ultralytics' own exporter writes it, for its `YOLO` class and whatever else
reads YOLOv8's.

    input     images   (N, C, H, W) float32, RGB / 255; the batch is fixed
    output    output0  detectors: (N, 4 + classes, K) float32: center x, center y, width, height in pixels of the
                       input, then a score for each class; classifiers: (N, classes)

Its metadata are those of `ultralytics.engine.exporter.Exporter` that `ultralytics.nn.backends` reads. A free batch
would be taken for free sides as well (`ONNXBackend.dynamic`), so there is none; lists of images are run in parts.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from dnc import __version__
from dnc.compiler.options import CompileOptions
from dnc.destinations import destinations
from dnc.destinations.base import Destination, Export
from dnc.destinations.readme import README, cropped, readme
from dnc.graph.extension import Extension
from dnc.graph.rewriting import for_one_image

__all__ = ["Ultralytics", "columns", "pixels", "stride"]

_TAKEN_FOR_DECODED = 6
"""Boxes in all: `non_max_suppression` takes a last axis of that length for (left, top, right, bottom, score, class)."""


def pixels(b: Extension, boxes: ir.Value, export: Export) -> ir.Value:
    """Boxes (N, K, 4) in pixels of the input, of those in fractions of it."""
    p = export.preprocessing()
    return b.op("Mul", boxes, b.constant(np.array([p.width, p.height, p.width, p.height], np.float32)))


def columns(export: Export, model: ir.Model) -> ir.Value:
    """The boxes of a model of `Export.model` as YOLOv8 lays them out, (N, 4 + classes, K): center x, center y, width,
    height in pixels of the input, then a score for each class."""
    boxes, objectness, classes = export.boxes(model)
    b = Extension(model)
    b.enter("export")
    rows = b.op("Concat", pixels(b, boxes, export), b.op("Mul", classes, objectness), axis=2)
    return b.op("Transpose", rows, perm=[0, 2, 1])


def stride(export: Export) -> int:
    """The pixels of the input that a cell of the coarsest grid has, if they part the input's sides: they are rounded up
    to whole strides otherwise, and then no longer fit."""
    p = export.preprocessing()
    grids = [shape for head in export.manifest.heads if len(shape := export.shapes[head.output]) == 3]
    found = max((math.ceil(p.height / shape[1]) for shape in grids), default=32)
    return found if p.height % found == p.width % found == 0 else math.gcd(p.height, p.width)


@destinations.register
class Ultralytics(Destination):
    """Ultralytics' library and those that read its models."""

    name: ClassVar[str] = "ultralytics"
    summary: ClassVar[str] = "Ultralytics' YOLO(…), and what reads YOLOv8's ONNX: [N, 4 + classes, K] with its metadata"
    suffix: ClassVar[str] = ".onnx"
    overlap: ClassVar[str] = "a higher --iou keeps more"

    def prepared(self, options: CompileOptions) -> CompileOptions:
        return options if options.batch is not None else dataclasses.replace(options, batch=1)

    def check(self, export: Export) -> None:
        super().check(export)
        if export.is_classifier:
            export.classifier()
            return
        heads = export.box_heads()
        if export.box_count() == _TAKEN_FOR_DECODED:
            what = f"the network gives {_TAKEN_FOR_DECODED} boxes, which Ultralytics takes for detections"
            raise export.refusal(what, heads[0].where, "another size of the input gives more")

    def write(self, export: Export, folder: Path) -> None:
        model = for_one_image(export.model())
        export.take_plain(model, "images")
        if export.is_classifier:
            output, row = export.scores(model), [len(export.labels)]
        else:
            output, row = columns(export, model), [4 + len(export.labels), export.box_count()]
        b = Extension(model)
        b.outputs.clear()
        b.output(output, "output0", [b.batch, *row])
        file = f"{export.name}.onnx"
        export.save(model, folder / file, self._metadata(export))
        notes = []
        told = f", conf={export.confidence:g}, iou={export.iou:g}"
        if export.is_classifier:
            told = ""
            notes += cropped(export, "Ultralytics")
            if "[softmax]" not in export.classifier().where:
                notes.append("The network ends without [softmax]: what it gives are no probabilities.")
        else:
            notes.append("`predict` gives the best class of each box; Darknet gives each class over the threshold.")
            if export.preprocessing().mode != "letterbox":
                notes.append("Ultralytics letterboxes images, on gray 114; Darknet stretches them for this network.")
        command = f'>>> from ultralytics import YOLO\n>>> YOLO("{file}").predict("image.jpg"{told})'
        files = {file: "the model, with names, task and size of the input"}
        (folder / README).write_text(readme(export, "Ultralytics", files, command, notes), encoding="utf-8")

    def _metadata(self, export: Export) -> dict[str, str]:
        p, batch = export.preprocessing(), export.manifest.batch
        batch = batch if isinstance(batch, int) else 1
        fields = {
            "description": f"{export.name} of Darknet, written by dnc",
            "author": "dnc",
            "version": __version__,
            "stride": stride(export),
            "task": "classify" if export.is_classifier else "detect",
            "batch": batch,
            "imgsz": [p.height, p.width],
            "names": dict(enumerate(export.labels)),
            "channels": p.channels,
            "end2end": False,
            "args": {"batch": batch, "dynamic": False, "nms": False},
        }
        return {name: str(value) for name, value in fields.items()}
