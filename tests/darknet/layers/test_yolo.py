"""[yolo] against forward_yolo_layer: which entries go through the logistic function, and what scale_x_y does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.errors import DncWarning
from dnc.runtime.decoding import YoloHead

Doubles = npt.NDArray[np.float64]

ANCHORS = "anchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319\n"
NET = "width=6\nheight=4\nchannels=14"
HEAD = "[yolo]\nclasses=2\nnum=6\nmask=1,4\n" + ANCHORS
"""Two anchors of 5 + 2 entries on 14 channels."""


def activated(scale_x_y: float, new_coords: bool) -> Callable[[Sequence[Doubles], Arrays], Doubles]:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        flat, out = inputs[0].ravel(), inputs[0].ravel().copy()
        area = 24
        for n, entry, place in np.ndindex(2, 7, area):
            index = n * area * 7 + entry * area + place
            if not new_coords and entry not in (2, 3):
                out[index] = 1 / (1 + math.exp(-flat[index]))
            if entry < 2:
                out[index] = out[index] * scale_x_y + -0.5 * (scale_x_y - 1)
        return out.reshape(inputs[0].shape)

    return oracle


@pytest.mark.parametrize("new_coords", [0, 1])
@pytest.mark.parametrize("scale_x_y", [1.0, 1.05, 2.0])
def test_map(scale_x_y: float, new_coords: int, check: Callable[..., Network]) -> None:
    text = f"{HEAD}scale_x_y={scale_x_y}\nnew_coords={new_coords}\n"
    network = check(text, activated(scale_x_y, bool(new_coords)), net=NET, bound=1e-6)
    assert network.layers[0].shape == (14, 4, 6)


def test_logistic_saturates(check: Callable[..., Network]) -> None:
    x = np.random.default_rng(3).normal(0, 100, (1, 14, 4, 6)).astype(np.float32)
    check(HEAD, activated(1.0, False), net=NET, x=x, bound=1e-6)


def test_head() -> None:
    options = "scale_x_y=1.1\nnew_coords=1\nnms_kind=diounms\nbeta_nms=.7\nmap=coco.map\njitter=.3\n"
    layer = Network.parse(f"[net]\n{NET}\n{HEAD}{options}", "a/b.cfg").layers[0]
    assert layer.head() == YoloHead(
        output="layer000",
        where="b.cfg:5 [yolo] #0",
        classes=2,
        anchors=((23, 27), (135, 169)),
        input_size=(6, 4),
        scale_x_y=1.1,
        new_coords=True,
        nms_kind="diounms",
        beta_nms=0.7,
    )
    assert layer.describe() == "2 anchors, 2 classes  scale_x_y 1.1  new_coords  diounms"


def test_no_mask_is_all_anchors() -> None:
    layer = Network.parse(f"[net]\n{NET}\n[yolo]\nclasses=2\nnum=2\nanchors=1,2,3,4\n").layers[0]
    head = layer.head()
    assert isinstance(head, YoloHead)
    assert head.anchors == ((1, 2), (3, 4))


def anchors(text: str, lenient: bool = False) -> tuple[tuple[float, float], ...]:
    head = Network.parse(f"[net]\n{NET}\n{text}", lenient=lenient).layers[0].head()
    assert isinstance(head, YoloHead)
    return head.anchors


def test_more_anchors_than_num_warn() -> None:
    with pytest.warns(DncWarning, match="anchors= has 12 numbers, num=5 uses 10"):
        assert anchors(HEAD.replace("num=6", "num=5")) == ((23, 27), (135, 169))


def test_a_mask_over_num_takes_what_is_listed() -> None:
    """As cspx-p7-mish.cfg wants it; Darknet reads past its memory."""
    with pytest.warns(DncWarning, match="mask names anchor 4, but num=3; anchors= has 6, which are taken"):
        assert anchors(HEAD.replace("num=6", "num=3")) == ((23, 27), (135, 169))


def test_a_missing_comma() -> None:
    """As in cspx-p7-mish_hp.cfg: Darknet reads 82135, and 0.5 for the number that is then missing."""
    text = HEAD.replace("82, 135", "82  135")
    with pytest.warns(DncWarning, match="anchors= has 11 numbers, num=6 wants 12"):
        assert anchors(text) == ((23, 27), (169, 344))


def test_lenient_takes_half_a_pixel_for_missing_anchors() -> None:
    with pytest.warns(DncWarning, match="anchors= has 4 numbers, num=6 wants 12"):
        assert anchors(HEAD.replace(ANCHORS, "anchors=1,2,3,4\n"), lenient=True) == ((3, 4), (0.5, 0.5))


PAIRS = "two numbers, width and height, for each anchor; Darknet takes 0.5 for the missing ones"
FILTERS = "make filters= in the [convolutional] before equal to anchors * (classes + 5)"


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("classes=2", "classes=3", "the layer before has 14 filters, 2 anchors x 8 values want 16", FILTERS),
        ("classes=2", "classes=0", "classes=0 must be at least 1", "Darknet would crash or compute nothing"),
        ("mask=1,4", "mask=1,6", "mask names anchor 6, but num=6", "anchors count from 0 to 5"),
        ("mask=1,4", "mask=-1,4", "mask names anchor -1, but num=6", "anchors count from 0 to 5"),
        (ANCHORS.strip(), "anchors=10,14, 23,27", "anchors= has 4 numbers, num=6 wants 12",
         PAIRS),
        (ANCHORS.strip(), "anchors=1,2,3,4,5,6,7,8,9,10", "anchors= has 10 numbers, num=6 wants 12", PAIRS),
        (ANCHORS.strip(), "nms_kind=cornersnms", "nms_kind=cornersnms is unknown",
         "one of: default, greedynms, diounms"),
        (ANCHORS.strip(), "clases=2", "nothing in [yolo] reads 'clases'", "did you mean 'classes'?"),
    ],
)  # fmt: skip
def test_refused(old: str, new: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    keep = ANCHORS if new.startswith(("nms", "clases")) else ""
    refused(HEAD.replace(old, new) + keep, message, new, hint, net=NET)


def test_anchors_must_be_given(refused: Callable[..., None]) -> None:
    hint = "width,height of each anchor, separated by commas"
    refused(HEAD.replace(ANCHORS, ""), "[yolo] must say anchors=", "", hint, net=NET)
