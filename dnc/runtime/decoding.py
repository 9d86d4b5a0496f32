"""From the maps that a network's heads put out to detections and classes, on the host.

A head's map is the output of its Darknet layer, activated: [yolo] and [Gaussian_yolo] with the logistic and
scale_x_y applied, [region] with logistic objectness and softmax classes, [detection] and [softmax] as they
are. What follows is Darknet's code for its boxes, get_network_boxes, and its non-maximum suppression, in
float32 and double where Darknet has them, so that a comparison with a threshold falls the same way:

    each head's map  --candidates-->  boxes on the input, with a score for each class
                     --transform--->  boxes on the image: correct_yolo_boxes
    all the heads    --suppression->  scores, those of repeated boxes zeroed: do_nms_sort, diounms_sort
                     --listing---->   one Detection for each box and class that is left (dnc.runtime.postprocessing)

Heads are data: they are written into an engine as JSON and read back by `head_from_json`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from dnc.errors import BundleError

__all__ = [
    "NMS_KINDS",
    "YOLO_POINTS",
    "BoxHead",
    "Candidates",
    "Classification",
    "ClassifierHead",
    "Detection",
    "DetectionHead",
    "GaussianYoloHead",
    "Head",
    "RegionHead",
    "YoloHead",
    "head_from_json",
    "label_of",
]

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

NMS_KINDS = ("default", "greedynms", "diounms", "cornersnms")
YOLO_POINTS = {"center": 1, "left_top": 2, "right_bottom": 4}
"""The `yolo_point` of a [Gaussian_yolo] section, and Darknet's number for it."""


class Candidates(NamedTuple):
    """K boxes before non-maximum suppression, in Darknet's order: by cell, and within a cell by anchor."""

    boxes: Floats
    """(K, 4): center x, center y, width, height, as fractions of the network's input; not clipped."""
    objectness: Floats
    """(K,)"""
    scores: Floats
    """(K, classes): objectness times class probability, 0 where that does not exceed the threshold."""
    points: npt.NDArray[np.uint8]
    """(K,): what x and y of the map are, a number of `YOLO_POINTS`; 0 where a head has no such option."""


@dataclass(frozen=True)
class Detection:
    """A box and its class; a box that passes for two classes is two detections, as in Darknet's JSON."""

    class_id: int
    label: str
    confidence: float
    center_x: float
    """Like the other three a fraction of the image's size. A box may reach out of the image."""
    center_y: float
    width: float
    height: float
    image_size: tuple[int, int] | None = None
    """(width, height) of the image in pixels; None where nobody said."""
    place: int = field(default=0, compare=False, repr=False)
    """Where Darknet lists it among the image's detections: box after box as do_nms_sort leaves them, and those of one
    box class after class."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels of the image, clipped to it and not rounded, so that right - left is the
        width. Raises ValueError where the size of the image is not known."""
        width, height = self._size_of_image()
        across, down = self.width / 2, self.height / 2
        return (
            min(max(0.0, (self.center_x - across) * width), float(width)),
            min(max(0.0, (self.center_y - down) * height), float(height)),
            min(max(0.0, (self.center_x + across) * width), float(width)),
            min(max(0.0, (self.center_y + down) * height), float(height)),
        )

    def pixels(self, image_width: int | None = None, image_height: int | None = None) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) on an image of this size, its own if not given: draw_detections_v3.

        Whole pixels of the image, truncated and clipped; right and bottom are included. Raises ValueError where the
        size of the image is not known.
        """
        if image_width is None or image_height is None:
            image_width, image_height = self._size_of_image()

        def pixel(place: float, size: int) -> int:
            return int(min(max(0, place * size), size - 1))

        return (
            pixel(self.center_x - self.width / 2, image_width),
            pixel(self.center_y - self.height / 2, image_height),
            pixel(self.center_x + self.width / 2, image_width),
            pixel(self.center_y + self.height / 2, image_height),
        )

    def _size_of_image(self) -> tuple[int, int]:
        if self.image_size is None:
            raise ValueError("the size of the image is not known; give it to pixels()")
        return self.image_size

    def to_json(self) -> dict[str, Any]:
        """An entry of `objects` as `detector test -out` writes it: detection_to_json. Where the size of the image is
        known it has `pixels` besides."""
        sides = ("left", "top", "right", "bottom")
        pixels = {"pixels": dict(zip(sides, self.pixels(), strict=True))} if self.image_size is not None else {}
        return {
            "class_id": self.class_id,
            "name": self.label,
            "relative_coordinates": {
                "center_x": self.center_x,
                "center_y": self.center_y,
                "width": self.width,
                "height": self.height,
            },
            "confidence": self.confidence,
            **pixels,
        }


@dataclass(frozen=True)
class Classification:
    """A class of the whole image."""

    class_id: int
    label: str
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """The fields, under the names that Darknet has for a detection's."""
        return {"class_id": self.class_id, "name": self.label, "confidence": self.confidence}


