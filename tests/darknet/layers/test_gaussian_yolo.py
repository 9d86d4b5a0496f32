"""[Gaussian_yolo] against forward_gaussian_yolo_layer: four coordinates, each with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.runtime.decoding import GaussianYoloHead

Doubles = npt.NDArray[np.float64]

NET = "width=6\nheight=4\nchannels=22"
HEAD = "[Gaussian_yolo]\nclasses=2\nnum=3\nmask=2,0\nanchors=10,14, 23,27, 37,58\n"
"""Two anchors of 9 + 2 entries on 22 channels."""


@pytest.mark.parametrize("yolo_point", ["center", "left_top", "right_bottom"])
@pytest.mark.parametrize("scale_x_y", [1.0, 1.2])
def test_map(scale_x_y: float, yolo_point: str, check: Callable[..., Network]) -> None:
    """yolo_point changes how boxes are read, not the map; new_coords is unknown here."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        flat, out = inputs[0].ravel(), inputs[0].ravel().copy()
        for n, entry, place in np.ndindex(2, 11, 24):
            index = n * 24 * 11 + entry * 24 + place
            # x, its uncertainty, y, its, w, its, h, its, objectness, classes: all but w and h.
            if entry not in (4, 6):
                out[index] = 1 / (1 + math.exp(-flat[index]))
            if entry in (0, 2):
                out[index] = out[index] * scale_x_y + -0.5 * (scale_x_y - 1)
        return out.reshape(inputs[0].shape)

    text = f"{HEAD}scale_x_y={scale_x_y}\nyolo_point={yolo_point}\nuc_normalizer=1\n"
    network = check(text, oracle, net=NET, bound=1e-6)
    head = network.layers[0].head()
    assert isinstance(head, GaussianYoloHead)
    assert head.yolo_point == yolo_point


def test_head() -> None:
    options = "scale_x_y=1.1\nnms_kind=cornersnms\nbeta_nms=.7\nyolo_point=left_top\n"
    layer = Network.parse(f"[net]\n{NET}\n{HEAD}{options}", "b.cfg").layers[0]
    assert layer.head() == GaussianYoloHead(
        output="layer000",
        where="b.cfg:5 [Gaussian_yolo] #0",
        classes=2,
        anchors=((37, 58), (10, 14)),
        input_size=(6, 4),
        scale_x_y=1.1,
        nms_kind="cornersnms",
        beta_nms=0.7,
        yolo_point="left_top",
    )
    assert layer.describe() == "2 anchors, 2 classes  scale_x_y 1.1  cornersnms"


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("classes=2", "classes=3", "the layer before has 22 filters, 2 anchors x 12 values want 24",
         "make filters= in the [convolutional] before equal to anchors * (classes + 9)"),
        ("num=3", "yolo_point=left", "yolo_point=left is unknown", "did you mean 'left_top'?"),
    ],
)  # fmt: skip
def test_refused(old: str, new: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    text = HEAD.replace(old, new) if old == "classes=2" else f"{HEAD}{new}\n"
    refused(text, message, new, hint, net=NET)
