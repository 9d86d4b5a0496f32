"""Decoding and non-maximum suppression inside the graph: `--decode graph` and `--decode graph+nms`.

Every head emits its boxes and scores (`dnc.graph.boxes`); here they are put together and suppressed, as
`dnc.runtime.decoding` does on the host. Greedy suppression is sequential, but has one fixed point, which a few products
with the matrix of who-suppresses-whom reach:

    M[i, j] = 1 if box i is better than box j, of its image and class, and overlaps it too much
    keep <- not (keep M)      starting with all; box j is right once all better boxes that matter are

So the loop ends after as many rounds as the longest chain of suppressions, at most P. The overlap is that of Darknet's
nms_kind: IoU for the default, IoU - (d^2 / c^2)^beta for greedynms (0.6) and diounms (beta_nms).

Either step is a composite: `DecodeBoxes` of all heads, and `NonMaxSuppression`, whose attributes are that power,
`exponent`, where there is one, and `limit`, MAX_CANDIDATES. Of images that are part of the input, boxes are mapped
to the image before, by operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph.builder import Builder
from dnc.graph.composites import DECODE_BOXES, NON_MAX_SUPPRESSION, call_composite
from dnc.runtime.suppression import exponent_of

__all__ = ["MAX_CANDIDATES", "Decode", "emit_decoded", "emit_nms", "emit_suppressed"]

MAX_CANDIDATES = 4096
"""Of the scores of a batch over the threshold, the best so many are suppressed and given, because the matrix grows with
the square. The host has no such limit; a trained network comes near it only at thresholds close to 0."""


Decode = Callable[[Builder, ir.Value], tuple[ir.Value, ir.Value]]
"""Boxes and scores of a head's map."""


def emit_decoded(b: Builder, heads: Sequence[tuple[ir.Value, Decode]], classes: int) -> Sequence[ir.Value]:
    """Boxes (N, K, 4) and scores (N, K, classes) of all heads, in cfg order."""

    def write(body: Builder, *maps: ir.Value) -> Sequence[ir.Value]:
        parts = [decode(body, value) for value, (_, decode) in zip(maps, heads, strict=True)]
        body.enter("decode")
        boxes, scores = zip(*parts, strict=True)
        if len(parts) == 1:
            return boxes[0], scores[0]
        return body.op("Concat", *boxes, axis=1), body.op("Concat", *scores, axis=1)

    b.enter("decode")
    maps = [value for value, _ in heads]
    return call_composite(b, DECODE_BOXES, maps, write, [[b.batch, "boxes", 4], [b.batch, "boxes", classes]])


def emit_nms(b: Builder, boxes: ir.Value, scores: ir.Value, kind: str, beta: float, window: bool) -> ir.Value:
    """Detections (D, 7): number of the image, class, score, center x, center y, width, height; best first.

    Adds the inputs `confidence` (1,) and `iou` (1,), and with `window` (N, 4) where the image lies in the network's
    input: left, top, width, height in fractions. The boxes are fractions of the image then.
    """
    confidence = _input(b, "confidence", [1])
    iou = _input(b, "iou", [1])
    if window:
        place = b.input("window", [4])
        place = b.op("Unsqueeze", place, b.constant(np.array([1], np.int64)))
        origin, ratio = b.slice(place, 2, 0, 2), b.slice(place, 2, 2, 4)
        centers = b.op("Div", b.op("Sub", b.slice(boxes, 2, 0, 2), origin), ratio)
        sizes = b.op("Mul", b.slice(boxes, 2, 2, 4), b.op("Reciprocal", ratio))
        boxes = b.op("Concat", centers, sizes, axis=2)
    return emit_suppressed(b, boxes, scores, confidence, iou, kind, beta)


def emit_suppressed(
    b: Builder, boxes: ir.Value, scores: ir.Value, confidence: ir.Value, iou: ir.Value, kind: str, beta: float
) -> ir.Value:
    """Detections (D, 7), as `emit_nms`, of boxes (N, K, 4), scores (N, K, classes) and both thresholds (1,)."""
    exponent = exponent_of(kind, beta)

    def write(body: Builder, *values: ir.Value) -> Sequence[ir.Value]:
        return [_emit(body, exponent, *values)]

    given = [boxes, scores, confidence, iou]
    attributes = {"exponent": exponent, "limit": MAX_CANDIDATES}
    return call_composite(b, NON_MAX_SUPPRESSION, given, write, [("detections", 7)], **attributes)[0]


def _emit(
    b: Builder, exponent: float | None, boxes: ir.Value, scores: ir.Value, confidence: ir.Value, iou: ir.Value
) -> ir.Value:
    # (P, 3): image, box, class of every score over the threshold, best first; equals stay in this order.
    found = b.op("Transpose", b.op("NonZero", b.op("Greater", scores, confidence)), perm=[1, 0])
    values = b.op("GatherND", scores, found)
    count = b.op("Min", b.op("Shape", values), b.constant(np.array([MAX_CANDIDATES], np.int64)))
    best = b.ops("TopK", values, count, outputs=2, axis=0, largest=1, sorted=1)
    values, found = best[0], b.op("Gather", found, best[1], axis=0)
    candidates = b.op("GatherND", boxes, b.slice(found, 1, 0, 2))
    group = b.op("Concat", b.slice(found, 1, 0, 1), b.slice(found, 1, 2, 3), axis=1)
    conflict = _conflicts(b, candidates, group, iou, exponent)
    keep = _fixed_point(b, conflict, values)
    column = b.constant(np.array([-1, 1], np.int64))
    rows = b.op("Concat", _float(b, group), b.op("Reshape", values, column), candidates, axis=1)
    return b.op("Compress", rows, b.op("Greater", keep, b.constant(0.5)), axis=0)


