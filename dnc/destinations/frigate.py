"""Destination `frigate`: Frigate NVR, for its detectors `onnx` and `openvino`, as a model of type yolo-generic.

Frigate crops squares out of a camera's frames, resizes them with cv2.resize to the network's input, and reads one
output: (1, 4 + classes, K), the center x, center y, width and height of each box in pixels of the input, then a score
for each class. What it does with them is fixed in its sources (frigate/util/model.py):

- of each box the best class alone counts, and from a score of 0.4 on;
- of boxes that overlap by more than 0.4 the better one stays, of whatever class. It hands left, top, right and bottom
  to cv2.dnn.NMSBoxes, which takes the last two for width and height: far from the left top corner boxes suppress one
  another that overlap less, so that of a crowd fewer are left;
- 20 boxes are left at most.

An output with fewer columns than rows is taken for its transpose, so that K is made larger than 4 + classes with boxes
that have no score.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from dnc.compiler.options import CompileOptions
from dnc.destinations import destinations
from dnc.destinations.base import Demand, Destination, Export, one_image
from dnc.destinations.readme import README, readme, suppression
from dnc.destinations.ultralytics import columns
from dnc.errors import printable
from dnc.graph.extension import Extension
from dnc.graph.rewriting import for_one_image
from dnc.runtime.runners.onnx import MODEL

__all__ = ["Frigate"]

CONFIG, LABELMAP = "config.yml", "labelmap.txt"
_SCORE, _SUPPRESSION, _MOST = 0.4, 0.4, 20
_LEAST_SCORE = 0.5
"""Frigate's default for `min_score`."""
_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""Darknet's names of COCO's classes that are others in Frigate, which goes by some of them: it looks for a license
plate on a "motorcycle"."""
_CARS = ("bus", "truck")
"""Of COCO's classes, those that Frigate's own coco-80.txt calls cars as well: a van is now one, now the other, and
delivery services and license plates are looked for on a "car" alone."""
_COCO = 80
_WATCHED = {
    *("person", "face", "car", "license_plate", "bus", "truck", "bicycle", "motorcycle", "boat", "package"),
    *("bear", "bird", "cat", "cow", "deer", "dog", "fox", "goat", "horse", "rabbit", "raccoon", "sheep", "squirrel"),
}
"""What cameras are put up for."""


@destinations.register
class Frigate(Destination):
    """Frigate NVR."""

    name: ClassVar[str] = "frigate"
    summary: ClassVar[str] = "Frigate NVR: a yolo-generic model, its labelmap, and the sections of config.yml"
    overlap: ClassVar[str] = f"its threshold, {_SUPPRESSION}, is its own"
    demands: ClassVar[Sequence[Demand]] = (*Destination.demands, one_image("Frigate runs images one by one"))

    def prepared(self, options: CompileOptions) -> CompileOptions:
        """Frigate runs images one by one; GPUs and NPUs like it said."""
        return dataclasses.replace(options, batch=options.batch or 1)

    def check(self, export: Export) -> None:
        super().check(export)
        if export.is_classifier:
            what = "a classifier has no boxes, and Frigate's detectors find objects"
            raise export.refusal(what, export.classifier().where, "Frigate trains classifiers of its own")
        export.box_heads()
        p = export.preprocessing()
        if p.channels != 3:
            raise export.refusal(f"the network takes {p.channels} channels, and Frigate's frames have 3")
        # Of a square, a letterbox or a crop that is square as well takes all.
        if p.mode in ("letterbox", "center-crop") and (p.width != p.height or p.crop != 1):
            what = f"Frigate stretches squares to {p.width} x {p.height}, and the network wants a {p.mode}"
            raise export.refusal(what, hint="--preprocess resize, or a square input")

    def write(self, export: Export, folder: Path) -> None:
        """Writes model.onnx, labelmap.txt, config.yml and README.md."""
        export.save(_layout(export), folder / MODEL)
        labels = _labelmap(export.labels)
        lines = "".join(f"{number}  {label}\n" for number, label in enumerate(labels))
        (folder / LABELMAP).write_text(lines, encoding="utf-8")
        place = f"model_cache/{export.name}"
        (folder / CONFIG).write_text(_config(export, place, _tracked(labels)), encoding="utf-8")
        (folder / README).write_text(_readme(export, place), encoding="utf-8")


def _layout(export: Export) -> ir.Model:
    """The model with the one output that yolo-generic reads."""
    model = for_one_image(export.model())
    export.take_plain(model, "images")
    found = columns(export, model)
    b = Extension(model)
    b.outputs.clear()
    b.enter("export")
    rows, count = 4 + len(export.labels), export.box_count()
    if count <= rows:
        found = b.op("Pad", found, b.constant(np.array([0, 0, 0, 0, 0, rows + 1 - count], np.int64)))
    b.output(found, "output0", [b.batch, rows, max(count, rows + 1)])
    return model


def _labelmap(labels: Sequence[str]) -> list[str]:
    """The names in Frigate's words, each on one line."""
    names = [printable(" ".join(label.split())) for label in labels]
    names = [_NAMES.get(name, name) for name in names]
    if len(names) == _COCO and {"car", *_CARS} <= set(names):
        names = ["car" if name in _CARS else name for name in names]
    return names


