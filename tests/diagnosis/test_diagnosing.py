"""Planted faults, each of which is named first and by its kind; and what a healthy network shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.compiler.options import CompileOptions
from dnc.compiler.preparing import dataset_for
from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights
from dnc.diagnosis.diagnosing import Wanted, diagnose
from dnc.diagnosis.report import CUT, PAIRS, ROUNDED, STEP, WEIGHTS, Diagnosis
from dnc.errors import DncError
from dnc.quantization.calibration import Calibration
from dnc.targets import find
from tests.diagnosis.conftest import NET, Arrays, Ward
from tests.networks import REMEMBERING


def need(target: str) -> None:
    if find(target)().missing():
        pytest.skip(f"{target} is not installed")


def first(found: Diagnosis) -> tuple[int, str]:
    """The worst layer, and the kind of its loss."""
    number = found.culprits[0]
    return number, found.layer(number).kind


@pytest.mark.parametrize(
    ("target", "layer"),
    [
        ("onnx", 2),
        pytest.param("onnx", 3, marks=pytest.mark.slow),
        pytest.param("openvino", 3, marks=pytest.mark.slow),
        pytest.param("openvino", 4, marks=pytest.mark.slow),
    ],
)
def test_a_range_that_is_cut(ward: Ward, target: str, layer: int) -> None:
    need(target)
    ward.change_range(f"layer{layer:03d}", 0.1)
    found = ward.diagnose(target=target)
    assert first(found) == (layer, CUT)
    row = found.layer(layer)
    assert row.saturated > 0.1
    assert row.range is not None
    assert row.range.used == pytest.approx(1, abs=0.05)
    assert "calibrate it" in row.advice


def output_channel(layer: int) -> Callable[[list[Arrays]], None]:
    def change(arrays: list[Arrays]) -> None:
        for name in ("scales", "biases"):
            arrays[layer][name][3] *= 100

    return change


def input_channel(layer: int) -> Callable[[list[Arrays]], None]:
    def change(arrays: list[Arrays]) -> None:
        arrays[layer]["weights"][:, 3] *= 100

    return change


def outliers(layer: int) -> Callable[[list[Arrays]], None]:
    def change(arrays: list[Arrays]) -> None:
        rows = arrays[layer]["weights"].reshape(len(arrays[layer]["weights"]), -1)
        rows[np.arange(len(rows)), np.arange(len(rows)) % rows.shape[1]] *= 100

    return change


@pytest.mark.parametrize(
    ("target", "change", "layer", "kind"),
    [
        ("onnx", output_channel, 2, STEP),
        pytest.param("onnx", output_channel, 4, STEP, marks=pytest.mark.slow),
        pytest.param("openvino", output_channel, 1, STEP, marks=pytest.mark.slow),
        pytest.param("openvino", output_channel, 4, STEP, marks=pytest.mark.slow),
        pytest.param("onnx", input_channel, 2, WEIGHTS, marks=pytest.mark.slow),
        pytest.param("onnx", input_channel, 5, WEIGHTS, marks=pytest.mark.slow),
        pytest.param("openvino", input_channel, 4, WEIGHTS, marks=pytest.mark.slow),
        pytest.param("onnx", outliers, 2, WEIGHTS, marks=pytest.mark.slow),
        pytest.param("openvino", outliers, 5, WEIGHTS, marks=pytest.mark.slow),
    ],
)
def test_weights_of_which_some_are_a_hundred_times_the_others(
    ward: Ward, target: str, change: Callable[[int], Callable[[list[Arrays]], None]], layer: int, kind: str
) -> None:
    need(target)
    ward.change_weights(change(layer))
    found = ward.diagnose(target=target)
    assert first(found) == (layer, kind)
    assert found.layer(layer).typical is not None


@pytest.mark.slow
def test_a_channel_that_the_next_layer_makes_small_again(ward: Ward) -> None:
    """The network computes what it did, and its other channels are lost in 8 bits."""

    def change(arrays: list[Arrays]) -> None:
        # What a shortcut adds is scaled in both, and no factor can be moved between them.
        for layer in (1, 2):
            arrays[layer]["scales"][3] *= 100
            arrays[layer]["biases"][3] *= 100
        arrays[2]["weights"][:, 3] /= 100
        arrays[4]["weights"][:, 3] /= 100

    ward.change_weights(change)
    found = ward.diagnose()
    assert found.culprits[0] in (1, 2, 3)
    assert found.layer(3).kind == STEP
    assert (found.layer(3).spread or 0) > 20


def test_bfloat16(ward: Ward) -> None:
    """What no graph says is measured: OpenVINO rounds what it computes, if the CPU has bfloat16."""
    need("openvino")
    found = ward.diagnose(target="openvino", precision="bf16", calibration=None, data=[str(ward.images)])
    assert {layer.kind for layer in found.layers} <= {"", ROUNDED}
    assert all(layer.precision == "bf16" for layer in found.layers if layer.number >= 0)
    assert found.engine.arithmetic == ""


@pytest.mark.slow
def test_float16_in_a_graph(ward: Ward) -> None:
    found = ward.diagnose(precision="fp16", calibration=None, data=[str(ward.images)])
    lossy = {layer.number: layer for layer in found.layers if layer.own is not None}
    assert set(lossy) >= {0, 1, 2, 4, 5, 6}
    # 11 bits: 2^-12 of a value in the mean.
    assert all(-90 < (layer.own or 0) < -60 and layer.kind == ROUNDED for layer in lossy.values())
    assert lossy[2].precision == "fp16"
    assert found.layer(7).precision == "fp32"
    assert found.culprits == ()


@pytest.mark.slow
def test_float32_loses_nothing(ward: Ward) -> None:
    found = ward.diagnose(precision="fp32", calibration=None, data=[str(ward.images)])
    assert found.culprits == ()
    assert all(layer.own is None for layer in found.layers)
    assert all(head.error < 1e-5 for head in found.heads)
    assert (found.gone, found.come) == (0, 0)


@pytest.mark.slow
def test_a_healthy_network(ward: Ward) -> None:
    """Noise accumulates; what comes of it at the heads is about the sum of that of the layers by themselves."""
    found = ward.diagnose(wanted=Wanted(3, 3, 2, 1, 0.01), data=[str(ward.images)])
    assert Diagnosis.from_json(json.loads(json.dumps(found.to_json()))) == found
    rows = {layer.number: layer for layer in found.layers}
    assert sorted(rows) == [-1, *range(8)]
    assert rows[2].text.splitlines()[0] == "[convolutional]"
    assert rows[2].text.splitlines()[-1] == "activation=leaky"
    assert rows[2].where == "net.cfg:19 [convolutional] #2"
    assert [rows[number].precision for number in (-1, 0, 3, 6, 7)] == ["int8", "int8", "int8", "fp32", "fp32"]
    assert rows[6].reason == "no product comes after it"
    both = [10 ** ((rows[number].own or 0) / 10) for number in (-1, 0)]
    assert rows[0].accumulated == pytest.approx(10 * np.log10(sum(both)), abs=1.5)
    assert (rows[4].accumulated or 0) > (rows[4].own or 0)
    for number in (0, 1, 2, 4, 5):
        row = rows[number]
        assert -50 < (row.own or 0) < -20
        total = sum(10 ** (loss / 10) for loss in row.kinds.values())
        assert 10 * np.log10(total) == pytest.approx(row.own, abs=1.5)
        assert row.histogram is not None
        assert sum(row.histogram.counts) + row.histogram.zeros == 3 * np.prod(row.shape)
        assert row.range is not None
        assert row.range.used > 0.5
    at_heads = sum(10 ** (row.at_heads / 10) for row in rows.values() if row.at_heads is not None)
    assert 10 * np.log10(at_heads) == pytest.approx(rows[6].accumulated, abs=3)
    assert found.metric is not None
    assert not found.metric.labelled
    assert found.metric.against == 1 or found.boxes == 0
    assert found.keep[0].measured
    assert {item.name for item in found.passes} >= {"equalize", "quantize"}
    assert len(found.changes) == 2
    assert found.changes[0].size == (48, 40)
    assert found.notes == ()


@pytest.mark.slow
def test_an_engine(ward: Ward, tmp_path: Path) -> None:
    """It is looked into by compiling its network anew; the layers that it keeps in float32 are kept."""
    told: dict[str, Any] = {"target": "onnx", "precision": "int8", "calibration": ward.table, "keep": ["2", "Add"]}
    engine = dnc.compile(ward.cfg, out=tmp_path / "k.engine", **told)
    options = CompileOptions(calibration=ward.table)
    of_engine = diagnose(engine.folder, None, options, wanted=Wanted(2, 2, 2, 0))
    of_cfg = ward.diagnose(keep=["2", "Add"])
    assert of_engine.layers == of_cfg.layers
    assert of_engine.layer(2).precision == "fp32"
    assert of_engine.layer(2).reason == "layer 2 is kept in float32"
    assert of_engine.notes == ()
    assert of_engine.engine.title == str(engine.folder)
    # Against one that keeps nothing, what differs is layer 2 and what rounds around it.
    other = dnc.compile(ward.cfg, out=tmp_path / "o.engine", **{**told, "keep": []})
    between = diagnose(engine.folder, None, options, against=other.folder, wanted=Wanted(2, 2, 2, 0))
    assert between.against.title == str(other.folder)
    assert between.layer(0).own is None
    assert between.layer(0).accumulated is None
    assert between.culprits[0] in (2, 3)


@pytest.mark.slow
def test_what_an_engine_lacks(ward: Ward, tmp_path: Path) -> None:
    engine = dnc.compile(
        ward.cfg, target="onnx", precision="int8", calibration=ward.table, out=tmp_path / "a" / "i.engine"
    )
    with pytest.raises(DncError, match="its calibration is needed"):
        diagnose(engine.folder)
    options = CompileOptions(calibration=ward.table)
    with pytest.raises(DncError, match=r"takes the net\.cfg and the weights that it was made of"):
        diagnose(engine.folder, options=options)
    other = tmp_path / "other.cfg"
    other.write_text(NET.replace("filters=8", "filters=12"), "utf-8")
    shutil.copy(ward.cfg.with_suffix(".weights"), tmp_path / "other.weights")
    with pytest.raises(DncError):
        diagnose(engine.folder, options=options, cfg=other)
    with_other_weights = tmp_path / "w.weights"
    network = Network.load(ward.cfg).with_random_weights(9)
    with with_other_weights.open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    with pytest.raises(DncError, match="made of other files than"):
        diagnose(engine.folder, with_other_weights, options, cfg=ward.cfg)


def test_networks_without_images_and_without_heads(write: Callable[..., Path]) -> None:
    with pytest.raises(DncError, match="takes no images"):
        diagnose(write("vector"), options=CompileOptions(target="onnx"))


@pytest.mark.slow
def test_a_network_with_memory(write: Callable[..., Path], ward: Ward) -> None:
    """Each side remembers what it has seen itself."""
    cfg = write("detector", REMEMBERING["detector"])
    options = CompileOptions(target="onnx", precision="fp16", data=[str(ward.images)])
    found = diagnose(cfg, options=options, wanted=Wanted(3, 3, 3, 0))
    assert all(layer.accumulated is None or layer.accumulated < -50 for layer in found.layers)
    assert all(head.error < 0.01 for head in found.heads)


def saturating(arrays: list[Arrays]) -> None:
    """Weights of one sign and size, of which a pair adds up to more than 16 bits hold, as its inputs are large."""
    arrays[2]["biases"][:] += 3
    weights = arrays[4]["weights"]
    weights[:] = 0.1 + 0.001 * np.arange(weights.size).reshape(weights.shape) / weights.size


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_pairs_that_saturate(ward: Ward, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an engine that is made for a CPU with VNNI, on one without, whatever this one has."""
    need(target)
    ward.change_weights(saturating)
    monkeypatch.setenv("DNC_ISA", "avx2")
    found = ward.diagnose(target=target, options={"isa": "avx512vnni"})
    assert first(found) == (4, PAIRS)
    assert found.layer(4).saturated_pairs > 0.1
    assert found.engine.arithmetic.startswith("pairs: ")
    assert (found.layer(4).accumulated or 0) > -20 or any("adds pairs up exactly" in note for note in found.notes)
    # Made for this CPU, its weights are such that nothing saturates; they are coarser for it.
    guarded = ward.diagnose(target=target)
    assert all(layer.saturated_pairs == 0 and PAIRS not in layer.kinds for layer in guarded.layers)
    assert (guarded.layer(4).at_heads or 0) < (found.layer(4).at_heads or 0) - 10
    monkeypatch.setenv("DNC_ISA", "avx512vnni")
    exact = ward.diagnose(target=target)
    assert all(PAIRS not in layer.kinds for layer in exact.layers)


