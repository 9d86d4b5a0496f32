"""CSPResNeXt-50 (arXiv:1911.11929): the classifier `csresnext50`, with weighted shortcuts `csresnext50-ws`, and with a
BiFPN of weighted shortcuts the detector `csresnext50-bifpn`. `panet_spp` has detectors with another neck.

Weighted shortcuts multiply each of their inputs by a learned number, or each channel of each by its own; Darknet
normalises these numbers, by a softmax or after a relu, so that they sum up to one.

The BiFPN (arXiv:1911.09070) has three levels, of strides 8, 16 and 32, where EfficientDet has five. Each of its layers
goes down to the finest map and up again; what a node adds are maps of one size:

    down the pyramid    the level's map, the coarser node upsampled
    up again            the level's map, its node of the way down, the finer node max-pooled

Swish and a depthwise and a 1x1 convolution follow each sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from cfg.generators.text import Cfg

__all__ = ["CSP", "PER_CHANNEL", "backbone", "networks"]

CSP = 'C.-Y. Wang et al., "CSPNet: A New Backbone that can Enhance Learning Capability of CNN", arXiv:1911.11929.'
PER_CHANNEL = {"weights_type": "per_channel", "weights_normalization": "relu"}
"""Options of weighted shortcuts: a number for each channel of each input."""
_SOFTMAX = {"weights_type": "per_feature", "weights_normalization": "softmax"}
_FAST = {"weights_type": "per_feature", "weights_normalization": "relu"}
"""EfficientDet's fast normalized fusion."""
_FILTERS, _LAYERS = 256, 3
"""Of the BiFPN."""


def networks() -> Iterator[Cfg]:
    """Generates the two classifiers and the detector."""
    cfg = Cfg("csresnext50", "CSPResNeXt-50, ImageNet (1000 classes).", (CSP,), 256, 256)
    backbone(cfg)
    cfg.classifier()
    yield cfg
    notes = (CSP, "Each residual sum is weighted: a number for each of its two inputs, normalised by a softmax.")
    cfg = Cfg("csresnext50-ws", "CSPResNeXt-50 with weighted shortcuts, ImageNet (1000 classes).", notes, 256, 256)
    backbone(cfg, _SOFTMAX)
    cfg.classifier()
    yield cfg
    yield _bifpn()


def backbone(cfg: Cfg, weights: Mapping[str, str] | None = None) -> list[int]:
    """Writes all before the classifier; the maps of strides 8, 16 and 32: 512, 1024 and 2048 channels.

    Args:
        cfg: what it is written to.
        weights: options of the shortcuts.
    """
    convolution = partial(cfg.convolution, activation="leaky")
    convolution(64, 7, 2)
    start = cfg.section("maxpool", size=2, stride=2)
    maps = []
    for number, (filters, blocks) in enumerate(((128, 3), (256, 3), (512, 5), (1024, 2)), 1):
        cfg.comment(f"stage {number}")
        if number > 1:
            start = convolution(filters, 3, 2, groups=32)
        # As they were trained: the branches of the stages in the middle are linear.
        split = "linear" if number in (2, 3) else "leaky"
        passed = cfg.convolution(filters, activation=split)
        cfg.route(start)
        # In the first stage a partial residual connection: 64 channels are added to 128.
        cfg.convolution(64 if number == 1 else filters, activation=split)
        for _ in range(blocks):
            residual = cfg.last
            convolution(filters)
            convolution(filters, 3, groups=32)
            cfg.convolution(filters)
            cfg.shortcut(residual, activation="leaky", **weights or {})
        cfg.route(convolution(filters), passed)
        maps.append(convolution(2 * filters))
    return maps[1:]


def _bifpn() -> Cfg:
    paper = 'M. Tan, R. Pang, Q. V. Le, "EfficientDet: Scalable and Efficient Object Detection", arXiv:1911.09070.'
    notes = (
        CSP,
        f"{paper} Its BiFPN, at three strides: 8, 16 and 32. Any multiple of 32 works as input size.",
        "Each sum of the BiFPN is weighted: a number for each of its inputs, normalised after a relu.",
    )
    cfg = Cfg("csresnext50-bifpn", "CSPResNeXt-50 with BiFPN, COCO (80 classes).", notes, 512, 512)
    maps, levels = backbone(cfg), []
    for stride, source in zip((8, 16, 32), maps, strict=True):
        cfg.comment(f"into the pyramid at stride {stride}")
        if cfg.last != source:
            cfg.route(source)
        levels.append(cfg.convolution(_FILTERS))
    for number in range(_LAYERS):
        cfg.comment(f"BiFPN layer {number + 1}")
        levels = _pyramid(cfg, levels)
    for head, level in enumerate(levels):
        cfg.comment(f"head at stride {8 << head}")
        if cfg.last != level:
            cfg.route(level)
        cfg.convolution(_FILTERS, 3, 1, "leaky")
        cfg.yolo(head)
    return cfg


def _pyramid(cfg: Cfg, levels: list[int]) -> list[int]:
    """A layer of the BiFPN on three maps, the finest first; returns its own."""

    def node(*others: int) -> int:
        cfg.shortcut(*others, activation="swish", **_FAST)
        cfg.convolution(_FILTERS, 3, groups=_FILTERS)
        return cfg.convolution(_FILTERS)

    fine, middle, coarse = levels
    if cfg.last != coarse:
        cfg.route(coarse)
    cfg.section("upsample", stride=2)
    down = node(middle)
    cfg.section("upsample", stride=2)
    fine = node(fine)
    cfg.section("maxpool", size=3, stride=2)
    middle = node(middle, down)
    cfg.section("maxpool", size=3, stride=2)
    return [fine, middle, node(coarse)]
