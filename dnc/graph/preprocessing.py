"""Preprocessing inside the graph: pixels (N, H, W, C) uint8 of any size -> the network's input.

The same arithmetic as `dnc.runtime.preprocessing`, in ONNX operators: for either axis the two pixels that each output
pixel lies between, and their weights, are computed from the image's size; a Gather fetches them. ONNX's own Resize
would come close, but not reproduce Darknet's last row and column (see `dnc.runtime.preprocessing`). A bicubic
interpolation takes as many pixels as the image is large, so there a product with a matrix of weights stands for the
Gather; that is in double, in which it is exact.

All of it is the composite `Preprocess`. Its result is multiplied by the attribute `gain`, which is 1: a pass that takes
factors out of the preprocessing, to move them into weights, writes their reciprocals there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from dnc.graph.builder import Builder
from dnc.graph.composites import PREPROCESS, Body, attributes_of, call_composite
from dnc.runtime.preprocessing import CUBIC_ONE, Preprocessing

__all__ = ["Preprocess", "emit_on_image", "emit_pixels", "emit_prepared"]


@dataclass(frozen=True)
class Preprocess:
    """The attributes of the composite: the fields of `Preprocessing` that matter, exact in float32.

    The result is ((pixel / divisor, resampled) - mean) / std * gain.
    """

    width: int
    height: int
    channels: int
    mode: str
    color: str
    interpolation: str
    short_side: int
    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gain: npt.NDArray[np.float32]
    """(1, channels, 1, 1)."""

    @classmethod
    def of(cls, call: ir.Node) -> Self:
        """The attributes of a call."""
        return cls(**attributes_of(call))


class _Samples(NamedTuple):
    """For each output pixel of an axis, the first and the second source pixel and their weights."""

    first: ir.Value
    second: ir.Value
    first_weight: ir.Value
    second_weight: ir.Value


def emit_pixels(b: Builder, p: Preprocessing) -> ir.Value:
    """Adds the uint8 input `input` and what makes the network's float input of it."""
    return emit_prepared(b, p, b.input("input", ["height", "width", p.channels], ir.DataType.UINT8))


def emit_prepared(b: Builder, p: Preprocessing, pixels: ir.Value) -> ir.Value:
    """The network's float input, made of pixels (N, H, W, C) of uint8."""
    b.enter("preprocessing")
    equal = ("width", "height", "channels", "mode", "color", "interpolation", "short_side")
    given = {name: getattr(p, name) for name in equal}
    given |= {"divisor": float(np.float32(1 / p.scale)), "mean": _rounded(p.mean), "std": _rounded(p.std)}
    given["gain"] = ir.Tensor(np.ones((1, p.channels, 1, 1), np.float32), name="gain")
    sides = [b.batch, p.channels, p.height, p.width]
    return call_composite(b, PREPROCESS, [pixels], lambda body, x: [_emit(body, p, x)], [sides], **given)[0]


def emit_on_image(
    b: Builder, p: Preprocessing, boxes: ir.Value, image_width: ir.Value, image_height: ir.Value
) -> ir.Value:
    """Boxes (N, K, 4) on the network's input, mapped to an image of this size (scalars, int64), both in fractions: what
    `BoxTransform` does, in the same precision."""
    if p.mode not in ("letterbox", "center-crop"):
        return boxes
    offsets, ratios = [], []
    for new, side in zip(_new_size(b, p, image_width, image_height), (p.width, p.height), strict=True):
        missing, full = b.op("Sub", _scalar(b, side), new), _double(b, _scalar(b, side))
        if p.mode == "letterbox":
            # Halved exactly, though the picture is put at a whole pixel: as correct_yolo_boxes does.
            half = b.op("Div", _double(b, missing), _double(b, _scalar(b, 2)))
        else:
            half = _double(b, b.op("Div", missing, _scalar(b, 2)))
        offsets.append(b.op("Reshape", b.op("Div", half, full), b.constant(np.array([1], np.int64))))
        ratios.append(b.op("Reshape", b.op("Div", _double(b, new), full), b.constant(np.array([1], np.int64))))
    offset, ratio = b.op("Concat", *offsets, axis=0), _float(b, b.op("Concat", *ratios, axis=0))
    centers = b.op("Sub", _double(b, b.slice(boxes, 2, 0, 2)), offset)
    centers = _float(b, b.op("Div", centers, _double(b, ratio)))
    sizes = b.op("Mul", b.slice(boxes, 2, 2, 4), b.op("Reciprocal", ratio))
    return b.op("Concat", centers, sizes, axis=2)


