"""Sums of products as the processor adds them up: `sum[o] += data[i] * weight[i, o]` for a vector of channels o.

    Dot             one product at a time, in the type of the sums: float32, or whatever is cast to it
    Dot.of          several at a time, where the processor has instructions:

        vpdpbusd    AVX512-VNNI, AVX-VNNI: four of 8-bit numbers, unsigned data and signed weights
        vpmaddwd    other x86: two of 8-bit numbers, held in 16 bits; vpaddd adds them to the sums
        sdot        aarch64's dotprod: four of 8-bit numbers, both signed
        vdpbf16ps   AVX512-BF16: two of bfloat16, held as uint16

Those of x86 are there for vectors of 128, 256 and 512 bits. Such an instruction takes neighbouring inputs as one number
of 32 bits, which is the same for all lanes, and the weights of each channel as another. Sums of integers are int32 and
exact: no product and no sum of several is rounded or cut.

All x86 has vpmaddubsw as well, for four products of 8-bit numbers, but it cuts sums of two off at 16 bits. What keeps
them within these, to multiply the amounts of signed numbers by weights that take their signs (vpsignb), takes as many
instructions as vpmaddwd and more registers: benchmarks/tvm.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from tvm import ir, tirx

from dnc.targets.tvm.schedules.loops import Expr, Stmt, index, vector
from dnc.targets.tvm.schedules.machine import Machine
from dnc.typing import Array

__all__ = ["Dot"]

_KINDS = {
    ("int32", "int8", "uint8"): 4,
    ("int32", "int8", "int8"): 4,
    ("int32", "int8", "int16"): 2,
    ("float32", "uint16", "uint16"): 2,
}
"""How many are multiplied at once, by the types of sums, weights and data."""
_TWO = """
declare <{lanes} x float> @{name}(<{lanes} x float>, <{both} x bfloat>, <{both} x bfloat>)

