"""Tables, and that Darknet's operations are counted as Darknet counts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dnc.cli._report import (
    comparison_json,
    comparison_table,
    dims,
    network_json,
    network_table,
    summary,
    totals,
    verdict,
)
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.evaluation.comparison import Comparison, Row
from dnc.tables import Column, Table
from tests import ROOT
from tests.networks import NETWORKS

CFG = ROOT / "cfg"


def bflops(network: Network) -> float:
    return float(network_json(network)["bflops"])


@pytest.mark.parametrize(
    ("name", "printed"),
    # What Darknet prints as "Total BFLOPS" for these, at these sizes; 18.57 is Darknet-53's published figure.
    [
        ("yolov3-tiny", "5.571"),
        ("yolov3", "65.879"),
        ("yolov4", "128.459"),
        ("yolov4-tiny", "6.910"),
        ("darknet53", "18.57"),
    ],
)
def test_published_operations(name: str, printed: str) -> None:
    places = len(printed.partition(".")[2])
    exact = bflops(Network.load(CFG / f"{name}.cfg"))
    shown = f"{int(exact * 10**places) / 10**places:.{places}f}" if name == "darknet53" else f"{exact:.{places}f}"
    assert shown == printed


def layer_flops(options: str, before: str = "") -> float:
    """Operations of the last layer on 3 channels of 6 x 8 pixels."""
    return Network.parse(f"[net]\nwidth=8\nheight=6\nchannels=3\n{before}\n{options}\n").layers[-1].flops()


CONVOLUTION = "[convolutional]\nfilters=3\nsize=1\nactivation=linear\n"


@pytest.mark.parametrize(
    ("options", "before", "count"),
    [
        ("[convolutional]\nfilters=6\nsize=3\nstride=2\npad=1\ngroups=3\nactivation=linear", "", 2 * 6 * 9 * 12),
        ("[convolutional]\nfilters=4\nsize=3\npad=1\nxnor=1\nactivation=linear", "", 2 * 4 * 3 * 9 * 48 / 32),
        # The convolution runs with stride 1, and the blur after it is not counted.
        ("[convolutional]\nfilters=4\nstride=2\nantialiasing=1\nactivation=linear", "", 2 * 4 * 3 * 48),
        ("[maxpool]\nsize=3\nstride=2", "", 9 * 3 * 12),
        ("[maxpool]\nsize=2\nstride=2\nantialiasing=1", "", 4 * 3 * 48),
        ("[maxpool]\nsize=2\nstride=2\nmaxpool_depth=1\nout_channels=1", "", 4 * 3 * 48),
        ("[local_avgpool]\nsize=2\nstride=2", "", 4 * 3 * 12),
        ("[shortcut]\nfrom=-2", CONVOLUTION * 2, 144),
        ("[shortcut]\nfrom=-2,-3", CONVOLUTION * 3, 2 * 144),
        ("[shortcut]\nfrom=-2\nweights_type=per_feature\nweights_normalization=relu", CONVOLUTION * 2, 2 * 144),
        ("[sam]\nfrom=-2", CONVOLUTION * 2, 0),
        ("[scale_channels]\nfrom=-2", CONVOLUTION + "[avgpool]\n", 0),
        ("[avgpool]", "", 0),
        ("[upsample]", "", 0),
        ("[batchnorm]", "", 0),
        # As `darknet ops`.
        ("[connected]\noutput=5\nactivation=linear", "", 2 * 5 * 144),
    ],
)
def test_operations_of_a_layer(options: str, before: str, count: float) -> None:
    assert layer_flops(options, before) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_table(name: str, tmp_path: Path) -> None:
    network = Network.parse(NETWORKS[name], "net.cfg", lenient=True).with_random_weights()
    lines = network_table(network).text().splitlines()
    assert len(lines) == len(network.layers) + 1
    for layer, line in zip(network.layers, lines[1:], strict=True):
        assert line.split()[:2] == [str(layer.index), layer.name]
        assert dims(layer.shape) in line
    path = tmp_path / "net.weights"
    with path.open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    size = path.stat().st_size
    assert totals(network).endswith(f"{size:,} bytes of weights")
    assert totals(network, path) == totals(network)
    described = network_json(network)
    assert described["weights_bytes"] == size
    assert sum(layer["parameters"] for layer in described["layers"]) == described["parameters"]
    json.dumps(described)


def test_filters_stand_apart_from_the_size() -> None:
    network = Network.parse(
        "[net]\nwidth=8\nheight=6\nchannels=4\n"
        "[convolutional]\nfilters=16\ngroups=2\nsize=3\nstride_x=2\nstride_y=1\npad=1\nactivation=linear\n"
        "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n[connected]\noutput=5\nactivation=linear\n"
    )
    cells = [row[2:6] for row in network_table(network).rows]
    assert cells == [
        ("16/2", "3 x 3 / 2x1", "8 x 6 x 4", "4 x 6 x 16"),
        ("", "0  1/2", "4 x 6 x 16", "4 x 6 x 8"),
        ("", "5", "4 x 6 x 8", "1 x 1 x 5"),
    ]


def test_dims() -> None:
    assert dims((3, 416, 608)) == "608 x 416 x 3"
    assert dims((1000,)) == "1000"


def test_text_is_aligned() -> None:
    table = Table([Column("name"), Column("count", right=True), Column("note")])
    table.add("a", "1", "")
    table.add("long name", "1234567", "[bold]x")
    assert table.text() == (
        "name         count  note\n"  # no blanks at the ends of lines
        "a                1\n"
        "long name  1234567  [bold]x"
    )
    with pytest.raises(ValueError, match="2 cells for 3 columns"):
        table.add("a", "b")


def test_markup_in_cells_is_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """rich would take [yolo] for a style, and drop it."""
    import sys

    table = Table([Column("section", folds=True)])
    table.add("a.cfg:1 [yolo] #3", style="red")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    table.show()
    assert "a.cfg:1 [yolo] #3" in capsys.readouterr().out


def row(name: str, relative: float, **more: object) -> Row:
    return Row("", name, f"a.cfg:1 {name}", (2, 3), relative * 10, relative, **more)  # type: ignore[arg-type]


def test_comparison_that_agrees() -> None:
    rows = (row("layer000", 1e-6), row("layer001", 2e-6), row("layer002", 0, skipped=True, note="why"))
    comparison = Comparison("A", "B", 1e-4, rows)
    assert verdict(comparison) == (
        "2 of 2 outputs agree within 0.0001: the largest relative error is 2.00e-06, of layer001"
    )
    table = comparison_table(comparison)
    assert [column.title for column in table.columns] == ["output", "section", "shape", "max error", "relative", "note"]
    assert table.rows[0] == ("layer000", "a.cfg:1 layer000", "(2, 3)", "1.00e-05", "1.00e-06", "")
    assert table.rows[2] == ("layer002", "a.cfg:1 layer002", "(2, 3)", "", "", "why")
    assert table.styles == ["", "", ""]
    assert verdict(Comparison("A", "B", 0, (row("layer000", 0),))) == "1 of 1 outputs are equal"


def test_comparison_that_differs() -> None:
    rows = (row("layer000", 1e-6), row("layer001", float("inf")), row("layer002", float("nan")))
    comparison = Comparison("A", "B", 1e-4, rows)
    assert verdict(comparison) == "first difference: layer001, a.cfg:1 layer001: relative error inf exceeds 0.0001"
    assert comparison_table(comparison).styles == ["", "red", "red"]
    report = comparison_json(comparison)
    assert (report["agrees"], report["first"]["output"]) == (False, "layer001")
    assert [item["relative"] for item in report["outputs"]] == [1e-6, None, None]
    assert [item["differs"] for item in report["outputs"]] == [False, True, True]
    json.dumps(report, allow_nan=False)


def test_comparison_of_several_inputs() -> None:
    rows = tuple(Row(name, "layer000", "", (), np.inf, np.inf) for name in ("one", "two"))
    comparison = Comparison("A", "B", 1e-4, rows)
    assert [cells[0] for cells in comparison_table(comparison).rows] == ["one", "two"]
    assert verdict(comparison).startswith("first difference for input one: layer000: ")


def test_summary_is_the_first_sentence() -> None:
    from dnc.passes import passes

    assert summary(passes["fold-constants"]) == "Computes at compile time what depends on constants alone."
