"""Bits of signs, eight channels to a byte (`dnc.targets.tvm.emit.binary`).

They are packed while the numbers are in registers, by the kernel that computes these, where its vectors are whole bytes
of one pixel; else by loops of their own, which run as fast as memory is read.

    bit = number > 0        a comparison of a vector gives a mask, which is an integer of as many bits

LLVM finds the instructions: `vcmpps` with AVX-512, `movmskps` on other x86; NEON adds up powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import ir, tirx
from tvm.sym import Analyzer

from dnc.targets.tvm.emit.builder import SIGNS
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, constant, index, loop, parallel, sequence
from dnc.targets.tvm.schedules.stages import Segment, Stage, Unmatched, dims, loads, reads

__all__ = ["BYTE", "MASKS", "Signed", "importing", "signed", "signs", "stretches"]

BYTE = 8
_LANES = (32, 16, 8)
_MASKS = """
define i{lanes} @dnc_signs_{lanes}(<{lanes} x float> %numbers) alwaysinline {{
  %positive = fcmp ogt <{lanes} x float> %numbers, zeroinitializer
  %bits = bitcast <{lanes} x i1> %positive to i{lanes}
  ret i{lanes} %bits
}}
"""
MASKS = "".join(_MASKS.format(lanes=lanes) for lanes in _LANES)
"""For LLVM: vectors of truths have no form in memory that TVM reads as it wrote them."""
_TASK, _WORTH = 1_024, 65_536
"""Bytes of a task, and from how many numbers on threads are woken."""
_FEW = 256
"""Numbers below which TVM puts a buffer on the stack. There LLVM joins vectors that are read with narrower ones that
were written, and may end with values that are used before they are known."""


def importing(text: str, body: Stmt) -> Stmt:
    """Loops in which functions of LLVM are called."""
    return tirx.AttrStmt(index(0), "pragma_import_llvm", ir.StringImm(text), body)


def stretches(count: int, lanes: int) -> list[tuple[int, int, int]]:
    """`count` elements cut into vectors, none of which overlap: the first element, lanes, and how many such vectors;
    lanes are a power of two."""
    cut, start = [], 0
    while count:
        vectors = count // lanes
        if vectors:
            cut.append((start, lanes, vectors))
            start, count = start + vectors * lanes, count % lanes
        lanes //= 2
    return cut


def _pack(lanes: int, numbers: Any, at: Sequence[Expr], bits: Any, to: Sequence[Expr]) -> Stmt:
    """The bits of so many numbers from a place on, as bytes to another."""
    *outer, first = at
    held = tirx.BufferLoad(numbers, [*outer, tirx.Ramp(first, index(1), lanes)])
    mask = tirx.call_pure_extern(f"uint{lanes}", f"dnc_signs_{lanes}", held)
    count = lanes // BYTE
    if count == 1:
        return tirx.BufferStore(bits, mask, list(to))
    *outer, first = to
    return tirx.BufferStore(bits, tirx.reinterpret(f"uint8x{count}", mask), [*outer, tirx.Ramp(first, index(1), count)])


def _numbers(stage: Stage) -> Any | None:
    """What a stage makes bits of; None if it does something else."""
    made = stage.name.startswith(SIGNS) and any(stage.reduced) and str(stage.buffer.dtype) == "uint8"
    read = [load.source for load in loads(stage.value) if not load.source.same_as(stage.buffer)]
    return read[0] if made and len(read) == 1 and str(read[0].dtype) == "float32" else None


def signs(segment: Segment) -> Kernel | None:
    """The kernel of a segment that makes bits of what is in memory; None for others."""
    numbers = _numbers(segment.anchor)
    if numbers is None or segment.rest:
        return None
    bits, shape = segment.result, dims(numbers)
    pixels, channels = math.prod(shape[:-1]), shape[-1]
    worth = pixels * channels >= _WORTH
    if channels % BYTE == 0:
        # Channels of all pixels, one after the other.
        tasks = -(-pixels * channels // (_TASK * BYTE))
        *_, last = pieces = [_TASK] * (tasks - 1) + [pixels * channels // BYTE - (tasks - 1) * _TASK]

        def task(number: Expr) -> Stmt:
            if last == pieces[0]:
                return _run(numbers, bits, number * _TASK, last)
            whole = _run(numbers, bits, number * _TASK, pieces[0])
            return tirx.IfThenElse(number < tasks - 1, whole, _run(numbers, bits, index((tasks - 1) * _TASK), last))

        body = parallel(tasks, task, worth)
    else:
        whole, left = divmod(channels, BYTE)

        def pixel(number: Expr) -> Stmt:
            first, to = number * channels, number * (whole + 1)
            parts = [_run(numbers, bits, to, whole, first)] if whole else []
            return sequence(*parts, _rest(numbers, first + whole * BYTE, bits, to + whole, left))

        body = parallel(pixels, pixel, worth)
    return Kernel("signs", importing(MASKS, body))


def _flat(buffer: Any, place: Expr) -> list[Expr]:
    """The indices of an element by its number: counted on along the last axis."""
    return [*(index(0) for _ in dims(buffer)[:-1]), place]


def _run(numbers: Any, bits: Any, to: Expr, count: int, first: Expr | None = None) -> Stmt:
    """So many bytes of bits, of numbers that lie one after the other from `first` on."""
    start = to * BYTE if first is None else first
    lanes = BYTE if math.prod(dims(numbers)) < _FEW else _LANES[0]

    def part(low: int, lanes: int, vectors: int) -> Stmt:
        def step(number: Expr) -> Stmt:
            place = number * lanes + low
            return _pack(lanes * BYTE, numbers, _flat(numbers, start + place * BYTE), bits, _flat(bits, to + place))

        return loop(vectors, step)

    return sequence(*(part(*stretch) for stretch in stretches(count, lanes // BYTE)))


def _rest(numbers: Any, first: Expr, bits: Any, to: Expr, count: int) -> Stmt:
    """A byte with fewer than eight numbers."""
    value: Expr = constant(0, "uint8")
    for place in range(count):
        positive = tirx.BufferLoad(numbers, _flat(numbers, first + place)) > constant(0.0, "float32")
        value = value | (tirx.Cast("uint8", positive) << constant(place, "uint8"))
    return tirx.BufferStore(bits, value, _flat(bits, to))


def signed(parts: Sequence[Segment], given: Sequence[Any]) -> list[Segment]:
    """The segments of a function, those whose bits another makes with these.

    Args:
        given: the parameters of the function.
    """
    joined: list[Segment] = []
    for part in parts:
        numbers = None if part.rest else _numbers(part.anchor)
        maker = next((place for place, other in enumerate(joined) if other.result.same_as(numbers)), None)
        if numbers is None or maker is None or isinstance(joined[maker], Signed):
            joined.append(part)
            continue
        made = joined[maker]
        others = [load.source for other in parts if other not in (part, made) for load in reads(other)]
        wanted = any(numbers.same_as(buffer) for buffer in (*others, *given))
        kept = [buffer for buffer in made.kept if wanted or not buffer.same_as(numbers)]
        joined[maker] = Signed(made.anchor, made.rest, kept, made.inner, made.scope, part.result, wanted)
    return joined


@dataclass
class Signed(Segment):
    """A segment whose results' bits are packed while they are in registers."""

    bits: Any = None
    """The buffer of the bits."""
    wanted: bool = False
    """Whether the results themselves are read."""

    @property
    def stored(self) -> bool:  # type: ignore[override]
        """Whether the results go to memory."""
        return self.wanted

    def finish(
        self, at: Callable[[Expr], Sequence[Expr]], lanes: int, value: Callable[[Expr], Expr], into: Any = None
    ) -> Stmt:
        """The same, and the bits; raises Unmatched where they are no whole bytes."""
        first = list(at(index(0)))
        if lanes not in _LANES or not self._whole(at, lanes):
            raise Unmatched("vectors of signs are no whole bytes")
        given = allocate([lanes], str(self.result.dtype), "given", self.scope) if into is None else into
        return sequence(
            tirx.AllocBuffer(given) if into is None else None,
            super().finish(at, lanes, value, given),
            _pack(lanes, given, [index(0)], self.bits, [*first[:-1], first[-1] // BYTE]),
        )

    def _whole(self, at: Callable[[Expr], Sequence[Expr]], lanes: int) -> bool:
        """Whether a vector is whole bytes of one pixel."""
        analyzer = Analyzer()
        first, last = (at(index(lane))[-1] for lane in (0, lanes - 1))

        def divides(number: int) -> bool:
            return bool(analyzer.can_prove_equal(first % number, 0))

        one = analyzer.can_prove_equal(last - first, lanes - 1) or (
            dims(self.bits)[-1] * BYTE % lanes == 0 and divides(lanes)
        )
        return bool(one) and divides(BYTE) and dims(self.result)[-1] % BYTE == 0
