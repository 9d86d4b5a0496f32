"""What kernels have in common whose blocks compute tiles of a convolution: its dims, and what becomes of the sums.

Where the tiles are too few for the GPU, several blocks share one, each with a part of the steps. They put their sums
into memory, and the last one to arrive adds them, in the order of the parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from dnc.targets.cuda.schedules.forms import Form
from dnc.targets.cuda.schedules.helpers import arrived_last, gather, scratch
from dnc.targets.cuda.schedules.threads import lanes_of, scoped, when
from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, loop, sequence
from dnc.targets.tvm.schedules.stages import Segment, Unmatched, dims
from dnc.targets.tvm.schedules.window import Window

__all__ = ["Tiles"]


class Tiles(ABC):
    """Writer of one kernel."""

    name: str
    added = "float32"
    """The type in which sums are added up."""

    def __init__(self, segment: Segment, window: Window, form: Form) -> None:
        self.segment, self.window, self.tile, self.parts = segment, window, form.tile, form.parts
        self.depth = form.tile.depth
        self.dtype, self.sum_dtype = str(window.data.dtype), str(segment.anchor.buffer.dtype)
        self.groups = window.groups
        self.inputs, self.outputs = window.source[3] // self.groups, window.output[3] // self.groups
        self.pixels = math.prod(window.output[:3])
        self.terms = math.prod(window.size) * self.inputs
        if math.prod(window.source) >= 1 << 31:
            raise Unmatched("a map has too many elements")
        self.steps = math.ceil(self.terms / (self.depth * self.parts))
        """Of a block."""
        self.tiles = -(-self.outputs // form.tile.columns)
        # TVM writes no vectors of more than four truths, which activations compare by.
        self.finish_lanes = lanes_of(self.outputs, "float32")
        self.area = form.tile.rows * form.tile.columns

    @abstractmethod
    def put(self, thread: Expr, where: Callable[[Expr], Expr]) -> Stmt:
        """Writes the sums row by row; `where` is given the number of one in the tile."""

    @property
    def reaches_out(self) -> tuple[bool, bool]:
        """Whether windows reach out of the tensor vertically, and horizontally."""
        window = self.window
        reaches = []
        for side in (0, 1):
            end = (window.output[1 + side] - 1) * window.stride[side] + (window.size[side] - 1) * window.dilation[side]
            reaches.append(window.padding[side] > 0 or end - window.padding[side] >= window.source[1 + side])
        return reaches[0], reaches[1]

    def share(self, thread: Expr, blocks: Sequence[Expr], group: Expr, part: Expr, first: tuple[Expr, Expr]) -> Stmt:
        """Writes the sums of a part; if they are the last ones of their tile, hands those of all to `store`."""
        tile, lanes = self.tile, self.finish_lanes
        number = (group * self.tiles + blocks[1]) * (-(-self.pixels // tile.rows)) + blocks[0]
        across = tile.columns // lanes
        size = self.tiles * self.groups * -(-self.pixels // tile.rows) * self.parts * self.area

        def where(offset: Expr) -> Expr:
            return scratch(size, number * (self.parts * self.area) + offset)

        def turn(turn: Expr) -> Stmt:
            place = thread + turn * tile.threads
            row, column = place // across, place % across * lanes
            start = where(row * tile.columns + column)

            return self.store_sums(group, first[0] + row, first[1] + column, start, self.parts)

        turns = loop(self.area // lanes // tile.threads, turn, name="turn")
        return sequence(
            self.put(thread, lambda offset: where(part * self.area + offset)),
            when(arrived_last(number, self.parts), turns),
        )

    def store_sums(self, group: Expr, pixel: Expr, channel: Expr, start: Expr, parts: int = 1) -> Stmt:
        """`store` for a vector of sums in memory; of several parts, whose areas follow each other, for their sum."""
        lanes = self.finish_lanes
        summed = allocate([lanes], self.added, "summed")

        def value(lane: Expr) -> Expr:
            held = tirx.BufferLoad(summed, [lane])
            return held if self.sum_dtype == self.added else tirx.Cast(self.sum_dtype, held)

        return scoped(
            [summed], gather(summed, start, lanes, parts, self.area), self.store(group, pixel, channel, lanes, value)
        )

    def store(self, group: Expr, pixel: Expr, channel: Expr, lanes: int, value: Any) -> Stmt:
        """Writes what follows the product, for `lanes` channels of a pixel, where these exist."""
        outer = dims(self.segment.result)[:-1]
        conditions = []
        if self.pixels % self.tile.rows:
            conditions.append(pixel < self.pixels)
        if self.outputs % self.tile.columns:
            conditions.append(channel < self.outputs)

        def at(lane: Expr) -> list[Expr]:
            return [*unflattened(pixel, outer), group * self.outputs + channel + lane]

        statement = self.segment.finish(at, lanes, value)
        return when(tirx.all(*conditions) if conditions else None, statement)