@dataclass(frozen=True)
class Head(ABC):
    """What it takes to read one output of a network."""

    kind: ClassVar[str]

    output: str
    """The name of the output."""
    where: str
    """The section it comes from, as "yolov3.cfg:607 [yolo] #82"."""
    classes: int

    def to_json(self) -> dict[str, Any]:
        """`kind` and the fields, for `json.dumps`, which makes lists of the tuples."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class BoxHead(Head):
    """A head of boxes."""

    @property
    def nms(self) -> tuple[str, float]:
        """Kind and beta of the non-maximum suppression; do_nms_sort for layers without these options."""
        return "default", 0.6

    @abstractmethod
    def candidates(self, output: Floats, threshold: float) -> Candidates:
        """The boxes that exceed `threshold` in objectness and, class by class, in score, for one image.

        `output` is (C, h, w), or flat for [detection]; a batch axis of 1 does not matter. Raises BundleError
        if it does not fit the head.
        """

    def _reshape(self, output: Floats, *shape: int) -> Floats:
        try:
            return output.reshape(shape)
        except ValueError as error:
            raise BundleError(
                f"output '{self.output}' of shape {output.shape} is no {shape} for {self.classes} classes", self.where
            ) from error

    def _grid(self, output: Floats) -> tuple[int, int]:
        if output.ndim < 3:
            raise BundleError(f"output '{self.output}' of shape {output.shape} has no grid", self.where)
        return output.shape[-1], output.shape[-2]


@dataclass(frozen=True)
class YoloHead(BoxHead):
    """[yolo]: get_yolo_detections. The map is (n * (5 + classes), h, w), an anchor's channels together."""

    kind: ClassVar[str] = "yolo"

    anchors: tuple[tuple[float, float], ...]
    """(width, height) of the n anchors that `mask` selects, in pixels of the input."""
    input_size: tuple[int, int]
    """(width, height) of the input, in pixels."""
    scale_x_y: float = 1.0
    """Applied in the map already and not used here: what the section says, for readers of engine.json."""
    new_coords: bool = False
    """Widths and heights are 4 t^2 anchor, not e^t anchor."""
    nms_kind: str = "default"
    beta_nms: float = 0.6

    @property
    def nms(self) -> tuple[str, float]:
        return self.nms_kind, self.beta_nms

    def candidates(self, output: Floats, threshold: float) -> Candidates:
        rows, cell, anchors = self._exceeding(output, threshold, box_channels=4)
        centers = _centers(rows[:, :2], cell, self._grid(output))
        sizes = rows[:, 2:4]
        if self.new_coords:
            sizes = np.divide(sizes * sizes * np.float32(4) * anchors, np.array(self.input_size, np.float32))
        else:
            sizes = _exponential(sizes, anchors, self.input_size)
        scores = _above(rows[:, 4:5] * rows[:, 5:], threshold)
        return Candidates(np.hstack([centers, sizes]), rows[:, 4], scores, np.zeros(len(rows), np.uint8))

    def _exceeding(self, output: Floats, threshold: float, box_channels: int) -> tuple[Floats, Indices, Floats]:
        """What has objectness over `threshold`: channels (K, box_channels + 1 + classes), cells, anchors."""
        width, height = self._grid(output)
        maps = self._reshape(output, len(self.anchors), box_channels + 1 + self.classes, width * height)
        objectness = maps[:, box_channels].T
        cell, anchor = np.nonzero(objectness > np.float32(threshold))
        return maps[anchor, :, cell], cell, np.array(self.anchors, np.float32)[anchor]


@dataclass(frozen=True)
class GaussianYoloHead(YoloHead):
    """[Gaussian_yolo]: get_gaussian_yolo_detections. The map is (n * (9 + classes), h, w).

    Each of x, y, w, h is followed by its uncertainty; the scores are multiplied by 1 - the mean of the four.
    """

    kind: ClassVar[str] = "gaussian_yolo"

    yolo_point: str = "center"
    """What x and y are: "center", "left_top" or "right_bottom"."""

    def __post_init__(self) -> None:
        if self.yolo_point not in YOLO_POINTS:
            raise ValueError(f"unknown yolo_point '{self.yolo_point}'")

    def candidates(self, output: Floats, threshold: float) -> Candidates:
        rows, cell, anchors = self._exceeding(output, threshold, box_channels=8)
        centers = _centers(rows[:, 0:3:2], cell, self._grid(output))
        sizes = _exponential(rows[:, 4:7:2], anchors, self.input_size)
        if self.yolo_point == "left_top":
            centers += sizes / np.float32(2)
        elif self.yolo_point == "right_bottom":
            centers -= sizes / np.float32(2)
        uncertainty = (rows[:, 1] + rows[:, 3] + rows[:, 5] + rows[:, 7]) / np.float32(4)
        certainty = 1 - uncertainty.astype(np.float64)
        scores = (rows[:, 8:9] * rows[:, 9:] * certainty[:, None]).astype(np.float32)
        points = np.full(len(rows), YOLO_POINTS[self.yolo_point], np.uint8)
        return Candidates(np.hstack([centers, sizes]), rows[:, 8], _above(scores, threshold), points)


