"""BFLOPs and parameters of the generated networks: Darknet's own, and those of the papers.

Darknet's figures are what it prints, with two or three digits. Papers count multiplications with additions once (MACs)
and leave the statistics of batch normalisation out of the parameters, as here.
"""

from __future__ import annotations

import math

import pytest

from dnc.darknet.network import Network


def bflops(name: str) -> float:
    return sum(layer.flops() for layer in Network.load(name).layers) / 1e9


def macs(name: str) -> float:
    """In millions, of the convolutions."""
    return sum(layer.flops() for layer in Network.load(name).layers if layer.name == "convolutional") / 2e6


def trainable(name: str) -> float:
    """In millions."""
    arrays = [item for layer in Network.load(name).layers for item in layer.weights().items()]
    return sum(math.prod(shape) for array, shape in arrays if array not in ("mean", "variance")) / 1e6


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("efficientnet-b0", 0.915),
        ("efficientnet-b3-288", 3.5),
        ("efficientnet-b3-320", 4.3),
        ("efficientnet-b4-384", 10.2),
        ("enet-coco", 3.7),
        ("mixnet-m", 0.759),
        ("mixnet-m-gpu", 1.0),
        ("yolov3-tiny-prn", 3.5),
        ("csresnext50-panet-spp", 71.3),
        ("cd53paspp-mish", 91.1),
    ],
)
def test_darknet_prints(name: str, figure: float) -> None:
    assert bflops(name) == pytest.approx(figure, rel=0.02)


def test_parameters_of_darknets_b0() -> None:
    assert 4.8 < trainable("efficientnet-b0") < 5.3


@pytest.mark.parametrize(
    ("name", "parameters", "multiplications"),
    [
        ("efficientnet-b0-paper", 5.3, 390),
        ("efficientnet-b1-paper", 7.8, 700),
        ("efficientnet-b2-paper", 9.2, 1000),
        ("efficientnet-b3-paper", 12, 1800),
        ("efficientnet-b4-paper", 19, 4200),
        ("efficientnet-b5-paper", 30, 9900),
        ("efficientnet-b6-paper", 43, 19000),
        ("efficientnet-b7-paper", 66, 37000),
        ("efficientnet-lite0", 4.7, 407),
        ("efficientnet-lite1", 5.4, 631),
        ("efficientnet-lite2", 6.1, 899),
        ("efficientnet-lite3", 8.2, 1440),
        ("efficientnet-lite4", 13.0, 2640),
        ("mobilenetv2", 3.5, 300),
    ],
)
def test_published(name: str, parameters: float, multiplications: float) -> None:
    """5 % for the MACs: b4 has 4.4e9 in every implementation, where the paper says 4.2e9."""
    assert trainable(name) == pytest.approx(parameters, rel=0.02)
    assert macs(name) == pytest.approx(multiplications, rel=0.05)


@pytest.mark.parametrize(("name", "parameters"), [("mixnet-s", 4.1), ("mixnet-m-paper", 5.0), ("mixnet-l", 7.3)])
def test_published_mixnet(name: str, parameters: float) -> None:
    assert trainable(name) == pytest.approx(parameters, rel=0.02)


def test_exact() -> None:
    """As PyTorch counts them in torchvision's models."""
    assert round(trainable("efficientnet-b0-paper") * 1e6) == 5_288_548
    assert round(trainable("efficientnet-b7-paper") * 1e6) == 66_347_960
    assert round(trainable("mobilenetv2") * 1e6) == 3_504_872
    assert len(Network.load("mixnet-m").layers) == 253


def test_where_the_detectors_join() -> None:
    """The layers that Darknet's own cfgs name by number."""
    sources = [set(layer.sources) for layer in Network.load("enet-coco").layers]
    assert sum(90 in layer for layer in sources) == 3
    sources = [set(layer.sources) for layer in Network.load("yolov3-tiny-prn").layers]
    assert sum(8 in layer for layer in sources) == 3
    for name, middle, fine in (("csresnext50-panet-spp", 65, 38), ("cd53paspp-mish", 85, 54)):
        routes = [layer.sources for layer in Network.load(name).layers if layer.name == "route"]
        assert routes.index((middle,)) < routes.index((fine,))
