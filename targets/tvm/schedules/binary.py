"""Binary convolutions: how many bits of data and weights differ, for vectors of output channels.

    sums[o] += popcount(data[i] xor weight[i, o])

Bits come eight channels to a byte (`dnc.targets.tvm.emit.binary`). They are first copied with their border, which is
little beside the work, so that no window leaves the tensor. How they are counted depends on what the processor has:

Counts      Words of 32 bits, one for each lane. NEON counts those of bytes (`cnt`), added up as bytes up to 31 times.
            Elsewhere two words are added to a third, as the bits of a full adder: `ones` are kept, carries are counted.
            With AVX-512 that is three `vpternlog`, in which the xors are, a `vpopcnt` and an addition for 1024 bits:

                once = ones ^ x ^ w;   ones' = once ^ x' ^ w';   carry = once ? ~ones' : ones

Tables      x86 without AVX-512's vpopcnt looks bytes up: tables.py.

Bits a cycle with AVX2, by llvm-mca for skylake and znver3: tables for two pixels 254 and 331, for one 127 and 223; xor
and two shuffles that count 85 and 103; the same behind three full adders 120 and 126. On NEON (cortex-a72) `cnt` comes
to 77 of 85, a table to 44.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from dnc.targets.tvm.schedules.bits import WORTH, Bordered, Runs, load, splat, store, vectors_of
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
)
from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.stages import Segment, Stage
from dnc.targets.tvm.schedules.tables import Tables
from dnc.targets.tvm.schedules.tiles import Band, Channels, bands_of
from dnc.targets.tvm.schedules.window import Window, match
from dnc.typing import Array

__all__ = ["binary"]

_WORD = 4
"""Bytes of a word."""
_BYTES = 31
"""Words whose bytes' bits a byte can count."""
_MOST_BLOCKS = 6
_TERNARY = "llvm.x86.avx512.pternlog.d.512"
"""Any function of three bits."""


