"""Binary convolutions by lookups, for x86 without AVX-512's vpopcnt (see binary.py).

Bytes are looked up in a table of 16 (`pshufb`). Weights are four bits to a byte, and what any of them make with four
bits of data is a table. One does for two pixels: the sum of the first is in the lower half of its bytes, that of the
second in the upper half. There are 256, which are 4 KB. The sum of three lookups is at most 12 in each half; with 32
lanes it counts 768 bits:

    part = table[i][w] + table[i + 1][w'] + table[i + 2][w'']
    total += part;   upper += part >> 4, in numbers of 16 bits

That shift takes a neighbour's lower half along, and `total` overflows. Still both give the four sums of two bytes as
long as these are below 256, for 63 lookups; then they are added to sums of 16 bits in memory:

    b' = upper >> 8;   a' = (total >> 8) - 16 b';   b = upper - 16 a';   a = total - 16 b    (modulo 256)

A task is a strip of rows and a group of vectors. It goes through the weights part by part, so that each is read from
the first-level cache for all pixels of the strip.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from dnc.targets.tvm.schedules.bits import WORTH, Bordered, Runs, in_vectors, load, splat, store, vectors_of
from dnc.targets.tvm.schedules.loops import STACK, Expr, Stmt, allocate, index, loop, parallel, sequence
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.signs import importing
from dnc.targets.tvm.schedules.stages import Segment
from dnc.targets.tvm.schedules.tiles import Band, bands_of
from dnc.targets.tvm.schedules.window import Window
from dnc.typing import Array

__all__ = ["Tables"]

_MOST = 63
"""Lookups until a byte is full."""
_AT_ONCE = 3
"""Lookups whose sum fits into half a byte."""
_HALF = 4
_TABLE = 16
_TABLES = 256 * _TABLE
_HELD = 16 * 1024
"""Bytes of sums of a strip: half of a first-level cache."""
_TASKS = 16
"""Strips and groups of vectors that are enough to share them among threads."""
_LOOKUP = """
declare <{lanes} x i8> @llvm.{name}(<{lanes} x i8>, <{lanes} x i8>)