@dataclass(frozen=True)
class RegionHead(BoxHead):
    """[region]: get_region_boxes, which every front end reaches through custom_get_region_detections.

    The layer stores its output cell by cell, as (h, w, n, 5 + classes), but the shape that it declares for
    this memory is (n * (5 + classes), h, w), and so shaped `candidates` takes it. Darknet reads four
    coordinates, whatever `coords` says. Without a tree it is the score that must exceed the threshold, not
    objectness.
    """

    kind: ClassVar[str] = "region"

    anchors: tuple[tuple[float, float], ...]
    """(width, height) of the n anchors, in grid cells."""
    tree: tuple[int, ...] = ()
    """The parent of each node of the class tree, -1 for a root; () if the classes are flat. A box whose
    objectness exceeds the threshold then has one class: the last node whose absolute probability exceeds
    `tree_threshold`. That probability is its score, without the objectness."""
    tree_threshold: float = 0.5
    """A constant in get_region_boxes, which the option `-hier` does not reach."""
    map: tuple[int, ...] = ()
    """With a tree, the node of each class to report, as `detector valid` reads it from the data file; scores
    are then objectness times absolute probability. () as in `detector test`: every node is a class."""
    classfix: int = 0
    """With -1, an objectness under 0.5 counts as 0."""
    thresh: float | None = None
    """Not used here, as not by Darknet but in training: what the section says, by which OpenCV 4 leaves out scores."""

    def candidates(self, output: Floats, threshold: float) -> Candidates:
        width, height = self._grid(output)
        rows = self._reshape(output, width * height * len(self.anchors), 5 + self.classes)
        objectness = rows[:, 4]
        if self.classfix == -1:
            objectness = np.where(objectness < np.float32(0.5), np.float32(0), objectness)
        if self.tree:
            # Probabilities are at most 1: for `map` too, this drops nothing that would exceed the threshold.
            kept = np.flatnonzero(objectness > np.float32(threshold))
            scores = self._tree_scores(objectness[kept], rows[kept, 5:], threshold)
        else:
            kept = np.arange(len(rows))
            scores = _above(objectness[:, None] * rows[:, 5:], threshold)
        classified = scores.any(axis=1)
        kept, scores = kept[classified], scores[classified]
        rows, objectness = rows[kept], objectness[kept]
        cell, anchor = np.divmod(kept, len(self.anchors))
        with np.errstate(over="ignore"):
            shifts = np.float32(1) / (np.float32(1) + np.exp(-rows[:, :2]))
        centers = _centers(shifts, cell, (width, height))
        sizes = _exponential(rows[:, 2:4], np.array(self.anchors, np.float32)[anchor], (width, height))
        return Candidates(np.hstack([centers, sizes]), objectness, scores, np.zeros(len(kept), np.uint8))

    def _tree_scores(self, objectness: Floats, conditional: Floats, threshold: float) -> Floats:
        probabilities = _absolute(conditional, self.tree)
        if self.map:
            return _above(objectness[:, None] * probabilities[:, list(self.map)], threshold)
        sure = probabilities > np.float32(self.tree_threshold)
        last = sure & (np.cumsum(sure[:, ::-1], axis=1)[:, ::-1] == 1)
        return np.where(last, probabilities, np.float32(0))


