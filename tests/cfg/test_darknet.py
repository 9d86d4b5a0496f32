"""The backbones that generators share write the networks that stand in cfg/ by hand, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cfg.generators.darknet import darknet19, darknet53
from cfg.generators.text import Cfg
from cfg.generators.yolov3_openimages import yolov3
from dnc.darknet.layers.base import Layer
from dnc.darknet.network import Network


def classifier53(cfg: Cfg) -> None:
    darknet53(cfg, "leaky")
    cfg.classifier()


def facts(layer: Layer) -> dict[str, object]:
    """All that a layer is, but for the line it stands in."""
    return {name: value for name, value in vars(layer).items() if name != "where"} | {"name": layer.name}


@pytest.mark.parametrize(
    ("name", "side", "build"),
    [
        ("darknet19", 256, lambda cfg: darknet19(cfg, "leaky")),
        ("darknet53", 256, classifier53),
        ("yolov3", 416, lambda cfg: yolov3(cfg, 80)),
    ],
)
def test_written_by_hand(name: str, side: int, build: Callable[[Cfg], None]) -> None:
    cfg = Cfg(name, "A title.", (), side, side)
    build(cfg)
    written = Network.parse(cfg.text("x.py"))
    assert [facts(layer) for layer in written.layers] == [facts(layer) for layer in Network.load(name).layers]
