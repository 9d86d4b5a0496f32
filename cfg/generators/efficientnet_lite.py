"""EfficientNet-Lite 0 to 4, Google's EfficientNets for phones, and a leaky lite3 to be trained in Darknet.

The stages of EfficientNet without squeeze and excitation, with relu6 in place of swish. Stem and head have b0's widths
in all, and the first and the last stage are not repeated.

Their weights come from TensorFlow, whose SAME padding puts the odd row and column at the bottom right where a stride
of 2 meets an even side n: of the k - 2 rows in all, (k - 3) / 2 stand before the map and (k - 1) / 2 after it. Darknet
pads alike on both sides. Such a k x k kernel is therefore written as one of (k + 1) x (k + 1), whose first row and
column are zero, with padding=(k - 1) / 2:

    out = (n + (k - 1) - (k + 1)) / 2 + 1 = n / 2,   first weight that is not zero at -(k - 1) / 2 + 1 = -(k - 3) / 2

On an odd side both sides get (k - 1) / 2 rows, which is pad=1. Hence these networks want the input size they are
written for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from cfg.generators.efficientnet import HEAD, PAPER, STAGES, STEM, Scale
from cfg.generators.text import Cfg, multiple_of_8

__all__ = ["networks"]

_SCALES = {
    "lite0": Scale(1.0, 1.0, 224, 0.2),
    "lite1": Scale(1.0, 1.1, 240, 0.2),
    "lite2": Scale(1.1, 1.2, 260, 0.3),
    "lite3": Scale(1.2, 1.4, 280, 0.3),
    "lite4": Scale(1.4, 1.8, 300, 0.3),
}
_SAME = (
    "Padded as TensorFlow's SAME, exactly, at this input size alone: where a stride of 2 meets an even side, the "
    "kernel is one larger, and its first row and column are zero in weights that were imported."
)


def networks() -> Iterator[Cfg]:
    """lite0 to lite4, and lite3 with leaky."""
    for name, scale in _SCALES.items():
        yield _network(name, name, scale, "relu6", _SAME, same=True)
    note = "Leaky in place of relu6 and plain symmetric padding: to be trained in Darknet, at any multiple of 32."
    yield _network("lite3-leaky", "lite3", _SCALES["lite3"], "leaky", note, same=False)


def _network(name: str, base: str, scale: Scale, activation: str, note: str, *, same: bool) -> Cfg:
    cfg = Cfg(
        f"efficientnet-{name}",
        f"EfficientNet-{base.capitalize()}, ImageNet (1000 classes): no squeeze and excitation, {activation}.",
        (f"{PAPER} The Lite variant is Google's, of 2020.", note),
        scale.resolution,
        scale.resolution,
    )
    side = _strided(cfg, STEM, 3, 2, activation, scale.resolution, same)
    filters = STEM
    for number, stage in enumerate(STAGES, 1):
        out = multiple_of_8(stage.filters * scale.width)
        repeats = stage.repeats if number in (1, len(STAGES)) else math.ceil(stage.repeats * scale.depth)
        for repeat in range(repeats):
            cfg.comment(f"stage {number}, block {repeat + 1}")
            start, stride, expanded = cfg.last, stage.stride if repeat == 0 else 1, filters * stage.expansion
            if stage.expansion > 1:
                cfg.convolution(expanded, 1, 1, activation)
            side = _strided(cfg, expanded, stage.size, stride, activation, side, same, groups=expanded)
            cfg.convolution(out)
            if stride == 1 and filters == out:
                cfg.shortcut(start)
            filters = out
    cfg.comment("head")
    cfg.convolution(HEAD, 1, 1, activation)
    cfg.classifier(scale.dropout)
    return cfg


def _strided(
    cfg: Cfg, filters: int, size: int, stride: int, activation: str, side: int, same: bool, groups: int = 1
) -> int:
    """A convolution on a map of this side, padded as the module says; the side of its output."""
    if same and stride == 2 and side % 2 == 0:
        cfg.convolution(filters, size + 1, stride, activation, groups=groups, padding=(size - 1) // 2)
    else:
        cfg.convolution(filters, size, stride, activation, groups=groups)
    return math.ceil(side / stride)