@pytest.mark.slow
def test_boxes_that_come_and_go(ward: Ward) -> None:
    """Each box of both sides is told once, and those that both have overlap one of the other's."""
    ward.change_range("layer004", 0.1)
    found = ward.diagnose(wanted=Wanted(1, 3, 3, 0, 0.01))
    assert found.boxes == sum(len(change.against) for change in found.changes)
    assert found.gone == sum(change.gone for change in found.changes) > 0
    for change in found.changes:
        both = [sum(box.place == "both" for box in boxes) for boxes in (change.engine, change.against)]
        assert both[0] == both[1]
        assert {box.place for box in change.engine} <= {"both", "come"}
        assert {box.place for box in change.against} <= {"both", "gone"}
    changed = [change.gone + change.come for change in found.changes]
    assert changed == sorted(changed, reverse=True)


def test_a_classifier(write: Callable[..., Path], ward: Ward) -> None:
    options = CompileOptions(target="onnx", precision="fp16", data=[str(ward.images)])
    found = diagnose(write("classifier"), options=options, wanted=Wanted(1, 3, 3, 1))
    assert (found.boxes, found.gone, found.come) == (3, 0, 0)
    assert found.metric is not None
    assert found.metric.name == "top-1"
    assert found.metric.engine == found.metric.against == 1


def test_without_images(ward: Ward) -> None:
    with pytest.raises(DncError, match="none are named"):
        ward.diagnose(precision="fp32", calibration=None)


def test_images_are_those_of_the_calibration(tmp_path: Path) -> None:
    """Of a .data file those of its list train, as they were calibrated on; those that are named, of its list valid."""
    for name in ("train", "valid"):
        (tmp_path / f"{name}.png").touch()
        (tmp_path / f"{name}.txt").write_text(f"{tmp_path / name}.png\n", encoding="utf-8")
    data = tmp_path / "x.data"
    data.write_text(f"train={tmp_path}/train.txt\nvalid={tmp_path}/valid.txt\n", encoding="utf-8")
    calibration = Calibration("", "norm", False, {}, {"source": str(data)}, {})
    for options, name in ((CompileOptions(), "train"), (CompileOptions(data=[str(data)]), "valid")):
        assert [entry.path.stem for entry in dataset_for(calibration, options, 9, key="valid").entries] == [name]
    with pytest.raises(DncError, match="none are named"):
        dataset_for(None, CompileOptions())
