"""From the outputs of an engine to detections and classes, however much of that the engine's graph does itself.

    decode      outputs                                                     what is left to do
    host        each head's map                                             decoding, suppression
    graph       boxes (N, K, 4) and scores (N, K, classes)                  suppression
    graph+nms   rows (D, 7): the number of the image, class, score,         sorting
                center x, center y, width, height, as of the image

Of the scores over the threshold the best DEFAULT_CANDIDATES are suppressed, with a warning where there are more;
Darknet has no limit. Another one may be asked for. A graph has its own.

Detections are those of Darknet's test_detector, from get_network_boxes on: boxes are mapped to the image before the
suppression, and there is a detection for each box and class whose score exceeds the threshold, as in Darknet's JSON. A
class whose label starts with "dont_show" is left out; one without a label goes by its number.

Kind and beta of the suppression are those of the last head, as in the command line's test_detector. The C++ `Detector`
class of Darknet differs: it ignores nms_kind and takes do_nms_sort, that is, "default".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnc.errors import BundleError, DncError, warn
from dnc.runtime.decoding import BoxHead, Candidates, Classification, ClassifierHead, Detection, label_of
from dnc.runtime.manifest import Manifest
from dnc.runtime.suppression import best_candidates, darknet_order, non_maximum_suppression
from dnc.typing import Array

__all__ = ["DEFAULT_CANDIDATES", "OVER_ONE", "Postprocess", "Result"]

DEFAULT_CANDIDATES = 100_000
"""As many scores of an image are suppressed unless more are asked for; a trained network comes near it only at
thresholds close to 0."""

OVER_ONE = "a confidence over 1"
"""What is warned of once."""

_ANOTHER = "the model is another network's: build the engine again"

Result = list[Detection] | list[Classification]

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
Outputs = Sequence[Array]


class Postprocess:
    """Reads the outputs of one engine.

        postprocess = Postprocess(engine.manifest)
        boxes = postprocess(engine.forward(array), (640, 480), confidence=0.5)

    Outputs are what `Engine.forward` or the engine's session gives, in that order, with a batch axis or without; what
    follows those of the manifest, as states do, is not read. `position` is the image's place in the batch.

    Args:
        manifest: what engine.json says.
        where: the engine, for messages.
    """

    def __init__(self, manifest: Manifest, where: Path | str | None = None) -> None:
        self._manifest, self._where = manifest, where
        self._heads = [head for head in manifest.heads if isinstance(head, BoxHead)]
        self._places = {name: place for place, name in enumerate(manifest.outputs)}

    def check(self) -> None:
        """Raises DncError if the network finds nothing in images."""
        if not self._manifest.heads:
            what = "this network has no head that gives boxes or classes"
            raise DncError(what, self._where, "use forward(), which gives its last layer's output")

    @property
    def places(self) -> frozenset[int]:
        """The places of the outputs that a call reads."""
        if self._heads and self._manifest.decode != "host":
            return frozenset(range(1 if self._manifest.decode == "graph+nms" else 2))
        heads = self._heads or self._manifest.heads[-1:]
        return frozenset(self._places[head.output] for head in heads if head.output in self._places)

    def __call__(
        self,
        outputs: Outputs,
        image_size: tuple[int, int] | None = None,
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        top: int = 5,
        max_candidates: int | None = None,
        position: int = 0,
    ) -> Result:
        """Gives what one image shows: detections by descending confidence, or the `top` classes.

        Args:
            image_size: (width, height) of the image in pixels; boxes are fractions of the network's input without it.
            confidence, iou, top, max_candidates: as for `Engine.__call__`.

        Raises:
            BundleError: an output does not fit its head, or the heads differ in their classes.
            DncError: as `check`, `confidence` is nan, `iou` is not from 0 to 1, or `max_candidates` is less than 1, or
                fixed in the graph.
        """
        self.check()
        if not 0 <= iou <= 1:
            raise DncError(f"iou={iou:g} is not from 0 to 1", hint="0.45 are 45 %")
        if math.isnan(confidence):
            raise DncError("confidence=nan is no number", hint="0.25 are 25 %")
        if confidence > 1:
            # Scores of [detection], and of [region] without a softmax, can be over 1. Of others nothing would be left.
            warn(DncError(f"confidence={confidence:g} is over 1", self._where, "0.25 are 25 %"), OVER_ONE)
        head = self._manifest.heads[-1]
        if not self._heads:
            assert isinstance(head, ClassifierHead)
            return head.top_k(self._output(outputs, head.output, position), top, self._manifest.labels)
        if self._manifest.decode == "graph+nms":
            if max_candidates is not None:
                what = "the engine suppresses boxes itself; of how many was fixed when it was compiled"
                raise DncError(what, self._where, "leave max_candidates out, or compile with --decode host")
            rows = self._decoded(outputs[0], 7)
            rows = rows[rows[:, 0] == position]
            if not np.isin(rows[:, 1], np.arange(head.classes)).all():
                raise BundleError("the model names classes that no head has", self._where, _ANOTHER)
            boxes, box = np.unique(rows[:, 3:], axis=0, return_inverse=True)
            box, class_id = box.reshape(-1), rows[:, 1].astype(np.intp)
            # The scores of what the graph has suppressed are not known: Darknet's order, but for a few.
            scores = np.zeros((len(boxes), head.classes), np.float32)
            scores[box, class_id] = rows[:, 2]
            return self._listed(box, class_id, rows[:, 2], boxes, scores, image_size)
        candidates = self.candidates(
            outputs, image_size, threshold=confidence, max_candidates=max_candidates, position=position
        )
        left = self.suppressed(candidates, iou)
        box, class_id = np.nonzero(left > np.float32(confidence))
        return self._listed(box, class_id, left[box, class_id], candidates.boxes, candidates.scores, image_size)

    def candidates(
        self,
        outputs: Outputs,
        image_size: tuple[int, int] | None = None,
        *,
        threshold: float,
        max_candidates: int | None = None,
        position: int = 0,
    ) -> Candidates:
        """The boxes of one image over a threshold before the suppression, in Darknet's order, mapped to the image.

        Raises:
            BundleError: as a call.
            DncError: as a call, or the graph has suppressed boxes itself, so that nobody knows all of them.
        """
        if self._manifest.decode == "graph+nms":
            raise DncError("the engine gives no boxes that it has suppressed itself", self._where)
        last = self._heads[-1]
        for head in self._heads:
            if head.classes != last.classes:
                raise BundleError(
                    f"{head.classes} classes, but {last.classes} at {last.where}",
                    head.where,
                    "the detection layers of a network share their classes",
                )
        if self._manifest.decode == "graph":
            both = (self._output(outputs, name, position) for name in self._manifest.outputs[:2])
            boxes, scores = map(self._decoded, both, (4, last.classes))
            if len(boxes) != len(scores):
                raise BundleError(f"the model gives {len(boxes)} boxes and {len(scores)} scores", self._where, _ANOTHER)
            scores = np.where(scores > np.float32(threshold), scores, np.float32(0))
            kept = np.flatnonzero(scores.any(axis=1))
            points = np.zeros(len(kept), np.uint8)
            found = Candidates(boxes[kept], scores[kept].max(axis=1, initial=0), scores[kept], points)
        else:
            parts = [head.candidates(self._output(outputs, head.output, position), threshold) for head in self._heads]
            found = Candidates(*map(np.concatenate, zip(*parts, strict=True)))
        found = self._limited(found, max_candidates)
        if self._manifest.preprocessing is None or image_size is None:
            return found
        return found._replace(boxes=self._manifest.preprocessing.transform(*image_size)(found.boxes))

    def _limited(self, candidates: Candidates, limit: int | None) -> Candidates:
        if limit is not None and limit < 1:
            raise DncError(f"max_candidates={limit} must be at least 1", self._where)
        limited = best_candidates(candidates, DEFAULT_CANDIDATES if limit is None else limit)
        if limit is None and limited is not candidates:
            # Without numbers, so that it is said once.
            what = f"an image has more than {DEFAULT_CANDIDATES:,} scores over the threshold; the best of them count"
            warn(DncError(what, self._where, "raise the confidence, or max_candidates"))
        return limited

    def suppressed(self, candidates: Candidates, iou: float) -> Floats:
        """The scores (K, classes) of candidates, 0 where non-maximum suppression drops them."""
        kind, beta = self._heads[-1].nms
        return non_maximum_suppression(candidates, kind, iou, beta)

    def _output(self, outputs: Outputs, name: str, position: int) -> Floats:
        place = self._places[name]
        output = outputs[place]
        if output.ndim == len(self._manifest.output_shapes[place]):
            return output
        if not output.ndim or position >= len(output):
            raise BundleError(f"the model gives '{name}' of shape {output.shape}", self._where, _ANOTHER)
        one: Floats = output[position]
        return one

    def _decoded(self, output: Array, columns: int) -> Floats:
        """What the graph decoded: (N, columns); the model may be another than engine.json says."""
        if output.ndim != 2 or output.shape[1] != columns:
            raise BundleError(f"the model gives {output.shape} where it decodes (N, {columns})", self._where, _ANOTHER)
        return output

    def _listed(
        self,
        box: Indices,
        class_id: Indices,
        confidence: Floats,
        boxes: Floats,
        scores: Floats,
        image_size: tuple[int, int] | None,
    ) -> list[Detection]:
        """Detections by descending confidence, of which each is one of `boxes`; `scores` are those before the
        suppression, which make Darknet's order."""
        if not len(box):
            # As in most frames of a camera.
            return []
        kept, box_of_kept = np.unique(box, return_inverse=True)
        place_of_kept = np.argsort(darknet_order(scores[kept]))
        place = np.argsort(np.lexsort((class_id, place_of_kept[box_of_kept])))
        ranked = np.argsort(-confidence, kind="stable")
        columns = (column[ranked].tolist() for column in (class_id, confidence, boxes[box], place))
        found = (
            Detection(index, label_of(self._manifest.labels, index), value, x, y, width, height, image_size, position)
            for index, value, (x, y, width, height), position in zip(*columns, strict=True)
        )
        return [detection for detection in found if not detection.label.startswith("dont_show")]
