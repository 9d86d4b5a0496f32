"""What stands beside a blob: which part of the device runs each layer, and DepthAI's configuration of a detector.

The compiler dumps its stages in Graphviz's language, one `label="[0 / 4] Stage NAME\\ltype = TYPE\\l..."` each. The
first number is the order of execution, -1 for what is no work (views on memory), `origLayer = [ name = LAYER` the layer
that a stage is made for, called like its output in the ONNX model. A layer is cut into several stages where it does not
fit into the on-chip memory. There are

    hardware    type MyriadXHwOp: the neural compute engine, convolutions, pooling and products, with ReLU
    software    everything else that computes: programs on the vector processors (shaves)
    copies      between the memory and the on-chip memory, or into another layout

DepthAI's YoloDetectionNetwork decodes on the device, by a JSON file of this form: input size, classes, the anchors of
all heads one after the other, and for each head, by the width of its map ("side13"), which of them are its own. It
takes heads with centers, objectness and classes activated and sizes e^t anchor: [yolo] without new_coords.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dnc.runtime.decoding import BoxHead, YoloHead
from dnc.runtime.manifest import Manifest

__all__ = ["Layers", "in_short", "read_stages", "yolo_config"]

Layers = list[dict[str, Any]]
"""For each section of the cfg: {"where", "hardware": stages, "software": {type: stages}, "copies": stages}."""

_STAGE = re.compile(r'label="\[(-?\d+|Injected)[^"]*?\] Stage ((?:\\.|[^"\\])*)"')
_HARDWARE = "MyriadXHwOp"
_COPIES = ("Copy", "Convert", "Permute", "Expand", "Crop")
_VIEWS = ("Split", "StubConcat", "Reshape")
_END = "}"


def read_stages(dump: str, places: Mapping[str, str]) -> Layers:
    """Counts the stages of each section of the cfg, in the order of execution.

    Args:
        dump: the compiler's stages.
        places: the section of each layer of the compiler's, by its name.

    Raises:
        ValueError: the dump is cut off.
    """
    if not dump.rstrip().endswith(_END):
        raise ValueError("the compiler's list of stages is cut off")
    layers: dict[str, dict[str, Any]] = {}
    for order, label in _STAGE.findall(dump):
        lines = label.split("\\l")
        kind = next((line.removeprefix("type = ") for line in lines if line.startswith("type = ")), "")
        if order == "-1" or kind in _VIEWS:
            continue
        layer = re.search(r"origLayer = \[\\l\s+name = (.*?)\\l", label)
        # What converts inputs is made for no layer.
        where = places.get(layer[1], layer[1]) if layer else "inputs"
        counts = layers.setdefault(where, {"where": where, "hardware": 0, "software": {}, "copies": 0})
        if kind == _HARDWARE:
            counts["hardware"] += 1
        elif kind in _COPIES:
            counts["copies"] += 1
        else:
            counts["software"][kind] = counts["software"].get(kind, 0) + 1
    return list(layers.values())


def in_short(layers: Layers) -> str:
    """The stages in one line."""
    software: Counter[str] = Counter()
    for layer in layers:
        software.update(layer["software"])
    named = ", ".join(f"{count} {kind}" for kind, count in software.most_common(4))
    more = ", …" if len(software) > 4 else ""
    total = f"{sum(layer['hardware'] for layer in layers)} hardware, {software.total()} software"
    return total + (f" ({named}{more})" if named else "") + f", {sum(layer['copies'] for layer in layers)} copies"


def yolo_config(manifest: Manifest, confidence: float, iou: float) -> str:
    """The configuration for YoloDetectionNetwork, as JSON; "" if the network has no boxes.

    Raises:
        ValueError: the device cannot decode the heads: why.
    """
    heads = [head for head in manifest.heads if isinstance(head, BoxHead)]
    if not heads:
        return ""
    if manifest.decode != "host":
        raise ValueError("the boxes are decoded already")
    yolo = [head for head in heads if type(head) is YoloHead and not head.new_coords]
    if len(yolo) < len(heads):
        other = next(head for head in heads if head not in yolo)
        raise ValueError(f"the device cannot decode {other.where}" + ", new_coords=1" * isinstance(other, YoloHead))
    shapes = dict(zip(manifest.outputs, manifest.output_shapes, strict=True))
    anchors: list[float] = []
    masks: dict[str, Sequence[int]] = {}
    for head in yolo:
        side = f"side{shapes[head.output][-1]}"
        if side in masks:
            raise ValueError(f"the device tells heads apart by their width, and two have {side.removeprefix('side')}")
        first = len(anchors) // 2
        masks[side] = list(range(first, first + len(head.anchors)))
        anchors += [number for anchor in head.anchors for number in anchor]
    _, height, width = manifest.input_shape
    config = {
        "nn_config": {
            "output_format": "detection",
            "NN_family": "YOLO",
            "input_size": f"{width}x{height}",
            "NN_specific_metadata": {
                "classes": yolo[0].classes,
                "coordinates": 4,
                "anchors": anchors,
                "anchor_masks": masks,
                "iou_threshold": iou,
                "confidence_threshold": confidence,
            },
        },
        "mappings": {"labels": list(manifest.labels) or [str(number) for number in range(yolo[0].classes)]},
        "version": 1,
    }
    return json.dumps(config, indent=1) + "\n"
