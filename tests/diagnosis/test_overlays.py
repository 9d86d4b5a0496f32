"""Data for other viewers. That Netron 9.3 shows them was tried by hand, on an onnx and an openvino engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import dnc
from dnc.diagnosis.overlays import for_model_explorer, for_netron, write_overlay
from dnc.graph.work import read_places
from dnc.runtime.engine import Engine
from tests.diagnosis.made_up import made_up
from tests.networks import TINY, write_network

PLACES = {
    "003_convolutional/Conv": "#3",
    "003_convolutional/LeakyRelu": "#3",
    "011_yolo/Sigmoid": "#11",
    "nms/a": "nms",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("engine")
    return dnc.compile(write_network(folder, "tiny", TINY), target="onnx", out=folder / "e", verify=False)


def test_model_explorer() -> None:
    found = for_model_explorer(made_up(), PLACES)
    assert found["results"] == {name: {"value": -31.0} for name in list(PLACES)[:2]}, "a head has no noise of its own"
    limits = [item["value"] for item in found["thresholds"]]
    assert limits == sorted(limits), "the first that is not exceeded counts"


def test_netron() -> None:
    found = for_netron(made_up(), PLACES)
    assert found["signature"] == "netron:attachment"
    noises = [(item["target"], item["name"], item["value"]) for item in found["metrics"]]
    assert noises == [
        *((name, "noise by itself, dB", -31.0) for name in list(PLACES)[:1]),
        ("003_convolutional/Conv", "accumulated noise, dB", -36.5),
        ("003_convolutional/Conv", "noise at the heads, dB", -37.0),
        ("003_convolutional/LeakyRelu", "noise by itself, dB", -31.0),
        ("003_convolutional/LeakyRelu", "accumulated noise, dB", -36.5),
        ("003_convolutional/LeakyRelu", "noise at the heads, dB", -37.0),
        ("011_yolo/Sigmoid", "accumulated noise, dB", -32.5),
    ]
    assert {"kind": "node", "target": "003_convolutional/Conv", "name": "loss", "value": "weights"} in found["metadata"]


def test_what_was_not_measured_is_left_out() -> None:
    whole = made_up()
    unknown = replace(whole, layers=tuple(replace(layer, measured=False) for layer in whole.layers))
    assert for_model_explorer(unknown, PLACES)["results"] == {}
    assert for_netron(unknown, PLACES)["metrics"] == []


def test_nodes_are_those_of_the_model(engine: Engine) -> None:
    places = read_places(engine.folder, engine.manifest)
    have = {node.name for node in onnx.load(str(engine.folder / "model.onnx")).graph.node}
    for named in (
        set(for_model_explorer(made_up(), places)["results"]),
        {item["target"] for item in for_netron(made_up(), places)["metrics"]},
    ):
        assert {"000_convolutional/Conv", "001_convolutional/Conv"} <= named <= have


def test_a_file(tmp_path: Path) -> None:
    found = for_netron(made_up(), PLACES)
    write_overlay(found, tmp_path / "overlay.json")
    assert json.loads((tmp_path / "overlay.json").read_text("utf-8")) == found


def test_model_explorers_own_classes(engine: Engine) -> None:
    """It has fields of those names, and its reader of ONNX gives nodes those ids."""
    pytest.importorskip("model_explorer")
    from model_explorer.node_data_builder import GraphNodeData, NodeDataResult, ThresholdItem

    adapter = pytest.importorskip("model_explorer_onnx.main")
    found = for_model_explorer(made_up(), read_places(engine.folder, engine.manifest))
    results = {node: NodeDataResult(**result) for node, result in found["results"].items()}
    thresholds = [ThresholdItem(**item) for item in found["thresholds"]]
    theirs = json.loads(GraphNodeData(results, found["name"], thresholds).to_json_string())
    assert found.items() <= theirs.items()
    (graph,) = adapter.ONNXAdapter().convert(str(engine.folder / "model.onnx"), {})["graphs"]
    assert set(results) <= {node.id for node in graph.nodes}