def _rounded(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.array(numbers, np.float32).tolist())


def _emit(b: Body, p: Preprocessing, pixels: ir.Value) -> ir.Value:
    shape = b.op("Shape", pixels)
    image_height, image_width = (b.op("Gather", shape, _scalar(b, axis)) for axis in (1, 2))
    width, height = _scalar(b, p.width), _scalar(b, p.height)
    x = b.op("Transpose", pixels, perm=[0, 3, 1, 2])
    new_width, new_height = _new_size(b, p, image_width, image_height)
    if p.interpolation == "bicubic":
        across = _cubic(b, image_width, new_width, _middle(b, new_width, p.width))
        down = _cubic(b, image_height, new_height, _middle(b, new_height, p.height))
        x = _to_pixels(b, b.op("MatMul", _double(b, x), b.op("Transpose", across, perm=[1, 0])))
        x = b.op("Div", _float(b, _to_pixels(b, b.op("MatMul", down, x))), b.constant(1 / p.scale))
    else:
        x = _bilinear(b, p, _float(b, x), (image_width, image_height), (new_width, new_height))
    if p.mode == "letterbox":
        x = _pad(b, x, (new_height, height), (new_width, width), float(np.float32(127.5) / np.float32(1 / p.scale)))
    if p.color == "bgr":
        order = [2, 1, 0, *range(3, p.channels)]
        x = b.op("Gather", x, b.constant(np.array(order, np.int64)), axis=1)
    if any(p.mean):
        x = b.op("Sub", x, b.constant(np.array(p.mean, np.float32).reshape(1, -1, 1, 1)))
    if set(p.std) != {1.0}:
        x = b.op("Div", x, b.constant(np.array(p.std, np.float32).reshape(1, -1, 1, 1)))
    x = b.scaled(x, "gain")
    fixed = b.constant(np.array([0, p.channels, p.height, p.width], np.int64))
    # States the sides, which no engine could infer from the gathers.
    return b.op("Reshape", x, fixed)


def _bilinear(
    b: Builder, p: Preprocessing, x: ir.Value, image: tuple[ir.Value, ir.Value], new: tuple[ir.Value, ir.Value]
) -> ir.Value:
    """Resizes and crops; `image` and `new` are (width, height)."""
    if p.mode == "resize-half-pixel":
        columns, rows = _half_pixel(b, image[0], new[0]), _half_pixel(b, image[1], new[1])
    else:
        columns, rows = _aligned_columns(b, image[0], new[0]), _aligned_rows(b, image[1], new[1])
    if p.mode == "center-crop":
        columns, rows = _crop(b, columns, new[0], p.width), _crop(b, rows, new[1], p.height)
    if p.mode != "resize-half-pixel":
        x = b.op("Div", x, b.constant(1 / p.scale))
    x = _interpolate(b, _interpolate(b, x, columns, 3), rows, 2)
    if p.mode == "resize-half-pixel":
        x = b.op("Div", b.op("Floor", b.op("Add", x, b.constant(0.5))), b.constant(1 / p.scale))
    return x


def _scalar(b: Builder, number: int) -> ir.Value:
    return b.constant(np.array(number, np.int64))


def _float(b: Builder, value: ir.Value) -> ir.Value:
    return b.op("Cast", value, to=int(ir.DataType.FLOAT))


def _double(b: Builder, value: ir.Value) -> ir.Value:
    return b.op("Cast", value, to=int(ir.DataType.DOUBLE))


def _integer(b: Builder, value: ir.Value) -> ir.Value:
    return b.op("Cast", value, to=int(ir.DataType.INT64))


