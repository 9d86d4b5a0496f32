"""Non-maximum suppression on a GPU, as `dnc.targets.tvm.emit.suppression` does it on a CPU: the same boxes in the same
order, to the bit.

    1. collect    the numbers of scores over the threshold, by as many blocks as there are scores for
    2. sort       those of the best `limit`, the best first, equals in the order of images, boxes and classes: one block
                  of 1024 threads. If there are more, the score of the last one is found first, 8 bits at a time.
    3. overlaps   which later ones each would suppress, by many blocks: 64 with 64 others at a time
    4. resolve    each is kept that no kept one suppresses; one block of 1024 threads, 64 candidates at a time, of which
                  one thread looks at the bits of one after the other; all write the rows

What blocks and threads do in any order are sets; each key that is sorted is another. Nothing depends on numbers but how
long it takes, so a CUDA graph can record it.

The rows are as many as there can be, min(all scores, `limit`), which is none less than elsewhere; behind the last one
there is a row of image -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dnc.targets.cuda.emit.kernels import buffer, real, source, whole, whole_number
from dnc.targets.tvm.emit.builder import RelaxBuilder, Tensor
from dnc.targets.tvm.emit.suppression import SUPPRESSION

__all__ = ["suppressed"]

_SORTED = 4096
"""Candidates that dnc_sort has room for."""
_TILE = 64
_SCORES, _PARTS = 4096, 1024
"""Scores that a block collects from at least, and how many blocks there are at most."""
_PAIRS = 528
"""Blocks that compare candidates: 4 on each multiprocessor of the largest GPUs. Those of a usual image need one."""
_SOURCE = source("suppression")


def suppressed(b: RelaxBuilder, given: Sequence[Tensor], limit: int, exponent: float | None = None) -> Tensor:
    """Rows (most, 7) float32 of detections; arguments as for `dnc.targets.tvm.emit.suppression.suppressed`."""
    shape = given[1].shape
    most = min(math.prod(shape), limit)
    assert most <= _SORTED
    boxes, scores, confidence, iou = (
        tensor if tensor.dtype == "float32" else b.emit(b.op.astype(tensor.expr, "float32"))
        for tensor in map(b.first, given)
    )
    kernels = _Kernels(shape, most)
    numbers, counts = b.several(kernels.collect(), [scores, confidence], "collect", 2)
    order, found = b.several(kernels.sort(), [scores, numbers, counts], "sort", 2)
    masks = b.call(kernels.overlaps(exponent), [boxes, order, found, iou], "overlaps")
    return b.call(kernels.resolve(), [boxes, scores, order, found, masks], "resolve")


class _Kernels:
    """The functions for scores (N, K, classes), of which the best `most` count."""

    def __init__(self, shape: Sequence[int], most: int) -> None:
        images, places, classes = shape
        self._size, self._most = math.prod(shape), most
        self._parts = min(-(-self._size // _SCORES), _PARTS)
        self._part = -(-self._size // self._parts)
        self._words = -(-most // _TILE)
        self._sides = [whole_number(places), whole_number(classes)]
        self._boxes, self._scores = buffer("boxes", (images, places, 4)), buffer("scores", shape)
        self._numbers = buffer("numbers", [self._parts * self._part], "int32")
        self._counts = buffer("counts", [self._parts], "int32")
        self._order, self._found = buffer("order", [most], "int32"), buffer("found", [1], "int32")
        self._masks = buffer("masks", (most, self._words), "int64")

    def _whole(self, name: str, parameters: Sequence[Any], given: Sequence[Any], blocks: int, threads: int) -> Any:
        return whole(f"dnc_{name}", _SOURCE, parameters, [*parameters, *given], [blocks], threads, SUPPRESSION)

    def collect(self) -> Any:
        """(scores, confidence, numbers, counts)"""
        parameters = [self._scores, buffer("confidence", [1]), self._numbers, self._counts]
        given = [whole_number(self._size), whole_number(self._part)]
        return self._whole("collect", parameters, given, self._parts, 256)

    def sort(self) -> Any:
        """(scores, numbers, counts, order, found)"""
        parameters = [self._scores, self._numbers, self._counts, self._order, self._found]
        given = [whole_number(self._parts), whole_number(self._part)]
        return self._whole(f"sort<{self._most}>", parameters, given, 1, 1024)

    def overlaps(self, exponent: float | None) -> Any:
        """(boxes, order, found, iou, masks)"""
        parameters = [self._boxes, self._order, self._found, buffer("iou", [1]), self._masks]
        blocks = min(self._words * (self._words + 1) // 2, _PAIRS)
        numbers = [whole_number(self._words), *self._sides, whole_number(blocks)]
        given = [real(exponent or 0.0, "float64"), *numbers]
        name = f"overlaps<{'false' if exponent is None else 'true'}>"
        return self._whole(name, parameters, given, blocks, _TILE)

    def resolve(self) -> Any:
        """(boxes, scores, order, found, masks, rows)"""
        rows = buffer("rows", (self._most, 7))
        parameters = [self._boxes, self._scores, self._order, self._found, self._masks, rows]
        given = [whole_number(self._most), whole_number(self._words), *self._sides]
        return self._whole("resolve", parameters, given, 1, 1024)
