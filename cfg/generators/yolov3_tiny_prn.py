"""yolov3-tiny-prn: the backbone of YOLOv3-tiny with heads of partial residual connections (C.-Y. Wang et al.,
"Enriching Variety of Layer-Wise Learning Information by Gradient Combination", ICCV Workshops 2019).

A partial residual connection adds maps of different channels: Darknet's [shortcut] adds the first channels that both
have. Where YOLOv3-tiny concatenates, these heads add.
"""

from __future__ import annotations

from collections.abc import Iterator

from cfg.generators.text import Cfg

__all__ = ["heads", "networks"]

_ANCHORS = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"
_CLASSES = 80


def networks() -> Iterator[Cfg]:
    """Generates one network, of 416 x 416."""
    notes = (
        'C.-Y. Wang et al., "Enriching Variety of Layer-Wise Learning Information by Gradient Combination", '
        "ICCV Workshops 2019.",
        "Strides 32 and 16. The second head uses anchors 1,2,3: anchor 3 serves both heads, anchor 0 none.",
    )
    cfg = Cfg("yolov3-tiny-prn", "YOLOv3-tiny with partial residual connections, COCO (80 classes).", notes, 416, 416)
    for filters in (16, 32, 64, 128):
        cfg.convolution(filters, 3, 1, "leaky")
        cfg.section("maxpool", size=2, stride=2)
    stride_16 = cfg.convolution(256, 3, 1, "leaky")
    cfg.section("maxpool", size=2, stride=2)
    stride_32 = cfg.convolution(512, 3, 1, "leaky")
    cfg.section("maxpool", size=2, stride=1)
    cfg.convolution(512, 3, 1, "leaky")
    cfg.shortcut(stride_32, activation="leaky")
    heads(cfg, stride_16)
    yield cfg


def heads(cfg: Cfg, stride_16: int) -> None:
    """Two heads for COCO on the last layer, of stride 32, and on the layer at `stride_16`, whose map is twice as large.

    The latter's channels beyond 128 are not read.
    """
    cfg.comment("head at stride 32")
    squeezed = cfg.convolution(256, 1, 1, "leaky")
    trunk = cfg.convolution(256, 3, 1, "leaky")
    cfg.shortcut(squeezed, activation="leaky")
    _head(cfg, "3,4,5")
    cfg.comment("head at stride 16")
    cfg.route(trunk)
    cfg.convolution(128, 1, 1, "leaky")
    upsampled = cfg.section("upsample", stride=2)
    cfg.shortcut(stride_16, activation="leaky")
    cfg.convolution(128, 3, 1, "leaky")
    cfg.shortcut(upsampled, activation="leaky")
    cfg.shortcut(stride_16, activation="leaky")
    _head(cfg, "1,2,3")


def _head(cfg: Cfg, mask: str) -> None:
    cfg.convolution(3 * (_CLASSES + 5), batch_normalize=0)
    cfg.section("yolo", classes=_CLASSES, num=6, mask=mask, anchors=_ANCHORS)
