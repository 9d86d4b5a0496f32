"""What must not stand in the CUDA C++ that TVM writes, because compilers take it, and GPUs compute something wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["checked", "kernels_in"]

_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\([^)]*\)\s*\{')
_ARRAY = re.compile(r"\b(\w+)\s*(?:\*\s*(?:__restrict__\s+)?(\w+)(?=[,)])|\s(\w+)\[\d+\];)")
_VECTOR = re.compile(r"\*\((\w+?)(\d?)\*\)\((\w+)")
_WIDE = ("longlong", "ulonglong", "long", "ulong", "double")
"""Of 8 bytes each: two of them are as much as a GPU moves at once."""


def kernels_in(source: str) -> Iterator[tuple[str, str]]:
    """The kernels of a source: their names, and their text from head to end."""
    heads = list(_KERNEL.finditer(source))
    for head, following in zip(heads, [*(head.start() for head in heads[1:]), len(source)], strict=True):
        yield head[1], source[head.start() : following]


def checked(source: str) -> str:
    """The source, in which no kernel

    1. reads or writes truths in memory as a vector: TVM takes a truth for one byte where it makes room for it, and for
       two in a vector;
    2. reads or writes more than 16 bytes at once.

    Raises:
        RuntimeError: one does, which is a fault of the rule that wrote it.
    """
    for name, text in kernels_in(source):
        held = {parameter or local: kind for kind, parameter, local in _ARRAY.findall(text)}
        for kind, lanes, array in _VECTOR.findall(text):
            if held.get(array) == "bool" and kind + lanes != "bool":
                raise RuntimeError(f"kernel {name} takes truths of {array} for {kind}{lanes}")
            if kind in _WIDE and int(lanes or 1) > 2:
                raise RuntimeError(f"kernel {name} takes more than 16 bytes of {array} at once, as {kind}{lanes}")
    return source
