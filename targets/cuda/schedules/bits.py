"""Convolutions of signs with signs, as words of 32 bits (`dnc.targets.tvm.emit.binary`): how many bits differ is
counted by the tensor cores, or by the ordinary units; and what makes the words. No GPU has run such kernels yet.

Of the tensor cores' products of bits, Turing to Ada have the one that this is, exclusive or; Hopper has another, and
takes two and some logic for it; on later GPUs NVIDIA's compilers make products of 8-bit numbers of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tvm import tirx

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.forms import Kind, forms_of, ranked
from dnc.targets.cuda.schedules.helpers import ballot
from dnc.targets.cuda.schedules.integers import Pairs, pair_tiles
from dnc.targets.cuda.schedules.mma import MMA_RATE
from dnc.targets.cuda.schedules.threads import kernel, scoped, when
from dnc.targets.cuda.schedules.tiled import SCALAR_TILES, Scalar
from dnc.targets.tvm.schedules.injective import unflattened
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr, Stmt, allocate, index, sequence, unrolled
from dnc.targets.tvm.schedules.stages import Segment, dims, replaced
from dnc.targets.tvm.schedules.window import Window

__all__ = ["BIT_TILES", "bit_product", "signs"]

_WARP = 32
_THREADS = 256
_EACH = 8
"""Words of a warp."""
_RATE = 14.0
"""Words of a multiprocessor in a cycle: a guess. It counts the bits of 16, and has to do other things as well."""
_TENSOR_RATE = MMA_RATE / 2
"""The same of the tensor cores, a guess as well: as many bytes as of halves."""
BIT_TILES = tuple(replace(tile, depth=depth) for tile in SCALAR_TILES if tile.depth == 16 for depth in (8, 4))
"""Less in a step than of numbers: a word takes as long as many of these, and some windows have few."""


class _Counting(Scalar):
    name = "bits-product"
    multiplied = added = "uint32"

    @staticmethod
    def term(left: Expr, right: Expr) -> Expr:
        return tirx.popcount(left ^ right)


class _Tensor(Pairs):
    name = "b1-product"
    added = "uint32"


def bit_product(segment: Segment, window: Window, device: Device) -> Kernel:
    """The kernel of a convolution of bits."""
    forms = forms_of(window, pair_tiles(window, device), _TENSOR_RATE, device)
    tensor = Kind(lambda form: _Tensor(segment, window, form, device).kernel(), forms, new=True)
    forms = forms_of(window, BIT_TILES, _RATE, device)
    counting = Kind(lambda form: _Counting(segment, window, form, device).kernel(), forms, new=True)
    kind, form = ranked([tensor, counting], device)
    return kind.write(form)


def signs(segment: Segment) -> Kernel | None:
    """The kernel of what packs truths into words, lane by lane of a warp; None for others."""
    stage = segment.anchor
    if segment.rest or not stage.straight or sum(stage.reduced) != 1 or not isinstance(stage.value, tirx.Add):
        return None
    axis = next(axis for axis, reduced in zip(stage.axes, stage.reduced, strict=True) if reduced)
    shifted = stage.value.b
    if str(stage.buffer.dtype) != "uint32" or not isinstance(shifted, tirx.LShift):
        return None
    truth, place = shifted.a, shifted.b
    if not isinstance(truth, tirx.Cast) or not isinstance(place, tirx.Cast) or not place.value.same_as(axis):
        return None
    if str(truth.value.ty.dtype) != "bool" or stage.extents[stage.reduced.index(True)] != _WARP:
        return None
    shape, axes = dims(stage.buffer), [other for other in stage.axes if not other.same_as(axis)]
    total, words = math.prod(shape), _EACH * (_THREADS // _WARP)
    ragged = total % words > 0

    def block(blocks: Sequence[Expr], thread: Expr) -> Stmt:
        lane = thread % _WARP
        first = (blocks[0] * (_THREADS // _WARP) + thread // _WARP) * _EACH
        voted, word = allocate([1], "uint32", "voted"), allocate([1], "uint32", "word")

        def vote(turn: Expr) -> Stmt:
            at = [*unflattened(first + turn, shape), lane]
            positive = replaced(truth.value, [*axes, axis], at)
            if ragged:
                positive = tirx.if_then_else(first + turn < total, positive, tirx.const(False, "bool"))
            keep = tirx.BufferStore(word, tirx.BufferLoad(voted, [index(0)]), [index(0)])
            return sequence(tirx.BufferStore(voted, ballot(positive), [index(0)]), when(lane.equal(turn), keep))

        number = first + lane
        inside = tirx.all(lane < _EACH, number < total) if ragged else lane < _EACH
        put = tirx.BufferStore(stage.buffer, tirx.BufferLoad(word, [index(0)]), unflattened(number, shape))
        return scoped([voted, word], unrolled(_EACH, vote), when(inside, put))

    return Kernel("signs", kernel([-(-total // words)], _THREADS, block))