define <{lanes} x float> @dnc_pairs_{lanes}(
    <{lanes} x float> %sum, <{lanes} x i32> %a, <{lanes} x i32> %b) alwaysinline {{
  %x = bitcast <{lanes} x i32> %a to <{both} x bfloat>
  %y = bitcast <{lanes} x i32> %b to <{both} x bfloat>
  %result = call <{lanes} x float> @{name}(<{lanes} x float> %sum, <{both} x bfloat> %x, <{both} x bfloat> %y)
  ret <{lanes} x float> %result
}}
"""
"""For LLVM: TVM has no bfloat16 left when it calls intrinsics."""


@dataclass(frozen=True)
class Dot:
    """Way to add products up; here, one after the other."""

    dtype: str
    """Of the sums."""
    stored: str
    """Of the weights, as they are packed."""
    group: int = 1
    """How many neighbouring inputs are multiplied at once."""
    spare: ClassVar[int] = 0
    """Registers that it needs for itself."""

    @classmethod
    def of(cls, data: Any, weight: Any, dtype: str, inputs: int, lanes: int, machine: Machine) -> Dot:
        """The best way on a machine.

        Args:
            data, weight: what is multiplied, buffers.
            dtype: the type of the sums.
            inputs: how many numbers of the data lie one after the other, channels of a group.
            lanes: of the vectors of sums.
        """
        kind, held = str(weight.dtype), str(data.dtype)
        group = _KINDS.get((dtype, kind, held), 1)
        name = machine.dots.get((held, lanes), "") if group > 1 and inputs % group == 0 else ""
        if not name:
            return cls(dtype, kind)
        return _WAYS.get(held, _Fours)(dtype, "int32", group, name)

    def around(self, body: Stmt, lanes: int) -> Stmt:
        """The loops in which it is used."""
        return body

    def joined(self, rows: Array) -> Array:
        """Weights (K, O) as (K / group, O), so that what is multiplied at once is one number."""
        return rows

    def add(self, sums: Any, first: Expr, lanes: int, number: Expr, weight: Any, offset: Expr) -> Stmt:
        """`sums[first ...] += number * weight[offset ...]`, for `lanes` channels."""
        return vector(lanes, partial(self._lane, sums, first, self._cast(number), weight, offset))

    def number(self, data: Any, at: Sequence[Expr]) -> Expr:
        """Data from a place on, with which `add` multiplies the weights."""
        return tirx.BufferLoad(data, list(at))

    def _lane(self, sums: Any, first: Expr, number: Expr, weight: Any, offset: Expr, lane: Expr) -> Stmt:
        held = tirx.BufferLoad(sums, [first + lane])
        product = number * self._cast(tirx.BufferLoad(weight, [offset + lane]))
        return tirx.BufferStore(sums, held + product, [first + lane])

    def _cast(self, value: Expr) -> Expr:
        kind = str(value.ty)
        if kind == "uint16":
            return tirx.reinterpret(self.dtype, tirx.Cast("uint32", value) << tirx.const(16, "uint32"))
        return value if kind == self.dtype else tirx.Cast(self.dtype, value)


@dataclass(frozen=True)
class _Several(Dot):
    """Products of neighbours, which are one number of 32 bits."""

    instruction: str = ""
    """LLVM's intrinsic."""

    def joined(self, rows: Array) -> Array:
        """As int32, the first in the lowest bits."""
        count, outputs = rows.shape
        wide = rows.astype(f"<i{4 // self.group}", copy=False)
        several = wide.reshape(count // self.group, self.group, outputs).transpose(0, 2, 1)
        return np.ascontiguousarray(several).view("<i4").reshape(-1, outputs)

    def number(self, data: Any, at: Sequence[Expr]) -> Expr:
        *outer, last = at
        return tirx.reinterpret("int32", tirx.BufferLoad(data, [*outer, tirx.Ramp(last, index(1), self.group)]))

    def add(self, sums: Any, first: Expr, lanes: int, number: Expr, weight: Any, offset: Expr) -> Stmt:
        place = [tirx.Ramp(first, index(1), lanes)]
        weights = tirx.BufferLoad(weight, [tirx.Ramp(offset, index(1), lanes)])
        held = tirx.BufferLoad(sums, place)
        return tirx.BufferStore(sums, self._call(lanes, held, tirx.Broadcast(number, lanes), weights), place)

    def _call(self, lanes: int, held: Expr, numbers: Expr, weights: Expr) -> Expr:
        raise NotImplementedError


@dataclass(frozen=True)
class _Fours(_Several):
    """Products of 8-bit numbers."""

    def _call(self, lanes: int, held: Expr, numbers: Expr, weights: Expr) -> Expr:
        given = [tirx.reinterpret(f"int8x{4 * lanes}", value) for value in (numbers, weights)]
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", self.instruction, held, *given)


@dataclass(frozen=True)
class _Twos(_Several):
    """Products of 8-bit numbers that are held in 16 bits."""

    spare: ClassVar[int] = 1
    """For the products, before they are added."""

    def _call(self, lanes: int, held: Expr, numbers: Expr, weights: Expr) -> Expr:
        given = [tirx.reinterpret(f"int16x{2 * lanes}", value) for value in (numbers, weights)]
        return held + tirx.call_llvm_pure_intrin(f"int32x{lanes}", self.instruction, *given)


@dataclass(frozen=True)
class _Pairs(_Several):
    """Products of bfloat16."""

    def around(self, body: Stmt, lanes: int) -> Stmt:
        """Adds the function that has the instruction."""
        text = ir.StringImm(_TWO.format(lanes=lanes, both=2 * lanes, name=self.instruction))
        return tirx.AttrStmt(index(0), "pragma_import_llvm", text, body)

    def _call(self, lanes: int, held: Expr, numbers: Expr, weights: Expr) -> Expr:
        return tirx.call_pure_extern(f"float32x{lanes}", f"dnc_pairs_{lanes}", held, numbers, weights)


_WAYS: Mapping[str, type[_Several]] = {"int16": _Twos, "uint16": _Pairs}
"""By the type of the data; _Fours are all others."""