def _input(b: Builder, name: str, shape: list[int]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    b.inputs.append(value)
    return value


def _float(b: Builder, value: ir.Value) -> ir.Value:
    return b.op("Cast", value, to=int(ir.DataType.FLOAT))


def _pairs(b: Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(P, 1, k) and (1, P, k) of (P, k): together they broadcast to every pair."""
    first, second = (b.constant(np.array([axis], np.int64)) for axis in (1, 0))
    return b.op("Unsqueeze", x, first), b.op("Unsqueeze", x, second)


def _product(b: Builder, x: ir.Value) -> ir.Value:
    """x[..., 0] * x[..., 1]."""
    zero, one = (b.constant(np.array(index, np.int64)) for index in (0, 1))
    return b.op("Mul", b.op("Gather", x, zero, axis=2), b.op("Gather", x, one, axis=2))


def _conflicts(b: Builder, boxes: ir.Value, group: ir.Value, iou: ir.Value, exponent: float | None) -> ir.Value:
    """(P, P) float: 1 where the row's box suppresses the column's."""
    centers, sizes = b.slice(boxes, 1, 0, 2), b.slice(boxes, 1, 2, 4)
    half = b.op("Div", sizes, b.constant(2.0))
    low, other_low = _pairs(b, b.op("Sub", centers, half))
    high, other_high = _pairs(b, b.op("Add", centers, half))
    size, other_size = _pairs(b, sizes)
    shared = b.op("Sub", b.op("Min", high, other_high), b.op("Max", low, other_low))
    shared = _product(b, b.op("Relu", shared))
    union = b.op("Sub", b.op("Add", _product(b, size), _product(b, other_size)), shared)
    # Darknet gives 0, not NaN, for boxes of no size.
    empty = b.op("Equal", shared, b.constant(0.0))
    overlap = b.op("Where", empty, b.constant(0.0), b.op("Div", shared, union))
    if exponent is not None:
        center, other_center = _pairs(b, centers)
        shift = b.op("Sub", center, other_center)
        hull = b.op("Sub", b.op("Max", high, other_high), b.op("Min", low, other_low))
        distance, diagonal = (b.reduce_sum(b.op("Mul", x, x), 2) for x in (shift, hull))
        flat = b.constant(np.array([2], np.int64))
        distance, diagonal = b.op("Squeeze", distance, flat), b.op("Squeeze", diagonal, flat)
        term = b.op("Pow", b.op("Div", distance, diagonal), b.constant(exponent))
        term = b.op("Where", b.op("Equal", diagonal, b.constant(0.0)), b.constant(0.0), term)
        overlap = b.op("Sub", overlap, term)
    same = b.op("Equal", *_pairs(b, group))
    zero, one = (b.constant(np.array(index, np.int64)) for index in (0, 1))
    same = b.op("And", b.op("Gather", same, zero, axis=2), b.op("Gather", same, one, axis=2))
    count = b.op("Gather", b.op("Shape", boxes), zero)
    rank = b.op("Range", zero, count, one)
    axis_1, axis_0 = (b.constant(np.array([axis], np.int64)) for axis in (1, 0))
    better = b.op("Less", b.op("Unsqueeze", rank, axis_1), b.op("Unsqueeze", rank, axis_0))
    excessive = b.op("Greater", overlap, iou)
    return _float(b, b.op("And", b.op("And", same, better), excessive))


def _fixed_point(b: Builder, conflict: ir.Value, values: ir.Value) -> ir.Value:
    """(P,) float: 1 for what is kept."""
    count = b.op("Size", values)
    everything = b.op("Add", b.op("Mul", values, b.constant(0.0)), b.constant(1.0))
    boolean, real = ir.TensorType(ir.DataType.BOOL), ir.TensorType(ir.DataType.FLOAT)
    step = ir.Value(name="nms/round/step", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    go_on = ir.Value(name="nms/round/go_on", type=boolean, shape=ir.Shape([]))
    keep = ir.Value(name="nms/round/keep", type=real, shape=ir.Shape(["P"]))
    body = Builder(b.batch)
    body.enter("nms/round")
    hits = body.op("MatMul", keep, conflict)
    following = body.op("Cast", body.op("Less", hits, _inner(body, np.float32(0.5))), to=int(ir.DataType.FLOAT))
    distance = body.op("Abs", body.op("Sub", following, keep))
    change = body.op("ReduceSum", distance, _inner(body, np.array([0], np.int64)), keepdims=0)
    changed = body.op("Greater", change, _inner(body, np.float32(0.5)))
    for value, kind, shape in ((following, real, ["P"]), (changed, boolean, [])):
        value.type, value.shape = kind, ir.Shape(shape)
    graph = ir.Graph([step, go_on, keep], [changed, following], nodes=body.nodes, name="nms_round")
    return b.op("Loop", count, b.constant(np.array(True)), everything, body=graph)


def _inner(b: Builder, value: npt.ArrayLike) -> ir.Value:
    """A constant inside the loop's body, which has no initializers of its own."""
    return b.op("Constant", value=ir.Tensor(np.asarray(value)))
