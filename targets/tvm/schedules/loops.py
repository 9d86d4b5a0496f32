"""Loops and statements of TIR, written short.

All indices are int64, as TVM's legalization makes them: one expression must not mix widths. TVM narrows them later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import tirx

__all__ = [
    "STACK",
    "Expr",
    "Stmt",
    "allocate",
    "constant",
    "fetch",
    "index",
    "loop",
    "parallel",
    "sequence",
    "unrolled",
    "vector",
]

Expr = Any
Stmt = Any

STACK = "global"
"""The scope of buffers that LLVM is to keep in registers: only of this one TVM puts buffers under 1024 bytes on the
stack; others, `local` ones too, it takes from the heap."""


def index(value: int | Expr) -> Expr:
    """A number as an index."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def constant(value: float, dtype: str) -> Expr:
    """A number of a given type."""
    return tirx.const(value, dtype)


def sequence(*statements: Stmt | None) -> Stmt:
    """Puts one statement after the other; None is left out, and of nothing else comes one that does nothing."""
    given = [statement for statement in statements if statement is not None] or [tirx.Evaluate(index(0))]
    return given[0] if len(given) == 1 else tirx.SeqStmt(given)


def loop(
    extent: int | Expr,
    body: Callable[[Expr], Stmt],
    kind: Any = tirx.ForKind.SERIAL,
    start: int | Expr = 0,
    name: str = "i",
) -> Stmt:
    """`for i in range(start, start + extent)`; none where the extent is 1."""
    if isinstance(extent, int) and extent == 1:
        return body(index(start))
    variable = tirx.Var(name, "int64")
    return tirx.For(variable, index(start), index(extent), kind, body(variable))


def unrolled(extent: int, body: Callable[[Expr], Stmt], start: int = 0) -> Stmt:
    """A loop that becomes one statement for each turn."""
    return loop(extent, body, tirx.ForKind.UNROLLED, start, "u")


def vector(lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop that becomes one instruction."""
    return loop(lanes, body, tirx.ForKind.VECTORIZED, name="lane")


def parallel(extent: int, body: Callable[[Expr], Stmt], worth: bool) -> Stmt:
    """A loop whose turns are shared among the threads, each taking a run of them, if that is worth waking them."""
    return loop(extent, body, tirx.ForKind.PARALLEL if worth else tirx.ForKind.SERIAL, name="task")


def allocate(shape: Sequence[int], dtype: str, name: str, scope: str = "local") -> Expr:
    """A buffer, whose tirx.AllocBuffer the caller puts before its first use."""
    return tvm.tirx.decl_buffer([index(side) for side in shape], dtype, name=name, scope=scope)


def fetch(buffer: Any, at: Sequence[Expr], written: bool = False) -> Stmt:
    """Asks for the cache line of an element, which may lie behind the end: what is read or written there soon."""
    address = tirx.address_of(tirx.BufferLoad(buffer, list(at)))
    numbers = [tirx.IntImm("int32", number) for number in (int(written), _NEAREST, _DATA)]
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *numbers))


_NEAREST, _DATA = 3, 1
"""As LLVM numbers them: the nearest of the caches, that of data."""
