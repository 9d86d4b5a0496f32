"""Convolutions and connected layers as products of matrices whose first one is never stored.

    out[pixel, o] = sum over k of data(pixel, k) * weight[k, o],    k = (ky, kx, i)

data(pixel, k) is read where the window lies for that pixel, and 0 outside of the tensor. A block computes a tile of
`rows` pixels by `columns` channels. In steps of `depth` it brings a strip of either matrix into shared memory, which
has room for some of them, and multiplies the two:

    begin to bring the strips 0 to stages - 2
    for each step:
      wait for its strips;  barrier
      begin to bring the strips of step + stages - 1, where those of step - 1 were
      multiply

From sm_80 on the strips are copied by themselves. For older GPUs, and where neighbours are less than 4 bytes together,
there are two stages, and what the next step needs is on its way to registers while this one is multiplied.

Of each pixel that a thread brings, it knows where its window begins, so that what is left for a step is to add where
the step is in the window.

What becomes of the sums, and how several blocks share a tile, is in summing.py.

The weights are stored step by step as they are brought, with zeros up to whole steps and tiles. What multiplies is a
subclass's matter: `Scalar` does it in float32 with the ordinary units, a tile of 4 x 4 or more in the registers of
each thread; in bits.py so, too, with words of bits; in tensors.py it is the tensor cores.

Which tile is taken, and how many blocks share it, says forms.py.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.forms import Form, Tile, form_of
from dnc.targets.cuda.schedules.helpers import (
    address,
    barrier,
    commit,
    copy,
    move,
    pointer,
    scale,
    wait,
)
from dnc.targets.cuda.schedules.summing import Tiles
from dnc.targets.cuda.schedules.threads import kernel, lanes_of, narrow, narrow_loop, scoped, when, wide
from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel, Packed
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, constant, index, loop, sequence, unrolled, vector
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["SCALAR_TILES", "Product", "Scalar", "scalar_product"]

_STAGES = (4, 3, 2)


@dataclass(frozen=True)
class _Strip:
    """Copier of one matrix's part of a step into shared memory, vector by vector."""

    shared: Any
    size: int
    """Elements of a stage in shared memory."""
    vectors: int
    lanes: int
    stands: Callable[[Expr], Expr]
    """Where a vector is put in a stage."""
    fetched: Any
    """Registers of a thread on the way; None if the vectors are copied."""

    @property
    def bytes(self) -> int:
        """Bytes of a vector in shared memory."""
        return self.lanes * (2 if str(self.shared.dtype) == "float16" else 4)


