"""Squeeze and excitation in one kernel: the mean of each channel, and two products that make a factor of it,

    m[c] = mean over the map of d[y, x, c]      r[k] = g(sum of m[c] v[c, k])      s[c] = h(sum of r[k] w[k, c])

and before that, where there is one, the convolution of single channels that gives d.

A block has some channels and pixels of an image. It adds up what it computes, or reads, and puts the sums into memory.
The last block of an image to arrive adds those of all blocks, in their order, and computes the products: weights are
read once, 16 bytes by a thread where they are a multiple of that. No GPU has run these kernels yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import ir, tirx

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.depthwise import Depthwise, is_depthwise
from dnc.targets.cuda.schedules.helpers import TILES, address, arrived_last, end, gather, move, pointer, scratch
from dnc.targets.cuda.schedules.threads import kernel, lanes_of, narrow, scoped, when
from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel, Packed
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, constant, index, loop, sequence, unrolled, vector
from dnc.targets.tvm.schedules.stages import Segment, Stage, dims, in_place, loads, replaced, segments
from dnc.targets.tvm.schedules.window import Window, match
from dnc.typing import Array

__all__ = ["squeezing"]

_THREADS = 256
_ROW = 32
"""Threads side by side, at most."""
_WAVES = 8
"""Blocks for each multiprocessor, if there is as much to do."""
_EXCHANGE = 4096
"""Numbers that threads exchange, at most."""
_CHANNELS = 2048
_FLOATS = ("float32", "float16")


@dataclass(frozen=True)
class _Product:
    """A product of one pixel."""

    segment: Segment
    data: Any
    weight: Any
    """(1, 1, inputs, outputs)."""
    inputs: int
    outputs: int


@dataclass(frozen=True)
class _Chain:
    """The parts of a function."""

    before: tuple[Segment, Window] | None
    mean: Segment
    source: Any
    """The map."""
    products: tuple[_Product, _Product]
    replaced: tuple[Any, ...]
    """What other segments would compute."""


def squeezing(segment: Segment, stages: Sequence[Stage], device: Device) -> Kernel | None:
    """The kernel of a whole function that is this, of which the segment is the first but for borders; else None."""
    chain = _chain(segment, stages)
    return None if chain is None else _Writer(chain, device).kernel()


def _chain(segment: Segment, stages: Sequence[Stage]) -> _Chain | None:
    made = [stage.buffer for stage in stages]
    outside = [load.source for stage in stages for load in loads(stage.value)]
    given = [buffer for buffer in outside if not any(buffer.same_as(own) for own in made)]
    parts = segments(stages, given)
    main = [part for part in parts if part.anchor.start is not None]
    if len(main) not in (3, 4) or not main[0].anchor.buffer.same_as(segment.anchor.buffer):
        return None
    *first, mean, one, two = main
    source = _mean_of(mean)
    if source is None:
        return None
    before = None
    if first:
        window = match(segment, stages)
        if window is None or window.weight is None or not is_depthwise(window) or not source.same_as(segment.result):
            return None
        before = segment, window
    inner, outer = _product(one, stages), _product(two, stages)
    if inner is None or outer is None:
        return None
    products = inner, outer
    for product, read in zip(products, (mean, one), strict=True):
        if not _copied(product.data, stages).same_as(_copied(read.result, stages)):
            return None
    if dims(source)[0] > TILES or dims(source)[3] > _CHANNELS or products[0].outputs > _CHANNELS:
        return None
    if dims(source)[3] != products[1].outputs or dims(source)[3] != products[0].inputs:
        return None
    others = [part.anchor.buffer for part in parts if not part.anchor.buffer.same_as(segment.anchor.buffer)]
    return _Chain(before, mean, source, products, tuple(others))


def _copied(buffer: Any, stages: Sequence[Stage]) -> Any:
    """What a buffer is a copy of."""
    stage = next((stage for stage in stages if stage.buffer.same_as(buffer)), None)
    if stage is None or not stage.plain or not isinstance(stage.value, ir.TensorLoad):
        return buffer
    load = stage.value
    same = dims(load.source) == dims(buffer) and in_place(load, stage)
    return _copied(load.source, stages) if same else buffer


def _adds(part: Segment) -> Any | None:
    """The terms of a sum that starts from 0."""
    stage = part.anchor
    if stage.start is None or not stage.straight or not isinstance(stage.value, tirx.Add) or float(stage.start.value):
        return None
    held = stage.value.a
    return stage.value.b if isinstance(held, ir.TensorLoad) and held.source.same_as(stage.buffer) else None


def _mean_of(part: Segment) -> Any | None:
    """The map (N, H, W, C) over whose pixels a segment adds up."""
    term = _adds(part)
    if isinstance(term, tirx.Cast):
        # Float16 is added up in float32.
        term = term.value
    if not isinstance(term, ir.TensorLoad) or len(term.indices) != 4 or str(term.source.dtype) not in _FLOATS:
        return None
    reduced = [axis for axis, summed in zip(part.anchor.axes, part.anchor.reduced, strict=True) if summed]
    image, y, x, channel = term.indices
    shape = dims(term.source)
    if dims(part.result) != (shape[0], 1, 1, shape[3]) or len(reduced) != 2:
        return None
    kept = [axis for axis, summed in zip(part.anchor.axes, part.anchor.reduced, strict=True) if not summed]
    whole = [at.same_as(axis) for at, axis in zip((image, y, x, channel), (kept[0], *reduced, kept[-1]), strict=True)]
    return term.source if all(whole) or (shape[0] == 1 and all(whole[1:])) else None


def _product(part: Segment, stages: Sequence[Stage]) -> _Product | None:
    if _adds(part) is None:
        return None
    window = match(part, stages)
    if window is None or window.weight is None or window.size != (1, 1) or window.groups != 1:
        return None
    if window.source[1:3] != (1, 1) or window.output[1:3] != (1, 1) or dims(part.result) != window.output:
        return None
    if str(window.weight.dtype) not in _FLOATS or str(window.data.dtype) != str(window.weight.dtype):
        return None
    return _Product(part, window.data, window.weight, window.source[3], window.output[3])


def _valued(segment: Segment, at: Sequence[Expr], total: Expr) -> Expr:
    """The result of a segment whose anchor is `total` there."""

    def of(stage: Stage) -> Expr:
        if stage is segment.anchor:
            return total

        def load(read: Any) -> Expr:
            known = next((own for own in (segment.anchor, *segment.rest) if own.buffer.same_as(read.source)), None)
            return read if known is None else of(known)

        return replaced(stage.value, stage.axes, at, load)

    return of((segment.rest or [segment.anchor])[-1])


class _Tallied(Depthwise):
    """The depthwise convolution, which also adds up what it gives."""

    def __init__(self, segment: Segment, window: Window, device: Device, totals: Any) -> None:
        super().__init__(segment, window, device)
        self._totals = totals

    def finish(self, r: int, image: Expr, y: Expr, x: Expr, channel: Expr, into: Any = None) -> Stmt:
        dtype = str(self.segment.result.dtype)
        given = allocate([self.lanes], dtype, "given")
        return scoped(
            [given],
            # What is beyond the last row is not computed.
            vector(self.lanes, lambda lane: tirx.BufferStore(given, constant(0.0, dtype), [lane])),
            super().finish(r, image, y, x, channel, given),
            vector(self.lanes, lambda lane: _tally(self._totals, given, lane)),
        )


def _tally(totals: Any, given: Any, lane: Expr) -> Stmt:
    value = tirx.Cast("float32", tirx.BufferLoad(given, [lane]))
    return tirx.BufferStore(totals, tirx.BufferLoad(totals, [lane]) + value, [lane])


class _Writer:
    """Writer of one kernel."""

    def __init__(self, chain: _Chain, device: Device) -> None:
        self._chain = chain
        self._images, height, width, self._channels = dims(chain.source)
        if chain.before is None:
            self._lanes, rows = lanes_of(self._channels, str(chain.source.dtype), 8), 1
            self._totals = allocate([self._lanes], "float32", "totals")
            self._writer = None
        else:
            plain = Depthwise(*chain.before, device)
            self._lanes, rows = plain.lanes, plain.rows
            self._totals = allocate([self._lanes], "float32", "totals")
            self._writer = _Tallied(*chain.before, device, self._totals)
        self._strips = -(-height // rows)
        self._width, self._rows = width, rows
        vectors = self._channels // self._lanes
        self._across = min(_ROW, 1 << (vectors - 1).bit_length())
        self._below = _THREADS // self._across
        self._beside = -(-vectors // self._across)
        self._vectors = vectors
        places = self._strips * width
        wanted = device.processors * _WAVES
        self._passes = max(1, places * self._beside * self._images // (self._below * wanted))
        self._chunks = -(-places // (self._below * self._passes))
        self._places = places

    def kernel(self) -> Kernel:
        """Writes all blocks."""
        first = self._chain.products[0]
        lanes = lanes_of(first.inputs, str(first.weight.dtype))
        packed = tirx.decl_buffer([index(first.outputs), index(first.inputs)], str(first.weight.dtype), "weight")
        self._packed, self._packed_lanes = packed, lanes
        grid = [self._chunks, self._beside, self._images]
        statement = kernel(grid, _THREADS, self._block)

        def turned(weight: Array) -> Array:
            return np.ascontiguousarray(weight.reshape(first.inputs, first.outputs).T)

        name = "squeeze" if self._writer is None else "depthwise-squeeze"
        return Kernel(name, statement, (Packed(first.weight, packed, turned),), self._chain.replaced)

    def _block(self, blocks: Sequence[Expr], thread: Expr) -> Stmt:
        chunk, beside, image = blocks
        self._image = image
        row = self._across * self._lanes
        vector_number = beside * self._across + thread % self._across
        channel = vector_number * self._lanes
        exchange = allocate([self._below, row], "float32", "exchange", "shared")
        size = self._images * self._chunks * self._channels
        where = (image * self._chunks + chunk) * self._channels

        def turn(number: Expr) -> Stmt:
            place = (chunk * self._passes + number) * self._below + thread // self._across
            conditions = []
            if self._places % (self._below * self._passes):
                conditions.append(place < self._places)
            if self._vectors % self._across:
                conditions.append(vector_number < self._vectors)
            y, x = unflattened(place, [self._strips, self._width])
            return when(tirx.all(*conditions) if conditions else None, self._tallied(image, y, x, channel))

        def keep(lane: Expr) -> Stmt:
            at = [thread // self._across, thread % self._across * self._lanes + lane]
            return tirx.BufferStore(exchange, tirx.BufferLoad(self._totals, [lane]), at)

        def combine(step: int) -> Stmt:
            def one(lane: Expr) -> Stmt:
                own, beside = thread // self._across, thread % self._across * self._lanes + lane
                other = tirx.BufferLoad(exchange, [own + step, beside])
                return tirx.BufferStore(exchange, tirx.BufferLoad(exchange, [own, beside]) + other, [own, beside])

            return when(thread // self._across < step, vector(self._lanes, one))

        def hand_over() -> Stmt:
            own = allocate([self._lanes], "float32", "own")

            def one(lane: Expr) -> Stmt:
                at = [index(0), thread % self._across * self._lanes + lane]
                return tirx.BufferStore(own, tirx.BufferLoad(exchange, at), [lane])

            moved = move(scratch(size, where + channel), address(own, index(0)), 4 * self._lanes)
            inside = thread // self._across == 0
            if self._vectors % self._across:
                inside = tirx.all(inside, vector_number < self._vectors)
            return scoped([own], when(inside, sequence(vector(self._lanes, one), moved)))

        zero = constant(0.0, "float32")
        below = self._below
        steps = [combine(below >> turn) for turn in range(1, below.bit_length())]
        return scoped(
            [self._totals, exchange],
            vector(self._lanes, lambda lane: tirx.BufferStore(self._totals, zero, [lane])),
            loop(self._passes, turn, name="turn"),
            vector(self._lanes, keep),
            *steps,
            hand_over(),
            when(tirx.Not(arrived_last(image, self._chunks * self._beside)), end()),
            self._excite(image, thread, size),
        )

    def _tallied(self, image: Expr, y: Expr, x: Expr, channel: Expr) -> Stmt:
        """Adds up a thread's part of the map."""
        if self._writer is not None:
            return self._writer.thread(image, y * self._rows, x, channel)

        def one(lane: Expr) -> Stmt:
            value = tirx.Cast("float32", tirx.BufferLoad(self._chain.source, [image, y, x, channel + lane]))
            return tirx.BufferStore(self._totals, tirx.BufferLoad(self._totals, [lane]) + value, [lane])

        return vector(self._lanes, one)

    def _excite(self, image: Expr, thread: Expr, size: int) -> Stmt:
        """What the last block does."""
        first, second = self._chain.products
        channels, between = self._channels, first.outputs
        means = allocate([channels], "float32", "means", "shared")
        squeezed = allocate([between], "float32", "squeezed", "shared")
        shared = allocate([_EXCHANGE], "float32", "partial", "shared")
        sums = allocate([4], "float32", "sums")

        def result(segment: Segment, channel: Expr, total: Expr) -> Expr:
            dtype = str(segment.anchor.buffer.dtype)
            at = [image, index(0), index(0), channel]
            return _valued(segment, at, total if dtype == "float32" else tirx.Cast(dtype, total))

        # The means: threads share the blocks' sums of four channels.
        lanes = lanes_of(channels, "float32")
        count = channels // lanes
        parts = _parts(count, self._chunks, 4, _EXCHANGE // channels)
        start = image * (self._chunks * channels)

        def add(number: Expr) -> Stmt:
            part, own = number // count, number % count * lanes
            left = narrow((index(self._chunks + parts - 1) - part) // parts)

            def put(lane: Expr) -> Stmt:
                return tirx.BufferStore(shared, tirx.BufferLoad(sums, [lane]), [part * channels + own + lane])

            there = scratch(size, start + part * channels + own)
            return sequence(gather(sums, there, lanes, left, parts * channels), vector(lanes, put))

        def mean(number: Expr) -> Stmt:
            total = _total(shared, number, parts, channels)
            value = tirx.Cast("float32", result(self._chain.mean, number, total))
            return tirx.BufferStore(means, value, [number])

        return scoped(
            [means, squeezed, shared, sums],
            _shared_out(count * parts, thread, add),
            _shared_out(channels, thread, mean),
            *self._squeeze(first, thread, (means, squeezed, shared), result),
            *self._spread(second, thread, (squeezed, shared), result),
        )

    def _squeeze(self, product: _Product, thread: Expr, buffers: tuple[Any, Any, Any], result: Any) -> list[Stmt]:
        """The first product: many terms of few sums, which lie one after the other."""
        means, squeezed, shared = buffers
        lanes, between = self._packed_lanes, product.outputs
        vectors = product.inputs // lanes
        parts = _parts(between, vectors, 1, min(32, _EXCHANGE // between))
        turns = -(-vectors // parts)
        dtype = str(product.weight.dtype)
        weights = allocate([lanes], dtype, "weights")
        sum_ = allocate([1], "float32", "sum")
        zero = [index(0)]

        def one(number: Expr) -> Stmt:
            part, own = number % parts, number // parts

            def term(turn: Expr) -> Stmt:
                place = part + turn * parts
                start = place * lanes

                def add(lane: Expr) -> Stmt:
                    weight = tirx.Cast("float32", tirx.BufferLoad(weights, [lane]))
                    value = tirx.BufferLoad(sum_, zero) + weight * tirx.BufferLoad(means, [start + lane])
                    return tirx.BufferStore(sum_, value, zero)

                size = lanes * (2 if dtype == "float16" else 4)
                bring = move(pointer(weights, index(0)), address(self._packed, own, start), size)
                body = scoped([weights], bring, unrolled(lanes, add))
                return when(place < vectors if vectors % parts else None, body)

            return scoped(
                [sum_],
                tirx.BufferStore(sum_, constant(0.0, "float32"), zero),
                loop(turns, term, tirx.ForKind.UNROLLED if turns <= 8 else tirx.ForKind.SERIAL),
                tirx.BufferStore(shared, tirx.BufferLoad(sum_, zero), [part * between + own]),
            )

        def total(number: Expr) -> Stmt:
            value = result(product.segment, number, _total(shared, number, parts, between))
            return tirx.BufferStore(squeezed, tirx.Cast("float32", value), [number])

        return [_shared_out(between * parts, thread, one), _shared_out(between, thread, total)]

    def _spread(self, product: _Product, thread: Expr, buffers: tuple[Any, Any], result: Any) -> list[Stmt]:
        """The second product: few terms of many sums, of which neighbours lie side by side."""
        squeezed, shared = buffers
        channels, terms = product.outputs, product.inputs
        dtype = str(product.weight.dtype)
        lanes = lanes_of(channels, dtype)
        vectors = channels // lanes
        parts = _parts(vectors, terms, 4, _EXCHANGE // channels)
        turns = -(-terms // parts)
        weights = allocate([lanes], dtype, "weights")
        sums = allocate([lanes], "float32", "totals")

        def one(number: Expr) -> Stmt:
            part, start = number // vectors, number % vectors * lanes

            def term(turn: Expr) -> Stmt:
                place = part + turn * parts

                def add(lane: Expr) -> Stmt:
                    weight = tirx.Cast("float32", tirx.BufferLoad(weights, [lane]))
                    value = tirx.BufferLoad(sums, [lane]) + weight * tirx.BufferLoad(squeezed, [place])
                    return tirx.BufferStore(sums, value, [lane])

                zero = index(0)
                size = lanes * (2 if dtype == "float16" else 4)
                bring = move(pointer(weights, zero), address(product.weight, zero, zero, place, start), size)
                body = scoped([weights], bring, unrolled(lanes, add))
                return when(place < terms if terms % parts else None, body)

            def clear(lane: Expr) -> Stmt:
                return tirx.BufferStore(sums, constant(0.0, "float32"), [lane])

            def put(lane: Expr) -> Stmt:
                return tirx.BufferStore(shared, tirx.BufferLoad(sums, [lane]), [part * channels + start + lane])

            return scoped(
                [sums],
                unrolled(lanes, clear),
                loop(turns, term, tirx.ForKind.UNROLLED if turns <= 8 else tirx.ForKind.SERIAL),
                unrolled(lanes, put),
            )

        last = product.segment.result

        def store(number: Expr) -> Stmt:
            total = _total(shared, number, parts, channels)
            at = [self._image, index(0), index(0), number]
            return tirx.BufferStore(last, result(product.segment, number, total), at)

        return [_shared_out(vectors * parts, thread, one), _shared_out(channels, thread, store)]


def _parts(count: int, terms: int, least: int, most: int) -> int:
    """How many threads share the terms of each of so many sums, so that all have about as much to do, and each at least
    so many terms."""
    best = max(1, min(most, terms // least))
    return min(range(1, best + 1), key=lambda parts: (-(-count * parts // _THREADS) * -(-terms // parts), parts))


def _total(shared: Any, number: Expr, parts: int, stride: int) -> Expr:
    """What the threads have that share a sum, in their order."""
    total: Expr = tirx.BufferLoad(shared, [number])
    for part in range(1, parts):
        total = total + tirx.BufferLoad(shared, [number + part * stride])
    return total


def _shared_out(count: int, thread: Expr, body: Any) -> Stmt:
    """`body` of all numbers, by all threads."""

    def turn(number: Expr) -> Stmt:
        place = thread + number * _THREADS
        return when(None if count % _THREADS == 0 else place < count, body(place))

    return loop(-(-count // _THREADS), turn, name="turn")
