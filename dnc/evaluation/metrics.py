"""How well an engine does on images whose objects or classes are known.

    darknet   what `detector map` prints: mAP at one IoU, and TP, FP, FN, average IoU at one confidence
    coco      COCO's AP, AP50, AP75 and by size of the object, computed by pycocotools
    top       the share of images whose class is the best one, or among the best k: `classifier valid`

Darknet's figures follow validate_detector_map to the letter, because its TP, FP and FN depend on the order in which it
comes to its boxes:

    found      boxes and scores over .005, non-maximum suppression at .45
    order      as do_nms_sort leaves its boxes: it sorts them by the score of one class after the other
    match      each box and class has the object of its class that it overlaps most, over `iou`
    TP         of those surer than `confidence`, one whose object no box before it matched, however unsure it was;
               all others surer than that are FP, and the objects without a TP are FN
    average IoU    the sum over TP, divided by TP + FP
    AP         by descending score, the first to match an object is right. Precision at a recall is the best one there
               and beyond, averaged over `points` recalls from 0 to 1; 0 points are the area
    mAP        the mean over all classes; one without objects counts as 0

A detection that matches no object but a difficult one does not count for AP, though among TP and FP it is FP.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from dnc.errors import DatasetError, DncError, ImageError, warn
from dnc.evaluation.datasets import Dataset, read_names
from dnc.evaluation.reports import ClassFigures, CocoReport, DarknetReport, Report, TopReport
from dnc.evaluation.truth import Truth, class_truth, read_truth
from dnc.evaluation.workers import Picture, Task, Work, Workers, each
from dnc.runtime.decoding import BoxHead, Classification, Detection
from dnc.runtime.engine import Engine, load
from dnc.runtime.images import Pixels
from dnc.runtime.inputs import Prepared
from dnc.runtime.memory import States
from dnc.runtime.suppression import darknet_order, overlap
from dnc.typing import Array

__all__ = [
    "average_precision",
    "evaluate",
]

_NMS = 0.45
_DARKNET_THRESHOLD = 0.005
_COCO_THRESHOLD = 0.001
"""What is submitted to COCO; its AP has the tail of unsure detections."""
_COCO_DETECTIONS = 100
"""COCO takes that many of an image and class."""

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


def evaluate(
    engine: Engine,
    dataset: Dataset,
    *,
    like_darknet: bool = False,
    labels: str | PathLike[str] | None = None,
    annotations: str | PathLike[str] | None = None,
    allow_unlabelled: bool = False,
    points: int = 101,
    iou: float = 0.5,
    confidence: float = 0.25,
    top: int = 5,
    skip_bad: bool = False,
    exif: bool | None = None,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> Report:
    """Runs the engine on every image and compares what it finds with what is there.

    A network with memory sees the images as one sequence from zero, as in Darknet's `detector map`.

    Args:
        engine: a detector or a classifier, of any target.
        dataset: from `read_dataset`. A .data file's `labels` are the names that say a path's class for a classifier.
        like_darknet: of a detector, a `DarknetReport` instead of a `CocoReport`.
        labels: a folder of label files for a detector; for a classifier a file of names that occur in the paths.
        annotations: a COCO file, instead of labels.
        allow_unlabelled: an image without labels has no objects.
        points, iou, confidence: see `DarknetReport`.
        top: as many classes of a classifier count.
        skip_bad: an image that cannot be read is a warning, and does not count.
        exif: whether images are turned as their EXIF says; see `Engine.__call__`.
        progress: called with the number of images that are done and that there are.
        workers: who runs the engine; this process if not given. The report is the same, to the bit.

    Returns:
        A `DarknetReport`, a `CocoReport` or a `TopReport`.

    Raises:
        DatasetError: labels are missing or do not fit the engine.
        ImageError: an image cannot be read, or none can.
        DncError: the network has neither boxes nor classes, or pycocotools is missing.
    """
    heads = engine.manifest.heads
    if not heads or engine.manifest.preprocessing is None:
        raise DncError("this network finds nothing in images that could be right or wrong", engine.folder)
    if points < 0 or points == 1:
        raise DncError(f"{points} points", hint="101 for COCO, 11 for VOC 2007, 0 for the area")
    classes = heads[-1].classes
    names = _names(engine, dataset, classes)
    meter: _Meter
    if not isinstance(heads[-1], BoxHead):
        top = min(top, classes)
        meter = _TopMeter(_class_ids(dataset, classes, names, labels), top)
    else:
        truths = read_truth(
            dataset.entries, classes, labels=labels, annotations=annotations, allow_unlabelled=allow_unlabelled
        )
        meter = _DarknetMeter(truths, names, points, iou, confidence) if like_darknet else _CocoMeter(truths, classes)
    threshold = meter.threshold
    paths = [entry.path for entry in dataset.entries]
    if workers is None:
        found = each(_Finding(engine, threshold, top, exif, {}), map(Picture, paths))
    else:
        in_order = bool(engine.manifest.carried)
        work = _Finder(engine.folder, engine.files(), in_order, engine.given, threshold, top, exif)
        found = workers.each(work, paths, lambda _: None)
    done = 0
    for number, (entry, (_, result)) in enumerate(zip(dataset.entries, found, strict=True)):
        try:
            meter.add(number, *result())
            done += 1
        except ImageError as error:
            listed = f"{entry.where} names it; " if entry.where else ""
            if not skip_bad:
                error.hint = f"{listed}--skip-bad goes on without it"
                raise
            warn(error)
        if progress is not None:
            progress(number + 1, len(dataset.entries))
    if not done:
        raise ImageError(f"none of the {len(dataset.entries)} images can be read")
    return meter.report(str(engine.folder), done, len(dataset.entries) - done)


def average_precision(right: npt.ArrayLike, objects: int, points: int = 101) -> float:
    """The AP of one class, as in validate_detector_map; 0 without detections or objects.

    Args:
        right: (D,) booleans, the surest detection first: whether it is the first to match its object.
        objects: how many there are.
        points: recalls at which the precision is taken, as Darknet computes them: a recall that is one of them may be
            less by a rounding; 0 for the area, in which Darknet gives the step between two
            detections the better precision of the two and those after them.
    """
    hits = np.asarray(right, np.bool_)
    if not hits.size or not objects:
        return 0.0
    found = np.cumsum(hits)
    recall = found / objects
    best = np.maximum.accumulate((found / np.arange(1, hits.size + 1))[::-1])[::-1]
    if points:
        # Its Makefile says -Ofast, so that the compiler multiplies by the reciprocal: 0.35 is a bit more than 35 / 100.
        at = np.searchsorted(recall, np.arange(points) * (1 / (points - 1)))
        return float(np.append(best, 0)[at].sum() / points)
    return float(best[0] * recall[0] + (np.diff(recall) * best[:-1]).sum())


class _Found(NamedTuple):
    """D detections, in the order in which Darknet comes to them."""

    class_ids: npt.NDArray[np.intp]
    scores: Floats
    boxes: Floats
    """(D, 4): center x, center y, width, height, as fractions of the image."""


Size = tuple[int, int]
"""(height, width) of an image."""


@dataclass(frozen=True)
class _Finder(Work):
    """Opens an engine: see `_Finding`."""

    folder: Path
    files: tuple[str, ...]
    in_order: bool
    given: Mapping[str, Any]
    """What the engine was loaded with."""
    threshold: float | None
    top: int
    exif: bool | None

    def open(self, folder: Path, threads: int | None) -> Callable[[States], Task]:
        engine = load(folder, **{**self.given, "threads": self.given["threads"] or threads})
        # It is opened before the first image, and not by several threads at once.
        _ = engine.session
        return lambda states: _Finding(engine, self.threshold, self.top, self.exif, dict(states))


class _Finding(Task):
    """What an engine finds in images.

    Args:
        threshold: of a detector; None for a classifier.
        top: the number of classes of a classifier.
    """

    def __init__(self, engine: Engine, threshold: float | None, top: int, exif: bool | None, states: States) -> None:
        assert engine.manifest.preprocessing is not None
        self._engine, self._threshold, self._top, self._exif = engine, threshold, top, exif
        self._channels = engine.manifest.preprocessing.channels
        self.states = states

    def read(self, picture: Picture) -> Pixels:
        return picture.pixels(self._channels, self._exif)

    def see(self, read: Pixels) -> tuple[Size, _Found | list[int]]:
        """What is found, or the best classes; and the image's size."""
        height, width = read.shape[:2]
        if self._threshold is not None:
            return (height, width), _found(self._engine, read, self._threshold, self.states)
        outputs = _run(self._engine, self._engine.inputs.prepare(read), self.states)
        best = self._engine.postprocess(outputs, top=self._top)
        return (height, width), [entry.class_id for entry in best if isinstance(entry, Classification)]


