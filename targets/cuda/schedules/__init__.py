"""Schedules for GPUs: how each function runs on blocks of threads. Nothing is measured.

`apply` takes a Relax module after LegalizeOps, FuseOps and FuseTIR, its images (N, H, W, C) and its weights
(kh, kw, I, O), and gives it back with every function written anew:

    product         convolutions and connected layers, in tiles, by the ordinary units
    tensor-product  the same in float16, by the tensor cores
    mma-product     the same by mma.sync, which no GPU has run yet: see `Device.new`
    wgmma-product   the same by instructions of sm_90 alone, which no GPU has run yet either
    b1-product      convolutions of signs, as bits, by mma.sync; bits-product: by the ordinary units; both are new
    signs           what packs signs into words, lane by lane (new)
    int8-product    the same of 8-bit numbers, by mma.sync; no GPU has run it yet either, but only those have 8 bits
    tf32-product    the same in float32 rounded to TF32, where that is allowed
    depthwise       convolutions of single channels
    pool            windows of which the largest or the sum is taken
    reduction       sums and extremes along axes; convolutions and connected layers with a few pixels
    injective       everything that computes each element by itself
    squeeze         squeeze and excitation up to its numbers; depthwise-squeeze: and the convolution before (new)
    scaled          the same with a number for each channel, which is computed with it: squeeze and excitation
    dlight          what none of these knows, by the rules that come with TVM

The rules read the functions as those for CPUs do (dnc.targets.tvm.schedules); a convolution that reads its input
through a border of zeros reads the input itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.s_tir import dlight

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda.schedules.bits import bit_product, signs
from dnc.targets.cuda.schedules.depthwise import depthwise
from dnc.targets.cuda.schedules.injective import injective
from dnc.targets.cuda.schedules.integers import integer_product
from dnc.targets.cuda.schedules.joint import joined
from dnc.targets.cuda.schedules.reduction import reduction
from dnc.targets.cuda.schedules.scaled import scaled, unscaled
from dnc.targets.cuda.schedules.squeezing import squeezing
from dnc.targets.cuda.schedules.tensors import tensor_product
from dnc.targets.cuda.schedules.threads import bounded
from dnc.targets.cuda.schedules.tiled import scalar_product
from dnc.targets.tvm.schedules.dense import product
from dnc.targets.tvm.schedules.kernel import Kernel
from dnc.targets.tvm.schedules.loops import Expr
from dnc.targets.tvm.schedules.rewriting import Rule, packed, report, rewrite, written
from dnc.targets.tvm.schedules.stages import Segment, Stage, Unmatched, replaced
from dnc.targets.tvm.schedules.window import Window, match
from dnc.typing import Array

__all__ = ["apply", "report", "scheduled", "weights"]

_SCHEDULED = "tirx.is_scheduled"
"""The attribute that dlight goes by."""
_FEW = 8
"""Pixels below which there is nothing to tile."""


def apply(module: Any, device: Device, chosen: Mapping[str, int] | None = None) -> Any:
    """The module with every function scheduled. A CUDA target must be in scope.

    Args:
        chosen: ranks (`Device.rank`) of single functions, by their names.
    """
    own = {name: _rule(replace(device, rank=rank)) for name, rank in (chosen or {}).items()}
    module = rewrite(module, _rule(device), own=own, further=device.new)
    for name, rules in report(module).items():
        if rules != "view" and not rules.startswith("none"):
            module[name] = module[name].with_attr(_SCHEDULED, True)
    gpu = dlight.gpu
    others = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    return dlight.ApplyDefaultSchedule(*others)(relax.transform.RewriteDataflowReshape()(module))


def scheduled(module: Any, name: str, device: Device, rank: int) -> Any:
    """Writes a function of a module in the form of this rank, a tirx.PrimFunc; None if no rule matches it."""
    function = written(module, name, _rule(replace(device, rank=rank)), device.new)
    return None if function is None else function.with_attr(_SCHEDULED, True)


def weights(module: Any, name: str, device: Device, ranks: Sequence[int]) -> dict[int, dict[int, Array]]:
    """Small numbers for the parameters of a function that forms of some ranks want packed: the same ones for all forms,
    as each wants them, by rank and place."""
    forms = {rank: packed(module, name, _rule(replace(device, rank=rank)), device.new) for rank in ranks}
    given = {place: one.given for form in forms.values() for place, one in form.items()}
    arrays: dict[int, dict[int, Array]] = {rank: {} for rank in ranks}
    for place, buffer in given.items():
        generator, kind = np.random.default_rng(place), np.dtype(str(buffer.dtype))
        shape = [int(side) for side in buffer.shape]
        if kind == np.uint32:
            plain = generator.integers(0, 1 << 32, shape, np.uint32)
        else:
            plain = ((generator.random(shape, np.float32) - 0.5) * (0.2 if kind.kind == "f" else 200)).astype(kind)
        for rank, form in forms.items():
            arrays[rank][place] = form[place].pack(plain) if place in form else plain
    return arrays


def _rule(device: Device) -> Rule:
    def rule(segment: Segment, stages: Sequence[Stage]) -> Kernel:
        kernel = _kernel(segment, stages, device)
        return replace(kernel, body=bounded(kernel.body))

    return rule


def _kernel(segment: Segment, stages: Sequence[Stage], device: Device) -> Kernel:
    """Kernel that the first matching rule makes of a segment; raises Unmatched if no rule matches."""
    kernel = squeezing(segment, stages, device) if device.new else None
    if kernel is not None:
        return kernel
    window, bits = match(segment, stages) or product(segment), match(segment, stages, bits=True)
    if bits is not None and bits.weight is not None:
        many = math.prod(bits.output[:3]) >= _FEW
        kernel = bit_product(segment, bits, device) if many else _few(segment, bits, device)
    elif window is not None:
        kernel = _slide(segment, window, device) if not device.new else _joining(segment, window, stages, device)
    if kernel is not None:
        return kernel
    kernel = signs(segment) or scaled(segment, stages, device) or injective(segment)
    kernel = kernel or reduction(segment, device)
    if kernel is None:
        raise Unmatched(f"no rule for block {segment.anchor.name}")
    return kernel


def _slide(segment: Segment, window: Window, device: Device) -> Kernel | None:
    pixels = math.prod(window.output[:3])
    if window.weight is None and window.output[1:3] == (1, 1):
        # One window for the whole map: threads share its terms.
        return None
    kernel = depthwise(segment, window, device)
    if kernel is not None:
        return kernel
    if pixels >= _FEW:
        integers = integer_product(segment, window, device)
        if integers is not None:
            return integers
        return tensor_product(segment, window, device) or scalar_product(segment, window, device)
    return _few(segment, window, device)


def _few(segment: Segment, window: Window, device: Device) -> Kernel | None:
    """The kernel of a convolution with too few pixels to tile, that reads through its border; None without one."""
    if window.border is None:
        return None
    kernel = reduction(_through(segment, window.border), device)
    return None if kernel is None else replace(kernel, replaces=(window.border.buffer,))


def _joining(segment: Segment, window: Window, stages: Sequence[Stage], device: Device) -> Kernel | None:
    """`_scaling` of a convolution, which writes its results where a stage behind only puts them."""
    joint = joined(segment, stages)
    kernel = _scaling(joint or segment, window, stages, device)
    return kernel if joint is None or kernel is None else replace(kernel, replaces=(*kernel.replaces, *joint.left_out))


def _scaling(segment: Segment, window: Window, stages: Sequence[Stage], device: Device) -> Kernel | None:
    """`_slide` of a convolution, which computes what it reads as it brings that, if a stage before only scales it."""
    found = unscaled(window, stages)
    if found is not None and math.prod(window.output[:3]) >= _FEW:
        through, stage = found
        kernel = tensor_product(segment, through, device)
        if kernel is None and str(through.data.dtype) == "float32":
            kernel = scalar_product(segment, through, device)
        if kernel is not None:
            return replace(kernel, replaces=(*kernel.replaces, stage.buffer))
    return _slide(segment, window, device)


def _through(segment: Segment, border: Stage) -> Segment:
    """The segment with what a stage before it computes, where it reads that."""

    def load(read: Any) -> Expr:
        inside = read.source.same_as(border.buffer)
        return replaced(border.value, border.axes, read.indices) if inside else read

    anchor = replace(segment.anchor, value=replaced(segment.anchor.value, (), (), load))
    return Segment(anchor, segment.rest, segment.kept)
