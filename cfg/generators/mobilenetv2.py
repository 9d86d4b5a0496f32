"""MobileNetV2 (arXiv:1801.04381, table 2), in the order and with the padding of torchvision's mobilenet_v2."""

from __future__ import annotations

from collections.abc import Iterator

from cfg.generators.text import Cfg

__all__ = ["networks"]

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, filters, repeats, stride of the first: t, c, n, s of the table."""


def networks() -> Iterator[Cfg]:
    """Generates one network, of width 1.0."""
    notes = (
        'M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381.',
        "The layers are those of torchvision's mobilenet_v2, in its order and with its symmetric padding.",
    )
    cfg = Cfg("mobilenetv2", "MobileNetV2, ImageNet (1000 classes).", notes, 224, 224)
    filters = 32
    cfg.convolution(filters, 3, 2, "relu6")
    for number, (expansion, out, repeats, first_stride) in enumerate(_STAGES, 1):
        for repeat in range(repeats):
            cfg.comment(f"stage {number}, block {repeat + 1}")
            start, stride, expanded = cfg.last, first_stride if repeat == 0 else 1, filters * expansion
            if expansion > 1:
                cfg.convolution(expanded, 1, 1, "relu6")
            cfg.convolution(expanded, 3, stride, "relu6", groups=expanded)
            cfg.convolution(out)
            if stride == 1 and filters == out:
                cfg.shortcut(start)
            filters = out
    cfg.comment("head")
    cfg.convolution(1280, 1, 1, "relu6")
    cfg.classifier(0.2)
    yield cfg