class _Meter(ABC):
    """Takes what is found in one image after the other."""

    threshold: ClassVar[float | None]
    """What a box must have to count; None for classes."""

    @abstractmethod
    def add(self, number: int, size: Size, found: Any) -> None:
        """Takes what is found in an image of the dataset: see `_Finding.see`."""

    @abstractmethod
    def report(self, engine: str, images: int, skipped: int) -> Report:
        """What it amounts to."""


class _DarknetMeter(_Meter):
    threshold = _DARKNET_THRESHOLD

    def __init__(
        self, truths: Sequence[Truth], names: Sequence[str], points: int, iou: float, confidence: float
    ) -> None:
        self._truths, self._names = truths, names
        self._points, self._iou, self._confidence = points, iou, confidence
        self._objects, self._true, self._false = (np.zeros(len(names), np.intp) for _ in range(3))
        self._total = 0
        self._overlaps = 0.0
        # Of each image: scores, classes, and the number of the object matched or -1.
        self._ranked: list[tuple[Floats, npt.NDArray[np.int32], npt.NDArray[np.int64]]] = []

    def add(self, number: int, size: Size, found: _Found) -> None:
        truth = self._truths[number]
        overlaps = overlap(found.boxes, truth.boxes)
        overlaps[(overlaps <= np.float32(self._iou)) | (found.class_ids[:, None] != truth.class_ids)] = 0
        difficult = (overlaps[:, truth.ignored] > 0).any(axis=1)
        overlaps = overlaps[:, ~truth.ignored]
        best = overlaps.max(axis=1, initial=0)
        matched = np.full(len(best), -1)
        if overlaps.shape[1]:
            matched = np.where(best > 0, overlaps.argmax(axis=1), -1)
        sure = found.scores > np.float32(self._confidence)
        first = np.zeros(len(best), np.bool_)
        first[np.unique(matched, return_index=True)[1]] = True
        true = sure & first & (matched >= 0)
        count = len(self._names)
        self._true += np.bincount(found.class_ids[true], minlength=count)
        self._false += np.bincount(found.class_ids[sure & ~true], minlength=count)
        self._overlaps += float(best[true].sum())
        objects = np.where(matched >= 0, matched + self._total, -1)
        counted = (matched >= 0) | ~difficult
        self._ranked.append((found.scores[counted], found.class_ids[counted].astype(np.int32), objects[counted]))
        self._objects += np.bincount(truth.class_ids[~truth.ignored], minlength=count)
        self._total += int((~truth.ignored).sum())

    def report(self, engine: str, images: int, skipped: int) -> DarknetReport:
        scores, class_ids, objects = (np.concatenate(part) for part in zip(*self._ranked, strict=True))
        order = np.argsort(-scores, kind="stable")
        class_ids, objects = class_ids[order], objects[order]
        right = np.zeros(len(objects), np.bool_)
        right[np.unique(objects, return_index=True)[1]] = True
        right &= objects >= 0
        counts = zip(self._objects.tolist(), self._true.tolist(), self._false.tolist(), strict=True)
        figures = tuple(
            ClassFigures(index, name, average_precision(right[class_ids == index], count[0], self._points), *count)
            for index, (name, count) in enumerate(zip(self._names, counts, strict=True))
        )
        true, false = int(self._true.sum()), int(self._false.sum())
        return DarknetReport(
            engine,
            images,
            skipped,
            iou=self._iou,
            points=self._points,
            confidence=self._confidence,
            detections=len(scores),
            objects=self._total,
            mean_average_precision=sum(entry.average_precision for entry in figures) / len(figures),
            true_positives=true,
            false_positives=false,
            false_negatives=self._total - true,
            precision=_share(true, true + false),
            recall=_share(true, self._total),
            f1=_share(2 * true, true + false + self._total),
            average_iou=_share(self._overlaps, true + false),
            classes=figures,
        )


