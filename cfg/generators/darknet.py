"""Darknet-19 and Darknet-53 with swish, and with squeeze and excitation: `darknet19-swish-se`, `darknet53-swish` and
`darknet53-swish-se`.

Nobody published the two with squeeze and excitation; they are put together as the papers say. arXiv:1709.01507 puts
squeeze and excitation at the end of a residual branch, before the sum, or at the end of a block where there are no
shortcuts, and goes down to a sixteenth of the filters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cfg.generators.text import Cfg

__all__ = ["darknet19", "darknet53", "networks"]

_DARKNET19 = 'J. Redmon, A. Farhadi, "YOLO9000: Better, Faster, Stronger", arXiv:1612.08242, table 6.'
_DARKNET53 = 'J. Redmon, A. Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767, table 1.'
_SWISH = 'P. Ramachandran, B. Zoph, Q. V. Le, "Searching for Activation Functions", arXiv:1710.05941.'
_SQUEEZE = 'J. Hu, L. Shen, S. Albanie, G. Sun, E. Wu, "Squeeze-and-Excitation Networks", arXiv:1709.01507.'
_REDUCTION = 16
_CLASSES = 1000


def networks() -> Iterator[Cfg]:
    """Generates the three classifiers."""
    notes = (
        _DARKNET19,
        f"{_SWISH} In place of leaky.",
        f"{_SQUEEZE} At the end of each block of several convolutions.",
    )
    title = "Darknet-19 with swish and squeeze and excitation, ImageNet (1000 classes)."
    cfg = Cfg("darknet19-swish-se", title, notes, 256, 256)
    darknet19(cfg, "swish", squeeze=True)
    yield cfg
    cfg = Cfg(
        "darknet53-swish",
        "Darknet-53 with swish, ImageNet (1000 classes).",
        (_DARKNET53, f"{_SWISH} In place of leaky."),
        256,
        256,
    )
    darknet53(cfg, "swish")
    cfg.classifier()
    yield cfg
    notes = (_DARKNET53, f"{_SWISH} In place of leaky.", f"{_SQUEEZE} Before each shortcut.")
    title = "Darknet-53 with swish and squeeze and excitation, ImageNet (1000 classes)."
    cfg = Cfg("darknet53-swish-se", title, notes, 256, 256)
    darknet53(cfg, "swish", squeeze=True)
    cfg.classifier()
    yield cfg


def darknet19(cfg: Cfg, activation: str, *, squeeze: bool = False) -> None:
    """Writes the whole classifier."""
    convolution = partial(cfg.convolution, activation=activation)
    for filters, layers in ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5), (1024, 5)):
        if filters > 32:
            cfg.section("maxpool", size=2, stride=2)
        for layer in range(layers):
            if layer % 2:
                convolution(filters // 2)
            else:
                convolution(filters, 3)
        if squeeze and layers > 1:
            cfg.squeeze_excite(filters // _REDUCTION, filters, activation)
    cfg.comment("classifier")
    cfg.convolution(_CLASSES, batch_normalize=0)
    cfg.section("avgpool")
    cfg.section("softmax")


def darknet53(cfg: Cfg, activation: str, *, squeeze: bool = False) -> list[int]:
    """Writes all before the classifier; the maps of strides 8, 16 and 32: 256, 512 and 1024 channels."""
    convolution = partial(cfg.convolution, activation=activation)
    convolution(32, 3)
    maps = []
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        cfg.comment(f"to {filters} channels")
        convolution(filters, 3, 2)
        for _ in range(blocks):
            start = cfg.last
            convolution(filters // 2)
            convolution(filters, 3)
            if squeeze:
                cfg.squeeze_excite(filters // _REDUCTION, filters, activation)
            cfg.shortcut(start)
        maps.append(cfg.last)
    return maps[2:]
