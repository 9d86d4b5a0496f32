"""Convolutions of 3 x 3 taps by Winograd's form (`dnc.targets.tvm.minimal_filtering`), where the graph says so.

    V[t, i, tile]   = B' d B         inputs transformed, t = 0 ... n n - 1
    M[t, o, tile]  += V[t, i, tile] * U[t, i, o]
    y               = A' M A         and what follows the convolution

Tiles of outputs are counted through all images and taken in blocks. A task is a block and a group of vectors of output
channels: for each t a product of matrices, with sums in registers as tiles.py chooses them, into a scratch buffer of
the thread; then the outputs, tile by tile, from there. Weights are read in the order in which they lie.

Where there are many blocks, a task goes through all channels and transforms its block itself, into a scratch buffer
that the second-level cache holds. Else all blocks are transformed before, and the tasks of a group of channels follow
each other, so that the group's weights are read from memory once.

V lies in vectors of input channels, of a block's tiles one after the other: a product reads neighbours alone. Tiles
that reach over the border read zeros there; of those that reach over the output's end, what lies inside is written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import tirx

from dnc.targets.tvm.minimal_filtering import FORMS, Form
from dnc.targets.tvm.schedules.kernel import Kernel, Packed
from dnc.targets.tvm.schedules.loops import (
    STACK,
    Expr,
    Stmt,
    allocate,
    constant,
    index,
    loop,
    parallel,
    sequence,
    unrolled,
    vector,
)
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.spatial import WORTH
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.tiles import Band, Channels, choose
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["gain", "winograd"]

_BLOCKS = 24
"""Blocks of tiles from which on each is a task: enough to share them evenly among threads."""
_LEAST, _MOST, _WIDEST = 14, 28, 56
"""Tiles of a block: so often a weight is used that was read. As many of the first two as the second-level cache holds
transformed; the last where the weights are far larger than that cache, so that all threads wait for them."""
_FAR = 4
"""Times the second-level cache."""
_STREAMED = 4
"""Bytes of weights that memory gives in a cycle."""


class _Winograd:
    """Writer of one kernel."""

    def __init__(self, segment: Segment, window: Window, form: Form, machine: Machine) -> None:
        self.segment, self.window, self.form = segment, window, form
        self.dtype = str(segment.anchor.buffer.dtype)
        images, rows, columns, outputs = window.output
        side = form.outputs
        self.down, self.across = -(-rows // side), -(-columns // side)
        tiles = images * self.down * self.across
        self.channels = Channels.of(outputs, machine)
        self.inputs = window.source[3]
        self.lanes = math.gcd(self.inputs, machine.lanes)
        self.tiles = tiles
        self.block = _block(tiles, self.inputs, outputs, form, machine)
        self.blocks = -(-tiles // self.block)
        self.tiling = choose(self.block, self.channels.vectors, machine, even=True, depth=self.inputs)
        # One line more than the block has, or all t would fall into the same places of the cache.
        self.step = self.block * self.inputs + self.lanes
        self.worth = window.work >= WORTH
        length = form.products * self.inputs * self.channels.lanes * self.channels.vectors
        self.weight = tirx.decl_buffer([index(length)], self.dtype, name="weight")

    def pack(self, weight: Array) -> Array:
        """(3, 3, I, O) -> (t, band, group of vectors, I, vector, lane)."""
        return self.channels.pack(self.form.weights(weight).astype(self.dtype), self.tiling.bands)

    def body(self) -> Stmt:
        """Writes all tiles and all channels."""
        size = self.form.products * self.step
        if self.blocks >= _BLOCKS:

            def task(block: Expr) -> Stmt:
                scratch = allocate([size], self.dtype, "transformed")
                return sequence(
                    tirx.AllocBuffer(scratch),
                    loop(self.inputs // self.lanes, lambda at: self._transform(scratch, index(0), block, at)),
                    *(
                        loop(band.count, partial(self._group, scratch, index(0), block, band))
                        for band in self.tiling.bands
                    ),
                )

            return parallel(self.blocks, task, self.worth)
        scratch = allocate([self.blocks * size], self.dtype, "transformed")
        count = sum(band.count for band in self.tiling.bands)
        vectors = self.inputs // self.lanes

        def transform(number: Expr) -> Stmt:
            block, at = number // vectors, number % vectors
            return self._transform(scratch, block * size, block, at)

        def group(number: Expr) -> Stmt:
            block, place = number % self.blocks, number // self.blocks
            first, *others = self.tiling.bands
            statement = self._group(scratch, block * size, block, first, place)
            if others:
                other = self._group(scratch, block * size, block, others[0], index(0))
                return tirx.IfThenElse(place < first.count, statement, other)
            return statement

        return sequence(
            tirx.AllocBuffer(scratch),
            parallel(self.blocks * vectors, transform, self.worth),
            parallel(self.blocks * count, group, self.worth),
        )

    def _place(self, block: Expr, slot: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, row and column of a tile's first output. The last block may overlap the one before."""
        first = block * self.block
        if self.tiles % self.block:
            first = tirx.min(first, index(self.tiles - self.block))
        tile = first + slot
        image, rest = tile // (self.down * self.across), tile % (self.down * self.across)
        side = self.form.outputs
        return image, rest // self.across * side, rest % self.across * side

    def _transform(self, scratch: Any, start: Expr, block: Expr, at: Expr) -> Stmt:
        """Writes V of a block of tiles, for one vector of input channels."""
        return loop(self.block, lambda slot: self._transform_tile(scratch, start, block, at, slot), name="tile")

    def _transform_tile(self, scratch: Any, start: Expr, block: Expr, at: Expr, slot: Expr) -> Stmt:
        image, row, column = self._place(block, slot)
        top, left = row - self.window.padding[0], column - self.window.padding[1]
        _, height, width, _ = self.window.source
        n, lanes = self.form.inputs, self.lanes
        inside = tirx.all(top >= 0, left >= 0, top + n <= height, left + n <= width)

        def read(guarded: bool, i: int, j: Expr, lane: Expr) -> Expr:
            value = tirx.BufferLoad(self.window.data, [image, top + i, left + j, at * lanes + lane])
            if not guarded:
                return value
            y, x = top + i, left + j
            return tirx.if_then_else(tirx.all(y >= 0, y < height, x >= 0, x < width), value, constant(0, self.dtype))

        def vectors(guarded: bool) -> Stmt:
            held = [allocate([n * lanes], self.dtype, f"row{i}", STACK) for i in range(n)]
            given = allocate([n * lanes], self.dtype, "column", STACK)

            def take(j: Expr, i: int, lane: Expr) -> Stmt:
                return tirx.BufferStore(given, read(guarded, i, j, lane), [i * lanes + lane])

            def put(j: Expr, i: int, value: Expr, lane: Expr) -> Stmt:
                return tirx.BufferStore(held[i], value, [j * lanes + lane])

            def store(i: int, j: int, value: Expr, lane: Expr) -> Stmt:
                place = start + (i * n + j) * self.step + at * (self.block * lanes) + slot * lanes + lane
                return tirx.BufferStore(scratch, value, [place])

            def column(j: Expr) -> Stmt:
                taken = [vector(lanes, partial(take, j, i)) for i in range(n)]
                return sequence(*taken, *self._one_side(self.form.of_data, given, lanes, partial(put, j)))

            rows = [self._one_side(self.form.of_data, held[i], lanes, partial(store, i)) for i in range(n)]
            allocated = [tirx.AllocBuffer(buffer) for buffer in (*held, given)]
            return sequence(*allocated, unrolled(n, column), *itertools.chain(*rows))

        return tirx.IfThenElse(inside, vectors(False), vectors(True))

    def _one_side(
        self,
        transform: Callable[[Sequence[Expr], Callable[[float], Expr]], list[Expr]],
        buffer: Any,
        lanes: int,
        put: Callable[[int, Expr, Expr], Stmt],
    ) -> list[Stmt]:
        """One side of a transform, of n vectors in a buffer."""

        def made(lane: Expr) -> list[Expr]:
            values = [tirx.BufferLoad(buffer, [i * lanes + lane]) for i in range(self.form.inputs)]
            return transform(values, lambda value: constant(value, self.dtype))

        def one(place: int, lane: Expr) -> Stmt:
            return put(place, made(lane)[place], lane)

        return [vector(lanes, partial(one, place)) for place in range(len(made(index(0))))]

    def _group(self, scratch: Any, start: Expr, block: Expr, band: Band, place: Expr) -> Stmt:
        """Writes the outputs of a block of tiles, for one group of vectors of channels."""
        form, lanes = self.form, self.channels.lanes
        sums = allocate([form.products * (band.blocks * self.block * lanes + lanes)], self.dtype, "sums")
        width = self.tiling.width

        def product(t: Expr) -> Stmt:
            def some(number: Expr) -> Stmt:
                first = number * width
                if self.block % width:
                    first = tirx.min(first, index(self.block - width))
                return self._product(scratch, start, sums, band, place, t, first)

            return loop(-(-self.block // width), some)

        def outputs(number: Expr) -> Stmt:
            return loop(self.block, lambda slot: self._outputs(sums, band, place, block, slot, number))

        return sequence(
            tirx.AllocBuffer(sums),
            loop(form.products, product, name="t"),
            loop(band.blocks, outputs),
        )

    def _product(self, scratch: Any, start: Expr, into: Any, band: Band, place: Expr, t: Expr, tile: Expr) -> Stmt:
        """Writes M of some tiles for one t."""
        lanes, width, blocks = self.channels.lanes, self.tiling.width, band.blocks
        sums = [allocate([width * lanes], self.dtype, f"sum{block}", STACK) for block in range(blocks)]
        before = sum(other.count * other.blocks for other in self.tiling.bands if other.first < band.first)
        first = (t * self.channels.vectors + before + place * blocks) * (self.inputs * lanes)

        def clear(pixel: Expr) -> Stmt:
            def one(buffer: Any, lane: Expr) -> Stmt:
                return tirx.BufferStore(buffer, constant(0, self.dtype), [pixel * lanes + lane])

            return sequence(*(vector(lanes, partial(one, buffer)) for buffer in sums))

        def step(i: Expr, within: Expr) -> Stmt:
            def multiply(pixel: Expr) -> Stmt:
                at = start + t * self.step + i * (self.block * self.lanes) + (tile + pixel) * self.lanes + within
                number = tirx.BufferLoad(scratch, [at])

                def add(block: int, lane: Expr) -> Stmt:
                    weight = first + (i * self.lanes + within) * (blocks * lanes) + block * lanes + lane
                    held = tirx.BufferLoad(sums[block], [pixel * lanes + lane])
                    value = held + number * tirx.BufferLoad(self.weight, [weight])
                    return tirx.BufferStore(sums[block], value, [pixel * lanes + lane])

                return sequence(*(vector(lanes, partial(add, block)) for block in range(blocks)))

            return unrolled(width, multiply)

        def keep(pixel: Expr) -> Stmt:
            def one(block: int, lane: Expr) -> Stmt:
                value = tirx.BufferLoad(sums[block], [pixel * lanes + lane])
                return tirx.BufferStore(into, value, [self._sum(band, t, index(block), tile + pixel) + lane])

            return sequence(*(vector(lanes, partial(one, block)) for block in range(blocks)))

        return sequence(
            *(tirx.AllocBuffer(buffer) for buffer in sums),
            unrolled(width, clear),
            loop(self.inputs // self.lanes, lambda i: loop(self.lanes, partial(step, i), name="l"), name="i"),
            unrolled(width, keep),
        )

    def _sum(self, band: Band, t: Expr, block: Expr, slot: Expr) -> Expr:
        lanes = self.channels.lanes
        return t * (band.blocks * self.block * lanes + lanes) + (block * self.block + slot) * lanes

    def _outputs(self, sums: Any, band: Band, place: Expr, block: Expr, slot: Expr, number: Expr) -> Stmt:
        """Writes the outputs of a tile, for one vector of channels."""
        n, side, lanes = self.form.inputs, self.form.outputs, self.channels.lanes
        image, row, column = self._place(block, slot)
        _, rows, columns, _ = self.window.output
        channel = self.channels.start(band.first + place * band.blocks + number)
        given = allocate([n * lanes], self.dtype, "row", STACK)
        held = [allocate([n * lanes], self.dtype, f"column{c}", STACK) for c in range(side)]
        made = [allocate([side * lanes], self.dtype, f"made{r}", STACK) for r in range(side)]

        def take(i: Expr, j: int, lane: Expr) -> Stmt:
            value = tirx.BufferLoad(sums, [self._sum(band, i * n + j, number, slot) + lane])
            return tirx.BufferStore(given, value, [j * lanes + lane])

        def put(i: Expr, c: int, value: Expr, lane: Expr) -> Stmt:
            return tirx.BufferStore(held[c], value, [i * lanes + lane])

        def store(c: int, r: int, value: Expr, lane: Expr) -> Stmt:
            return tirx.BufferStore(made[r], value, [c * lanes + lane])

        def line(i: Expr) -> Stmt:
            taken = [vector(lanes, partial(take, i, j)) for j in range(n)]
            return sequence(*taken, *self._one_side(self.form.of_sums, given, lanes, partial(put, i)))

        columns_of = [self._one_side(self.form.of_sums, held[c], lanes, partial(store, c)) for c in range(side)]

        def place_of(r: int, pixel: Expr, block: int) -> Callable[[Expr], list[Expr]]:
            return lambda lane: [image, row + r, column + pixel, channel + lane]

        def whole(r: int) -> Stmt:
            return self.segment.finish_tile([made[r]], partial(place_of, r), side, lanes)

        def part(r: int) -> Stmt:
            def one(pixel: Expr) -> Stmt:
                def value(lane: Expr) -> Expr:
                    return tirx.BufferLoad(made[r], [pixel * lanes + lane])

                return self.segment.finish(place_of(r, pixel, 0), lanes, value)

            return tirx.IfThenElse(row + r < rows, loop(tirx.min(columns - column, index(side)), one), None)

        finish = sequence(*(whole(r) for r in range(side)))
        if rows % side or columns % side:
            inside = tirx.all(row + side <= rows, column + side <= columns)
            finish = tirx.IfThenElse(inside, finish, sequence(*(part(r) for r in range(side))))
        allocated = [tirx.AllocBuffer(buffer) for buffer in (given, *held, *made)]
        return sequence(*allocated, unrolled(n, line), *itertools.chain(*columns_of), finish)


def _block(tiles: int, inputs: int, outputs: int, form: Form, machine: Machine) -> int:
    """Tiles of a block: all blocks have about as many."""
    of_tile = 4 * form.products * inputs
    far = of_tile * outputs > _FAR * machine.cache
    most = _WIDEST if far else min(_MOST, max(_LEAST, machine.cache // of_tile))
    return -(-tiles // -(-tiles // most))


def gain(form: Form, output: tuple[int, int, int, int], inputs: int, machine: Machine) -> float:
    """How many times as fast a convolution is so, by the processor's cycles, as by its definition.

    Of which there are, for two products of vectors that the processor starts at once:

        products      half a cycle each; here 1.3 times that, as they were measured: what is multiplied comes from the
                      second-level cache, and sums go there
        transforms    1.5 n n n for a tile and a vector of channels, measured as well, with n n vectors that are read
                      and written
        weights       one for 4 bytes of them, where they are so many that memory keeps them

    Args:
        output: (N, H, W, O), of the convolution.
        inputs: its input channels.
    """
    images, rows, columns, outputs = output
    channels, side = Channels.of(outputs, machine), form.outputs

    def weights(taps: int) -> float:
        size = 4 * taps * inputs * outputs
        return size / _STREAMED if size > _FAR * machine.cache else 0.0

    tiles = images * -(-rows // side) * -(-columns // side)
    block = _block(tiles, inputs, outputs, form, machine)
    width = choose(block, channels.vectors, machine, even=True, depth=inputs).width
    computed = -(-tiles // block) * -(-block // width) * width
    vectors = inputs // math.gcd(inputs, machine.lanes) + channels.vectors
    transforms = tiles * vectors * 1.5 * form.inputs**3
    products = computed * channels.vectors * form.products * inputs / 2
    direct = images * rows * columns * channels.vectors * 9 * inputs / 2
    return (direct + weights(9)) / (1.3 * products + transforms + weights(form.products))


def winograd(segment: Segment, window: Window, machine: Machine) -> Kernel | None:
    """The kernel of a convolution of float32 that the graph wants so; None for others."""
    form = FORMS.get(segment.anchor.winograd)
    if form is None or window.weight is None:
        return None
    kernel = _Winograd(segment, window, form, machine)
    packed = Packed(window.weight, kernel.weight, kernel.pack)
    border = () if window.border is None else (window.border.buffer,)
    return Kernel("winograd", kernel.body(), (packed,), border)
