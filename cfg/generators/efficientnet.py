"""EfficientNet b0 to b7 as published (arXiv:1905.11946): `efficientnet-bN-paper`.

Seven stages of inverted residual blocks with squeeze and excitation:

    expand 1x1, unless the ratio is 1 -> depthwise k x k -> squeeze to a quarter of the block's input -> project 1x1

with a shortcut where stride and channels allow. Widths are multiples of 8, repeats are rounded up. The layers stand in
the order of torchvision's and timm's state_dict, and have its shapes. `efficientnet_darknet` has what Darknet makes of
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from cfg.generators.text import Cfg, multiple_of_8

__all__ = ["PAPER", "SCALES", "STAGES", "Scale", "Stage", "networks"]

PAPER = (
    'M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946.'
)


class Stage(NamedTuple):
    """A row of the paper's table 1, at b0's width and depth."""

    repeats: int
    size: int
    stride: int
    expansion: int
    filters: int


class Scale(NamedTuple):
    """Scaling of one network from b0; `dropout` stands before the classifier."""

    width: float
    depth: float
    resolution: int
    dropout: float


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
SCALES = {
    "b0": Scale(1.0, 1.0, 224, 0.2),
    "b1": Scale(1.0, 1.1, 240, 0.2),
    "b2": Scale(1.1, 1.2, 260, 0.3),
    "b3": Scale(1.2, 1.4, 300, 0.3),
    "b4": Scale(1.4, 1.8, 380, 0.4),
    "b5": Scale(1.6, 2.2, 456, 0.4),
    "b6": Scale(1.8, 2.6, 528, 0.5),
    "b7": Scale(2.0, 3.1, 600, 0.5),
}

_NOTES = (
    PAPER,
    "The published network. efficientnet-{0}.cfg is Darknet's variant, with other strides and expansions. Made for "
    "weights from PyTorch: its layers are those of torchvision's and timm's efficientnet_{0}, in their order. "
    "Padding is symmetric, as there; TensorFlow's own weights expect SAME padding where the stride is 2.",
)


def networks() -> Iterator[Cfg]:
    """b0 to b7."""
    for name, scale in SCALES.items():
        yield _network(name, scale)


def _network(name: str, scale: Scale) -> Cfg:
    notes = tuple(note.format(name) for note in _NOTES)
    title = f"EfficientNet-{name.upper()} as published, ImageNet (1000 classes)."
    cfg = Cfg(f"efficientnet-{name}-paper", title, notes, scale.resolution, scale.resolution)
    filters = multiple_of_8(STEM * scale.width)
    cfg.convolution(filters, 3, 2, "swish")
    for number, stage in enumerate(STAGES, 1):
        for repeat in range(math.ceil(stage.repeats * scale.depth)):
            cfg.comment(f"stage {number}, block {repeat + 1}")
            filters = _block(cfg, stage, filters, multiple_of_8(stage.filters * scale.width), repeat)
    cfg.comment("head")
    cfg.convolution(multiple_of_8(HEAD * scale.width), 1, 1, "swish")
    cfg.classifier(scale.dropout)
    return cfg


def _block(cfg: Cfg, stage: Stage, filters: int, out: int, repeat: int) -> int:
    """Writes a block of a stage, from so many filters to `out`, which is returned."""
    start, stride, expanded = cfg.last, stage.stride if repeat == 0 else 1, filters * stage.expansion
    if stage.expansion > 1:
        cfg.convolution(expanded, 1, 1, "swish")
    cfg.convolution(expanded, stage.size, stride, "swish", groups=expanded)
    cfg.squeeze_excite(filters // 4, expanded, "swish")
    cfg.convolution(out)
    if stride == 1 and filters == out:
        cfg.shortcut(start)
    return out