def _tracked(names: Sequence[str]) -> list[str]:
    """What Frigate is told to follow: of what the network knows, what cameras are put up for; else all of it."""
    known = [name for name in dict.fromkeys(names) if name and not name.startswith("dont_show")]
    return [name for name in known if name in _WATCHED] or known


def _config(export: Export, place: str, tracked: Sequence[str]) -> str:
    p = export.preprocessing()
    lines = [
        "detectors:",
        "  onnx:",
        "    type: onnx # or openvino, with device: CPU, GPU or NPU: it reads the same file",
        "",
        "model:",
        "  model_type: yolo-generic",
        f"  path: /config/{place}/{MODEL}",
        f"  labelmap_path: /config/{place}/{LABELMAP}",
        f"  width: {p.width}",
        f"  height: {p.height}",
        "  input_tensor: nchw",
        "  input_dtype: float",
        "  input_pixel_format: rgb",
        "",
        "objects:",
        "  track:",
        *(f"    - {_quoted(name)}" for name in tracked),
    ]
    if export.confidence > _LEAST_SCORE:
        lines.append("  filters:")
        for name in tracked:
            lines += [f"    {_quoted(name)}:", f"      min_score: {export.confidence:g}"]
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    # JSON's strings are YAML's.
    return json.dumps(name, ensure_ascii=False)


def _readme(export: Export, place: str) -> str:
    p = export.preprocessing()
    notes = [
        f"Put the sections of `{CONFIG}` in place of those of the same names in Frigate's own, and start it again.",
        f"Frigate crops squares out of frames and stretches them to {p.width} x {p.height} by cv2.resize.",
    ]
    notes += suppression(export)
    if "truck" in export.labels and "truck" not in _labelmap(export.labels):
        notes.append(f"`bus` and `truck` are called `car`, as in Frigate's coco-80.txt; `{LABELMAP}` can be changed.")
    return readme(
        export,
        "Frigate",
        {
            MODEL: "the network, with the output that Frigate's type yolo-generic reads",
            LABELMAP: "the name of each class, in Frigate's words",
            CONFIG: "sections for Frigate's config.yml",
        },
        f"""CONFIG=/path/to/frigate/config   # what Frigate has at /config
mkdir -p "$CONFIG/{place}" && cp {MODEL} {LABELMAP} "$CONFIG/{place}\"""",
        notes,
        thresholds=(
            f"Thresholds: Frigate's own. Scores over {_SCORE}; of boxes that overlap by more than {_SUPPRESSION}, "
            "of whatever classes, and of a crowd far from the left top by less, the better one; "
            f"{_MOST} boxes. Then `min_score` [{_LEAST_SCORE}] and `threshold` [0.7] of `objects: filters:`."
        ),
    )
