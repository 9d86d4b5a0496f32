"""cfg/README.md is true: every network is in its table, with dnc's own figures, and beside them what was published.

The README says how each figure counts.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import pytest

from dnc import zoo
from dnc.darknet.network import Network
from tests import ROOT

README = (ROOT / "cfg" / "README.md").read_text(encoding="utf-8")
AWAY = 0.03
"""How far a published figure may be from dnc's without a word: they are rounded to two or three digits, and tools
differ in what else they count than convolutions."""


class Row(NamedTuple):
    """A row of the table, as text."""

    network: str
    purpose: str
    weights: str
    input: str
    bflops: str
    macs: str
    parameters: str
    published: str
    why: str


def rows() -> list[Row]:
    lines = (line.strip("|").split("|") for line in README.splitlines() if line.startswith("|"))
    return [Row(*map(str.strip, cells)) for cells in lines if len(cells) == len(Row._fields)][2:]


ROWS = {re.sub(r"\[(.+)\]\(\1\.cfg\)", r"\1", row.network): row for row in rows()}


def macs(network: Network) -> float:
    """In millions, of the convolutions."""
    return sum(layer.flops() for layer in network.layers if layer.name == "convolutional") / 2e6


def trainable(network: Network) -> int:
    arrays = [item for layer in network.layers for item in layer.weights().items()]
    return sum(math.prod(shape) for array, shape in arrays if array not in ("mean", "variance"))


def published(row: Row) -> list[tuple[str, float]]:
    """The field that each published figure compares with, and the figure."""
    fields = {"BFLOPs": "bflops", "M MACs": "macs", "M": "parameters"}
    figures = row.published.partition(" [")[0].split(", ") if row.published else []
    return [(fields[unit], float(value)) for value, unit in (figure.split(" ", 1) for figure in figures)]


def test_every_network_is_listed() -> None:
    assert ROWS.keys() == {path.stem for path in (ROOT / "cfg").glob("*.cfg")}
    assert len(ROWS) == len(rows())
    assert all(row.purpose for row in ROWS.values())


@pytest.mark.parametrize("name", ROWS)
def test_own_figures(name: str) -> None:
    network = Network.load(name)
    _, height, width = network.input_shape
    bflops = sum(layer.flops() for layer in network.layers) / 1e9
    own = (f"{width}x{height}", f"{bflops:.3f}", f"{macs(network):.1f}", f"{trainable(network) / 1e6:.3f}")
    assert ROWS[name][3:7] == own


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.published])
def test_published_figures(name: str) -> None:
    """Near dnc's, or it is said why not, and only then; where they stand is said too."""
    row = ROWS[name]
    away = [abs(float(getattr(row, field)) / figure - 1) for field, figure in published(row)]
    assert (max(away) > AWAY) == bool(row.why)
    sources = re.findall(r"\[[\w-]+\]", row.published)
    assert sources
    assert all(f"| {source} | " in README for source in sources)


def test_no_reason_without_a_figure() -> None:
    assert not [name for name, row in ROWS.items() if row.why and not row.published]


def test_weights() -> None:
    assert {name for name, row in ROWS.items() if row.weights == "zoo"} == {
        entry.cfg.removesuffix(".cfg") for entry in zoo.entries()
    }


def test_exact() -> None:
    """As PyTorch counts them in torchvision's and timm's models, and as Darknet prints the layers."""
    assert trainable(Network.load("efficientnet-b0-paper")) == 5_288_548
    assert trainable(Network.load("efficientnet-b7-paper")) == 66_347_960
    assert trainable(Network.load("efficientnet-edgetpu-s")) == 5_438_392
    assert trainable(Network.load("efficientnet-edgetpu-m")) == 6_899_496
    assert trainable(Network.load("efficientnet-edgetpu-l")) == 10_589_712
    assert trainable(Network.load("mobilenetv2")) == 3_504_872
    assert len(Network.load("mixnet-m").layers) == 253
    assert len(Network.load("csresnext50").layers) == 84


def test_where_the_detectors_join() -> None:
    """The layers that Darknet's own cfgs name by number."""
    sources = [set(layer.sources) for layer in Network.load("enet-coco").layers]
    assert sum(90 in layer for layer in sources) == 3
    sources = [set(layer.sources) for layer in Network.load("yolov3-tiny-prn").layers]
    assert sum(8 in layer for layer in sources) == 3
    for name, middle, fine in (("csresnext50-panet-spp", 65, 38), ("cd53paspp-mish", 85, 54)):
        routes = [layer.sources for layer in Network.load(name).layers if layer.name == "route"]
        assert routes.index((middle,)) < routes.index((fine,))
