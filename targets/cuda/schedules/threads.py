"""Blocks of threads, and what they share, in TIR.

A kernel is a grid of blocks. Threads of a block have local buffers, which become registers, and shared ones. Between a
write to a shared buffer and a read of it by other threads TVM puts a barrier by itself (its pass ThreadSync), so none
is written; but nothing that differs between threads may stand around such a place. What it does not see, and how that
is kept in order, is in helpers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from dnc.targets.tvm.schedules.loops import Expr, Stmt, index, sequence, unrolled, vector

__all__ = ["bounded", "kernel", "lanes_of", "narrow", "narrow_loop", "scoped", "when", "wide"]

_GRID = ("blockIdx.x", "blockIdx.y", "blockIdx.z")
_LANES = {"int8": 16, "float16": 8, "bfloat16": 8, "int64": 2, "uint64": 2, "float64": 2, "bool": 1}
"""Lanes of the widest vector of a type that TVM writes for CUDA as one of CUDA's, of 16 bytes at most. Of truths there
is none: TVM writes four of them to memory as four numbers of 16 bits."""
_USUAL_LANES = 4
_NOT_OF_BYTES = (2, 3)
"""Lanes of which TVM has no vector of 8-bit numbers."""


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


def bounded(statement: Stmt) -> Stmt:
    """A statement whose vectors have no more lanes than CUDA has for each type that takes part: longer ones become
    several."""

    def split(node: Any) -> Stmt:
        if node.kind != tirx.ForKind.VECTORIZED or not isinstance(node.extent, tirx.IntImm):
            return node
        count, dtypes = int(node.extent), _dtypes(node.body)
        lanes = min(count, *(_LANES.get(dtype, _USUAL_LANES) for dtype in dtypes))
        while count % lanes or (lanes in _NOT_OF_BYTES and "int8" in dtypes):
            lanes -= 1
        if lanes == count:
            return node

        def at(lane: Expr) -> Stmt:
            return tvm_ffi.structural_map(
                node.body, [(tirx.Var, lambda variable: lane if variable.same_as(node.loop_var) else variable)]
            )

        if lanes == 1:
            return unrolled(count, at)
        return unrolled(count // lanes, lambda turn: vector(lanes, lambda lane: at(turn * lanes + lane)))

    return tvm_ffi.structural_map(statement, [(tirx.For, split)], order="post")


def _dtypes(statement: Stmt) -> set[str]:
    """The types of the numbers that a statement stores, and of those that it computes them from."""
    found: set[str] = set()

    def load(node: Any) -> Any:
        found.add(str(node.ty.dtype))
        # What an index is computed in does not count.
        return tvm_ffi.WalkResult.SKIP

    def store(node: Any) -> None:
        found.add(str(node.buffer.dtype))
        # Truths become int64 where they choose, which CUDA has four of in registers, not in memory.
        cast = (tirx.Cast, lambda cast: found.add(str(cast.ty.dtype).replace("int64", "int32")))
        tvm_ffi.structural_walk(node.value, [(ir.TensorLoad, load), cast], order="pre")

    tvm_ffi.structural_walk(statement, (tirx.BufferStore, store))
    return found


def lanes_of(count: int, dtype: str, most: int = 16) -> int:
    """Number of neighbours that a thread handles at once, of `count` in a row: up to `most` bytes."""
    lanes = most // (2 if dtype == "float16" else 4)
    while count % lanes:
        lanes //= 2
    return lanes