class _CocoMeter(_Meter):
    threshold = _COCO_THRESHOLD

    def __init__(self, truths: Sequence[Truth], classes: int) -> None:
        try:
            import pycocotools.cocoeval  # noqa: F401
        except ImportError as error:
            hint = "pip install 'darknet-compiler[eval]'; Darknet's own figures (--like-darknet) need nothing"
            raise DncError("COCO's figures need pycocotools, which is not installed", hint=hint) from error
        self._truths, self._classes = truths, classes
        self._images: list[int] = []
        self._objects: list[dict[str, Any]] = []
        # (D, 7) of each image: its number, left, top, width, height, score, class.
        self._found: list[npt.NDArray[np.float64]] = []

    def add(self, number: int, size: Size, found: _Found) -> None:
        truth = self._truths[number]
        height, width = size
        self._images.append(number)
        columns = (truth.class_ids, _corners(truth.boxes, width, height), truth.ignored, truth.areas)
        for class_id, box, crowd, area in zip(*(column.tolist() for column in columns), strict=True):
            self._objects.append(
                {
                    "id": len(self._objects) + 1,
                    "image_id": number,
                    "category_id": class_id,
                    "bbox": box,
                    # nan is not equal to itself.
                    "area": area if area == area else box[2] * box[3],
                    "iscrowd": int(crowd),
                }
            )
        ranked = np.argsort(-found.scores, kind="stable")
        kept = ranked[_rank_in_class(found.class_ids[ranked]) < _COCO_DETECTIONS]
        # COCO's boxes end with the image: print_cocos.
        low, extent = np.split(_corners(found.boxes[kept], width, height), 2, axis=1)
        limit = np.array([width, height])
        low, high = np.maximum(low, 0), np.minimum(low + extent, limit)
        numbers = np.full((len(kept), 1), number)
        rest = np.stack([found.scores[kept], found.class_ids[kept]], axis=1)
        self._found.append(np.hstack([numbers, low, high - low, rest]))

    def report(self, engine: str, images: int, skipped: int) -> CocoReport:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        rows = np.concatenate(self._found)
        if not len(rows) or not self._objects:
            # pycocotools takes no empty lists. Without objects there is nothing to find, which is COCO's -1.
            areas = np.array([entry["area"] for entry in self._objects if not entry["iscrowd"]])
            sizes = (areas >= 0, areas < 32**2, (areas >= 32**2) & (areas < 96**2), areas >= 96**2)
            total, small, medium, large = (0.0 if size.any() else -1.0 for size in sizes)
            return CocoReport(engine, images, skipped, total, total, total, small, medium, large)
        # It prints what it does.
        with redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = {
                "info": {},
                "images": [{"id": number} for number in self._images],
                "annotations": self._objects,
                "categories": [{"id": index} for index in range(self._classes)],
            }
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return CocoReport(engine, images, skipped, *map(float, evaluation.stats[:6]))


