"""How far an engine with 8-bit numbers is from float32, as it really runs on this machine.

Both get the same images. What is measured:

    heads      of each output of the network, the size of the differences beside that of the values:
               sqrt(sum of squared differences / sum of squared values in float32), over all images
    boxes      of those that float32 finds (at confidence .25, after suppression), how many the engine finds as well: of
               the same class, with an overlap of .5, each once; and how many come that float32 does not find
    classes    of the best classes that float32 is sure of (.25 or more), how many stay the best; unsure ones change
               with any rounding

float32 is the network as the cfg says, before any pass, in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.graph.running import Running
from dnc.runtime.decoding import Classification, Detection
from dnc.runtime.inputs import Inputs
from dnc.runtime.manifest import Manifest
from dnc.runtime.memory import States
from dnc.runtime.postprocessing import Postprocess, Result
from dnc.runtime.runners import Session
from dnc.runtime.suppression import overlap
from dnc.typing import Array, Progress, silent

__all__ = ["Deviation", "HeadError", "match", "measure_deviation"]

_CONFIDENCE = 0.25
"""From which on float32 is sure of something."""
_OVERLAP = 0.5
"""From which on two boxes of a class are the same."""
_LARGEST = 1e6
"""Errors above it, and what is no number, are shown as this one."""


@dataclass(frozen=True)
class HeadError:
    """An output of the network."""

    output: str
    where: str
    """Its place in the cfg."""
    error: float
    """The size of the differences beside that of the values: 0.1 is -20 dB."""

    def __str__(self) -> str:
        decibels = f" ({20 * math.log10(self.error):.1f} dB)" if self.error else ""
        return f"{self.error * 100:.1f} %{decibels}"


@dataclass(frozen=True)
class Deviation:
    """What was measured."""

    images: int
    device: str
    """What the engine ran on, in its library's words."""
    heads: tuple[HeadError, ...]
    kind: str
    """"boxes" or "classes": what the network finds; empty for neither."""
    kept: int = 0
    """What float32 and the engine find alike."""
    lost: int = 0
    """What float32 alone finds; of classes, the answers that changed."""
    new: int = 0
    """What the engine alone finds."""

    @property
    def changed(self) -> float:
        """The share that comes or goes of all that either finds, from 0 to 1."""
        every = 2 * self.kept + self.lost + self.new
        return (self.lost + self.new) / every if every else 0.0

    def __str__(self) -> str:
        heads = ", ".join(map(str, self.heads))
        text = f"on {self.images} images the heads are {heads} off float32" if heads else f"on {self.images} images"
        if self.kind == "boxes":
            text += f"; of its {self.kept + self.lost} boxes {self.kept} stay and {self.lost} go, {self.new} come"
        elif self.kind:
            text += f"; of its {self.kept + self.lost} sure answers {self.kept} stay"
        return text

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "heads": [asdict(head) for head in self.heads]}


def measure_deviation(
    exact: ir.Model,
    manifest: Manifest,
    session: Session,
    images: Sequence[Path],
    *,
    progress: Progress = silent,
) -> Deviation:
    """Measures it on images. A network with memory takes them for frames, each side with its own memory.

    Args:
        exact: the network, lowered.
        manifest: what engine.json says.
        session: the engine, opened.

    Raises:
        ImageError: an image cannot be read.
        DncError: the network takes no images.
        TargetError: the engine does not run.
    """
    inputs, read = Inputs(manifest), Postprocess(manifest)
    running = Running(exact, optimize=True, spin=False)
    places = {name: place for place, name in enumerate(manifest.outputs)}
    where = {head.output: head.where for head in manifest.heads}
    wanted = [name for name in places if name in where] or [name for name in places if name != "detections"]
    errors, signals = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0.0)
    counts = np.zeros(3, int)
    states: list[States] = [{}, {}]
    for number, path in enumerate(images, 1):
        progress(f"comparing 8 bits with float32, image {number} of {len(images)}")
        image = inputs.prepare(inputs.pixels(path, exif=False))
        feeds = [inputs.batch([image], states=own) for own in states]
        clean, noisy = list(running(feeds[0]).values()), session.run(feeds[1])
        if manifest.carried:
            states = [inputs.following(clean), inputs.following(noisy)]
        for name in wanted:
            expected, found = clean[places[name]], noisy[places[name]]
            signals[name] += _squares(expected)
            errors[name] += _squares(found.astype(np.float64) - expected)
        if manifest.heads:
            results = [read(outputs, image.size, confidence=_CONFIDENCE, top=1) for outputs in (clean, noisy)]
            counts += _alike(*results)
    heads = tuple(HeadError(name, where.get(name, ""), _relative(errors[name], signals[name])) for name in wanted)
    kind = "" if not manifest.heads else "classes" if manifest.heads[-1].kind == "classifier" else "boxes"
    kept, lost, new = counts.tolist()
    return Deviation(len(images), session.device, heads, kind, kept, lost, new)


def _squares(array: Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())


def _relative(error: float, signal: float) -> float:
    found = math.sqrt(error / signal) if signal else math.inf if error else 0.0
    return round(found, 5) if found < _LARGEST else _LARGEST


def _alike(expected: Result, found: Result) -> tuple[int, int, int]:
    """What both find in an image, what the first alone finds, and what the second alone."""
    if any(isinstance(item, Classification) for item in expected):
        if expected[0].confidence < _CONFIDENCE:
            return 0, 0, 0
        return (1, 0, 0) if expected[0].class_id == found[0].class_id else (0, 1, 1)
    boxes = [[item for item in result if isinstance(item, Detection)] for result in (expected, found)]
    kept = sum(place is not None for place in match(*boxes))
    return kept, len(boxes[0]) - kept, len(boxes[1]) - kept


def match(expected: Sequence[Detection], found: Sequence[Detection]) -> list[int | None]:
    """For each expected box the place of the one that was found: of its class, with the largest overlap, of .5 at
    least, each once; None where there is none."""
    free = set(range(len(found)))
    places: list[int | None] = []
    for box in expected:
        near = {other: _overlap(box, found[other]) for other in free if found[other].class_id == box.class_id}
        best = max(near, key=near.__getitem__, default=None)
        if best is not None and near[best] < _OVERLAP:
            best = None
        free.discard(-1 if best is None else best)
        places.append(best)
    return places


def _overlap(one: Detection, other: Detection) -> float:
    sides = np.array([(box.center_x, box.center_y, box.width, box.height) for box in (one, other)], np.float32)
    return float(overlap(sides[:1], sides[1:])[0, 0])
