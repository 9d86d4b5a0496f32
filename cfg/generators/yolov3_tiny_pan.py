"""yolov3-tiny-pan: YOLOv3-tiny with three heads, which all see every map of the network.

After what AlexeyAB tells of his yolo_v3_tiny_pan3, whose cfg never was part of Darknet. The path aggregation is shorter
than that of arXiv:1803.01534: every map comes to stride 32 at once, and goes back up from there.

    gather    max pool to stride 32 -> 1x1, 64 filters. Of the backbone's maps twice more with a pool that leaves a
              factor of 2 to the 1x1 convolution, once in x and once in y: the pool forgets where something was, the
              convolution does not.
    spread    the maximum over every 15 of the gathered channels, which leaves 64 -> upsample -> beside the pyramid's

The pools of the backbone but the first blur (antialiasing). Two of its convolutions have assisted excitation
(arXiv:1906.05388): in training, what lies in a true box is raised there. It does nothing at inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cfg.generators.text import Cfg

__all__ = ["networks"]

_GATHERED = 64
_ITERATIONS = 4000
"""For so long excitation lasts."""


def networks() -> Iterator[Cfg]:
    """Generates one network, of 416 x 416."""
    notes = (
        'S. Liu et al., "Path Aggregation Network for Instance Segmentation", arXiv:1803.01534; '
        'M. M. Derakhshani et al., "Assisted Excitation of Activations", arXiv:1906.05388.',
        "After what is known of Darknet's yolo_v3_tiny_pan3: its weights need not fit.",
        "Strides 8, 16 and 32; any multiple of 32 works as input size. Darknet's CPU build overlooks stride_y of 1x1 "
        "convolutions, and computes something else; its CUDA build does not.",
    )
    title = "YOLOv3-tiny with path aggregation and assisted excitation, COCO (80 classes)."
    cfg = Cfg("yolov3-tiny-pan", title, notes, 416, 416)
    convolution = partial(cfg.convolution, activation="swish")
    backbone = _backbone(cfg)
    pyramid = [convolution(256)]
    for stride, filters in ((16, 256), (8, 128)):
        cfg.comment(f"up to stride {stride}")
        convolution(128)
        cfg.section("upsample", stride=2)
        cfg.route(cfg.last, backbone[stride])
        pyramid.append(convolution(filters, 3))
    coarse, middle, fine = pyramid
    gathered = _gather(cfg, {stride: backbone[stride] for stride in (4, 8, 16)}, {8: fine, 16: middle}, coarse)
    for head, (filters, own, scale) in enumerate(((128, fine, 1.2), (256, middle, 1.1), (512, coarse, 1.05))):
        stride = 8 << head
        cfg.comment(f"head at stride {stride}")
        if cfg.last != gathered:
            cfg.route(gathered)
        cfg.section("maxpool", maxpool_depth=1, out_channels=_GATHERED, size=1, stride=1)
        if stride < 32:
            cfg.section("upsample", stride=32 // stride)
        cfg.route(cfg.last, own)
        convolution(filters, 3)
        cfg.yolo(head, scale_x_y=scale)
    yield cfg


def _backbone(cfg: Cfg) -> dict[int, int]:
    """YOLOv3-tiny's; its maps by their strides."""
    maps = {}
    for number, filters in enumerate((16, 32, 64, 128, 256, 512)):
        excitation = _ITERATIONS if filters in (128, 256) else None
        maps[1 << number] = cfg.convolution(filters, 3, 1, "swish", assisted_excitation=excitation)
        stride = 2 if filters < 512 else 1
        cfg.section("maxpool", size=2, stride=stride, antialiasing=1 if number and stride == 2 else None)
    maps[32] = cfg.convolution(1024, 3, 1, "swish")
    return maps


def _gather(cfg: Cfg, backbone: dict[int, int], pyramid: dict[int, int], coarse: int) -> int:
    """Writes all maps, given by their strides, at stride 32 and behind each other."""
    parts = [coarse]

    def pool(source: int, size: int, x: int, y: int) -> None:
        """To stride 32, where x and y are what the convolution does of it."""
        cfg.route(source)
        strides = {"stride": size} if x == y else {"stride_x": size // x, "stride_y": size // y}
        cfg.section("maxpool", size=size, **strides)
        strides = {} if x == y else {"stride_x": x, "stride_y": y}
        parts.append(cfg.convolution(_GATHERED, 1, 1, "swish", **strides))

    for name, maps in (("backbone", backbone), ("pyramid", pyramid)):
        for stride, source in maps.items():
            cfg.comment(f"gather stride {stride} of the {name}")
            for x, y in ((1, 1), (2, 1), (1, 2)) if name == "backbone" else ((1, 1),):
                pool(source, 32 // stride, x, y)
    return cfg.route(*parts)
