"""Destination `ovms`: OpenVINO Model Server, which a client sends image files and gets boxes or classes of.

    files ──the server, by OpenCV──▶ image (N, H, W, any) of uint8, blue first
                                       │ `_front`
                                       ▼
                                     the engine's input, the image's size
                                       │ the engine, `_back`
                                       ▼
                                     detections (D, 7), or scores (N, classes)

Of the server's options mean, scale, color_format and precision are for its command line alone: its config.json has no
place for them (src/schema.cpp). So what comes before and after the network is part of the graph, in Darknet's own
arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from dnc.compiler.options import CompileOptions
from dnc.darknet.lower import needs_window
from dnc.destinations import destinations
from dnc.destinations.base import MAPS, Demand, Destination, Export, one_image
from dnc.destinations.readme import README, readme
from dnc.errors import BundleError
from dnc.graph.boxes import emit_scores
from dnc.graph.builder import Builder
from dnc.graph.composites import inline_composites
from dnc.graph.preprocessing import emit_on_image, emit_prepared
from dnc.graph.suppression import MAX_CANDIDATES, Decode, emit_decoded, emit_nms
from dnc.runtime.decoding import BoxHead
from dnc.runtime.runners.openvino import MODEL, import_openvino, openvino_core, reason
from dnc.targets.openvino import read_graph, save_graph

__all__ = ["Ovms"]

VERSION = "1"
"""The folder of the model's only version: the server wants numbers."""
LABELS, CONFIG, CLIENT = "labels.txt", "config.json", "client.py"
_CLIENT = Path(__file__).with_name("ovms_client.py")
_INT64 = ir.TensorType(ir.DataType.INT64)
_GRAY = (77, 150, 29)
"""Red, green, blue, of 256: what Darknet's load_image makes of them."""


@destinations.register
class Ovms(Destination):
    """OpenVINO Model Server."""

    name: ClassVar[str] = "ovms"
    summary: ClassVar[str] = "OpenVINO Model Server: its model repository and config.json, and a client"
    target: ClassVar[str] = "openvino"
    runners: ClassVar[frozenset[str]] = frozenset({"openvino"})
    demands: ClassVar[Sequence[Demand]] = (MAPS, one_image("a request has one image"))

    def prepared(self, options: CompileOptions) -> CompileOptions:
        """A request has one image; fixed shapes are faster."""
        return dataclasses.replace(options, batch=options.batch or 1)

    def check(self, export: Export) -> None:
        super().check(export)
        p = export.preprocessing()
        if p.channels not in (1, 3):
            what = f"the network takes {p.channels} channels, and the server decodes images to gray or to colors"
            raise export.refusal(what)
        if export.is_classifier:
            export.classifier()
            return
        head = export.box_heads()[-1]
        if head.nms[0] == "cornersnms":
            what = "nms_kind=cornersnms moves boxes, which cannot be done in the graph"
            raise export.refusal(what, head.where, "`dnc detect` runs it")

    def write(self, export: Export, folder: Path) -> None:
        """Writes NAME/1/model.xml and .bin, config.json, labels.txt, client.py and README.md."""
        place = folder / export.name / VERSION
        place.mkdir(parents=True)
        save_graph(_served(export), place / MODEL)
        (folder / LABELS).write_text("".join(f"{label}\n" for label in export.labels), encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(_config(export), indent=2) + "\n", encoding="utf-8")
        thresholds = {} if export.is_classifier else {"confidence": export.confidence, "iou": export.iou}
        client = _CLIENT.read_text(encoding="utf-8")
        client = client.replace('NAME = "network"', f'NAME = "{export.name}"')
        client = client.replace('{"confidence": 0.25, "iou": 0.45}', json.dumps(thresholds))
        (folder / CLIENT).write_text(client, encoding="utf-8")
        (folder / README).write_text(_readme(export), encoding="utf-8")


def _served(export: Export) -> Any:
    """The graph from what the server decodes to what it answers."""
    with export.engine.reading() as engine:
        try:
            network = openvino_core().read_model(engine / MODEL)
        except RuntimeError as error:
            what = f"{MODEL} cannot be read: {reason(error)}"
            raise BundleError(what, engine / MODEL, "build the engine again") from error
    made: dict[str, Any] = {}
    inputs = []
    for graph, names in (_front(export), (network, export.manifest.outputs), _back(export)):
        for parameter in graph.get_parameters():
            source = made.get(parameter.friendly_name)
            if source is None:
                inputs.append(parameter)
                continue
            for reader in parameter.output(0).get_target_inputs():
                reader.replace_source_output(source)
        sources = [result.input(0).get_source_output() for result in graph.get_results()]
        # An engine of --keep-layers has more of them.
        made |= dict(zip(names, sources, strict=False))
    return import_openvino().Model(graph.get_results(), inputs, export.name)


