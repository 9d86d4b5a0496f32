"""Destination `yolov5`: an .onnx as YOLOv5's exporter writes it, for its detect.py and for whatever else reads it.

    input     images   (N, C, H, W) float32, RGB / 255
    output    output0  (N, K, 5 + classes) float32: center x, center y, width, height in pixels of the input,
                       objectness, then a probability for each class, which its consumers multiply by the objectness

`DetectMultiBackend` reads stride and names of the metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from dnc.destinations import destinations
from dnc.destinations.base import Destination, Export
from dnc.destinations.readme import README, readme
from dnc.destinations.ultralytics import pixels, stride
from dnc.graph.extension import Extension

__all__ = ["Yolov5"]


@destinations.register
class Yolov5(Destination):
    """YOLOv5 and what reads its models."""

    name: ClassVar[str] = "yolov5"
    summary: ClassVar[str] = "YOLOv5's detect.py, and what reads its ONNX: [N, K, 5 + classes]"
    suffix: ClassVar[str] = ".onnx"
    overlap: ClassVar[str] = "a higher --iou keeps more"

    def check(self, export: Export) -> None:
        super().check(export)
        export.box_heads()

    def write(self, export: Export, folder: Path) -> None:
        model = export.model()
        export.take_plain(model, "images")
        boxes, objectness, classes = export.boxes(model)
        b = Extension(model)
        b.outputs.clear()
        b.enter("export")
        shape = [b.batch, export.box_count(), 5 + len(export.labels)]
        b.output(b.op("Concat", pixels(b, boxes, export), objectness, classes, axis=2), "output0", shape)
        file = f"{export.name}.onnx"
        names = {"stride": str(stride(export)), "names": str(dict(enumerate(export.labels)))}
        export.save(model, folder / file, names)
        p = export.preprocessing()
        command = (
            f"python detect.py --weights {file} --imgsz {p.height} {p.width} --conf-thres {export.confidence:g} "
            f"--iou-thres {export.iou:g} --source image.jpg"
        )
        notes = []
        if p.mode != "letterbox":
            notes.append("YOLOv5 letterboxes images, on gray 114; Darknet stretches them for this network.")
        if p.channels != 3:
            notes.append(f"detect.py reads images of 3 channels, this network {p.channels}: feed it yourself.")
        files = {file: "the model, with the names of the classes"}
        (folder / README).write_text(readme(export, "YOLOv5", files, command, notes), encoding="utf-8")
