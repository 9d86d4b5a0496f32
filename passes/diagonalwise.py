"""Depthwise convolutions as grouped ones with block-diagonal weights (arXiv 1803.09926).

A depthwise convolution of C channels, m outputs each, becomes one of C / width groups, in which every output has a
weight for each of `width` channels, of which one is not zero:

    W'[i, (i // m) mod width] = W[i, 0],    W (C * m, 1, k, k) -> W' (C * m, width, k, k)

That is `width` times the arithmetic, in matrix products that an engine may run faster than its depthwise kernels. In
2018 cuDNN had none worth the name, and this was the way to run MobileNets on GPUs. On an H200, cuDNN 9.19's own
depthwise kernels win in 86 of 86 layers of EfficientNet-B0 and enet-coco, by 1.03 to 2 times in float16 and 3.5 to 8
times in float32, and dnc's own kernels and all CPUs that were tried say the same (benchmarks/passes.md). So no target
does it by itself: it is there for engines without such kernels, on request, and --autotune measures it.

1. `width` "all", or None: all channels in one group.
2. `width` divides C, or is larger: blocks of min(width, C).
3. Else blocks of the largest divisor of C that is below `width`, as long as that is at least 4: narrower ones are no
   matrix product worth the name, and the layer is refused. `width` itself may be 2 or 3.

An Inf or NaN in one channel reaches the others of its block. Refuses weights that are computed or would become larger
than `block_diagonal.LIMIT`. Comes after `grouped-to-dense`, which would merge the blocks further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from dnc.errors import PassError
from dnc.graph.rewriting import Remarks
from dnc.passes import Pass, passes
from dnc.passes.shared.block_diagonal import channels_of, chosen, groups_of, merge_groups
from dnc.runtime.options import Option

_NARROWEST = 4
"""The least width that is taken in place of the one that was asked for."""


def _width(text: str) -> int | None:
    if text != "all" and (not text.isdecimal() or int(text) < 2):
        raise ValueError("a number from 2 on, or all")
    return None if text == "all" else int(text)


@passes.register
class Diagonalwise(Pass):
    """Depthwise Conv -> Conv of fewer groups, block-diagonal weights.

    Args:
        only: the width for each of these nodes, by name; no other node is rewritten then, and `width` is not used.

    Raises:
        PassError: a width is below 2, which would rewrite nothing.
    """

    name: ClassVar[str] = "diagonalwise"
    tolerance: ClassVar[float] = 1e-5
    """The products are the same, but are summed in the order of another kernel: some 1e-7 a layer, which depth adds
    up. Trained networks of 18 to 28 depthwise layers change by 3e-6."""

    applies_to: ClassVar[str] = "depthwise Conv"
    known_options: ClassVar[Sequence[Option]] = (Option("width", "32", "the channels of a block, or all", _width),)
    needs: ClassVar[str] = "depthwise convolution"

    def __init__(self, *, only: Mapping[str, int | None] | None = None, **values: Any) -> None:
        super().__init__(**values)
        self.only = only
        for width in (self.options["width"], *(only or {}).values()):
            if width is not None and width < 2:
                raise PassError(f"width={width} must be at least 2", hint="8, 16, 32, 64, or all")

    def rewrite(self, model: ir.Model) -> Remarks:
        remarks = Remarks()
        for node in chosen(model, self.only):
            channels = channels_of(node) if node.op_type == "Conv" else 0
            if not 1 < groups_of(node) == channels:
                if self.only is not None:
                    remarks.miss(node, "no depthwise convolution")
                continue
            wanted = self.options["width"] if self.only is None else self.only[node.name or ""]
            width = _block(channels, wanted)
            if not width:
                least = min(wanted or 0, _NARROWEST)
                remarks.miss(node, f"{channels} channels have no divisor from {least} to {wanted}")
            else:
                groups = channels // width
                what = f"blocks of {width} channels: {channels} groups -> {groups}"
                remarks.tell(node, what, merge_groups(node, groups, model.graph))
        return remarks


def _block(channels: int, wanted: int | None) -> int:
    """The width of the blocks; 0 if there is none."""
    if wanted is None or wanted >= channels:
        return channels
    width = next(width for width in range(wanted, 0, -1) if channels % width == 0)
    return width if width >= min(wanted, _NARROWEST) else 0
