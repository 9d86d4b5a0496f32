"""Preprocessing inside the graph: pixels (N, H, W, C) uint8 of any size -> the network's input.

The same arithmetic as `dnc.preprocess`, in ONNX operators: for either axis the two pixels that each output pixel lies
between, and their weights, are computed from the image's size; a Gather fetches them. ONNX's own Resize would come
close, but not reproduce Darknet's last row and column (see `dnc.preprocess`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from dnc.graph import Builder
from dnc.preprocess import Preprocessing

__all__ = ["emit_pixels"]


class _Samples(NamedTuple):
    """For each output pixel of an axis, the first and the second source pixel and their weights."""

    first: ir.Value
    second: ir.Value
    first_weight: ir.Value
    second_weight: ir.Value


def emit_pixels(b: Builder, p: Preprocessing) -> ir.Value:
    """Adds the uint8 input `input` and what makes the network's float input of it."""
    pixels = b.input("input", ["height", "width", p.channels], ir.DataType.UINT8)
    b.enter("preprocessing")
    shape = b.op("Shape", pixels)
    image_height, image_width = (b.op("Gather", shape, _scalar(b, axis)) for axis in (1, 2))
    width, height = _scalar(b, p.width), _scalar(b, p.height)
    x = b.op("Cast", b.op("Transpose", pixels, perm=[0, 3, 1, 2]), to=int(ir.DataType.FLOAT))
    new_width, new_height = _new_size(b, p, image_width, image_height)
    if p.mode == "resize-half-pixel":
        columns, rows = _half_pixel(b, image_width, width), _half_pixel(b, image_height, height)
    else:
        columns, rows = _aligned_columns(b, image_width, new_width), _aligned_rows(b, image_height, new_height)
    if p.mode == "center-crop":
        columns, rows = _crop(b, columns, new_width, width), _crop(b, rows, new_height, height)
    if p.mode != "resize-half-pixel":
        x = b.op("Div", x, b.constant(1 / p.scale))
    x = _interpolate(b, _interpolate(b, x, columns, 3), rows, 2)
    if p.mode == "resize-half-pixel":
        x = b.op("Div", b.op("Floor", b.op("Add", x, b.constant(0.5))), b.constant(1 / p.scale))
    if p.mode == "letterbox":
        x = _pad(b, x, (new_height, height), (new_width, width), float(np.float32(127.5) / np.float32(1 / p.scale)))
    if p.color == "bgr":
        order = [2, 1, 0, *range(3, p.channels)]
        x = b.op("Gather", x, b.constant(np.array(order, np.int64)), axis=1)
    if any(p.mean):
        x = b.op("Sub", x, b.constant(np.array(p.mean, np.float32).reshape(1, -1, 1, 1)))
    if set(p.std) != {1.0}:
        x = b.op("Div", x, b.constant(np.array(p.std, np.float32).reshape(1, -1, 1, 1)))
    fixed = b.constant(np.array([0, p.channels, p.height, p.width], np.int64))
    # States the sides, which no engine could infer from the gathers.
    return b.op("Reshape", x, fixed)


def _scalar(b: Builder, number: int) -> ir.Value:
    return b.constant(np.array(number, np.int64))


def _float(b: Builder, value: ir.Value) -> ir.Value:
    return b.op("Cast", value, to=int(ir.DataType.FLOAT))


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
        sides = ((width, height), (height, width))
    else:
        wide = b.op("Less", image_width, image_height)
        sides = ((width, height), (width, width))
    tall = b.op("Div", b.op("Mul", image_height, sides[0][0]), image_width)
    broad = b.op("Div", b.op("Mul", image_width, sides[1][0]), image_height)
    if p.mode == "letterbox":
        tall, broad = b.op("Max", tall, _scalar(b, 1)), b.op("Max", broad, _scalar(b, 1))
    return b.op("Where", wide, width, broad), b.op("Where", wide, tall, sides[1][0])


def _range(b: Builder, stop: ir.Value) -> ir.Value:
    return b.op("Range", _scalar(b, 0), stop, _scalar(b, 1))


def _second(b: Builder, first: ir.Value, source: ir.Value) -> ir.Value:
    return b.op("Min", b.op("Add", first, _scalar(b, 1)), b.op("Sub", source, _scalar(b, 1)))


def _aligned(b: Builder, source: ir.Value, target: ir.Value) -> tuple[_Samples, ir.Value]:
    """The samples, and which output pixel is the last."""
    one = _scalar(b, 1)
    steps = _float(b, b.op("Max", b.op("Sub", target, one), one))
    scale = b.op("Div", _float(b, b.op("Sub", source, one)), steps)
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
    double = int(ir.DataType.DOUBLE)
    half = b.op("Cast", b.constant(0.5), to=double)
    ratio = b.op("Div", b.op("Cast", source, to=double), b.op("Cast", target, to=double))
    index = b.op("Cast", _range(b, target), to=double)
    position = b.op("Sub", b.op("Mul", b.op("Add", index, half), ratio), half)
    end = b.op("Cast", b.op("Sub", source, _scalar(b, 1)), to=double)
    position = b.op("Min", b.op("Max", position, b.op("Cast", _scalar(b, 0), to=double)), end)
    first = _integer(b, position)
    weight = _float(b, b.op("Sub", position, b.op("Cast", first, to=double)))
    return _Samples(first, _second(b, first, source), b.op("Sub", b.constant(1.0), weight), weight)


def _crop(b: Builder, samples: _Samples, length: ir.Value, kept: ir.Value) -> _Samples:
    """The middle `kept` of `length` samples; the border repeats where there are fewer."""
    # C truncates, as ONNX's integer Div does.
    start = b.op("Div", b.op("Sub", length, kept), _scalar(b, 2))
    index = b.op("Add", _range(b, kept), start)
    index = b.op("Min", b.op("Max", index, _scalar(b, 0)), b.op("Sub", length, _scalar(b, 1)))
    return _Samples(*(b.op("Gather", value, index) for value in samples))


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