class Product(Tiles):
    """Writer of one kernel."""

    def __init__(self, segment: Segment, window: Window, form: Form, device: Device, strip_dtype: str) -> None:
        super().__init__(segment, window, form)
        tile = form.tile
        self.strip_dtype = strip_dtype
        size = 2 if strip_dtype == "float16" else 4
        lanes, weight_lanes = lanes_of(self.inputs, self.dtype), 16 // size
        copied = device.copies and self.dtype == strip_dtype and lanes * size >= 4
        data_size, weight_size = tile.rows * self.data_stride, self.depth * self.weight_stride
        stage = (data_size + weight_size) * size
        # A few bytes are for what the blocks of a tile tell each other.
        room = device.shared - 64
        self._stages = next(count for count in _STAGES if count * stage <= room) if device.copies else 2
        across, beside = self.depth // lanes, tile.columns // weight_lanes

        def strip(name: str, elements: int, vectors: int, lanes: int, stands: Any, copied: bool) -> _Strip:
            room = min(self._stages, self.steps) * elements
            if name == "data" and self.parts == 1:
                room = max(room, self.exchanged(room * size) // size)
            shared = allocate([room], strip_dtype, name, "shared")
            registers = allocate([-(-vectors // tile.threads) * lanes], strip_dtype, f"fetched_{name}")
            return _Strip(shared, elements, vectors, lanes, stands, None if copied else registers)

        self._data = strip(
            "data",
            data_size,
            tile.rows * across,
            lanes,
            lambda place: place // across * self.data_stride + place % across * lanes,
            copied,
        )
        self._weights = strip(
            "weights",
            weight_size,
            self.depth * beside,
            weight_lanes,
            lambda place: place // beside * self.weight_stride + place % beside * weight_lanes,
            device.copies,
        )
        strips = (self.groups, self.tiles, self.parts * self.steps, self.depth * tile.columns)
        self._packed = tirx.decl_buffer([index(side) for side in strips], strip_dtype, "weight")
        turns = -(-self._data.vectors // tile.threads)
        self._places = allocate([turns], "int32", "places")
        self._tops = allocate([turns], "int32", "tops")
        self._lefts = allocate([turns], "int32", "lefts")
        self._images = allocate([turns], "int32", "images")
        self._scales = allocate([turns * lanes], self.dtype, "scales")

    @property
    @abstractmethod
    def data_stride(self) -> int:
        """Elements from one row of the strip of data to the next."""

    @property
    @abstractmethod
    def weight_stride(self) -> int:
        """Elements from one k of the strip of weights to the next."""

    def exchanged(self, room: int) -> int:
        """Bytes that the subclass wants at the end, where the strip of data was, which has some; at most 16 KB more."""
        return room

    @property
    def data(self) -> Any:
        """The strip of data in shared memory."""
        return self._data.shared

    @property
    @abstractmethod
    def buffers(self) -> Sequence[Any]:
        """Buffers that the subclass needs."""

    @abstractmethod
    def clear(self, thread: Expr) -> Stmt:
        """Sets the sums to 0."""

    @abstractmethod
    def multiply(self, thread: Expr, data: tuple[Any, Expr], weights: tuple[Any, Expr]) -> Stmt:
        """Adds the product of strips to the sums; each is given as a shared buffer and where in it it begins."""

    @abstractmethod
    def finish(self, thread: Expr, group: Expr, first: tuple[Expr, Expr]) -> Stmt:
        """Hands the sums of a tile, which begins at a pixel and a channel, to `store`."""

    def pack(self, weight: Array) -> Array:
        """(kh, kw, I, O) -> (group, tile, step, k and o in it), with zeros."""
        groups = weight.reshape(self.terms, self.groups, self.outputs).transpose(1, 0, 2)
        steps = self.parts * self.steps
        padding = [(0, 0), (0, steps * self.depth - self.terms)]
        padding.append((0, self.tiles * self.tile.columns - self.outputs))
        padded = np.pad(groups, padding).reshape(self.groups, steps, self.depth, self.tiles, self.tile.columns)
        return np.ascontiguousarray(
            padded.transpose(0, 3, 1, 2, 4).reshape([int(side) for side in self._packed.shape]), self.strip_dtype
        )

    def kernel(self) -> Kernel:
        """Writes all blocks."""
        grid = (-(-self.pixels // self.tile.rows), self.tiles, self.groups * self.parts)
        body = kernel(grid if grid[2] > 1 else grid[:2], self.tile.threads, self._block)
        border = () if self.window.border is None else (self.window.border.buffer,)
        return Kernel(self.name, body, (Packed(self.window.weight, self._packed, self.pack),), border)

    def _block(self, blocks: Sequence[Expr], thread: Expr) -> Stmt:
        tile, last = self.tile, blocks[2] if len(blocks) > 2 else index(0)
        group, part = last // self.parts, last % self.parts
        first = blocks[0] * tile.rows, blocks[1] * tile.columns
        stages, strips = self._stages, (self._data, self._weights)
        copied = any(strip.fetched is None for strip in strips)
        moved = any(strip.fetched is not None for strip in strips)

        def fetch(step: Expr, registers: bool) -> Stmt | None:
            statements = []
            if (self._data.fetched is not None) == registers:
                statements.append(self._fetch_data(thread, group, step, part))
                statements.append(self._fetch_scales(thread, step, part) if registers else None)
            if (self._weights.fetched is not None) == registers:
                statements.append(self._fetch_weights(thread, group, blocks[1], step, part))
            return sequence(*statements)

        def keep(step: Expr) -> Stmt:
            return sequence(
                None if self._data.fetched is None else self._scale(thread, step, part),
                *(self._keep(strip, thread, step % stages) for strip in strips if strip.fetched is not None),
            )

        def ahead(step: Expr, by: int, statement: Callable[[Expr], Stmt]) -> Stmt | None:
            if self.steps <= by:
                return None
            return when(step + by < self.steps, statement(step + by))

        def step(number: Expr) -> Stmt:
            stage = number % stages
            scaled = self._data.fetched is None
            return sequence(
                self._fetch_scales(thread, number, part) if scaled else None,
                wait(stages - 2) if copied else None,
                # A thread scales what it has copied itself.
                self._scale(thread, number, part) if scaled else None,
                barrier(),
                ahead(number, stages - 1, lambda step: fetch(step, False)) if copied else None,
                commit() if copied else None,
                ahead(number, 1, lambda step: fetch(step, True)) if moved else None,
                self.multiply(thread, *((strip.shared, wide(stage * strip.size)) for strip in strips)),
                ahead(number, 1, keep) if moved else None,
            )

        def begin(number: int) -> Stmt:
            return sequence(fetch(_int(number), False) if number < self.steps else None, commit())

        local = [strip.fetched for strip in strips if strip.fetched is not None]
        return scoped(
            [
                *(strip.shared for strip in strips),
                *self.buffers,
                *local,
                *(self._places, self._tops, self._lefts),
                *([] if self.window.scales is None else [self._images, self._scales]),
            ],
            self._locate(thread, group, first[0]),
            *(begin(number) for number in range(stages - 1) if copied),
            sequence(fetch(_int(0), True), keep(_int(0))) if moved else None,
            self.clear(thread),
            narrow_loop(self.steps, step, "step"),
            self.finish(thread, group, first) if self.parts == 1 else self.share(thread, blocks, group, part, first),
        )

    def _turns(self, strip: _Strip, thread: Expr, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """A thread's part of a strip: `body` is given the number of a vector in the strip, and among the thread's."""
        threads = self.tile.threads

        def turn(number: Expr) -> Stmt:
            place = thread + number * threads
            return when(None if strip.vectors % threads == 0 else place < strip.vectors, body(place, number))

        return unrolled(-(-strip.vectors // threads), turn)

    def _locate(self, thread: Expr, group: Expr, first: Expr) -> Stmt:
        """Finds where the windows of the pixels begin that the thread brings."""
        window, strip = self.window, self._data
        across = self.depth // strip.lanes
        _, height, width, channels = window.source

        def turn(place: Expr, number: Expr) -> Stmt:
            pixel = first + place // across
            if self.pixels % self.tile.rows:
                # What is computed for those beyond the last one is not stored.
                pixel = tirx.min(pixel, index(self.pixels - 1))
            image, y, x = unflattened(pixel, window.output[:3])
            top, left = y * window.stride[0] - window.padding[0], x * window.stride[1] - window.padding[1]
            start = ((image * height + top) * width + left) * channels + group * self.inputs
            if self._whole:
                start = start + place % across * strip.lanes
            stores = [(self._places, start), (self._tops, top), (self._lefts, left), (self._images, image)]
            wanted = [True, *self.reaches_out, window.scales is not None]
            return sequence(
                *(
                    tirx.BufferStore(buffer, narrow(value), [number])
                    for (buffer, value), needed in zip(stores, wanted, strict=True)
                    if needed
                )
            )

        return self._turns(strip, thread, turn)

    @property
    def _whole(self) -> bool:
        """Whether all k of a step are of one place in the window."""
        return self.window.size == (1, 1) or self.inputs % self.depth == 0

    def _fetch_data(self, thread: Expr, group: Expr, step: Expr, part: Expr) -> Stmt:
        window, strip, inputs = self.window, self._data, self.inputs
        across = self.depth // strip.lanes
        _, height, width, channels = window.source
        begin = (narrow(part) * self.steps + step) * self.depth
        leading = [index(0)] * (len(window.data.shape) - 1)

        def fetch(place: Expr, number: Expr) -> Stmt:
            own = narrow(place % across * strip.lanes)
            k = begin if self._whole else begin + own
            tap, channel = (_int(0), k) if window.size == (1, 1) else (k // inputs, k % inputs)
            down, right = tap // window.size[1] * window.dilation[0], tap % window.size[1] * window.dilation[1]
            offset = (down * width + right) * channels + channel
            where = wide(tirx.BufferLoad(self._places, [number]) + offset)
            conditions = []
            if self.terms % self.depth or self.parts * self.steps * self.depth > self.terms:
                conditions.append(begin + own < self.terms)
            for out, held, by, side in zip(
                self.reaches_out, (self._tops, self._lefts), (down, right), (height, width), strict=True
            ):
                if out:
                    # Below 0 is above everything, without a sign.
                    at = tirx.Cast("uint32", tirx.BufferLoad(held, [number]) + by)
                    conditions.append(at < tirx.const(side, "uint32"))
            inside = tirx.all(*conditions) if conditions else tirx.const(True, "bool")
            return self._bring(strip, place, number, step, window.data, leading, where, inside)

        return self._turns(strip, thread, fetch)

    def _scaling(self, thread: Expr, step: Expr, part: Expr, body: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt | None:
        """For each vector of a step's data that a thread brings and that exists, `body` of its number in the strip, its
        number among the thread's, and the channel where it begins; None if nothing is scaled."""
        if self.window.scales is None:
            return None
        strip = self._data
        across = self.depth // strip.lanes

        def turn(place: Expr, number: Expr) -> Stmt:
            channel = (narrow(part) * self.steps + step) * self.depth + narrow(place % across * strip.lanes)
            ragged = self.terms % self.depth or self.parts * self.steps * self.depth > self.terms
            return when(channel < self.terms if ragged else None, body(place, number, channel))

        return self._turns(strip, thread, turn)

    def _fetch_scales(self, thread: Expr, step: Expr, part: Expr) -> Stmt | None:
        strip, scales = self._data, self.window.scales

        def fetch(place: Expr, number: Expr, channel: Expr) -> Stmt:
            image = tirx.BufferLoad(self._images, [number])
            zero = index(0)
            start = address(scales, zero, zero, zero, wide(image * self.inputs + channel))
            return move(pointer(self._scales, number * strip.lanes), start, self._scale_bytes)

        return self._scaling(thread, step, part, fetch)

    @property
    def _scale_bytes(self) -> int:
        return self._data.lanes * (2 if self.dtype == "float16" else 4)

    def _scale(self, thread: Expr, step: Expr, part: Expr) -> Stmt | None:
        """Multiplies a step's data, where they were copied to, or in registers."""
        strip = self._data

        def multiply(place: Expr, number: Expr, channel: Expr) -> Stmt:
            own = number * strip.lanes
            if strip.fetched is None:
                to = pointer(strip.shared, wide(step % self._stages * strip.size) + strip.stands(place))
            else:
                to = pointer(strip.fetched, own)
            return scale(to, pointer(self._scales, own), strip.lanes, self.dtype)

        return self._scaling(thread, step, part, multiply)

    def _fetch_weights(self, thread: Expr, group: Expr, column: Expr, step: Expr, part: Expr) -> Stmt:
        strip = self._weights
        leading = [group, column, part * self.steps + wide(step)]

        def fetch(place: Expr, number: Expr) -> Stmt:
            inside = tirx.const(True, "bool")
            return self._bring(strip, place, number, step, self._packed, leading, place * strip.lanes, inside)

        return self._turns(strip, thread, fetch)

    def _bring(
        self,
        strip: _Strip,
        place: Expr,
        number: Expr,
        step: Expr,
        source: Any,
        leading: Sequence[Expr],
        where: Expr,
        inside: Expr,
    ) -> Stmt:
        """A vector of a strip: begins to copy it, or loads it into registers."""
        if strip.fetched is None:
            to = pointer(strip.shared, wide(step % self._stages * strip.size) + strip.stands(place))
            return copy(to, address(source, *leading, where), strip.bytes, inside)

        first = number * strip.lanes

        def put(value: Callable[[Expr], Expr]) -> Callable[[Expr], Stmt]:
            return lambda lane: tirx.BufferStore(strip.fetched, value(lane), [first + lane])

        def widened(lane: Expr) -> Expr:
            return tirx.Cast(self.strip_dtype, tirx.BufferLoad(source, [*leading, where + lane]))

        if str(source.dtype) == self.strip_dtype:
            # That it is aligned, TVM does not see.
            load = move(pointer(strip.fetched, first), address(source, *leading, where), strip.bytes)
        else:
            load = unrolled(strip.lanes, put(widened))
        if isinstance(inside, tirx.IntImm):
            return load
        return tirx.IfThenElse(inside, load, vector(strip.lanes, put(lambda _: constant(0.0, self.strip_dtype))))

    def _keep(self, strip: _Strip, thread: Expr, stage: Expr) -> Stmt:
        """Puts what was loaded into shared memory."""
        most = 16 // (strip.bytes // strip.lanes)

        def keep(place: Expr, number: Expr) -> Stmt:
            start = wide(stage * strip.size) + strip.stands(place)
            return sequence(
                *(
                    move(
                        pointer(strip.shared, start + lane),
                        pointer(strip.fetched, number * strip.lanes + lane),
                        min(strip.bytes, 16),
                    )
                    for lane in range(0, strip.lanes, most)
                )
            )

        return self._turns(strip, thread, keep)


def _int(value: int) -> Expr:
    return tirx.IntImm("int32", value)


_RATE = 103.0
"""Multiplications in float32 of a multiprocessor in a cycle: of 128 instructions, those that are no others."""
_WIDTH = 4
"""Numbers that one instruction loads from shared memory."""
_PADDING = 4
"""Columns that nothing uses, so that neighbouring rows of the strip of data are not in one memory bank."""
SCALAR_TILES = (
    # Of a tile of r x c in registers, r + c numbers are loaded for r c multiplications.
    Tile(128, 128, 256, 16, 1.05),
    Tile(128, 64, 256, 16, 1.15),
    Tile(64, 64, 256, 16, 1.35),
    Tile(64, 64, 128, 16, 1.15),
    Tile(128, 32, 128, 16, 1.15),
    Tile(128, 16, 128, 16, 1.4),
    Tile(64, 32, 128, 16, 1.4),
    Tile(32, 64, 128, 16, 1.4),
    Tile(32, 32, 64, 16, 1.5),
    Tile(64, 16, 64, 16, 1.5),
    Tile(16, 64, 64, 16, 1.5),
    Tile(32, 32, 64, 32, 1.5),
)


class Scalar(Product):
    """Writer of one kernel, by the ordinary units."""

    name = "product"
    multiplied = "float32"
    """The type of the strips."""

    def __init__(self, segment: Segment, window: Window, form: Form, device: Device) -> None:
        super().__init__(segment, window, form, device, self.multiplied)
        tile = form.tile
        numbers = tile.rows * tile.columns // tile.threads
        # 4 x 4, 8 x 4 or 8 x 8.
        self._tall, self._wide = {16: (4, 4), 32: (8, 4), 64: (8, 8)}[numbers]
        self._across, self._down = tile.columns // self._wide, tile.rows // self._tall
        self._sums = allocate([numbers], self.added, "sums")
        self._left = allocate([self._tall * _WIDTH], self.multiplied, "left")
        self._right = allocate([self._wide], self.multiplied, "right")

    @property
    def data_stride(self) -> int:
        return self.depth + _PADDING

    @property
    def weight_stride(self) -> int:
        return self.tile.columns

    @property
    def buffers(self) -> Sequence[Any]:
        return [self._sums, self._left, self._right]

    @staticmethod
    def term(left: Expr, right: Expr) -> Expr:
        """What a number of the data and one of the weights add to a sum."""
        return left * right

    def clear(self, thread: Expr) -> Stmt:
        zero = constant(0.0, self.added)
        return unrolled(self._tall * self._wide, lambda i: tirx.BufferStore(self._sums, zero, [i]))

    def _row(self, thread: Expr, i: Expr) -> Expr:
        """Number of a thread's row in the tile. Neighbours have neighbouring rows, which are in other memory banks."""
        return thread // self._across + i * self._down

    def _column(self, thread: Expr, part: Expr) -> Expr:
        """The first of four of a thread's columns. Neighbours have the next four, so that together they read and write
        long pieces of memory."""
        return (part * self._across + thread % self._across) * _WIDTH

    def multiply(self, thread: Expr, data: tuple[Any, Expr], weights: tuple[Any, Expr]) -> Stmt:
        def four(local: Any, place: Expr, source: Any, start: Expr) -> Stmt:
            def one(lane: Expr) -> Stmt:
                return tirx.BufferStore(local, tirx.BufferLoad(source, [start + lane]), [place * _WIDTH + lane])

            return vector(_WIDTH, one)

        def add(i: Expr, j: Expr, k: Expr) -> Stmt:
            at = [i * self._wide + j]
            factors = tirx.BufferLoad(self._left, [i * _WIDTH + k]), tirx.BufferLoad(self._right, [j])
            return tirx.BufferStore(self._sums, tirx.BufferLoad(self._sums, at) + self.term(*factors), at)

        def steps(number: Expr) -> Stmt:
            def left(i: Expr) -> Stmt:
                start = data[1] + self._row(thread, i) * self.data_stride + number * _WIDTH
                return four(self._left, i, data[0], start)

            def single(k: Expr) -> Stmt:
                def right(part: Expr) -> Stmt:
                    start = weights[1] + (number * _WIDTH + k) * self.weight_stride + self._column(thread, part)
                    return four(self._right, part, weights[0], start)

                return sequence(
                    unrolled(self._wide // _WIDTH, right),
                    unrolled(self._tall, lambda i: unrolled(self._wide, lambda j: add(i, j, k))),
                )

            return sequence(unrolled(self._tall, left), loop(_WIDTH, single, tirx.ForKind.UNROLLED))

        return loop(self.depth // _WIDTH, steps, tirx.ForKind.UNROLLED)

    def finish(self, thread: Expr, group: Expr, first: tuple[Expr, Expr]) -> Stmt:
        lanes = self.finish_lanes

        def part(i: Expr, j: Expr) -> Stmt:
            number = j * lanes
            column = self._column(thread, number // _WIDTH) + number % _WIDTH

            def value(lane: Expr) -> Expr:
                held = tirx.BufferLoad(self._sums, [i * self._wide + number + lane])
                return held if self.sum_dtype == self.added else tirx.Cast(self.sum_dtype, held)

            return self.store(group, first[0] + self._row(thread, i), first[1] + column, lanes, value)

        return unrolled(self._tall, lambda i: unrolled(self._wide // lanes, lambda j: part(i, j)))

    def put(self, thread: Expr, where: Callable[[Expr], Expr]) -> Stmt:
        def part(i: Expr, j: Expr) -> Stmt:
            start = self._row(thread, i) * self.tile.columns + self._column(thread, j)
            return move(where(start), address(self._sums, i * self._wide + j * _WIDTH), 4 * _WIDTH)

        return unrolled(self._tall, lambda i: unrolled(self._wide // _WIDTH, lambda j: part(i, j)))


def scalar_product(segment: Segment, window: Window, device: Device) -> Kernel | None:
    """The kernel of a convolution or connected layer, by the ordinary units; None for pools, bfloat16, and 8-bit
    numbers of which float32 does not hold the sums."""
    if window.weight is None or str(window.data.dtype) == "uint16":
        return None
    if str(window.data.dtype) == "int8" and window.work // math.prod(window.output) * 128 * 128 > 1 << 24:
        return None
    return Scalar(segment, window, form_of(window, SCALAR_TILES, _RATE, device), device).kernel()
