"""Preprocessing of images of any size, in three functions: the samples of the columns, of the rows, and the pixels.

The arithmetic of `dnc.preprocess`, and of the nodes that `dnc.graph_input` makes, which these take the place of:
gathers along symbolic sizes are slow in TVM, and Range and Pad of sizes that are computed are unknown to it. A sample
is where an output pixel lies between two of the image: the first, the second, the weight of each, and whether it is
inside. Values are within rounding of those of the host; in resize-half-pixel, which rounds to 8 bits, one value in some
thousand falls on the other side of a half, by 1 of 255.

Positions are products in double, rounded to float32, so that LLVM cannot make one operation of the product and what
follows it, with another last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dnc.preprocess import Preprocessing

__all__ = ["pixel_functions"]

Function = Callable[[Any], Any]


def pixel_functions(p: Preprocessing) -> tuple[Function, Function, Callable[[Any, Any, Any], Any]]:
    """Tensor expressions: columns and rows of the image (N, H, W, C) uint8, and of it and both, the input (N, H, W, C).

    Samples are (5, length) float32 arrays of what the module says; pixel numbers are exact in them.
    """
    from tvm import te, tirx

    def whole(number: int) -> Any:
        return tirx.const(number, "int64")

    def real(number: Any, dtype: str = "float32") -> Any:
        return tirx.const(float(number), dtype) if isinstance(number, int | float) else tirx.Cast(dtype, number)

    def sizes(image: Any) -> tuple[Any, Any]:
        """The image's (height, width), and what it is brought to."""
        return tirx.Cast("int64", image.shape[1]), tirx.Cast("int64", image.shape[2])

    def new_sizes(image: Any) -> tuple[Any, Any]:
        height, width = sizes(image)
        if p.mode == "letterbox":
            wide = real(p.width) / real(width) < real(p.height) / real(height)
            tall = tirx.max(whole(1), tirx.floordiv(height * p.width, width))
            broad = tirx.max(whole(1), tirx.floordiv(width * p.height, height))
            return tirx.Select(wide, tall, whole(p.height)), tirx.Select(wide, whole(p.width), broad)
        if p.mode == "center-crop":
            short = whole(p.short_side)
            wide = width < height
            tall, broad = tirx.floordiv(height * short, width), tirx.floordiv(width * short, height)
            return tirx.Select(wide, tall, short), tirx.Select(wide, short, broad)
        return whole(p.height), whole(p.width)

    def samples(source: Any, target: Any, length: int, copies_last: bool) -> Any:
        """Of one axis that goes from `source` to `target` pixels, of which, or around which, are `length`."""

        def at(which: Any, index: Any) -> Any:
            place = tirx.Cast("int64", index)
            inside: Any = tirx.const(True, "bool")
            if p.mode == "letterbox":
                place = place - tirx.floordiv(whole(length) - target, whole(2))
                inside = tirx.all(place >= 0, place < target)
            elif p.mode == "center-crop":
                place = place + tirx.truncdiv(target - whole(length), whole(2))
            place = tirx.max(tirx.min(place, target - 1), whole(0))
            if p.mode == "resize-half-pixel":
                ratio = real(source, "float64") / real(target, "float64")
                half = tirx.const(0.5, "float64")
                exact = (real(place, "float64") + half) * ratio - half
                exact = tirx.max(tirx.min(exact, real(source - 1, "float64")), tirx.const(0.0, "float64"))
                first = tirx.Cast("int64", exact)
                weight = real(exact - real(first, "float64"))
            else:
                # TVM would multiply by the rounded reciprocal.
                quotient = real(source - 1, "float64") / real(tirx.max(target - 1, whole(1)), "float64")
                position = real(real(place, "float64") * real(real(quotient), "float64"))
                first = tirx.Cast("int64", position)
                weight = position - real(first)
            rest = real(1.0) - weight
            second = tirx.min(first + 1, source - 1)
            if p.mode != "resize-half-pixel":
                last = place == target - 1
                weight = tirx.Select(last, real(0.0), weight)
                if copies_last:
                    first, rest = tirx.Select(last, source - 1, first), tirx.Select(last, real(1.0), rest)
            values = [real(first), real(second), rest, weight]
            result = real(inside)
            for number, value in enumerate(values):
                result = tirx.Select(which == number, value, result)
            return result

        return te.compute((5, length), at, name="samples")

    def columns(image: Any) -> Any:
        return samples(sizes(image)[1], new_sizes(image)[1], p.width, True)

    def rows(image: Any) -> Any:
        return samples(sizes(image)[0], new_sizes(image)[0], p.height, False)

    order = [2, 1, 0, *range(3, p.channels)] if p.color == "bgr" else list(range(p.channels))
    divisor = real(1 / p.scale)
    late = p.mode == "resize-half-pixel"
    gray = float(np.float32(127.5) / np.float32(1 / p.scale))
    means, deviations = (np.resize(np.array(numbers, np.float32), p.channels) for numbers in (p.mean, p.std))

    def pixels(image: Any, across: Any, down: Any) -> Any:
        def channel(c: Any) -> Any:
            place: Any = c
            if p.color == "bgr":
                for index, source in enumerate(order):
                    place = tirx.Select(c == index, tirx.const(source, c.ty.dtype), place)
            return place

        def each(c: Any, numbers: Any) -> Any:
            value = real(float(numbers[0]))
            for index, number in enumerate(numbers):
                value = tirx.Select(c == index, real(float(number)), value)
            return value

        def at(n: Any, y: Any, x: Any, c: Any) -> Any:
            def pixel(row: int, column: int) -> Any:
                places = [tirx.Cast("int64", samples[w, i]) for samples, w, i in ((down, row, y), (across, column, x))]
                value = real(image[n, places[0], places[1], channel(c)])
                return value if late else value / divisor

            upper, lower = (pixel(row, 0) * across[2, x] + pixel(row, 1) * across[3, x] for row in (0, 1))
            value = upper * down[2, y] + lower * down[3, y]
            if late:
                value = tirx.floor(value + real(0.5)) / divisor
            if p.mode == "letterbox":
                inside = tirx.all(across[4, x] > real(0.5), down[4, y] > real(0.5))
                value = tirx.Select(inside, value, real(gray))
            if means.any():
                value = value - each(c, means)
            if (deviations != 1).any():
                value = value / each(c, deviations)
            return value

        shape = (image.shape[0], p.height, p.width, p.channels)
        return te.compute(shape, at, name="pixels")

    return columns, rows, pixels
