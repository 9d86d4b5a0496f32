"""Preprocessing of images of any size: where the columns and the rows are sampled, and the pixels.

The arithmetic of `dnc.runtime.preprocessing`, and of the nodes of the composite (`dnc.graph.preprocessing`), which
these functions take the place of: gathers along symbolic sizes are slow in TVM, and Range and Pad of sizes that are
computed are unknown to it.

    bilinear    a sample is where an output pixel lies between two of the image: the first, the second, the weight of
                each, and whether it is inside; (5, length) float32, in which pixel numbers are exact
    bicubic     the first pixel that an output pixel is made of, and the weights of as many as can matter, in whole
                numbers that count CUBIC_ONE; columns before rows, sums in int32, which are exact

Values are within rounding of those of the host. In resize-half-pixel, which rounds to 8 bits, one value in some
thousand falls on the other side of a half, by 1 of 255.

Positions are products in double, rounded to float32, so that LLVM cannot make one operation of the product and what
follows it, with another last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dnc.graph.preprocessing import Preprocess
from dnc.runtime.preprocessing import CUBIC_ONE
from dnc.targets.tvm.emit.builder import RelaxBuilder, Tensor

__all__ = ["preprocessed"]

_CUBIC_BITS = int(np.log2(CUBIC_ONE))


def preprocessed(b: RelaxBuilder, p: Preprocess, image: Any) -> Tensor:
    """The network's input (N, C, H, W) of pixels (N, height, width, C) uint8, a variable of Relax."""
    result = _resampled(b, p, image)
    if (p.gain == 1).all():
        return result
    (x, y), last = b.broadcast([result, p.gain])
    return b.emit(b.op.multiply(x, y), last)


def _resampled(b: RelaxBuilder, p: Preprocess, image: Any) -> Tensor:
    make = _Pixels(p)
    if p.interpolation == "bicubic":
        across, down = (b.compute(make.firsts, image, axis, name="firsts").expr for axis in (_WIDTH, _HEIGHT))
        weights = b.compute(make.weights, image, across, _WIDTH, name="weights")
        part = b.compute(make.cubic_columns, image, across, weights.expr, name="columns")
        weights = b.compute(make.weights, image, down, _HEIGHT, name="weights")
        whole = b.compute(make.cubic_rows, part.expr, down, weights.expr, last=True, name="rows")
        return b.compute(make.cubic_pixels, whole.expr, last=True, name="pixels")
    samples = [b.compute(make.samples, image, axis, name="samples") for axis in (_WIDTH, _HEIGHT)]
    return b.compute(make.pixels, image, *(sample.expr for sample in samples), last=True, name="pixels")


_HEIGHT, _WIDTH = 1, 2
"""Axes of the image."""


def _whole(number: int) -> Any:
    from tvm import tirx

    return tirx.const(number, "int64")


def _real(number: Any, dtype: str = "float32") -> Any:
    from tvm import tirx

    return tirx.const(float(number), dtype) if isinstance(number, int | float) else tirx.Cast(dtype, number)


