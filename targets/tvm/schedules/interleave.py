"""Planes of 8-bit numbers, side by side: (N, C, H, W) -> (N, H, 4 W), C up to 4.

The first convolution reads the C numbers of a pixel and as many zeros as make them four: one number of 32 bits, or of
64 where they are held in 16. So it is made, for many pixels at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import ir, s_tir, tirx

from dnc.targets.tvm.schedules.loops import Expr, Stmt, index, loop, parallel
from dnc.targets.tvm.schedules.rewriting import RULE
from dnc.targets.tvm.schedules.tiles import Channels

__all__ = ["interleave"]

_FOUR = 4
_LANES = 16
"""Pixels at once, on any processor: shorter vectors are LLVM's matter."""
_WORTH = 100_000
"""Pixels from which on threads are woken."""


def interleave(shape: Sequence[int], dtype: str) -> Any:
    """The function, as it runs: no other rule changes it."""
    count, planes, height, width = shape
    data = tirx.decl_buffer([index(side) for side in shape], dtype, name="data")
    result = tirx.decl_buffer([index(side) for side in (count, height, _FOUR * width)], dtype, name="result")
    pixels = Channels(width, min(_LANES, 1 << (width.bit_length() - 1)))
    bits = 8 * np.dtype(dtype).itemsize
    kind = f"int{_FOUR * bits}"

    def number(value: int) -> Expr:
        return tirx.Broadcast(tirx.const(value, kind), pixels.lanes)

    def row(place: Expr) -> Stmt:
        image, y = place // height, place % height

        def vector(place: Expr) -> Stmt:
            x = pixels.start(place)
            word = None
            for plane in range(planes):
                loaded = tirx.BufferLoad(data, [image, index(plane), y, tirx.Ramp(x, index(1), pixels.lanes)])
                unsigned = tirx.Cast(f"{kind}x{pixels.lanes}", loaded) & number((1 << bits) - 1)
                shifted = unsigned << number(bits * plane)
                word = shifted if word is None else word | shifted
            size = _FOUR * pixels.lanes
            four = tirx.reinterpret(f"{dtype}x{size}", word)
            return tirx.BufferStore(result, four, [image, y, tirx.Ramp(x * _FOUR, index(1), size)])

        return loop(pixels.vectors, vector)

    body = parallel(count * height, row, count * height * width >= _WORTH)
    root = s_tir.SBlock([], [], [], "root", body, alloc_buffers=[])
    attributes = {"tirx.noalias": True, "s_tir": True, "op_pattern": 8, RULE: "interleave"}
    attrs = ir.make_node("ir.DictAttrs", **attributes)
    return tirx.PrimFunc([data, result], s_tir.SBlockRealize([], True, root), attrs=attrs)
