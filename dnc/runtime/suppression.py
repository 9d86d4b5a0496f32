"""Non-maximum suppression on the host: Darknet's do_nms_sort and diounms_sort, bit by bit, of any number of boxes.

`dnc.graph.suppression` does the same in the graph.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dnc.errors import BundleError
from dnc.runtime.decoding import NMS_KINDS, Candidates, Floats, Indices

__all__ = ["best_candidates", "darknet_order", "exponent_of", "non_maximum_suppression", "overlap"]


def best_candidates(candidates: Candidates, limit: int) -> Candidates:
    """The same with no more than `limit` scores over 0, the best ones: of equal ones the first. The others are 0."""
    places = np.flatnonzero(candidates.scores > 0)
    if len(places) <= limit:
        return candidates
    scores = candidates.scores.copy()
    scores.flat[places[np.argsort(-scores.flat[places], kind="stable")[limit:]]] = 0
    return candidates._replace(scores=scores)


def darknet_order(scores: Floats) -> Indices:
    """The order in which do_nms_sort leaves boxes that had these scores (K, classes) before the suppression: sorted by
    the score of the first class, then stably by that of the second, and so on."""
    # A class that no box has sorts nothing.
    used = scores[:, scores.any(axis=0)]
    return np.lexsort(-used.T) if used.size else np.arange(len(scores))


def non_maximum_suppression(
    candidates: Candidates, kind: str = "default", threshold: float = 0.45, beta: float = 0.6
) -> Floats:
    """The scores (K, classes), those that a higher score of the same class suppresses set to 0.

    Class by class, from the highest score down, a box suppresses every later one whose overlap with it
    exceeds `threshold`. By `kind` the overlap is

        default, cornersnms   IoU                        do_nms_sort, diounms_sort
        greedynms             IoU - (d^2 / c^2) ^ 0.6    box_diou
        diounms               IoU - (d^2 / c^2) ^ beta   box_diounms

    with d the distance of the centers and c the diagonal of the smallest box around both. greedynms thus
    suppresses less than default, and the merging that gave cornersnms its name is commented out in Darknet.

    Darknet sorts its boxes in place for one class after the other, so equal scores keep the order that the
    class before left, and at first the candidates'; so do they here. Raises BundleError for an unknown kind.
    """
    if kind not in NMS_KINDS:
        raise BundleError(f"unknown nms_kind '{kind}'", hint=f"known: {', '.join(NMS_KINDS)}")
    exponent = exponent_of(kind, beta)
    scores = candidates.scores.copy()
    order = np.arange(len(scores))
    for class_id in np.flatnonzero(scores.any(axis=0)):
        positive = scores[order, class_id] > 0
        ranked = order[positive]
        ranked = ranked[np.argsort(-scores[ranked, class_id], kind="stable")]
        order = np.concatenate([ranked, order[~positive]])
        suppressed = _suppressed(candidates.boxes[ranked], np.float32(threshold), exponent)
        scores[ranked[suppressed], class_id] = 0
    return scores


def exponent_of(kind: str, beta: float) -> float | None:
    """That of the overlap of `non_maximum_suppression`; None where it is the IoU alone."""
    return {"greedynms": 0.6, "diounms": float(np.float32(beta))}.get(kind)


_BLOCK = 64
"""As many boxes are compared with the later ones at a time: all with all would take memory by the square."""

_FEW = 1024
"""So few boxes are all compared with one another, because looking for those nearby takes longer."""

_LOW = 0.05
"""So are all under such a threshold: there is no telling by their sizes which ones meet, but few are left."""


def _suppressed(boxes: Floats, threshold: np.float32, exponent: float | None) -> npt.NDArray[np.bool_]:
    """Which of the boxes (K, 4), best first, overlap too much with a better one that is itself left."""
    suppressed = np.zeros(len(boxes), np.bool_)
    nearby = _Nearby(boxes, float(threshold)) if len(boxes) > _FEW and threshold >= _LOW else None
    rest = np.arange(len(boxes))
    while rest.size:
        block, rest = rest[:_BLOCK], rest[_BLOCK:]
        excessive = overlap(boxes[block], boxes[block], exponent) > threshold
        for rank, box in enumerate(block):
            if not suppressed[box]:
                suppressed[block[rank + 1 :][excessive[rank, rank + 1 :]]] = True
        kept = block[~suppressed[block]]
        if nearby is None:
            suppressed[rest] |= (overlap(boxes[kept], boxes[rest], exponent) > threshold).any(axis=0)
        else:
            better, worse = nearby(kept)
            later = (worse > block[-1]) & ~suppressed[worse]
            better, worse = better[later], worse[later]
            suppressed[worse[_overlap(boxes[better], boxes[worse], exponent) > threshold]] = True
        rest = rest[~suppressed[rest]]
    return suppressed


class _Nearby:
    """Finds which boxes others may overlap by more than a threshold, without comparing all with all.

    No overlap is larger than the smaller width divided by the larger one, and heights likewise. So boxes are sorted by

        level    the logarithm of the height to a base of 1 / threshold or more: a box meets those one level away
        row      where the center's y is, in steps of the largest height of the level: a box meets a few of them
        x        of the center: a box meets an interval

    That holds for real numbers. _MARGIN makes up for rounding, but of boxes that are so small that their edges are
    hardly more than rounding, or whose area is no normal number: these are compared with all. Boxes whose edges meet or
    are not finite overlap nothing.
    """

    _MARGIN = 1.15
    _SMALL = 2.0**-17
    """Of the distance of the center from the origin."""
    _ROWS = 1 << 20

    def __init__(self, boxes: Floats, threshold: float) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            centers, sizes = boxes[:, :2], boxes[:, 2:]
            self._low, self._high = centers - sizes / 2, centers + sizes / 2
            alive = (self._low < self._high).all(axis=1) & np.isfinite(boxes).all(axis=1)
            areas = sizes[:, 0] * sizes[:, 1]
            large = (sizes > self._SMALL * np.abs(centers)).all(axis=1) & (areas > 2.0**-100) & (areas < 2.0**100)
        self._is_small, self._is_large = alive & ~large, alive & large
        self._alive, self._small = np.flatnonzero(alive), np.flatnonzero(self._is_small)
        self._ratio = self._MARGIN / threshold
        self._base = max(2.0, self._ratio)
        self._x, self._y, self._width, self._height = boxes.T.astype(np.float64)
        members = np.flatnonzero(self._is_large)
        self._across = np.sort(self._x[members])
        level = self._level(members)
        keys = self._key(level, self._row(self._y[members], level), np.searchsorted(self._across, self._x[members]))
        order = np.argsort(keys)
        self._keys, self._members = keys[order], members[order]

    def __call__(self, chosen: Indices) -> tuple[Indices, Indices]:
        """Two arrays (P,): boxes of `chosen`, and one that each of them may overlap too much, or that is itself."""
        small, large = chosen[self._is_small[chosen]], chosen[self._is_large[chosen]]
        found = [self._touching(small, self._alive), self._touching(large, self._small)]
        x, y, width, height = (side[large] for side in (self._x, self._y, self._width, self._height))
        across = self._MARGIN * width * (1 + self._ratio) / 2 + np.abs(x) * self._SMALL
        left, right = np.searchsorted(self._across, x - across), np.searchsorted(self._across, x + across, side="right")
        for level in (self._level(large) + step for step in (-1, 0, 1)):
            down = self._MARGIN * (height + self._tallest(level)) / 2 + np.abs(y) * self._SMALL
            first, last = self._row(y - down, level), self._row(y + down, level)
            for step in range(int((last - first).max(initial=-1)) + 1):
                here = first + step <= last
                row = first[here] + step
                start = np.searchsorted(self._keys, self._key(level[here], row, left[here]))
                end = np.searchsorted(self._keys, self._key(level[here], row, right[here]))
                number = end - start
                places = np.arange(number.sum()) + np.repeat(start - np.cumsum(number) + number, number)
                found.append((np.repeat(large[here], number), self._members[places]))
        better, worse = (np.concatenate(part) for part in zip(*found, strict=True))
        return better, worse

    def _touching(self, chosen: Indices, others: Indices) -> tuple[Indices, Indices]:
        """The pairs whose edges cross, found by comparing all with all."""
        below = self._low[chosen][:, None] < self._high[others]
        above = self._low[others] < self._high[chosen][:, None]
        first, second = np.nonzero((below & above).all(axis=-1))
        return chosen[first], others[second]

    def _level(self, members: Indices) -> Indices:
        levels: Indices = np.floor(np.log(self._height[members]) / np.log(self._base)).astype(np.intp)
        return levels

    def _tallest(self, level: Indices) -> npt.NDArray[np.float64]:
        return np.power(self._base, level.astype(np.float64) + 1)

    def _row(self, y: npt.NDArray[np.float64], level: Indices) -> Indices:
        return np.clip(np.floor(y / self._tallest(level)), -self._ROWS, self._ROWS - 1).astype(np.intp)

    def _key(self, level: Indices, row: Indices, place: Indices) -> Indices:
        """Sorts by level, by row, and by the place among all x; there are fewer than 2^9 levels and 2^32 places."""
        return ((level * 2 * self._ROWS + row) << 32) + place


def overlap(boxes: Floats, others: Floats, exponent: float | None = None) -> Floats:
    """(A, B): box_iou of boxes (A, 4) and others (B, 4), given as center x, center y, width, height; less
    (d^2 / c^2) ^ exponent if there is one, see `non_maximum_suppression`."""
    return _overlap(boxes[:, None], others[None], exponent)


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def _overlap(boxes: Floats, others: Floats, exponent: float | None) -> Floats:
    """The same of pairs: boxes and others (..., 4) are broadcast."""
    centers, sizes = boxes[..., :2], boxes[..., 2:]
    other_centers, other_sizes = others[..., :2], others[..., 2:]
    low, high = centers - sizes / 2, centers + sizes / 2
    other_low, other_high = other_centers - other_sizes / 2, other_centers + other_sizes / 2
    common = np.minimum(high, other_high) - np.maximum(low, other_low)
    intersection = np.where((common < 0).any(axis=-1), np.float32(0), common[..., 0] * common[..., 1])
    union = sizes[..., 0] * sizes[..., 1] + other_sizes[..., 0] * other_sizes[..., 1] - intersection
    iou = np.where((intersection == 0) | (union == 0), np.float32(0), intersection / union)
    if exponent is None:
        return iou
    span = np.maximum(high, other_high) - np.minimum(low, other_low)
    diagonal = span[..., 0] * span[..., 0] + span[..., 1] * span[..., 1]
    apart = centers - other_centers
    distance = apart[..., 0] * apart[..., 0] + apart[..., 1] * apart[..., 1]
    # C's pow is the double one; its result becomes a float.
    penalty = np.power((distance / diagonal).astype(np.float64), exponent).astype(np.float32)
    return np.where(diagonal == 0, iou, iou - penalty)
