"""EfficientNet-EdgeTPU S, M and L (arXiv:2003.02838): EfficientNets for Google's Edge TPU.

Relu in place of swish, no squeeze and excitation. The first three of six stages have fused blocks, a dense 3x3
convolution in place of expansion and depthwise convolution, which such hardware computes faster:

    expand 3x3 -> project 1x1

The others have EfficientNet's:

    expand 1x1 -> depthwise 5x5 -> project 1x1

The first block expands as if the stem had 24 filters, where it has 32. Google's fused blocks have their stride in the
projection, which leaves three pixels of four out; in the expansion it leaves out the same ones, with a quarter of the
work and equal numbers, since padding is 1 on all sides either way. timm has it there too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from cfg.generators.efficientnet import HEAD, PAPER, STEM, Scale, Stage
from cfg.generators.text import Cfg, multiple_of_8

__all__ = ["networks"]

_FUSED = (Stage(1, 3, 1, 4, 24), Stage(2, 3, 2, 8, 32), Stage(4, 3, 2, 8, 48))
_DEPTHWISE = (Stage(5, 5, 2, 8, 96), Stage(4, 5, 1, 8, 144), Stage(2, 5, 2, 8, 192))
_FIRST_INPUT = 24
_SCALES = {"s": Scale(1.0, 1.0, 224, 0.2), "m": Scale(1.0, 1.1, 240, 0.2), "l": Scale(1.2, 1.4, 300, 0.3)}

_NOTES = (
    'S. Gupta, B. Akin, "Accelerator-aware Neural Network Design using AutoML", arXiv:2003.02838.',
    PAPER,
    "The layers are those of timm's efficientnet_e{0}, in their order and with their symmetric padding; TensorFlow's "
    "own weights expect SAME padding where the stride is 2.",
)


def networks() -> Iterator[Cfg]:
    """S, M and L."""
    for name, scale in _SCALES.items():
        yield _network(name, scale)


def _network(name: str, scale: Scale) -> Cfg:
    title = f"EfficientNet-EdgeTPU-{name.upper()}, ImageNet (1000 classes): no squeeze and excitation, relu."
    notes = tuple(note.format(name) for note in _NOTES)
    cfg = Cfg(f"efficientnet-edgetpu-{name}", title, notes, scale.resolution, scale.resolution)
    filters = multiple_of_8(STEM * scale.width)
    cfg.convolution(filters, 3, 2, "relu")
    for number, stage in enumerate((*_FUSED, *_DEPTHWISE), 1):
        out = multiple_of_8(stage.filters * scale.width)
        for repeat in range(math.ceil(stage.repeats * scale.depth)):
            cfg.comment(f"stage {number}, block {repeat + 1}")
            start, stride = cfg.last, stage.stride if repeat == 0 else 1
            expanded = stage.expansion * (multiple_of_8(_FIRST_INPUT * scale.width) if number == 1 else filters)
            if stage in _FUSED:
                cfg.convolution(expanded, stage.size, stride, "relu")
            else:
                cfg.convolution(expanded, 1, 1, "relu")
                cfg.convolution(expanded, stage.size, stride, "relu", groups=expanded)
            cfg.convolution(out)
            # The first stage has no shortcuts even where they would fit.
            if stride == 1 and filters == out and number > 1:
                cfg.shortcut(start)
            filters = out
    cfg.comment("head")
    cfg.convolution(multiple_of_8(HEAD * scale.width), 1, 1, "relu")
    cfg.classifier(scale.dropout)
    return cfg
