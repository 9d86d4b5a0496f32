"""Small networks of each kind that a destination may hold, or must refuse."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["NETWORKS", "REFUSED", "Small"]


class Small(NamedTuple):
    """A network and what it is compiled with besides target onnx."""

    cfg: str
    options: dict[str, Any] = {}


def _net(width: int = 32, height: int = 32, more: str = "", channels: int = 3) -> str:
    return f"""[net]
width={width}
height={height}
channels={channels}
{more}
[convolutional]
batch_normalize=1
filters=8
size=3
stride=4
pad=1
activation=leaky

"""


def _head(kind: str, filters: int, text: str, activation: str = "linear") -> str:
    return f"[convolutional]\nfilters={filters}\nsize=1\nactivation={activation}\n\n[{kind}]\n{text}\n"


_ANCHORS = "anchors=10,14, 23,27, 37,58\nmask=0,1\nnum=3\n"
_YOLO = _head("yolo", 16, _ANCHORS + "classes=3")
_TWO = _YOLO + "[route]\nlayers=0\n\n[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\nactivation=leaky\n\n"

NETWORKS = {
    "yolo": Small(_net() + _TWO + _head("yolo", 16, "anchors=10,14, 23,27, 37,58\nmask=1,2\nnum=3\nclasses=3")),
    "scaled": Small(_net() + _head("yolo", 16, _ANCHORS + "classes=3\nscale_x_y=1.05")),
    "new_coords": Small(_net() + _head("yolo", 16, _ANCHORS + "classes=3\nscale_x_y=2\nnew_coords=1", "logistic")),
    "region": Small(_net() + _head("region", 16, "anchors=1.1,1.2, 3.4,4.4\nclasses=3\nnum=2\ncoords=4\nsoftmax=1")),
    "gaussian": Small(_net() + _head("Gaussian_yolo", 24, _ANCHORS + "classes=3")),
    "detection": Small(
        _net() + "[connected]\noutput=52\nactivation=logistic\n\n"
        "[detection]\nclasses=3\ncoords=4\nside=2\nnum=2\nsqrt=1\n"
    ),
    "one_class": Small(_net() + _head("yolo", 12, _ANCHORS + "classes=1")),
    "non_square": Small(_net(width=64) + _YOLO),
    "letterbox": Small(_net(width=64, more="letter_box=1") + _YOLO),
    "batch_4": Small(_net() + _YOLO, {"batch": 4}),
    "bgr": Small(_net() + _YOLO, {"color": "bgr", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}),
    "gray": Small(_net(channels=1) + _YOLO),
    "classifier": Small(_net() + "[convolutional]\nfilters=5\nsize=1\nactivation=linear\n\n[avgpool]\n\n[softmax]\n"),
}
"""Detectors, and a classifier."""

_OTHER_CLASSES = _head("yolo", 14, "anchors=10,14, 23,27, 37,58\nmask=1,2\nnum=3\nclasses=2")
REFUSED = {
    "classes_differ": Small(_net() + _TWO + _OTHER_CLASSES),
    "tree": Small(
        _net() + _head("region", 16, "anchors=1.1,1.2, 3.4,4.4\nclasses=3\nnum=2\ncoords=4\nsoftmax=1\ntree=a.tree")
    ),
    "recurrent": Small(
        _net() + "[crnn]\nbatch_normalize=1\nsize=3\npad=1\noutput=6\nhidden=5\nactivation=leaky\n\n" + _YOLO
    ),
    "vector": Small("[net]\ninputs=7\n\n[connected]\noutput=3\nactivation=linear\n\n[softmax]\n"),
}
"""What no destination of detectors holds."""
