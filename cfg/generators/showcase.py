"""Small networks that each show one of Darknet's features where it belongs: `showcase-NAME`."""

from __future__ import annotations

from collections.abc import Iterator

from cfg.generators.text import Cfg

__all__ = ["networks"]

_SIDE = 64
_CLASSES = 4
_FILTERS = 32
_ANCHORS = "8,8, 16,24, 40,32"


def networks() -> Iterator[Cfg]:
    """Generates one network per feature."""
    builders = (_sam, _cem, _asff, _bifpn, _rfb, _antialiasing, _dropblock, _assisted_excitation, _batchnorm2)
    for build in builders:
        yield build()


def _cfg(name: str, *notes: str) -> Cfg:
    title = f"A showcase, not a network to use: {notes[0]}"
    return Cfg(f"showcase-{name}", title, notes[1:], _SIDE, _SIDE)


def _sam() -> Cfg:
    paper = (
        'S. Woo et al., "CBAM: Convolutional Block Attention Module", arXiv:1807.06521; changed in arXiv:2004.10934.'
    )
    cfg = _cfg("sam", "YOLOv4's spatial attention, one factor per element.", paper)
    _pyramid(cfg)
    cfg.comment("spatial attention")
    features = cfg.convolution(_FILTERS, 3, 1, "mish")
    cfg.convolution(_FILTERS, 1, 1, "logistic")
    cfg.sam(features)
    _detect(cfg)
    return cfg


