"""What an evaluation found, as data: figures, and the lines that `detector map` prints of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

__all__ = ["ClassFigures", "CocoReport", "DarknetReport", "Figure", "Report", "TopReport"]


class Figure(NamedTuple):
    """A number of a report."""

    name: str
    value: float
    percent: bool = True
    """It is a share, shown as a percentage; else it is a count."""


@dataclass(frozen=True)
class Report(ABC):
    """What an engine achieves."""

    metric: ClassVar[str]
    engine: str
    """Its folder."""
    images: int
    skipped: int
    """Images that could not be read."""

    @property
    @abstractmethod
    def figures(self) -> tuple[Figure, ...]:
        """The main numbers, the most important one first."""

    def to_json(self) -> dict[str, Any]:
        """`metric` and all fields, for `json.dumps`."""
        return {"metric": self.metric, **asdict(self)}


@dataclass(frozen=True)
class ClassFigures:
    """A class in Darknet's figures."""

    class_id: int
    name: str
    average_precision: float
    objects: int
    true_positives: int
    false_positives: int


@dataclass(frozen=True)
class DarknetReport(Report):
    """The figures of `detector map`. Shares are from 0 to 1, and 0 where there is nothing to divide by."""

    metric = "darknet"
    iou: float
    """An overlap is a match over it."""
    points: int
    """Recalls at which the precision is taken; 0 for the area."""
    confidence: float
    """For what follows `mean_average_precision`."""
    detections: int
    objects: int
    mean_average_precision: float
    true_positives: int
    false_positives: int
    false_negatives: int
    precision: float
    recall: float
    f1: float
    average_iou: float
    classes: tuple[ClassFigures, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (
            Figure(f"mAP@{self.iou:.2f}", self.mean_average_precision),
            Figure("precision", self.precision),
            Figure("recall", self.recall),
            Figure("F1", self.f1),
            Figure("average IoU", self.average_iou),
            Figure("TP", self.true_positives, percent=False),
            Figure("FP", self.false_positives, percent=False),
            Figure("FN", self.false_negatives, percent=False),
        )

    def text(self) -> str:
        """The lines that `detector map` prints."""
        at = f" for conf_thresh = {self.confidence:.2f},"
        how = f"used {self.points} Recall-points " if self.points else "used Area-Under-Curve for each unique Recall "
        mean = self.mean_average_precision
        return "\n".join(
            [
                f" detections_count = {self.detections}, unique_truth_count = {self.objects}  ",
                *(
                    f"class_id = {entry.class_id}, name = {entry.name}, ap = {entry.average_precision * 100:.2f}%   \t "
                    f"(TP = {entry.true_positives}, FP = {entry.false_positives}) "
                    for entry in self.classes
                ),
                "",
                f"{at} precision = {self.precision:.2f}, recall = {self.recall:.2f}, F1-score = {self.f1:.2f} ",
                f"{at} TP = {self.true_positives}, FP = {self.false_positives}, FN = {self.false_negatives}, "
                f"average IoU = {self.average_iou * 100:.2f} % ",
                "",
                f" IoU threshold = {self.iou * 100:.0f} %, {how}",
                f" mean average precision (mAP@{self.iou:.2f}) = {mean:.6f}, or {mean * 100:.2f} % ",
            ]
        )


@dataclass(frozen=True)
class CocoReport(Report):
    """COCO's figures, from 0 to 1; -1 where there are no objects of the size.

    An area is the annotation's; of a YOLO label it is that of the box, so that objects count as larger than in COCO's
    own figures by size.
    """

    metric = "coco"
    ap: float
    """The mean of AP at IoU 0.50, 0.55, ... 0.95."""
    ap50: float
    ap75: float
    ap_small: float
    """Of objects under 32^2 pixels."""
    ap_medium: float
    ap_large: float
    """Of objects over 96^2 pixels."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        names = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
        values = (self.ap, self.ap50, self.ap75, self.ap_small, self.ap_medium, self.ap_large)
        return tuple(map(Figure, names, values))


@dataclass(frozen=True)
class TopReport(Report):
    """The shares of images whose class is the best one, and among the best `k`."""

    metric = "top"
    k: int
    top_1: float
    top_k: float

    @property
    def figures(self) -> tuple[Figure, ...]:
        best = Figure("top-1", self.top_1)
        return (best,) if self.k == 1 else (best, Figure(f"top-{self.k}", self.top_k))
