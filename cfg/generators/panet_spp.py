"""Detectors with a cross-stage partial backbone (arXiv:1911.11929), spatial pyramid pooling (arXiv:1406.4729) and a
path aggregation neck (arXiv:1803.01534): `csresnext50-panet-spp`, with weighted shortcuts in its backbone
`csresnext50-panet-spp-ws`, and `cd53paspp-mish`.

The neck goes from stride 32 up to 8 and down again, concatenating with the maps of the same size on the way; the heads
are at strides 8, 16 and 32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cfg.generators.csresnext50 import CSP, PER_CHANNEL, backbone
from cfg.generators.text import Cfg

__all__ = ["networks"]

_YOLOV4_ANCHORS = "12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401"


def networks() -> Iterator[Cfg]:
    """Generates the three networks."""
    notes = (CSP, "Strides 8, 16 and 32; any multiple of 32 works as input size.")
    cfg = Cfg("csresnext50-panet-spp", "CSPResNeXt-50 with PANet and SPP, COCO (80 classes).", notes, 512, 512)
    _neck(cfg, backbone(cfg), "leaky")
    yield cfg
    weighted = (*notes, "Each residual sum is weighted: a number for each channel of its two inputs, after a relu.")
    title = "CSPResNeXt-50 of weighted shortcuts with PANet and SPP, COCO (80 classes)."
    cfg = Cfg("csresnext50-panet-spp-ws", title, weighted, 512, 512)
    _neck(cfg, backbone(cfg, PER_CHANNEL), "leaky")
    yield cfg
    mish = (*notes, "Mish everywhere, where yolov4.cfg has it in the backbone alone.")
    cfg = Cfg("cd53paspp-mish", "CSPDarknet53 with PANet and SPP, COCO (80 classes).", mish, 512, 512)
    maps = _csp_darknet53(cfg)
    suppression = {"nms_kind": "greedynms", "beta_nms": 0.6}
    yolo = [{"anchors": _YOLOV4_ANCHORS, "scale_x_y": scale, **suppression} for scale in (1.2, 1.1, 1.05)]
    _neck(cfg, maps, "mish", yolo)
    yield cfg


def _csp_darknet53(cfg: Cfg) -> list[int]:
    """The maps of strides 8, 16 and 32: 256, 512 and 1024 channels."""
    convolution = partial(cfg.convolution, activation="mish")
    convolution(32, 3)
    maps = []
    for number, (filters, blocks) in enumerate(((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)), 1):
        cfg.comment(f"stage {number}")
        # The first stage is not split in halves, but doubled.
        branch, inner = (64, 32) if number == 1 else (filters // 2, filters // 2)
        start = convolution(filters, 3, 2)
        passed = convolution(branch)
        cfg.route(start)
        convolution(branch)
        for _ in range(blocks):
            residual = cfg.last
            convolution(inner)
            convolution(branch, 3)
            cfg.shortcut(residual)
        cfg.route(convolution(branch), passed)
        maps.append(convolution(filters))
    return maps[2:]


def _neck(cfg: Cfg, maps: list[int], activation: str, yolo: Sequence[Mapping[str, Any]] = ({}, {}, {})) -> None:
    """Writes all after the backbone, whose maps of strides 8, 16 and 32 are given; `yolo` is what each head adds."""
    convolution = partial(cfg.convolution, activation=activation)

    def alternate(filters: int, layers: int) -> int:
        """1x1 convolutions with so many filters, and 3x3 with twice as many, in turn."""
        for number in range(layers):
            if number % 2:
                convolution(2 * filters, 3)
            else:
                convolution(filters)
        return cfg.last

    cfg.comment("spatial pyramid pooling")
    pooled = [alternate(512, 3)]
    for size in (5, 9, 13):
        if size > 5:
            cfg.route(pooled[0])
        pooled.append(cfg.section("maxpool", size=size, stride=1))
    cfg.route(*reversed(pooled))
    ends = [alternate(512, 3)]
    for source, filters in ((maps[1], 256), (maps[0], 128)):
        cfg.comment(f"up to {filters} channels")
        convolution(filters)
        upsampled = cfg.section("upsample", stride=2)
        cfg.route(source)
        cfg.route(convolution(filters), upsampled)
        ends.append(alternate(filters, 5))
    for head, (filters, options) in enumerate(zip((128, 256, 512), yolo, strict=True)):
        end = cfg.last
        if head:
            cfg.comment(f"down to {filters} channels")
            down = convolution(filters, 3, 2)
            cfg.route(down, ends[2 - head])
            end = alternate(filters, 5)
        convolution(2 * filters, 3)
        cfg.yolo(head, **options)
        if head < 2:
            cfg.route(end)