def _cem() -> Cfg:
    paper = (
        'Z. Qin et al., "ThunderNet: Towards Real-time Generic Object Detection on Mobile Devices", arXiv:1903.11752.'
    )
    cfg = _cfg("cem", "ThunderNet's context enhancement: two strides and the whole image are added.", paper)
    _, fine, coarse = _pyramid(cfg)
    cfg.comment("stride 8, stride 16 and the whole image")
    cfg.route(fine)
    local = cfg.convolution(_FILTERS)
    cfg.route(coarse)
    cfg.convolution(_FILTERS)
    middle = cfg.section("upsample", stride=2)
    cfg.route(coarse)
    cfg.section("avgpool")
    cfg.convolution(_FILTERS, batch_normalize=0)
    cfg.section("upsample", stride=_SIDE // 8)
    cfg.shortcut(local, middle)
    _detect(cfg)
    return cfg


def _asff() -> Cfg:
    paper = 'S. Liu, D. Huang, Y. Wang, "Learning Spatial Fusion for Single-Shot Object Detection", arXiv:1911.09516.'
    cfg = _cfg("asff", "adaptively spatial feature fusion, three levels weighed per pixel by a softmax.", paper)
    levels = _resized(cfg)
    cfg.comment("weights that sum up to one in every pixel")
    cfg.route(*levels)
    weights = cfg.convolution(len(levels), activation="normalize_channels_softmax_maxval", batch_normalize=0)
    weighed = []
    for number, level in enumerate(levels):
        cfg.route(weights, groups=len(levels), group_id=number)
        weighed.append(cfg.scale_channels(level, scale_wh=1))
    cfg.shortcut(*weighed[:-1])
    _detect(cfg)
    return cfg


def _bifpn() -> Cfg:
    paper = 'M. Tan, R. Pang, Q. V. Le, "EfficientDet: Scalable and Efficient Object Detection", arXiv:1911.09070.'
    cfg = _cfg("bifpn", "BiFPN's fast normalized fusion, shortcuts with learned weights.", paper)
    levels = _resized(cfg)
    cfg.comment("a weight for each layer, and for each channel of each layer")
    cfg.shortcut(*levels[:-1], activation="swish", weights_type="per_feature", weights_normalization="relu")
    fused = cfg.convolution(_FILTERS, 3, 1, "swish")
    cfg.convolution(_FILTERS, 3, 1, "swish")
    cfg.shortcut(fused, levels[0], weights_type="per_channel", weights_normalization="softmax")
    _detect(cfg)
    return cfg


def _rfb() -> Cfg:
    paper = (
        'S. Liu, D. Huang, Y. Wang, "Receptive Field Block Net for Accurate and Fast Object Detection", '
        "arXiv:1711.07767, figure 4 (a)."
    )
    cfg = _cfg("rfb", "receptive field blocks before the heads, of branches dilated by 1, 3 and 5.", paper)
    _, fine, coarse = _pyramid(cfg)
    for source, anchors in ((coarse, (1, 2)), (fine, (0,))):
        filters = _FILTERS if source == fine else 2 * _FILTERS
        cfg.comment(f"receptive field block at stride {8 if source == fine else 16}")
        branches = []
        for size in (1, 3, 5):
            cfg.route(source)
            cfg.convolution(filters // 4, 1, 1, "relu")
            if size > 1:
                cfg.convolution(filters // 4, size, 1, "relu")
            branches.append(cfg.convolution(filters // 4, 3, 1, "relu", dilation=size if size > 1 else None))
        cfg.route(*branches)
        cfg.convolution(filters)
        cfg.shortcut(source, activation="relu")
        _detect(cfg, anchors)
    return cfg


def _antialiasing() -> Cfg:
    paper = 'R. Zhang, "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486.'
    cfg = _cfg("antialiasing", "convolutions and pools that blur before they leave pixels out.", paper)
    cfg.convolution(16, 3, 2, "leaky", antialiasing=1)
    cfg.convolution(_FILTERS, 3, 1, "leaky")
    cfg.section("maxpool", size=2, stride=2, antialiasing=1)
    cfg.convolution(_FILTERS, 3, 2, "leaky", antialiasing=2)
    cfg.convolution(2 * _FILTERS, 3, 1, "leaky")
    cfg.classifier(0.2, _CLASSES)
    return cfg


def _dropblock() -> Cfg:
    paper = 'G. Ghiasi et al., "DropBlock: A regularization method for convolutional networks", arXiv:1810.12890.'
    cfg = _cfg("dropblock", "DropBlock, which acts in training alone.", paper)
    _pyramid(cfg)
    for size in ({"dropblock_size_rel": 0.1}, {"dropblock_size_abs": 2}):
        start = cfg.last
        cfg.convolution(_FILTERS, 1, 1, "leaky")
        cfg.section("dropout", dropblock=1, probability=0.1, **size)
        cfg.convolution(2 * _FILTERS, 3, 1, "leaky")
        cfg.shortcut(start)
    _detect(cfg)
    return cfg


def _assisted_excitation() -> Cfg:
    paper = 'M. M. Derakhshani et al., "Assisted Excitation of Activations", arXiv:1906.05388.'
    cfg = _cfg("assisted-excitation", "assisted excitation, which acts in training alone.", paper)
    _pyramid(cfg)
    cfg.comment("for so many iterations what lies in a true box is excited")
    cfg.convolution(_FILTERS, 3, 1, "leaky", assisted_excitation=4000)
    _detect(cfg)
    return cfg


def _batchnorm2() -> Cfg:
    paper = 'Z. Yao et al., "Cross-Iteration Batch Normalization", arXiv:2002.05712.'
    cfg = _cfg("batchnorm2", "cross-iteration batch normalisation, which is the usual one at inference.", paper)
    for filters in (16, _FILTERS, 2 * _FILTERS):
        cfg.convolution(filters, 3, 2, "mish", batch_normalize=2)
    _detect(cfg)
    return cfg


def _pyramid(cfg: Cfg) -> list[int]:
    """Four convolutions of stride 2; the maps of strides 4, 8 and 16."""
    filters = (16, _FILTERS, _FILTERS, 2 * _FILTERS)
    return [cfg.convolution(count, 3, 2, "leaky") for count in filters][1:]


def _resized(cfg: Cfg) -> list[int]:
    """Three levels of a pyramid, all at stride 8 and with as many channels; the last of them is the last layer."""
    fine, middle, coarse = _pyramid(cfg)
    cfg.comment("three levels at one size")
    cfg.route(fine)
    levels = [cfg.convolution(_FILTERS, 3, 2, "leaky")]
    cfg.route(middle)
    levels.append(cfg.convolution(_FILTERS, 1, 1, "leaky"))
    cfg.route(coarse)
    cfg.convolution(_FILTERS, 1, 1, "leaky")
    return [*levels, cfg.section("upsample", stride=2)]


def _detect(cfg: Cfg, anchors: tuple[int, ...] = (0, 1, 2)) -> None:
    """A YOLO head on the last layer, with these of the three anchors."""
    cfg.comment("prediction")
    cfg.convolution(len(anchors) * (_CLASSES + 5), batch_normalize=0)
    cfg.section("yolo", classes=_CLASSES, num=3, mask=",".join(map(str, anchors)), anchors=_ANCHORS)
