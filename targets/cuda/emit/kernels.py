"""Kernels that are CUDA C++ as a whole, and have no loops for a schedule to write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.backend.cuda.op import cuda_func_call

from dnc.targets.cuda.schedules.threads import kernel
from dnc.targets.tvm.schedules.loops import Expr, index
from dnc.targets.tvm.schedules.rewriting import RULE

__all__ = ["buffer", "real", "source", "whole", "whole_number"]

_OPAQUE = 8
"""For AnnotateTIROpPattern: not to be fused."""


def source(name: str) -> str:
    """The functions of a file beside this one."""
    return "\n" + Path(__file__).with_name(f"{name}.cuh").read_text(encoding="utf-8")


def buffer(name: str, shape: Sequence[int | Expr], dtype: str = "float32") -> Any:
    """A parameter of a function."""
    return tirx.decl_buffer([index(side) for side in shape], dtype, name)


def whole_number(value: int | Expr) -> Expr:
    """An argument of type int."""
    return tirx.Cast("int32", index(value))


def real(value: float, dtype: str = "float32") -> Expr:
    """An argument of type float, or double."""
    return tirx.const(value, dtype)


def whole(
    name: str, text: str, parameters: Sequence[Any], given: Sequence[Any], grid: Sequence[int], threads: int, rule: str
) -> Any:
    """The tirx.PrimFunc whose blocks of threads each call one function.

    Args:
        name: of the function, with its template's arguments.
        text: where it is written.
        parameters: buffers, the last of which it writes.
        given: its arguments: buffers, for pointers to their first elements, and numbers.
        rule: what a report says.
    """
    buffers = tuple(parameters)

    def argument(value: Any) -> Expr:
        if any(value is parameter for parameter in buffers):
            return tirx.address_of(tirx.BufferLoad(value, [index(0)] * len(value.shape)))
        return value

    call = tirx.Evaluate(cuda_func_call(name, *map(argument, given), source_code=text, return_type="void"))
    body = kernel(grid, threads, lambda *_: call)
    root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
    attributes = {"tirx.noalias": True, "s_tir": True, "op_pattern": _OPAQUE, RULE: rule}
    return tirx.PrimFunc(list(buffers), root, attrs=tvm.ir.make_node("ir.DictAttrs", **attributes))