class _TopMeter(_Meter):
    threshold = None

    def __init__(self, class_ids: Sequence[int], k: int) -> None:
        self._class_ids, self._k = class_ids, k
        self._best = self._among = 0

    def add(self, number: int, size: Size, found: list[int]) -> None:
        self._best += found[0] == self._class_ids[number]
        self._among += self._class_ids[number] in found

    def report(self, engine: str, images: int, skipped: int) -> TopReport:
        return TopReport(engine, images, skipped, self._k, self._best / images, self._among / images)


def _run(engine: Engine, image: Prepared, states: States, threshold: float = 0.0) -> Sequence[Array]:
    """The outputs for an image; `states` become their successors."""
    outputs = engine.session.run(engine.inputs.batch([image], confidence=threshold, iou=_NMS, states=states))
    states.update(engine.inputs.following(outputs))
    return outputs


def _found(engine: Engine, pixels: Pixels, threshold: float, states: States) -> _Found:
    """What an engine finds over the threshold, in Darknet's order."""
    image = engine.inputs.prepare(pixels)
    outputs = _run(engine, image, states, threshold)
    if engine.manifest.decode == "graph+nms":
        found = engine.postprocess(outputs, image.size)
        return _from_detections([box for box in found if isinstance(box, Detection)], engine.manifest.heads[-1].classes)
    candidates = engine.postprocess.candidates(outputs, image.size, threshold=threshold)
    left = engine.postprocess.suppressed(candidates, _NMS)
    return _in_order(candidates.boxes, candidates.scores, left)