@dataclass(frozen=True)
class DetectionHead(BoxHead):
    """[detection], YOLOv1: get_detection_detections.

    The output is flat: the classes of all side * side cells, then the objectness of their `num` boxes each,
    then those boxes. It is the score that must exceed the threshold; objectness is linear, and may be
    negative. Boxes are fractions of the image, as in Darknet's `yolo test`; its `detector test` computes them
    in pixels and then draws them as if they were fractions.
    """

    kind: ClassVar[str] = "detection"

    side: int
    num: int
    sqrt: bool = False
    """The layer puts out the square roots of widths and heights."""

    def candidates(self, output: Floats, threshold: float) -> Candidates:
        cells = self.side * self.side
        flat = self._reshape(output, cells * (self.classes + 5 * self.num))
        classes, objectness, boxes = np.split(flat, [cells * self.classes, cells * (self.classes + self.num)])
        scores = objectness.reshape(cells, self.num, 1) * classes.reshape(cells, 1, self.classes)
        scores = _above(scores.reshape(-1, self.classes), threshold)
        kept = np.flatnonzero(scores.any(axis=1))
        rows = boxes.reshape(-1, 4)[kept]
        centers = _centers(rows[:, :2], kept // self.num, (self.side, self.side))
        sizes = rows[:, 2:] ** 2 if self.sqrt else rows[:, 2:]
        points = np.zeros(len(kept), np.uint8)
        return Candidates(np.hstack([centers, sizes]), objectness[kept], scores[kept], points)


@dataclass(frozen=True)
class ClassifierHead(Head):
    """[softmax], or whatever else a network without boxes ends with: a value for each class."""

    kind: ClassVar[str] = "classifier"

    tree: tuple[int, ...] = ()
    """The parent of each node of the class tree, -1 for a root; () if the classes are flat."""

    def top_k(self, output: Floats, k: int, labels: Sequence[str] = ()) -> list[Classification]:
        """The k classes of highest value, best first, of equals the first: predict_classifier.

        `output` holds the values of one image, in any shape. With a tree they become absolute probabilities,
        and inner nodes compete with leaves. Raises BundleError if `output` does not fit the head.
        """
        if output.size != self.classes:
            raise BundleError(
                f"output '{self.output}' of shape {output.shape} is not {self.classes} classes", self.where
            )
        values = _absolute(output.reshape(-1), self.tree)
        best = np.argsort(-values, kind="stable")[:k]
        return [
            Classification(index, label_of(labels, index), confidence)
            for index, confidence in zip(best.tolist(), values[best].tolist(), strict=True)
        ]


_HEADS: dict[str, type[Head]] = {
    head.kind: head for head in (YoloHead, GaussianYoloHead, RegionHead, DetectionHead, ClassifierHead)
}


def head_from_json(fields: Mapping[str, Any]) -> Head:
    """The inverse of `Head.to_json`. Raises BundleError for an unknown kind, and for fields not its own."""
    kind, where = fields.get("kind"), fields.get("where")
    hint = "a newer dnc made this engine: update dnc, or build the engine again"
    if kind not in _HEADS:
        raise BundleError(f"unknown kind of head '{kind}'", where, hint)
    try:
        return _HEADS[kind](**{name: _tuples(value) for name, value in fields.items() if name != "kind"})
    except (TypeError, ValueError) as error:
        raise BundleError(f"unusable head '{kind}': {error}", where, hint) from error


def label_of(labels: Sequence[str], class_id: int) -> str:
    """The name of a class; its number where there are no labels."""
    return labels[class_id] if class_id < len(labels) else str(class_id)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _above(scores: Floats, threshold: float) -> Floats:
    return np.where(scores > np.float32(threshold), scores, np.float32(0))


def _centers(shifts: Floats, cell: Indices, grid: tuple[int, int]) -> Floats:
    """(column + shift x, row + shift y) / (width, height) for shifts (K, 2)."""
    corners = np.stack([cell % grid[0], cell // grid[0]], axis=1).astype(np.float32)
    centers: Floats = np.divide(corners + shifts, np.array(grid, np.float32))
    return centers


def _exponential(values: Floats, anchors: Floats, unit: tuple[int, int]) -> Floats:
    """e^t * anchor / unit for values (K, 2), in double as C's exp makes it."""
    with np.errstate(over="ignore"):
        sizes: Floats = (np.exp(values.astype(np.float64)) * anchors / np.array(unit)).astype(np.float32)
    return sizes


def _absolute(probabilities: Floats, tree: tuple[int, ...]) -> Floats:
    """Probabilities (..., nodes) given the parent, times those of all ancestors: hierarchy_predictions."""
    absolute = probabilities.copy()
    for nodes, parents in _levels(tree, probabilities.shape[-1]):
        absolute[..., nodes] *= absolute[..., parents]
    return absolute


@lru_cache(maxsize=8)
def _levels(tree: tuple[int, ...], classes: int) -> list[tuple[Indices, Indices]]:
    """The nodes of each level of a tree and their parents, from the children of the roots on."""
    if tree and len(tree) != classes:
        raise BundleError(f"the class tree has {len(tree)} nodes for {classes} classes")
    depth = np.zeros(len(tree), np.intp)
    for node, parent in enumerate(tree):
        if parent >= node:
            raise BundleError(f"node {node} of the class tree comes before its parent {parent}")
        depth[node] = depth[parent] + 1 if parent >= 0 else 0
    levels = (np.flatnonzero(depth == level) for level in range(1, depth.max(initial=0) + 1))
    return [(nodes, np.array(tree, np.intp)[nodes]) for nodes in levels]
