"""What kernels that multiply signs have in common: bits with their border, and vectors of integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx

from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, constant, index, loop, sequence
from dnc.targets.tvm.schedules.signs import stretches
from dnc.targets.tvm.schedules.window import Window

__all__ = ["WORTH", "Bordered", "Runs", "in_vectors", "load", "span", "splat", "store", "vectors_of"]

WORTH = 8_000_000
"""Bits from which on threads are woken."""


def span(start: Expr, lanes: int) -> list[Expr]:
    """The index of so many elements that lie one after the other."""
    return [tirx.Ramp(start, index(1), lanes) if lanes > 1 else start]


def load(buffer: Any, start: Expr, lanes: int) -> Expr:
    """So many elements of a flat buffer."""
    return tirx.BufferLoad(buffer, span(start, lanes))


def store(buffer: Any, value: Expr, start: Expr, lanes: int) -> Stmt:
    """Writes them."""
    return tirx.BufferStore(buffer, value, span(start, lanes))


def in_vectors(count: int, lanes: int, body: Callable[[Expr, int], Stmt]) -> Stmt | None:
    """`body(first, lanes)` for so many elements."""

    def part(start: int, lanes: int, vectors: int) -> Stmt:
        return loop(vectors, lambda number: body(number * lanes + start, lanes))

    parts = [part(*stretch) for stretch in stretches(count, lanes)]
    return sequence(*parts) if parts else None


def vectors_of(dtype: str, lanes: int) -> str:
    """The type of vectors."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def splat(value: int, dtype: str, lanes: int) -> Expr:
    """A number in all lanes."""
    number = constant(value, dtype)
    return tirx.Broadcast(number, lanes) if lanes > 1 else number


class Bordered:
    """The bits with their border, as bytes: (images, rows, columns, bytes of a pixel).

    Args:
        window: what reads them.
        cell: bytes of a pixel.
        behind: columns of zeros that are read behind those of windows.
    """

    def __init__(self, window: Window, cell: int, behind: int) -> None:
        self.window, self.cell = window, cell
        self.rows, columns = (
            (window.output[1 + axis] - 1) * window.stride[axis] + (window.size[axis] - 1) * window.dilation[axis] + 1
            for axis in range(2)
        )
        self.columns = columns
        self.line = (columns + behind) * cell
        self.buffer = allocate([window.source[0] * self.rows * self.line], "uint8", "bordered", "global")

    def fill(self, number: Expr) -> Stmt:
        """One row of one image."""
        _, height, width, given = self.window.source
        top, left = self.window.padding
        # Windows far apart may end before the border does.
        left = min(left, self.columns)
        start, row = number * self.line, number % self.rows - top
        inside = min(width, self.columns - left)
        source = ((number // self.rows) * height + row) * width * given
        # Where pixels are as long as before, they are copied at once.
        many, length = (1, inside * given) if self.cell == given else (inside, given)

        def clear(first: Expr, lanes: int, low: Expr) -> Stmt:
            return store(self.buffer, splat(0, "uint8", lanes), start + low + first, lanes)

        def copy(first: Expr, lanes: int, pixel: Expr) -> Stmt:
            value = tirx.BufferLoad(self.window.data, [index(0)] * 3 + span(source + pixel * given + first, lanes))
            return store(self.buffer, value, start + (left + pixel) * self.cell + first, lanes)

        def pixel(number: Expr) -> Stmt:
            low = (left + number) * self.cell + given
            behind = in_vectors(self.cell - given, 32, partial(clear, low=low))
            return sequence(in_vectors(length, 32, partial(copy, pixel=number)), behind)

        def cleared(low: int, high: int) -> Stmt | None:
            return in_vectors(high - low, 32, partial(clear, low=index(low)))

        parts = [cleared(0, left * self.cell), loop(many, pixel) if inside else None]
        parts.append(cleared((left + inside) * self.cell, self.line))
        known = sequence(*parts)
        if top == 0 and self.rows <= height:
            return known
        return tirx.IfThenElse(tirx.all(row >= 0, row < height), known, cleared(0, self.line))


@dataclass(frozen=True)
class Runs:
    """What of the weights, and of a window, lies one after the other: of each row of the window, or of each pixel."""

    count: int
    length: int
    columns: int
    """Runs of a row."""

    @classmethod
    def of(cls, window: Window, cell: int) -> Runs:
        """For pixels of so many numbers."""
        tall, wide = window.size
        return cls(tall, wide * cell, 1) if window.dilation[1] == 1 else cls(tall * wide, cell, wide)

    def parts(self, most: int, at_once: int, add: Callable[[Expr, int, int, int], Stmt]) -> list[Stmt]:
        """All runs in parts of at most so many numbers: several runs at once, or parts of each, which are multiples of
        `at_once`. `add(run, several, first, length)` goes through such a part of some runs."""
        several = min(most // self.length, self.count)
        if several > 1:
            turns, left = divmod(self.count, several)
            parts = [loop(turns, lambda turn: add(turn * several, several, 0, self.length))]
            return [*parts, *([add(index(self.count - left), left, 0, self.length)] if left else [])]
        groups = -(-self.length // at_once)
        step = -(-groups // -(-groups // (most // at_once))) * at_once

        def run(number: Expr) -> Stmt:
            starts = range(0, self.length, step)
            return sequence(*(add(number, 1, first, min(step, self.length - first)) for first in starts))

        return [loop(self.count, run)]

    def tap(self, number: Expr) -> tuple[Expr, Expr]:
        """The row and the column of the window at which a run begins."""
        return (number, index(0)) if self.columns == 1 else (number // self.columns, number % self.columns)
