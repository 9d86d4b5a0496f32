"""MixNet S, M and L (arXiv:1907.09595): depthwise convolutions whose channels are split among kernels of several sizes.

    expand 1x1 -> [part 1: 3x3, part 2: 5x5, ...] -> squeeze and excitation -> project 1x1

Darknet splits with [route] groups= and group_id= and joins with a [route]. Where the paper splits the 1x1 convolutions
in two as well, they have groups=2. L is M with 1.3 times the width. S, L and `mixnet-m-paper` have the shapes of timm's
models, in their order; there the halves of such a 1x1 convolution are two tensors, and the parts of a mixed convolution
share one batch normalisation.

AlexeyAB's mixnet_m.cfg, of 253 layers and 0.759 BFLOPs, is another network, as the table shows that Darknet prints of
it: a block squeezes to a half or a quarter of its expanded filters. `mixnet-m` has that, a 1x1 convolution before the
first depthwise one, and no groups in the expansions up to the first squeeze; these two are inferred from the number of
layers and the BFLOPs. `mixnet-m-gpu` has fewer groups in the mixed convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cfg.generators.text import Cfg, multiple_of_8

__all__ = ["networks"]

_PAPER = 'M. Tan, Q. V. Le, "MixConv: Mixed Depthwise Convolutional Kernels", arXiv:1907.09595.'
_TORCH = "Padding is symmetric, as in PyTorch; TensorFlow's own weights expect SAME padding where the stride is 2."
_DARKNET = (
    "Darknet's variant: squeeze and excitation goes down to a part of the expanded filters, not of the block's input. "
    "Inferred from what Darknet prints of its mixnet_m: weights of that need not fit. "
    "mixnet-m-paper.cfg is the published network."
)
_HEAD = 1536


class _Blocks(NamedTuple):
    """Equal blocks, of which only the first has the stride."""

    repeats: int
    sizes: tuple[int, ...]
    stride: int
    expansion: int
    filters: int
    squeeze: float = 0.0
    """Squeezed channels over those of the block's input; 0 for none, and then relu in place of swish."""
    expand_groups: int = 1
    project_groups: int = 1


_S = (
    _Blocks(1, (3,), 1, 1, 16),
    _Blocks(1, (3,), 2, 6, 24, 0, 2, 2),
    _Blocks(1, (3,), 1, 3, 24, 0, 2, 2),
    _Blocks(1, (3, 5, 7), 2, 6, 40, 0.5),
    _Blocks(3, (3, 5), 1, 6, 40, 0.5, 2, 2),
    _Blocks(1, (3, 5, 7), 2, 6, 80, 0.25, 1, 2),
    _Blocks(2, (3, 5), 1, 6, 80, 0.25, 1, 2),
    _Blocks(1, (3, 5, 7), 1, 6, 120, 0.5, 2, 2),
    _Blocks(2, (3, 5, 7, 9), 1, 3, 120, 0.5, 2, 2),
    _Blocks(1, (3, 5, 7, 9, 11), 2, 6, 200, 0.5),
    _Blocks(2, (3, 5, 7, 9), 1, 6, 200, 0.5, 1, 2),
)
_M = (
    _Blocks(1, (3,), 1, 1, 24),
    _Blocks(1, (3, 5, 7), 2, 6, 32, 0, 2, 2),
    _Blocks(1, (3,), 1, 3, 32, 0, 2, 2),
    _Blocks(1, (3, 5, 7, 9), 2, 6, 40, 0.5),
    _Blocks(3, (3, 5), 1, 6, 40, 0.5, 2, 2),
    _Blocks(1, (3, 5, 7), 2, 6, 80, 0.25),
    _Blocks(3, (3, 5, 7, 9), 1, 6, 80, 0.25, 2, 2),
    _Blocks(1, (3,), 1, 6, 120, 0.5),
    _Blocks(3, (3, 5, 7, 9), 1, 3, 120, 0.5, 2, 2),
    _Blocks(1, (3, 5, 7, 9), 2, 6, 200, 0.5),
    _Blocks(3, (3, 5, 7, 9), 1, 6, 200, 0.5, 1, 2),
)

_DARKNET_M = tuple(blocks if blocks.squeeze else blocks._replace(expand_groups=1) for blocks in _M)
_GPU_CHANNELS = 3


def networks() -> Iterator[Cfg]:
    """S, M and L as published, and Darknet's M and M for GPUs."""
    yield _network("s", _S, 16, 0.2, _TORCH)
    yield _network("m-paper", _M, 24, 0.25, f"{_TORCH} mixnet-m.cfg is Darknet's variant.")
    large = tuple(blocks._replace(filters=multiple_of_8(1.3 * blocks.filters)) for blocks in _M)
    yield _network("l", large, multiple_of_8(1.3 * 24), 0.25, _TORCH)
    yield _network("m", _DARKNET_M, 24, 0.25, _DARKNET, darknet=True)
    note = f"{_DARKNET} For GPUs: fewer groups, of {_GPU_CHANNELS} channels each, in the mixed convolutions."
    yield _network("m-gpu", _DARKNET_M, 24, 0.25, note, darknet=True, channels=_GPU_CHANNELS)


def _network(
    name: str,
    table: tuple[_Blocks, ...],
    stem: int,
    dropout: float,
    note: str,
    *,
    darknet: bool = False,
    channels: int = 1,
) -> Cfg:
    """A network; `channels` is how many each group of a mixed convolution has."""
    kind = " as Darknet has it" + (", for GPUs" if channels > 1 else "") if darknet else ""
    title = f"MixNet-{name[0].upper()}{kind}, ImageNet (1000 classes)."
    cfg = Cfg(f"mixnet-{name}", title, (_PAPER, note), 224, 224)
    filters = stem
    cfg.convolution(filters, 3, 2, "relu")
    for number, blocks in enumerate(table, 1):
        for repeat in range(blocks.repeats):
            cfg.comment(f"stage {number}, block {repeat + 1}")
            start, stride = cfg.last, blocks.stride if repeat == 0 else 1
            expanded, activation = filters * blocks.expansion, "swish" if blocks.squeeze else "relu"
            if blocks.expansion > 1 or darknet:
                cfg.convolution(expanded, 1, 1, activation, groups=blocks.expand_groups)
            _mixed(cfg, expanded, blocks.sizes, stride, activation, channels)
            if blocks.squeeze:
                cfg.squeeze_excite(int((expanded if darknet else filters) * blocks.squeeze), expanded, activation)
            cfg.convolution(blocks.filters, groups=blocks.project_groups)
            if stride == 1 and filters == blocks.filters:
                cfg.shortcut(start)
            filters = blocks.filters
    cfg.comment("head")
    cfg.convolution(_HEAD, 1, 1, "relu")
    cfg.classifier(dropout)
    return cfg


def _mixed(cfg: Cfg, filters: int, sizes: tuple[int, ...], stride: int, activation: str, channels: int) -> None:
    """A depthwise convolution with kernels of these sizes; one of a single size stays depthwise in any case."""
    if len(sizes) == 1:
        cfg.convolution(filters, sizes[0], stride, activation, groups=filters)
        return
    source, part, parts = cfg.last, filters // len(sizes), []
    if part % channels:
        channels += 1
    for number, size in enumerate(sizes):
        cfg.route(source, groups=len(sizes), group_id=number)
        parts.append(cfg.convolution(part, size, stride, activation, groups=part // channels))
    cfg.route(*parts)