def _front(export: Export) -> tuple[Any, Sequence[str]]:
    """From `image`, as the server decodes it, to the engine's input and the image's size; and the names of what it
    gives."""
    manifest, p = export.manifest, export.preprocessing()
    b = Builder(manifest.batch)
    b.enter("image")
    # OpenCV gives what the file has: 1 channel, 3, or 4 with the transparency, which Darknet drops.
    image = b.input("image", ["height", "width", "channels"], ir.DataType.UINT8)
    x = b.op("Expand", b.slice(image, 3, 0, 3), b.constant(np.array([1, 1, 1, 3], np.int64)))
    if p.channels == 1:
        weights = b.constant(np.array(_GRAY[::-1], np.float32))
        x = b.reduce_sum(b.op("Mul", b.op("Cast", x, to=int(ir.DataType.FLOAT)), weights), 3)
        # Sums are less than 2^24, and a division by a power of 2 is exact.
        x = b.op("Floor", b.op("Div", x, b.constant(256.0)))
        x = b.op("Cast", x, to=int(ir.DataType.UINT8))
    else:
        x = b.op("Gather", x, b.constant(np.array([2, 1, 0], np.int64)), axis=3)
    x.type = image.type
    if manifest.input_dtype == "uint8":
        b.output(x, "input", [b.batch, "height", "width", p.channels])
    else:
        b.output(emit_prepared(b, p, x), "input", [b.batch, *manifest.input_shape])
    b.enter("image")
    shape = b.op("Shape", image)
    for name, axis in (("image_height", 1), ("image_width", 2)):
        side = b.op("Gather", shape, b.constant(np.array(axis, np.int64)))
        side.type = _INT64
        b.output(side, name, [])
    return _read(b), ("input", "image_height", "image_width")


def _back(export: Export) -> tuple[Any, Sequence[str]]:
    """From what the engine gives to what the server answers."""
    manifest = export.manifest
    b = Builder(manifest.batch)
    shapes = export.shapes
    if export.is_classifier:
        head = export.classifier()
        scores = b.reshape(b.input(head.output, shapes[head.output]), [head.classes])
        b.output(scores, "scores", [b.batch, head.classes])
        return _read(b), ("scores",)
    heads = export.box_heads()
    maps = [(b.input(head.output, shapes[head.output]), _decode(head, shapes[head.output])) for head in heads]
    boxes, scores = emit_decoded(b, maps, heads[-1].classes)
    width, height = (ir.Value(name=name, shape=ir.Shape([]), type=_INT64) for name in ("image_width", "image_height"))
    if needs_window(export.preprocessing()):
        b.inputs += [width, height]
        boxes = emit_on_image(b, export.preprocessing(), boxes, width, height)
    b.output(emit_nms(b, boxes, scores, *heads[-1].nms, window=False), "detections", ["detections", 7])
    return _read(b), ("detections",)


def _decode(head: BoxHead, shape: Sequence[int]) -> Decode:
    def decode(body: Builder, output: ir.Value) -> tuple[ir.Value, ir.Value]:
        body.enter(f"{head.output}/boxes", head.where)
        return emit_scores(body, head, output, shape)

    return decode


def _read(b: Builder) -> Any:
    model = b.model("darknet", {})
    inline_composites(model)
    return read_graph(model)


def _config(export: Export) -> dict[str, Any]:
    """config.json; the path is relative to its folder."""
    device = export.manifest.options.get("device", "CPU")
    config: dict[str, Any] = {"name": export.name, "base_path": export.name, "target_device": device}
    if not device.startswith("NPU"):
        # Else OpenVINO takes bfloat16 or float16 where it finds them, whatever the engine was compiled for. What is
        # beside 8 bits stays in float32 here, as boxes are placed by it: bfloat16 is off by a pixel of 400.
        half = "f16" if device.startswith("GPU") else "f32"
        hint = {"bf16": "bf16", "fp16": half}.get(export.manifest.precision, "f32")
        config["plugin_config"] = {"INFERENCE_PRECISION_HINT": hint}
    return {"model_config_list": [{"config": config}]}


def _readme(export: Export) -> str:
    scores = "`scores` (1, classes)"
    rows = "`detections` (D, 7): 0, class, score, then center x, center y, width and height in fractions of the image"
    request, thresholds = "`image`, BYTES of shape [1], a JPEG or PNG of 8 bits", ""
    if not export.is_classifier:
        request += "; `confidence` and `iou`, FP32 of shape [1]"
        thresholds = (
            f"Thresholds: the client's, confidence {export.confidence:g} and IoU {export.iou:g} if not said; "
            f"boxes are suppressed as by Darknet. Of the scores over the confidence, the best {MAX_CANDIDATES:,} count."
        )
    return readme(
        export,
        "OpenVINO Model Server",
        {
            f"{export.name}/{VERSION}/": "the network as OpenVINO's IR",
            CONFIG: "what the server is told of it",
            LABELS: "the name of each class",
            CLIENT: "asks the server by KServe's REST API; it needs Python alone",
        },
        'docker run --rm -u $(id -u) -v "$PWD:/models:ro" -p 8000:8000 openvino/model_server:latest '
        f"--config_path /models/{CONFIG} --rest_port 8000\npython3 {CLIENT} IMAGE.jpg",
        [
            f"Requests: {request}. The answer is {scores if export.is_classifier else rows}.",
            "Files are sent as they are: the server decodes them by OpenCV, and the graph prepares them.",
        ],
        thresholds=thresholds,
    )
