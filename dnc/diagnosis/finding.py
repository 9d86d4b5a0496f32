"""What two engines find in images, side by side: boxes that come and go, heads that differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dnc.diagnosis.report import Box, Head, ImageChange, Place
from dnc.diagnosis.weighing import decibels
from dnc.evaluation.deviation import match
from dnc.runtime.decoding import BoxHead, Classification, Detection
from dnc.runtime.engine import Engine
from dnc.runtime.images import read_image
from dnc.runtime.memory import States
from dnc.runtime.postprocessing import Result
from dnc.typing import Array, Progress

__all__ = ["Found", "find"]

_IOU = 0.45
_TOP = 5


@dataclass
class _Output:
    """Power of an output, over images."""

    signal: float = 0.0
    noise: float = 0.0
    largest_error: float = 0.0


@dataclass
class Found:
    """What both find, in all images."""

    images: list[ImageChange] = field(default_factory=list)
    heads: tuple[Head, ...] = ()
    boxes: int = 0
    gone: int = 0
    come: int = 0


def find(engine: Engine, against: Engine, images: Sequence[Path], confidence: float, progress: Progress) -> Found:
    """Runs both on each image. Raises ImageError for one that cannot be read."""
    found = Found()
    outputs: dict[str, _Output] = {}
    states: tuple[States, States] = ({}, {})
    preprocessing = engine.manifest.preprocessing
    assert preprocessing is not None
    comparable = {item.manifest.decode for item in (engine, against)} == {"host"}
    for number, path in enumerate(images, 1):
        progress(f"comparing what both find, {number}/{len(images)}  {path}")
        pixels = read_image(path, preprocessing.channels)
        results: list[Result] = []
        raw: list[Sequence[Array]] = []
        for item, remembered in zip((engine, against), states, strict=True):
            image = item.inputs.prepare(pixels)
            feeds = item.inputs.batch([image], confidence=confidence, iou=_IOU, states=remembered)
            computed = item.session.run(feeds)
            remembered.update(item.inputs.following(computed))
            raw.append(computed)
            results.append(
                item.postprocess(computed, image.size, confidence=confidence, iou=_IOU, top=_TOP)
                if item.manifest.heads
                else []
            )
        noise = signal = 0.0
        for name, first, second in _both(engine, against, raw) if comparable else ():
            output = outputs.setdefault(name, _Output())
            difference = np.abs(first.astype(np.float64) - second)
            own, other = float(np.square(difference).sum()), float(np.square(second, dtype=np.float64).sum())
            noise, signal = noise + own, signal + other
            output.noise += own
            output.signal += other
            output.largest_error = max(output.largest_error, float(difference.max(initial=0)))
        boxes = isinstance(engine.manifest.heads[-1], BoxHead) if engine.manifest.heads else False
        mine, theirs = _matched(*results) if boxes else _classes(*results)
        size = (pixels.shape[1], pixels.shape[0])
        change = ImageChange(str(path), size, decibels(noise, signal), mine, theirs)
        found.images.append(change)
        found.boxes += len(theirs) if boxes else 1
        found.gone += change.gone
        found.come += change.come
    found.images.sort(key=lambda change: (-(change.gone + change.come), -_loud(change.noise)))
    found.heads = tuple(_heads(engine, outputs))
    return found


def _loud(noise: float | None) -> float:
    return -math.inf if noise is None else noise


def _both(engine: Engine, against: Engine, raw: Sequence[Sequence[Array]]) -> Iterator[tuple[str, Array, Array]]:
    """The outputs that both have, for one image."""
    theirs = dict(zip(against.manifest.outputs, raw[1], strict=False))
    for name, array in zip(engine.manifest.outputs, raw[0], strict=False):
        other = theirs.get(name)
        if other is not None and other[:1].shape == array[:1].shape:
            yield name, array[:1], other[:1]


def _heads(engine: Engine, outputs: dict[str, _Output]) -> Iterator[Head]:
    manifest = engine.manifest
    places = {head.output: head.where for head in manifest.heads}
    shapes = dict(zip(manifest.outputs, manifest.output_shapes, strict=True))
    for name, output in outputs.items():
        share = output.noise / output.signal if output.signal else float(output.noise > 0)
        noise = decibels(output.noise, output.signal)
        yield Head(name, places.get(name, ""), tuple(shapes[name]), float(np.sqrt(share)), noise, output.largest_error)


def _matched(mine: Result, theirs: Result) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    """The boxes of both, and which of them the other has as well."""
    found, expected = ([box for box in result if isinstance(box, Detection)] for result in (mine, theirs))
    places = match(expected, found)
    return (
        tuple(_box(box, "both" if place in places else "come") for place, box in enumerate(found)),
        tuple(_box(box, "gone" if place is None else "both") for place, box in zip(places, expected, strict=True)),
    )


def _box(box: Detection, place: Place) -> Box:
    left, top = box.center_x - box.width / 2, box.center_y - box.height / 2
    return Box(box.label, box.class_id, box.confidence, left, top, box.width, box.height, place)


def _classes(mine: Result, theirs: Result) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    """The best classes of both; what is gone or come is the best one."""
    same = [item.class_id for item in mine[:1]] == [item.class_id for item in theirs[:1]]

    def listed(found: Sequence[Detection | Classification], other: Place) -> tuple[Box, ...]:
        return tuple(
            Box(item.label, item.class_id, item.confidence, 0.0, 0.0, 0.0, 0.0, "both" if same or rank else other)
            for rank, item in enumerate(found)
        )

    return listed(mine, "come"), listed(theirs, "gone")
