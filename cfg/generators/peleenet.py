"""PeleeNet (arXiv:1804.06882): a DenseNet of plain convolutions for phones.

Its parts, which all keep what they were given in front of what they add:

    stem            3x3, stride 2 -> (max pool | 1x1 -> 3x3, stride 2) -> 1x1
    dense layer     (1x1 -> 3x3 | 1x1 -> 3x3 -> 3x3), 16 filters each way, as fields of view of two sizes
    transition      1x1 with as many filters as it has channels, mean pool; after the last block no pool

The 1x1 convolutions of a dense layer have 16, 32, 64 and 64 filters in the four blocks. Batch normalisation follows a
convolution, before its relu. The layers are those of the author's PyTorch model, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cfg.generators.text import Cfg

__all__ = ["networks"]

_STEM = 32
_WAY = 16
"""Half of the paper's growth rate k = 32: filters of each way."""
_BLOCKS = ((3, 16), (4, 32), (8, 64), (6, 64))
"""Dense layers of each block, and filters of their 1x1 convolutions."""


def networks() -> Iterator[Cfg]:
    """Generates one network."""
    notes = (
        'R. J. Wang, X. Li, C. X. Ling, "Pelee: A Real-Time Object Detection System on Mobile Devices", '
        "arXiv:1804.06882, table 1.",
        "The layers are those of the author's PyTorch model, in its order.",
    )
    cfg = Cfg("peleenet", "PeleeNet, ImageNet (1000 classes).", notes, 224, 224)
    convolution = partial(cfg.convolution, activation="relu")
    cfg.comment("stem")
    start = convolution(_STEM, 3, 2)
    pooled = cfg.section("maxpool", size=2, stride=2)
    cfg.route(start)
    convolution(_STEM // 2)
    cfg.route(pooled, convolution(_STEM, 3, 2))
    filters = _STEM
    convolution(filters)
    for number, (layers, squeezed) in enumerate(_BLOCKS, 1):
        for layer in range(layers):
            cfg.comment(f"block {number}, dense layer {layer + 1}")
            given = cfg.last
            convolution(squeezed)
            small = convolution(_WAY, 3)
            cfg.route(given)
            convolution(squeezed)
            convolution(_WAY, 3)
            cfg.route(given, small, convolution(_WAY, 3))
            filters += 2 * _WAY
        cfg.comment(f"transition {number}")
        convolution(filters)
        if number < len(_BLOCKS):
            cfg.section("local_avgpool", size=2, stride=2)
    cfg.classifier(0.05)
    yield cfg