define <{lanes} x i8> @dnc_lookup_{lanes}(<16 x i8> %table, <{lanes} x i8> %numbers) alwaysinline {{
  %wide = shufflevector <16 x i8> %table, <16 x i8> poison, <{lanes} x i32> <{places}>
  %found = call <{lanes} x i8> @llvm.{name}(<{lanes} x i8> %wide, <{lanes} x i8> %numbers)
  ret <{lanes} x i8> %found
}}
"""


class Tables:
    """Writer of a kernel that looks four bits up at once."""

    def __init__(self, segment: Segment, window: Window, machine: Machine) -> None:
        self.segment, self.window = segment, window
        outputs = window.output[3]
        self.given = window.source[3]
        self.bordered = Bordered(window, self.given, window.stride[1])
        self.cell = 2 * self.given
        self.runs = Runs.of(window, self.cell)
        self.depth = self.runs.count * self.runs.length
        self.lanes = next((size for size in sorted(machine.shuffles) if size >= outputs), max(machine.shuffles))
        self.name = machine.shuffles[self.lanes]
        # As vectors of signs are whole bytes.
        self.finished = max(machine.lanes, 8)
        self.vectors = -(-outputs // self.lanes)
        self.bands = self._bands(machine)
        self.strip = self._strip()
        self.weight = tirx.decl_buffer(
            [index(_TABLES + self.vectors * self.depth * self.lanes)], "uint8", name="weight"
        )
        images, rows = window.source[0], self.bordered.rows
        self.pairs = allocate([images * rows * self.bordered.columns * self.cell], "uint16", "pairs", "global")

    def _bands(self, machine: Machine) -> tuple[Band, ...]:
        """Groups of vectors of a tile, which is two pixels: two registers for each vector, and three tables. A group
        whose last channels are none stands by itself."""
        found = []
        for blocks in range(1, min((machine.registers - 7) // 2, self.vectors) + 1):
            bands = bands_of(self.vectors, blocks)
            cycles = sum(band.count * (8 * band.blocks + 9) for band in bands)
            found.append((cycles, -blocks, bands))
        found.sort(key=lambda entry: entry[:2])
        *whole, last = found[min(machine.rank, len(found) - 1)][2]
        if last.count > 1 and self.window.output[3] % self.lanes:
            count = last.count - 1
            whole.append(Band(last.first, last.blocks, count))
            last = Band(last.first + count * last.blocks, last.blocks, 1)
        return (*whole, last)

    def _strip(self) -> int:
        """Rows of a strip."""
        images, rows, columns, _ = self.window.output
        groups = sum(band.count for band in self.bands)
        held = columns * self.bands[0].blocks * self.lanes * 2
        most = min(_HELD // held, rows * images * groups // _TASKS)
        strips = -(-rows // max(1, most))
        return -(-rows // strips)

    def pack(self, weight: Array) -> Array:
        """(kh, kw, bytes, O) -> the tables, then (group of vectors, halves of bytes, vector, lane).

        The even lanes of a vector are the first half of its channels.
        """
        tall, wide, given, outputs = weight.shape
        halves = np.stack([weight & 15, weight >> _HALF], axis=3).reshape(tall * wide * given * 2, outputs)
        lanes = self.lanes
        all_lanes = np.pad(halves, ((0, 0), (0, self.vectors * lanes - outputs)))
        vectors = all_lanes.reshape(self.depth, self.vectors, 2, lanes // 2).transpose(0, 1, 3, 2)
        parts = [_tables()]
        for band in self.bands:
            taken = vectors[:, band.first : band.first + band.blocks * band.count]
            groups = taken.reshape(self.depth, band.count, band.blocks * lanes)
            parts.append(groups.transpose(1, 0, 2).reshape(-1))
        return np.concatenate(parts)

    def body(self) -> Stmt:
        """Copies the bits, pairs those of pixels that are computed at once, then goes through the strips."""
        images, rows = self.window.output[:2]
        bordered = self.bordered
        strips = images * -(-rows // self.strip)
        count = sum(band.count for band in self.bands)
        worth = self.window.work * 8 >= WORTH

        def prepare(number: Expr) -> Stmt:
            return sequence(bordered.fill(number), self._pair(number))

        def task(number: Expr) -> Stmt:
            group, strip = number // strips, number % strips
            *others, last = self.bands
            statement = self._go(last, group - (count - last.count), strip)
            for band in reversed(others):
                before = sum(other.count for other in self.bands if other.first < band.first)
                statement = tirx.IfThenElse(
                    group < before + band.count, self._go(band, group - before, strip), statement
                )
            return statement

        places = ", ".join(f"i32 {lane % _TABLE}" for lane in range(self.lanes))
        text = _LOOKUP.format(lanes=self.lanes, name=self.name, places=places)
        return importing(
            text,
            sequence(
                tirx.AllocBuffer(bordered.buffer),
                tirx.AllocBuffer(self.pairs),
                parallel(images * bordered.rows, prepare, worth),
                parallel(count * strips, task, worth),
            ),
        )

    def _pair(self, number: Expr) -> Stmt:
        """The tables of each pixel of a row and the one that is computed with it, by their places."""
        bordered = self.bordered
        count = bordered.columns * self.given
        start = number * bordered.line

        def pair(first: Expr, lanes: int) -> Stmt:
            def half(value: Expr, shift: int, mask: int) -> Expr:
                moved = value << splat(shift, "uint32", lanes) if shift > 0 else value >> splat(-shift, "uint32", lanes)
                return moved & splat(mask, "uint32", lanes)

            kind = vectors_of("uint32", lanes)
            one, other = (
                tirx.Cast(kind, load(bordered.buffer, start + first + step, lanes))
                for step in (0, self.window.stride[1] * self.given)
            )
            low = half(one, 4, 0xF0) | half(other, 8, 0xF00)
            high = half(one, 16, 0xF00000) | half(other, 20, 0xF000000)
            value = tirx.reinterpret(f"uint16x{2 * lanes}", low | high)
            return store(self.pairs, value, number * (2 * count) + first * 2, 2 * lanes)

        statement = in_vectors(count, 16, pair)
        assert statement is not None
        return statement

    def _go(self, band: Band, group: Expr, strip: Expr) -> Stmt:
        """A strip of one group of vectors."""
        _, rows, columns, outputs = self.window.output
        strips = -(-rows // self.strip)
        image, top = strip // strips, (strip % strips) * self.strip
        count = index(self.strip) if rows % self.strip == 0 else tirx.min(index(self.strip), rows - top)
        held = band.blocks * self.lanes
        sums = allocate([self.strip * (columns + columns % 2) * held], "uint16", "sums", "global")
        line = (columns + columns % 2) * held
        start = _TABLES + (band.first + group * band.blocks) * (self.depth * self.lanes)

        def clear(number: Expr, lanes: int) -> Stmt:
            return store(sums, splat(0, "uint16", lanes), number, lanes)

        def add(run: Expr, several: int, first: int, length: int) -> Stmt:
            """So many numbers of so many runs, to all sums."""

            def tile(row: Expr, number: Expr) -> Stmt:
                def at(turn: Expr) -> tuple[Expr, Expr]:
                    ky, kx = self.runs.tap(run + turn)
                    y = (top + row) * self.window.stride[0] + ky * self.window.dilation[0]
                    x = number * (2 * self.window.stride[1]) + kx * self.window.dilation[1]
                    source = ((image * self.bordered.rows + y) * self.bordered.columns + x) * self.cell + first
                    return source, start + ((run + turn) * self.runs.length + first) * held

                return self._tile(at, several, length, band.blocks, sums, row * line + number * (2 * held))

            return loop(count, lambda row: loop(-(-columns // 2), partial(tile, row)))

        def finish(row: Expr) -> Stmt:
            left = min(band.blocks * self.lanes, outputs - band.first * self.lanes)

            def pixel(x: Expr) -> Stmt:
                def vector(first: Expr, lanes: int) -> Stmt:
                    channel = (band.first + group * band.blocks) * self.lanes + first
                    place = row * line + x * held + first
                    return self.segment.finish(
                        lambda lane: [image, top + row, x, channel + lane],
                        lanes,
                        lambda lane: tirx.Cast("int32", tirx.BufferLoad(sums, [place + lane])),
                    )

                statement = in_vectors(left, self.finished, vector)
                assert statement is not None
                return statement

            return loop(columns, pixel)

        return sequence(
            tirx.AllocBuffer(sums),
            in_vectors(self.strip * line, self.lanes // 2, clear),
            *self.runs.parts(_MOST, _AT_ONCE, add),
            loop(count, finish),
        )

    def _tile(
        self, at: Callable[[Expr], tuple[Expr, Expr]], several: int, length: int, blocks: int, sums: Any, place: Expr
    ) -> Stmt:
        """Two pixels by so many vectors, added to sums."""
        lanes = self.lanes
        totals, uppers = (
            [allocate([lanes], "uint8", f"{name}{block}", STACK) for block in range(blocks)]
            for name in ("total", "upper")
        )
        tables = [allocate([_TABLE], "uint8", f"table{number}", STACK) for number in range(_AT_ONCE)]
        part = allocate([lanes], "uint8", "part", STACK)
        zero, kind = index(0), f"uint8x{lanes}"

        def lookups(source: Expr, offset: Expr, count: int) -> Stmt:
            def look(block: int) -> Stmt:
                found = None
                for number in range(count):
                    weights = load(self.weight, offset + (number * blocks + block) * lanes, lanes)
                    table = load(tables[number], zero, _TABLE)
                    one = tirx.call_pure_extern(kind, f"dnc_lookup_{lanes}", table, weights)
                    found = one if found is None else found + one
                shifted = tirx.reinterpret(f"uint16x{lanes // 2}", load(part, zero, lanes)) >> splat(
                    _HALF, "uint16", lanes // 2
                )
                upper = load(uppers[block], zero, lanes) + tirx.reinterpret(kind, shifted)
                return sequence(
                    store(part, found, zero, lanes),
                    store(totals[block], load(totals[block], zero, lanes) + load(part, zero, lanes), zero, lanes),
                    store(uppers[block], upper, zero, lanes),
                )

            def table(number: int) -> Stmt:
                which = tirx.Cast("int64", tirx.BufferLoad(self.pairs, [source + number]))
                return store(tables[number], load(self.weight, which, _TABLE), zero, _TABLE)

            return sequence(*map(table, range(count)), *map(look, range(blocks)))

        def run(turn: Expr) -> Stmt:
            source, offset = at(turn)
            whole, left = divmod(length, _AT_ONCE)

            def step(number: Expr) -> Stmt:
                first = number * _AT_ONCE
                return lookups(source + first, offset + first * (blocks * lanes), _AT_ONCE)

            rest = whole * _AT_ONCE
            return sequence(
                loop(whole, step) if whole else None,
                lookups(source + rest, offset + rest * (blocks * lanes), left) if left else None,
            )

        def clear(block: int) -> Stmt:
            return sequence(*(store(of[block], splat(0, "uint8", lanes), zero, lanes) for of in (totals, uppers)))

        held = [*totals, *uppers, *tables, part]
        return sequence(
            *(tirx.AllocBuffer(buffer) for buffer in held),
            *map(clear, range(blocks)),
            loop(several, run),
            *(self._widen(totals[block], uppers[block], blocks, block, sums, place) for block in range(blocks)),
        )

    def _widen(self, total: Any, upper: Any, blocks: int, block: int, sums: Any, place: Expr) -> Stmt:
        """Adds bytes of two pixels to their sums."""
        lanes, half = self.lanes, self.lanes // 2
        kind, zero = f"uint16x{half}", index(0)

        def number(value: int) -> Expr:
            return splat(value, "uint16", half)

        def held(name: str, value: Expr) -> tuple[Stmt, Expr]:
            buffer = allocate([half], "uint16", name, STACK)
            return sequence(tirx.AllocBuffer(buffer), store(buffer, value, zero, half)), load(buffer, zero, half)

        first, sum_ = held("sum", tirx.reinterpret(kind, load(total, zero, lanes)))
        second, ups = held("ups", tirx.reinterpret(kind, load(upper, zero, lanes)))
        third, right_odd = held("right_odd", ups >> number(8))
        fourth, left_odd = held("left_odd", ((sum_ >> number(8)) - (right_odd << number(_HALF))) & number(255))
        fifth, right_even = held("right_even", (ups - (left_odd << number(_HALF))) & number(255))
        sixth, left_even = held("left_even", (sum_ - (right_even << number(_HALF))) & number(255))

        def add(value: Expr, pixel: int, odd: int) -> Stmt:
            at = place + (pixel * blocks + block) * lanes + odd * half
            return store(sums, load(sums, at, half) + value, at, half)

        results = (add(left_even, 0, 0), add(left_odd, 0, 1), add(right_even, 1, 0), add(right_odd, 1, 1))
        return sequence(first, second, third, fourth, fifth, sixth, *results)


def _tables() -> Array:
    """For each four bits of two pixels how many of them differ from four of the weights."""
    counts = np.array([bin(number).count("1") for number in range(_TABLE)], np.uint8)
    numbers = np.arange(_TABLE)
    one = counts[numbers[:, None] ^ numbers]
    both: Array = one[None, :, :] + (one[:, None, :] << _HALF)
    return both.reshape(-1)
