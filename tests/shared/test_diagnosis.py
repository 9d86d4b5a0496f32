"""A trained detector with faults in it: they are named first among some hundred layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc.compiler.options import CompileOptions
from dnc.compiler.source import preprocessing_for
from dnc.darknet.network import Network
from dnc.diagnosis.diagnosing import Wanted, diagnose
from dnc.diagnosis.report import CUT, PAIRS
from dnc.quantization.calibration import Calibration
from dnc.quantization.collecting import calibrate

pytestmark = pytest.mark.shared

Trained = Callable[[str], tuple[Path, Path]]
FEW = Wanted(images=2, compared=2, shown=2, measured=0)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, trained: Trained, images: Path) -> Callable[[str], Calibration]:
    """The calibration of a network."""

    def measured(name: str) -> Calibration:
        network = Network.load(*trained(name))
        paths = sorted(images.iterdir())[-16:]
        return calibrate(network, preprocessing_for(network, network.weights), paths)

    return measured


@pytest.mark.parametrize("layer", [13, 37, 103])
def test_a_range_that_is_cut(
    layer: int, trained: Trained, images: Path, table: Callable[[str], Calibration], tmp_path: Path
) -> None:
    found = table("yolo-fastest-1.1")
    known = found.ranges[f"layer{layer:03d}"]
    cut = dataclasses.replace(known, low=known.low / 10, high=known.high / 10)
    dataclasses.replace(found, ranges={**found.ranges, f"layer{layer:03d}": cut}).write(tmp_path / "cut.json")
    cfg, weights = trained("yolo-fastest-1.1")
    options = CompileOptions(
        target="onnx", precision="int8", calibration=tmp_path / "cut.json", data=[str(images)], verify=False
    )
    diagnosis = diagnose(cfg, weights, options, wanted=FEW)
    assert diagnosis.culprits[0] == layer
    assert diagnosis.layer(layer).kind == CUT


def test_pairs_that_saturate(
    trained: Trained,
    images: Path,
    table: Callable[[str], Calibration],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What an engine for CPUs with VNNI loses on one without: 12 points of mAP, most of them in layer 9."""
    table("yolo-fastest-1.0-xl").write(tmp_path / "table.json")
    cfg, weights = trained("yolo-fastest-1.0-xl")
    monkeypatch.setenv("DNC_ISA", "avx2")
    options = CompileOptions(
        target="onnx",
        precision="int8",
        calibration=tmp_path / "table.json",
        data=[str(images)],
        options={"isa": "avx512vnni"},
    )
    diagnosis = diagnose(cfg, weights, options, wanted=FEW)
    assert diagnosis.culprits[0] == 9
    assert diagnosis.layer(9).kind == PAIRS
    assert diagnosis.layer(9).saturated_pairs > 0.01
