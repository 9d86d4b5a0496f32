"""Blocks of threads, and what they share, in TIR.

A kernel is a grid of blocks. Threads of a block have local buffers, which become registers, and shared ones. Between a
write to a shared buffer and a read of it by other threads TVM puts a barrier by itself (its pass ThreadSync), so none
is written; but nothing that differs between threads may stand around such a place. What it does not see, and how that
is kept in order, is in helpers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from dnc.targets.tvm.schedules.loops import Expr, Stmt, index, sequence

__all__ = ["kernel", "lanes_of", "narrow", "narrow_loop", "scoped", "when", "wide"]

_GRID = ("blockIdx.x", "blockIdx.y", "blockIdx.z")


def kernel(grid: Sequence[int], threads: int, body: Callable[[Sequence[Expr], Expr], Stmt]) -> Stmt:
    """A grid of up to three dims, and what the thread of a block does, whose numbers `body` is given."""
    blocks = [tirx.Var(f"block{place}", "int64") for place in range(len(grid))]
    thread = tirx.Var("thread", "int64")
    statement = _bound(thread, threads, "threadIdx.x", body(blocks, thread))
    for variable, extent, name in reversed(list(zip(blocks, grid, _GRID, strict=False))):
        statement = _bound(variable, extent, name, statement)
    return statement


def _bound(variable: Expr, extent: int, name: str, body: Stmt) -> Stmt:
    axis = tirx.IterVar(None, tirx.Var(name, "int64"), tirx.IterVar.ThreadIndex, name)
    return tirx.For(variable, index(0), index(extent), tirx.ForKind.THREAD_BINDING, body, axis)


def when(condition: Expr | None, statement: Stmt) -> Stmt:
    """The statement under a condition, if there is one."""
    return statement if condition is None else tirx.IfThenElse(condition, statement, None)


def narrow(value: Expr) -> Expr:
    """An index in 32 bits. TVM narrows what it can, which is nothing where numbers come from memory."""
    return tirx.Cast("int32", value)


def wide(value: Expr) -> Expr:
    """Widens an index again, as TVM wants it."""
    return tirx.Cast("int64", value)


def narrow_loop(extent: int, body: Callable[[Expr], Stmt], name: str) -> Stmt:
    """`for name in range(extent)`, counted in 32 bits."""
    if extent == 1:
        return body(tirx.IntImm("int32", 0))
    variable = tirx.Var(name, "int32")
    bounds = tirx.IntImm("int32", 0), tirx.IntImm("int32", extent)
    return tirx.For(variable, *bounds, tirx.ForKind.SERIAL, body(variable))


def scoped(buffers: Sequence[Expr], *statements: Stmt | None) -> Stmt:
    """Statements that use buffers of their own."""
    return sequence(*(tirx.AllocBuffer(buffer) for buffer in buffers), *statements)


def lanes_of(count: int, dtype: str, most: int = 16) -> int:
    """Number of neighbours that a thread handles at once, of `count` in a row: up to `most` bytes."""
    lanes = most // (2 if dtype == "float16" else 4)
    while count % lanes:
        lanes //= 2
    return lanes