def _from_detections(detections: Sequence[Detection], classes: int) -> _Found:
    """The same for an engine that suppresses boxes itself.

    The scores of boxes that it has suppressed are not known, so that their order is Darknet's but for a few.
    """
    rows = [(box.center_x, box.center_y, box.width, box.height) for box in detections]
    boxes, index = np.unique(np.array(rows, np.float32).reshape(-1, 4), axis=0, return_inverse=True)
    scores = np.zeros((len(boxes), classes), np.float32)
    scores[index.reshape(-1), [box.class_id for box in detections]] = [box.confidence for box in detections]
    return _in_order(boxes, scores, scores)


def _in_order(boxes: Floats, scores: Floats, left: Floats) -> _Found:
    """What is `left` of the scores (K, classes) after the suppression, in Darknet's order."""
    order = darknet_order(scores)
    box, class_id = np.nonzero(left[order])
    return _Found(class_id, left[order][box, class_id], boxes[order][box])


def _names(engine: Engine, dataset: Dataset, classes: int) -> Sequence[str]:
    data = dataset.data
    if data is not None and data.classes not in (None, classes):
        raise DatasetError(f"{data.classes} classes, but {classes} in {engine.folder}", data.lines["classes"])
    path = data.find("names") if data is not None else None
    if data is not None and path is not None:
        names = read_names(path)
        if len(names) != classes:
            raise DatasetError(f"{len(names)} names in {path}, but {classes} classes in {engine.folder}", path)
        return names
    return [engine.labels[index] if index < len(engine.labels) else str(index) for index in range(classes)]


def _class_ids(dataset: Dataset, classes: int, names: Sequence[str], labels: str | PathLike[str] | None) -> list[int]:
    path = labels if labels is not None or dataset.data is None else dataset.data.find("labels")
    return class_truth(dataset.entries, classes, labels=read_names(path) if path is not None else (), names=names)


def _corners(boxes: Floats, width: int, height: int) -> npt.NDArray[np.float64]:
    """Boxes (K, 4) in fractions as left, top, width, height in pixels."""
    sizes = boxes[:, 2:].astype(np.float64)
    corners = np.hstack([boxes[:, :2] - sizes / 2, sizes])
    corners *= np.array([width, height, width, height])
    return corners


def _rank_in_class(class_ids: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """How many of its class come before each."""
    order = np.argsort(class_ids, kind="stable")
    ordered = class_ids[order]
    rank = np.empty(len(class_ids), np.intp)
    rank[order] = np.arange(len(class_ids)) - np.searchsorted(ordered, ordered)
    return rank


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
