"""EfficientNet as Darknet has it: `efficientnet-bN`, its XNOR and dense variants, and the detector `enet-coco`.

AlexeyAB's efficientnet_b0.cfg was made from his MobileNetV2. It has EfficientNet's output channels, repeats and
kernels, and MobileNetV2's strides and expansions:

1. strides 1, 2, 2, 1, 2, 2, 1: the fourth stage keeps the size, the fifth halves it (published: the other way round);
2. blocks expand to six times the width that MobileNetV2 has there, not six times their own input, and the first stage
   expands 1:1 with a 1x1 convolution (published: with none);
3. squeeze and excitation goes down to about a sixteenth of the expanded filters;
4. dropout before each shortcut.

Scaled by width and depth as published, that gives the figures Darknet prints: b0 0.915 BFLOPs at 224 and 4.9 million
parameters, b3 3.5 at 288 and 4.3 at 320, b4 10.2 at 384.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from cfg.generators.efficientnet import HEAD, PAPER, SCALES, STAGES, STEM, Scale
from cfg.generators.text import Cfg, multiple_of_8
from cfg.generators.yolov3_tiny_prn import heads

__all__ = ["networks"]

_STRIDES = (1, 2, 2, 1, 2, 2, 1)
_EXPANDED = ((0, 0), (96, 144), (144, 192), (192, 384), (384, 576), (576, 960), (960, 960))
"""Of each stage's first block and of the others, at b0's width; 0 is as many as the block's input has."""
_SQUEEZED = {0: 8, 96: 16, 144: 8, 192: 16, 384: 24, 576: 32, 960: 64}
"""What each of these is squeezed to, at b0's width."""

_SIZES = {"b3-288": ("b3", 288), "b3-320": ("b3", 320), "b4-384": ("b4", 384)}
"""Sizes at which Darknet's users run them, beside the published ones."""

_VARIANT = (
    "Darknet's variant: the published output channels, repeats and kernels with MobileNetV2's strides and expansions. "
    "efficientnet-{0}-paper.cfg is the published network, which weights of other frameworks fit."
)


def networks() -> Iterator[Cfg]:
    """b0 to b7, the sizes that Darknet's users run, the two variants of b0, and the detector."""
    for name, scale in SCALES.items():
        yield _classifier(name, name, scale)
    for name, (base, resolution) in _SIZES.items():
        yield _classifier(name, base, SCALES[base]._replace(resolution=resolution))
    note = "XNOR convolutions in place of the depthwise ones; Darknet's xnor=1 knows no groups, so they are dense."
    yield _classifier("b0-xnor", "b0", SCALES["b0"], note, groups=False, xnor=1)
    note = "Dense convolutions in place of the depthwise ones: many times the work, but no groups, which GPUs dislike."
    yield _classifier("b0-nogroups", "b0", SCALES["b0"], note, groups=False)
    yield _detector()


def _classifier(name: str, base: str, scale: Scale, *notes: str, groups: bool = True, xnor: int | None = None) -> Cfg:
    size = scale.resolution
    kind = "" if groups else ", of XNOR convolutions" if xnor else ", of dense convolutions"
    where = f", at {size}" if name in _SIZES else ""
    title = f"EfficientNet-{base.upper()} as Darknet has it{kind}{where}, ImageNet (1000 classes)."
    cfg = Cfg(f"efficientnet-{name}", title, (PAPER, _VARIANT.format(base), *notes), size, size)
    _backbone(cfg, scale, scale.dropout, groups, xnor)
    cfg.classifier(scale.dropout)
    return cfg


def _detector() -> Cfg:
    notes = (
        PAPER,
        'Heads: C.-Y. Wang et al., "Enriching Variety of Layer-Wise Learning Information by Gradient Combination", '
        "ICCV Workshops 2019 (partial residual networks).",
        "Strides 32 and 16. The second head uses anchors 1,2,3: anchor 3 serves both heads, anchor 0 none.",
    )
    cfg = Cfg("enet-coco", "EfficientNet-B0 of Darknet with two YOLO heads, COCO (80 classes).", notes, 416, 416)
    expansions = _backbone(cfg, SCALES["b0"], 0, True, None)
    # The last map of stride 16 is the expansion that the sixth stage begins with.
    heads(cfg, expansions[5])
    return cfg


def _backbone(cfg: Cfg, scale: Scale, dropout: float, groups: bool, xnor: int | None) -> list[int]:
    """Writes all before the classifier; returns the position of the expansion that each stage begins with."""
    filters = multiple_of_8(STEM * scale.width)
    cfg.convolution(filters, 3, 2, "swish")
    expansions = []
    for number, (stage, stage_stride, widths) in enumerate(zip(STAGES, _STRIDES, _EXPANDED, strict=True), 1):
        out = multiple_of_8(stage.filters * scale.width)
        for repeat in range(math.ceil(stage.repeats * scale.depth)):
            cfg.comment(f"stage {number}, block {repeat + 1}")
            start, stride, width = cfg.last, stage_stride if repeat == 0 else 1, widths[min(repeat, 1)]
            expanded = multiple_of_8(width * scale.width) if width else filters
            expansion = cfg.convolution(expanded, 1, 1, "swish")
            if repeat == 0:
                expansions.append(expansion)
            cfg.convolution(expanded, stage.size, stride, "swish", groups=expanded if groups else 1, xnor=xnor)
            cfg.squeeze_excite(multiple_of_8(_SQUEEZED[width] * scale.width), expanded, "swish")
            cfg.convolution(out)
            if stride == 1 and filters == out:
                cfg.section("dropout", probability=dropout)
                cfg.shortcut(start)
            filters = out
    cfg.comment("head")
    cfg.convolution(multiple_of_8(HEAD * scale.width), 1, 1, "swish")
    return expansions