def _new_size(b: Builder, p: Preprocessing, image_width: ir.Value, image_height: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The size that the image is brought to, before it is padded or cropped."""
    width, height = _scalar(b, p.width), _scalar(b, p.height)
    if p.mode not in ("letterbox", "center-crop"):
        return width, height
    if p.mode == "letterbox":
        across, down = b.op("Div", _float(b, width), _float(b, image_width)), _float(b, image_height)
        wide = b.op("Less", across, b.op("Div", _float(b, height), down))
    else:
        wide = b.op("Less", image_width, image_height)
        width = height = _scalar(b, p.short_side)
    tall = b.op("Div", b.op("Mul", image_height, width), image_width)
    broad = b.op("Div", b.op("Mul", image_width, height), image_height)
    if p.mode == "letterbox":
        tall, broad = b.op("Max", tall, _scalar(b, 1)), b.op("Max", broad, _scalar(b, 1))
    return b.op("Where", wide, width, broad), b.op("Where", wide, tall, height)


def _range(b: Builder, stop: ir.Value) -> ir.Value:
    return b.op("Range", _scalar(b, 0), stop, _scalar(b, 1))


def _quotient(b: Builder, number: ir.Value, divisor: ir.Value) -> ir.Value:
    """number / divisor, rounded once: for whole numbers, divisors under 4096.

    Some engines (OpenVINO) multiply by the rounded 1 / divisor. The last bit matters: where it makes the last row lie
    just above the image's, Darknet gives that row another value. The remainder is exact, as the quotient is split in
    halves of 12 bits (Veltkamp), and corrects the quotient.
    """
    quotient = b.op("Div", number, divisor)
    wide = b.op("Mul", quotient, b.constant(4097.0))
    high = b.op("Sub", wide, b.op("Sub", wide, quotient))
    low = b.op("Sub", quotient, high)
    rest = b.op("Sub", b.op("Sub", number, b.op("Mul", high, divisor)), b.op("Mul", low, divisor))
    return b.op("Add", quotient, b.op("Div", rest, divisor))


def _second(b: Builder, first: ir.Value, source: ir.Value) -> ir.Value:
    return b.op("Min", b.op("Add", first, _scalar(b, 1)), b.op("Sub", source, _scalar(b, 1)))


def _aligned(b: Builder, source: ir.Value, target: ir.Value) -> tuple[_Samples, ir.Value]:
    """The samples, and which output pixel is the last."""
    one = _scalar(b, 1)
    steps = _float(b, b.op("Max", b.op("Sub", target, one), one))
    scale = _quotient(b, _float(b, b.op("Sub", source, one)), steps)
    index = _range(b, target)
    position = b.op("Mul", _float(b, index), scale)
    first = _integer(b, position)
    weight = b.op("Sub", position, _float(b, first))
    last = b.op("Equal", index, b.op("Sub", target, one))
    return _Samples(first, _second(b, first, source), b.op("Sub", b.constant(1.0), weight), weight), last


def _aligned_columns(b: Builder, source: ir.Value, target: ir.Value) -> _Samples:
    (first, second, first_weight, second_weight), last = _aligned(b, source, target)
    return _Samples(
        b.op("Where", last, b.op("Sub", source, _scalar(b, 1)), first),
        second,
        b.op("Where", last, b.constant(1.0), first_weight),
        b.op("Where", last, b.constant(0.0), second_weight),
    )


def _aligned_rows(b: Builder, source: ir.Value, target: ir.Value) -> _Samples:
    samples, last = _aligned(b, source, target)
    return samples._replace(second_weight=b.op("Where", last, b.constant(0.0), samples.second_weight))


def _half_pixel(b: Builder, source: ir.Value, target: ir.Value) -> _Samples:
    # In double, as OpenCV places its pixels.
    half = _double(b, b.constant(0.5))
    ratio = b.op("Div", _double(b, source), _double(b, target))
    index = _double(b, _range(b, target))
    position = b.op("Sub", b.op("Mul", b.op("Add", index, half), ratio), half)
    end = _double(b, b.op("Sub", source, _scalar(b, 1)))
    position = b.op("Min", b.op("Max", position, _double(b, _scalar(b, 0))), end)
    first = _integer(b, position)
    weight = _float(b, b.op("Sub", position, _double(b, first)))
    return _Samples(first, _second(b, first, source), b.op("Sub", b.constant(1.0), weight), weight)


def _middle(b: Builder, length: ir.Value, kept: int) -> ir.Value:
    """The middle `kept` places of `length`; the border repeats where there are fewer."""
    # C truncates, as ONNX's integer Div does.
    start = b.op("Div", b.op("Sub", length, _scalar(b, kept)), _scalar(b, 2))
    index = b.op("Add", b.constant(np.arange(kept, dtype=np.int64)), start)
    return b.op("Min", b.op("Max", index, _scalar(b, 0)), b.op("Sub", length, _scalar(b, 1)))


def _crop(b: Builder, samples: _Samples, length: ir.Value, kept: int) -> _Samples:
    index = _middle(b, length, kept)
    return _Samples(*(b.op("Gather", value, index) for value in samples))


def _cubic(b: Builder, source: ir.Value, target: ir.Value, places: ir.Value) -> ir.Value:
    """The weights (places, source) times CUBIC_ONE, in double."""

    def number(value: float) -> ir.Value:
        return _double(b, b.constant(value))

    ratio = b.op("Div", _double(b, source), _double(b, target))
    wide = b.op("Max", ratio, number(1.0))
    centers = b.op("Mul", b.op("Add", _double(b, places), number(0.5)), ratio)
    pixels = b.op("Add", _double(b, _range(b, source)), number(0.5))
    column = b.op("Unsqueeze", centers, b.constant(np.array([1], np.int64)))
    x = b.op("Div", b.op("Abs", b.op("Sub", pixels, column)), wide)

    def horner(factors: Sequence[float]) -> ir.Value:
        value = number(factors[0])
        for factor in factors[1:]:
            value = b.op("Add", b.op("Mul", value, x), number(factor))
        return value

    near, far = horner((1.5, -2.5, 0.0, 1.0)), horner((-0.5, 2.5, -4.0, 2.0))
    weights = b.op("Where", b.op("Less", x, number(2.0)), far, number(0.0))
    weights = b.op("Where", b.op("Less", x, number(1.0)), near, weights)
    total = b.op("ReduceSum", weights, b.constant(np.array([1], np.int64)), keepdims=1)
    return b.op("Round", b.op("Mul", b.op("Div", weights, total), number(CUBIC_ONE)))


def _to_pixels(b: Builder, x: ir.Value) -> ir.Value:
    """Weighted sums rounded to 0 to 255, in double."""
    x = b.op("Add", b.op("Div", x, _double(b, b.constant(CUBIC_ONE))), _double(b, b.constant(0.5)))
    return b.op("Clip", b.op("Floor", x), _double(b, b.constant(0.0)), _double(b, b.constant(255.0)))


def _interpolate(b: Builder, x: ir.Value, samples: _Samples, axis: int) -> ir.Value:
    first_weight, second_weight = samples.first_weight, samples.second_weight
    if axis == 2:
        ones = b.constant(np.array([-1, 1], np.int64))
        first_weight, second_weight = b.op("Reshape", first_weight, ones), b.op("Reshape", second_weight, ones)
    first = b.op("Mul", b.op("Gather", x, samples.first, axis=axis), first_weight)
    second = b.op("Mul", b.op("Gather", x, samples.second, axis=axis), second_weight)
    return b.op("Add", first, second)


def _pad(
    b: Builder, x: ir.Value, rows: tuple[ir.Value, ir.Value], columns: tuple[ir.Value, ir.Value], value: float
) -> ir.Value:
    """Puts the image into the middle, (new, full) sides given."""
    zero, one = b.constant(np.array([0, 0], np.int64)), b.constant(np.array([1], np.int64))
    befores, afters = [], []
    for new, full in (rows, columns):
        missing = b.op("Sub", full, new)
        before = b.op("Div", missing, _scalar(b, 2))
        befores.append(b.op("Reshape", before, one))
        afters.append(b.op("Reshape", b.op("Sub", missing, before), one))
    pads = b.op("Concat", zero, *befores, zero, *afters, axis=0)
    return b.op("Pad", x, pads, b.constant(value))