class _Pixels:
    """Tensor expressions for one way of preprocessing."""

    def __init__(self, p: Preprocess) -> None:
        from tvm import te, tirx

        self._p, self._te, self._tir = p, te, tirx
        self._divisor = _real(p.divisor)
        self._means, self._deviations = (
            np.resize(np.array(numbers, np.float32), p.channels) for numbers in (p.mean, p.std)
        )

    def _length(self, axis: int) -> int:
        """Of the network's input."""
        return self._p.width if axis == _WIDTH else self._p.height

    def _sizes(self, image: Any, axis: int) -> tuple[Any, Any]:
        """An axis of the image, and what it is brought to."""
        p, tirx = self._p, self._tir
        height, width = (tirx.Cast("int64", image.shape[axis]) for axis in (_HEIGHT, _WIDTH))
        tall, broad = _whole(p.height), _whole(p.width)
        if p.mode == "letterbox":
            wide = _real(p.width) / _real(width) < _real(p.height) / _real(height)
            tall = tirx.Select(wide, tirx.max(_whole(1), tirx.floordiv(height * p.width, width)), tall)
            broad = tirx.Select(wide, broad, tirx.max(_whole(1), tirx.floordiv(width * p.height, height)))
        elif p.mode == "center-crop":
            short = _whole(p.short_side)
            wide = width < height
            tall = tirx.Select(wide, tirx.floordiv(height * short, width), short)
            broad = tirx.Select(wide, short, tirx.floordiv(width * short, height))
        return (width, broad) if axis == _WIDTH else (height, tall)

    def _place(self, index: Any, axis: int, target: Any) -> tuple[Any, Any]:
        """Which pixel of the image that was brought to `target` an output pixel is; and whether there is one."""
        tirx, length = self._tir, _whole(self._length(axis))
        place = tirx.Cast("int64", index)
        inside: Any = tirx.const(True, "bool")
        if self._p.mode == "letterbox":
            place = place - tirx.floordiv(length - target, _whole(2))
            inside = tirx.all(place >= 0, place < target)
        elif self._p.mode == "center-crop":
            place = place + tirx.truncdiv(target - length, _whole(2))
        return tirx.max(tirx.min(place, target - 1), _whole(0)), inside

    def samples(self, image: Any, axis: int) -> Any:
        """Bilinear samples of an axis."""
        tirx, half_pixel = self._tir, self._p.mode == "resize-half-pixel"
        source, target = self._sizes(image, axis)

        def at(which: Any, index: Any) -> Any:
            place, inside = self._place(index, axis, target)
            if half_pixel:
                ratio = _real(source, "float64") / _real(target, "float64")
                half = tirx.const(0.5, "float64")
                exact = (_real(place, "float64") + half) * ratio - half
                exact = tirx.max(tirx.min(exact, _real(source - 1, "float64")), tirx.const(0.0, "float64"))
                first = tirx.Cast("int64", exact)
                weight = _real(exact - _real(first, "float64"))
            else:
                # TVM would multiply by the rounded reciprocal.
                quotient = _real(source - 1, "float64") / _real(tirx.max(target - 1, _whole(1)), "float64")
                position = _real(_real(place, "float64") * _real(_real(quotient), "float64"))
                first = tirx.Cast("int64", position)
                weight = position - _real(first)
            rest = _real(1.0) - weight
            second = tirx.min(first + 1, source - 1)
            if not half_pixel:
                last = place == target - 1
                weight = tirx.Select(last, _real(0.0), weight)
                if axis == _WIDTH:
                    first, rest = tirx.Select(last, source - 1, first), tirx.Select(last, _real(1.0), rest)
            values = [_real(first), _real(second), rest, weight]
            result = _real(inside)
            for number, value in enumerate(values):
                result = tirx.Select(which == number, value, result)
            return result

        return self._te.compute((5, self._length(axis)), at, name="samples")

    def pixels(self, image: Any, across: Any, down: Any) -> Any:
        """The input of bilinear samples."""
        p, tirx = self._p, self._tir
        late = p.mode == "resize-half-pixel"
        gray = float(np.float32(127.5) / np.float32(p.divisor))

        def at(n: Any, y: Any, x: Any, c: Any) -> Any:
            def pixel(row: int, column: int) -> Any:
                places = [tirx.Cast("int64", samples[w, i]) for samples, w, i in ((down, row, y), (across, column, x))]
                value = _real(image[n, places[0], places[1], self._channel(c)])
                return value if late else value / self._divisor

            upper, lower = (pixel(row, 0) * across[2, x] + pixel(row, 1) * across[3, x] for row in (0, 1))
            value = upper * down[2, y] + lower * down[3, y]
            if late:
                value = tirx.floor(value + _real(0.5)) / self._divisor
            if p.mode == "letterbox":
                inside = tirx.all(across[4, x] > _real(0.5), down[4, y] > _real(0.5))
                value = tirx.Select(inside, value, _real(gray))
            return self._normalized(value, c)

        return self._te.compute((image.shape[0], p.height, p.width, p.channels), at, name="pixels")

    def _channel(self, c: Any) -> Any:
        """Of the image, for one of the input."""
        if self._p.color != "bgr":
            return c
        return self._tir.Select(c == 0, self._tir.const(2, c.ty.dtype), self._tir.Select(c == 2, 0 * c, c))

    def _normalized(self, value: Any, c: Any) -> Any:
        if self._means.any():
            value = value - self._each(c, self._means)
        if (self._deviations != 1).any():
            value = value / self._each(c, self._deviations)
        return value

    def _each(self, c: Any, numbers: Any) -> Any:
        value = _real(float(numbers[0]))
        for index, number in enumerate(numbers):
            value = self._tir.Select(c == index, _real(float(number)), value)
        return value

    def _center(self, index: Any, axis: int, source: Any, target: Any) -> tuple[Any, Any]:
        """Where an output pixel of a bicubic interpolation lies, and how much the cubic is widened."""
        tirx, double = self._tir, "float64"
        ratio = _real(source, double) / _real(target, double)
        place, _ = self._place(index, axis, target)
        center = (_real(place, double) + tirx.const(0.5, double)) * ratio
        return center, tirx.max(ratio, tirx.const(1.0, double))

    def firsts(self, image: Any, axis: int) -> Any:
        """(length,) int32: computed once, for what is whole but for rounding may be rounded in two ways."""
        tirx, double = self._tir, "float64"
        source, target = self._sizes(image, axis)

        def at(index: Any) -> Any:
            center, wide = self._center(index, axis, source, target)
            start = center - tirx.const(2.0, double) * wide
            return tirx.Cast("int32", tirx.max(start, tirx.const(0.0, double)))

        return self._te.compute((self._length(axis),), at, name="firsts")

    def weights(self, image: Any, firsts: Any, axis: int) -> Any:
        """(length, taps) int32; 0 where a pixel does not matter, or there is none."""
        tirx, te, double = self._tir, self._te, "float64"
        source, target = self._sizes(image, axis)
        # 4 * wide + 1 / 2 at most, and one that begins where they do.
        taps = tirx.max(tirx.floordiv(source * 4, target) + 2, _whole(6))
        shape = (self._length(axis), taps)

        def number(value: float) -> Any:
            return tirx.const(value, double)

        def raw_at(index: Any, tap: Any) -> Any:
            center, wide = self._center(index, axis, source, target)
            pixel = tirx.Cast("int64", firsts[index]) + tap
            x = tirx.abs(_real(pixel, double) + number(0.5) - center) / wide
            near = ((number(1.5) * x - number(2.5)) * x) * x + number(1.0)
            far = ((number(2.5) - number(0.5) * x) * x - number(4.0)) * x + number(2.0)
            weight = tirx.Select(x < number(1.0), near, tirx.Select(x < number(2.0), far, number(0.0)))
            return tirx.Select(pixel < source, weight, number(0.0))

        raw = te.compute(shape, raw_at, name="raw")
        tap = te.reduce_axis((0, taps), name="tap")
        total = te.compute(shape[:1], lambda index: te.sum(raw[index, tap], axis=tap), name="total")

        def at(index: Any, tap: Any) -> Any:
            return tirx.Cast("int32", tirx.nearbyint(raw[index, tap] / total[index] * number(CUBIC_ONE)))

        return te.compute(shape, at, name="weights")

    def cubic_columns(self, image: Any, firsts: Any, weights: Any) -> Any:
        """(N, height, input's width, C) int32: sums that count CUBIC_ONE."""
        tirx, te = self._tir, self._te
        tap = te.reduce_axis((0, weights.shape[1]), name="tap")
        count, height, width, channels = image.shape

        def at(n: Any, y: Any, x: Any, c: Any) -> Any:
            place = tirx.min(tirx.Cast("int64", firsts[x]) + tap, tirx.Cast("int64", width) - 1)
            return te.sum(tirx.Cast("int32", image[n, y, place, self._channel(c)]) * weights[x, tap], axis=tap)

        return te.compute((count, height, self._p.width, channels), at, name="columns")

    def cubic_rows(self, part: Any, firsts: Any, weights: Any) -> Any:
        """(N, input's height, input's width, C) int32, of the columns."""
        tirx, te = self._tir, self._te
        tap = te.reduce_axis((0, weights.shape[1]), name="tap")
        count, height, width, channels = part.shape

        def at(n: Any, y: Any, x: Any, c: Any) -> Any:
            place = tirx.min(tirx.Cast("int64", firsts[y]) + tap, tirx.Cast("int64", height) - 1)
            return te.sum(self._rounded(part[n, place, x, c]) * weights[y, tap], axis=tap)

        return te.compute((count, self._p.height, width, channels), at, name="rows")

    def cubic_pixels(self, whole: Any) -> Any:
        """The input, of the rows."""

        def at(n: Any, y: Any, x: Any, c: Any) -> Any:
            return self._normalized(_real(self._rounded(whole[n, y, x, c])) / self._divisor, c)

        return self._te.compute(whole.shape, at, name="pixels")

    def _rounded(self, value: Any) -> Any:
        """A pixel of 0 to 255, of a sum."""
        tirx = self._tir
        half = tirx.const(1 << (_CUBIC_BITS - 1), "int32")
        nearest = tirx.shift_right(value + half, tirx.const(_CUBIC_BITS, "int32"))
        return tirx.max(tirx.min(nearest, tirx.const(255, "int32")), tirx.const(0, "int32"))