class _Counts:
    """Writer of a kernel that counts the bits of words."""

    def __init__(self, segment: Segment, window: Window, machine: Machine) -> None:
        self.segment, self.window = segment, window
        given = window.source[3]
        self.words = -(-given // _WORD)
        self.bordered = Bordered(window, self.words * _WORD, 0)
        self.runs = Runs.of(window, self.words)
        self.depth = self.runs.count * self.runs.length
        self.channels = Channels.of(window.output[3], machine)
        self.ternary = machine.counts == 32 and self.channels.lanes == 16
        self.bytes = machine.counts == 8
        self.width, self.bands = self._tile(machine)
        length = self.depth * self.channels.lanes * self.channels.vectors
        self.weight = tirx.decl_buffer([index(length)], "int32", name="weight")

    def _tile(self, machine: Machine) -> tuple[int, tuple[Band, ...]]:
        """Pixels and vectors of a tile. In registers are the sums of each pair of them, but where bytes are counted
        those alone, and a word of the weights, or two, for each vector."""
        found = []
        columns, vectors = self.window.output[2], self.channels.vectors
        held, words = (1, 1) if self.bytes else (2, 2)
        for blocks in range(1, min(_MOST_BLOCKS, vectors) + 1):
            widest = max(1, (machine.registers - 2 - words * blocks) // (held * blocks))
            for width in range(1, min(widest, columns) + 1):
                bands = bands_of(vectors, blocks)
                cycles = sum(
                    band.count * (columns // wide if wide == width else 1) * self._cycles(band.blocks, wide)
                    for band in bands
                    for wide in {width, columns % width} - {0}
                )
                found.append((cycles, -width, bands))
        found.sort(key=lambda entry: entry[:2])
        _, width, bands = found[min(machine.rank, len(found) - 1)]
        return -width, bands

    def _cycles(self, blocks: int, width: int) -> float:
        """Of a step of the reduction: the processor starts two operations at once, and two loads, or one of NEON's."""
        if self.bytes:
            return max((3 * blocks + 1) * width / 2, blocks + width) + 0.5
        return max(5 * blocks * width / 2, blocks + width, 3.0) + 0.5

    def pack(self, weight: Array) -> Array:
        """(kh, kw, bytes, O) -> (band, group of vectors, words, vector, lane)."""
        tall, wide, given, outputs = weight.shape
        cells = np.zeros((tall, wide, self.words * _WORD, outputs), np.uint8)
        cells[:, :, :given] = weight
        words = np.ascontiguousarray(cells.reshape(-1, _WORD, outputs).transpose(0, 2, 1)).view("<i4")
        return self.channels.pack(words.reshape(1, -1, outputs), self.bands)

    def body(self) -> Stmt:
        """Copies the bits, then goes through the strips: here, rows of one group of vectors."""
        images, rows = self.window.output[:2]
        bordered, strips = self.bordered, images * rows
        count = sum(band.count for band in self.bands)
        worth = self.window.work * 8 >= WORTH

        def task(number: Expr) -> Stmt:
            group, strip = number // strips, number % strips
            first, *others = self.bands
            statement = self._row(first, group, strip)
            if others:
                return tirx.IfThenElse(group < first.count, statement, self._row(others[0], index(0), strip))
            return statement

        return sequence(
            tirx.AllocBuffer(bordered.buffer),
            parallel(images * bordered.rows, bordered.fill, worth),
            parallel(count * strips, task, worth),
        )

    def _row(self, band: Band, group: Expr, strip: Expr) -> Stmt:
        columns = self.window.output[2]
        tiles, left = divmod(columns, self.width)
        parts = []
        if tiles:
            parts.append(loop(tiles, lambda tile: self._tile_at(band, group, strip, tile * self.width, self.width)))
        if left:
            parts.append(self._tile_at(band, group, strip, index(tiles * self.width), left))
        return sequence(*parts)

    def _tile_at(self, band: Band, group: Expr, strip: Expr, x: Expr, width: int) -> Stmt:
        lanes, blocks, rows = self.channels.lanes, band.blocks, self.window.output[1]
        image, y = strip // rows, strip % rows
        start = (band.first + group * blocks) * (self.depth * lanes)

        def buffers(name: str, dtype: str = "int32") -> list[Any]:
            return [allocate([width * lanes], dtype, f"{name}{block}", STACK) for block in range(blocks)]

        ones, counts = buffers("ones"), buffers("count")

        def clear(pixel: Expr) -> Stmt:
            zero = splat(0, "int32", lanes)
            return sequence(*(store(buffer, zero, pixel * lanes, lanes) for buffer in (*ones, *counts)))

        def step(run: Expr, word: Expr, several: int) -> Stmt:
            ky, kx = self.runs.tap(run)
            row = image * self.bordered.rows + y * self.window.stride[0] + ky * self.window.dilation[0]

            def factors(pixel: Expr, block: int, place: int) -> tuple[Expr, Expr]:
                column = (x + pixel) * self.window.stride[1] + kx * self.window.dilation[1]
                at = row * self.bordered.line + column * self.bordered.cell + (word + place) * _WORD
                number = tirx.reinterpret("int32", load(self.bordered.buffer, at, _WORD))
                offset = start + ((run * self.runs.length + word + place) * blocks + block) * lanes
                return tirx.Broadcast(number, lanes) if lanes > 1 else number, load(self.weight, offset, lanes)

            def add(pixel: Expr, block: int) -> Stmt:
                held, at = ones[block], pixel * lanes
                was = load(held, at, lanes)
                if self.bytes:
                    number, weights = factors(pixel, block, 0)
                    kind = f"uint8x{_WORD * lanes}"
                    counted = tirx.popcount(tirx.reinterpret(kind, number ^ weights)) + tirx.reinterpret(kind, was)
                    return store(held, tirx.reinterpret(vectors_of("int32", lanes), counted), at, lanes)
                bits = once = self._xor(was, *factors(pixel, block, 0))
                if several == 2:
                    bits = self._xor(once, *factors(pixel, block, 1))
                counted = load(counts[block], at, lanes) + tirx.popcount(self._carry(once, bits, was))
                # In this order, as the carries are of the bits before.
                return sequence(store(counts[block], counted, at, lanes), store(held, bits, at, lanes))

            return unrolled(width, lambda pixel: sequence(*(add(pixel, block) for block in range(blocks))))

        def one_run(run: Expr, first: int, length: int) -> Stmt:
            size = 1 if self.bytes else 2
            whole, left = divmod(length, size)
            parts = [loop(whole, lambda number: step(run, number * size + first, size))] if whole else []
            if left:
                parts.append(step(run, index(first + whole * size), 1))
            return sequence(*parts)

        def some_runs(run: Expr, several: int, first: int, length: int) -> Stmt:
            return sequence(
                loop(several, lambda turn: one_run(run + turn, first, length)),
                unrolled(width, empty) if self.bytes else None,
            )

        def empty(pixel: Expr) -> Stmt:
            """Adds the sums of bytes to those of words."""

            def one(block: int) -> Stmt:
                at = pixel * lanes
                value = load(ones[block], at, lanes)
                for shift, mask in ((8, 0x00FF00FF), (16, 0x0000FFFF)):
                    few = splat(mask, "int32", lanes)
                    value = (value & few) + ((value >> splat(shift, "int32", lanes)) & few)
                return sequence(
                    store(counts[block], load(counts[block], at, lanes) + value, at, lanes),
                    store(ones[block], splat(0, "int32", lanes), at, lanes),
                )

            return sequence(*map(one, range(blocks)))

        def sum_up(pixel: Expr) -> Stmt:
            def one(block: int) -> Stmt:
                at = pixel * lanes
                whole = load(counts[block], at, lanes) * splat(2, "int32", lanes)
                return store(counts[block], whole + tirx.popcount(load(ones[block], at, lanes)), at, lanes)

            return sequence(*map(one, range(blocks)))

        def place_of(pixel: Expr, block: int) -> Callable[[Expr], list[Expr]]:
            channel = self.channels.start(band.first + group * blocks + block)
            return lambda lane: [image, y, x + pixel, channel + lane]

        return sequence(
            *(tirx.AllocBuffer(buffer) for buffer in (*ones, *counts)),
            unrolled(width, clear),
            *self.runs.parts(_BYTES if self.bytes else self.depth, 1, some_runs),
            None if self.bytes else unrolled(width, sum_up),
            self.segment.finish_tile(counts, place_of, width, lanes),
        )

    def _xor(self, ones: Expr, data: Expr, weights: Expr) -> Expr:
        return self._three(ones, data, weights, 0b10010110) if self.ternary else ones ^ data ^ weights

    def _carry(self, once: Expr, bits: Expr, ones: Expr) -> Expr:
        """What is carried where `ones` became `once` by one number, and that `bits` by another."""
        return self._three(once, bits, ones, 0b00111010) if self.ternary else (once & ~bits) | (~once & ones)

    def _three(self, a: Expr, b: Expr, c: Expr, truths: int) -> Expr:
        """A function of three bits: LLVM would take a sum of several apart, and hold what it needs again in memory."""
        return tirx.call_llvm_pure_intrin(
            vectors_of("int32", self.channels.lanes), _TERNARY, a, b, c, constant(truths, "int32")
        )


def binary(segment: Segment, stages: Sequence[Stage], machine: Machine) -> Kernel | None:
    """The kernel of a binary convolution; None for others."""
    window = match(segment, stages, bits=True)
    if window is None or window.weight is None:
        return None
    fits = math.prod(window.size) * window.source[3] * 8 < 1 << 16
    way = Tables if machine.shuffles and not machine.counts and fits else _Counts
    kernel = way(segment, window, machine)
    packed = Packed(window.weight, kernel.weight, kernel.pack)
    border = () if window.border is None else (window.border.buffer,)
    return Kernel("binary", kernel.body(), (packed,), border)
