"""yolov3-openimages: YOLOv3 for the 601 classes of Open Images. yolov3.cfg is the same network for COCO."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cfg.generators.darknet import darknet53
from cfg.generators.text import Cfg

__all__ = ["networks", "yolov3"]


def networks() -> Iterator[Cfg]:
    """Generates one network."""
    notes = (
        'J. Redmon, A. Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767.',
        "Strides 32, 16, 8; any multiple of 32 works as input size. yolov3.cfg is the same network for COCO.",
        "Weights: yolov3-openimages.weights of pjreddie.com. The names of the classes are data/openimages.names of "
        "Darknet, which is not part of dnc: put it beside the weights.",
    )
    cfg = Cfg("yolov3-openimages", "YOLOv3, Open Images (601 classes).", notes, 608, 608)
    yolov3(cfg, 601)
    yield cfg


def yolov3(cfg: Cfg, classes: int) -> None:
    """Writes the whole network."""
    convolution = partial(cfg.convolution, activation="leaky")
    fine, middle, coarse = darknet53(cfg, "leaky")
    for head, source in ((2, coarse), (1, middle), (0, fine)):
        filters = 128 << head
        cfg.comment(f"head at stride {8 << head}")
        if source != coarse:
            convolution(filters)
            upsampled = cfg.section("upsample", stride=2)
            cfg.route(upsampled, source)
        for _ in range(2):
            convolution(filters)
            convolution(2 * filters, 3)
        end = convolution(filters)
        convolution(2 * filters, 3)
        cfg.yolo(head, classes)
        if source != fine:
            cfg.route(end)
