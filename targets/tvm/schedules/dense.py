"""Products of a matrix and constant weights, `out[..., o] += data[..., k] * weight[k, o]`: connected layers.

They are convolutions of one pixel, whose pixels are the rows of the matrix.
"""

from __future__ import annotations

import math

from tvm import ir, tirx

from dnc.targets.tvm.schedules.stages import Segment, dims
from dnc.targets.tvm.schedules.window import Window, uncast

__all__ = ["product"]


def product(segment: Segment) -> Window | None:
    """The segment's anchor as a convolution of one pixel; None if it is none."""
    stage = segment.anchor
    if stage.start is None or not stage.straight or sum(stage.reduced) != 1 or not isinstance(stage.value, tirx.Add):
        return None
    kept = [axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if not reduced]
    summed = next(axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if reduced)
    held, term = stage.value.a, stage.value.b
    if not isinstance(held, ir.TensorLoad) or not held.source.same_as(stage.buffer) or not isinstance(term, tirx.Mul):
        return None
    data, weight = uncast(term.a), uncast(term.b)
    if not isinstance(data, ir.TensorLoad) or not isinstance(weight, ir.TensorLoad) or len(kept) < 2:
        return None
    if not _are(data.indices, [*kept[:-1], summed]) or not _are(weight.indices, [summed, kept[-1]]):
        return None
    *rows, outputs = dims(stage.buffer)
    pixels = math.prod(rows)
    return Window(
        data.source,
        weight.source,
        False,
        (1, 1),
        (1, 1),
        (1, 1),
        (0, 0),
        1,
        (1, 1, pixels, dims(data.source)[-1]),
        (1, 1, pixels, outputs),
        None,
    )


def _are(indices: list[object], axes: list[object]) -> bool:
    """Whether the indices are these axes, or 0 where an axis has one place."""
    return len(indices) == len(axes) and all(
        at.same_as(axis) or (isinstance(at, tirx.IntImm) and int(at) == 0)  # type: ignore[attr-defined]
        for at, axis in zip(indices, axes, strict=True)
    )
