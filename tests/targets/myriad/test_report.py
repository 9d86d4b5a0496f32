"""The list of stages, and the configuration for DepthAI, as their readers want them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from dnc.runtime.decoding import ClassifierHead, Head, RegionHead, YoloHead
from dnc.targets.myriad.report import in_short, read_stages, yolo_config
from tests.manifests import manifest


def stage(order: str, name: str, kind: str, layer: str = "") -> str:
    """One stage as the compiler writes it."""
    made_for = rf"\lorigLayer = [\l    name = {layer}\l    type = Convolution\l]" if layer else ""
    return rf'    stage_0x1 [ label="[{order} / 3] Stage {name}\ltype = {kind}{made_for}\lnumSHAVEs = 0\l" ];' + "\n"


DUMP = (
    "digraph ie_vpu_model_view {\n"
    + r'    data_0x1 [ label="Data input\lusage = Input\l" ];'
    + "\n"
    + stage("0", "input@FP16", "Convert")
    + stage("1", "a@soh=01/02", "MyriadXHwOp", "a")
    + stage("-1", "a@split", "Split", "a")
    + stage("2", "a@soh=02/02", "MyriadXHwOp", "a")
    + stage("3", "b", "Sigmoid", "b")
    + stage("Injected", "c", "Copy", "b")
    + stage("4", "unknown", "Sum", "other")
    + r'    stage_0x9 [ label="StageInput\lportInd = 0\l" ];'
    + "\n}\n"
)


def test_stages() -> None:
    layers = read_stages(DUMP, {"a": "n.cfg:3 [convolutional] #0", "b": "n.cfg:9 [yolo] #1"})
    assert layers == [
        {"where": "inputs", "hardware": 0, "software": {}, "copies": 1},
        {"where": "n.cfg:3 [convolutional] #0", "hardware": 2, "software": {}, "copies": 0},
        {"where": "n.cfg:9 [yolo] #1", "hardware": 0, "software": {"Sigmoid": 1}, "copies": 1},
        {"where": "other", "hardware": 0, "software": {"Sum": 1}, "copies": 0},
    ]
    assert in_short(layers) == "2 hardware, 2 software (1 Sigmoid, 1 Sum), 2 copies"


def test_a_list_that_is_cut_off() -> None:
    with pytest.raises(ValueError, match="cut off"):
        read_stages(DUMP[:-3], {})


def yolo(output: str, anchors: tuple[tuple[float, float], ...], **more: object) -> YoloHead:
    """A head for two classes."""
    return YoloHead(output, f"n.cfg:9 [yolo] #{output}", 2, anchors, (64, 32), **more)  # type: ignore[arg-type]


BIG, SMALL = yolo("a", ((30, 40), (50, 60))), yolo("b", ((10, 14),))
ABOUT = manifest(
    input_shape=(3, 32, 64),
    batch=1,
    outputs=("a", "b"),
    output_shapes=((14, 1, 2), (7, 2, 4)),
    heads=(BIG, SMALL),
    labels=("cat", "dog"),
)


def test_yolo() -> None:
    config = json.loads(yolo_config(ABOUT, 0.3, 0.5))
    network = config["nn_config"]
    assert (network["NN_family"], network["output_format"], network["input_size"]) == ("YOLO", "detection", "64x32")
    assert network["NN_specific_metadata"] == {
        "classes": 2,
        "coordinates": 4,
        "anchors": [30, 40, 50, 60, 10, 14],
        "anchor_masks": {"side2": [0, 1], "side4": [2]},
        "iou_threshold": 0.5,
        "confidence_threshold": 0.3,
    }
    assert config["mappings"]["labels"] == ["cat", "dog"]
    unnamed = json.loads(yolo_config(dataclasses.replace(ABOUT, labels=()), 0.3, 0.5))
    assert unnamed["mappings"]["labels"] == ["0", "1"]


REGION = RegionHead("b", "n.cfg:9 [region] #1", 2, ((1, 2),))


@pytest.mark.parametrize(
    ("heads", "decode", "why"),
    [
        ((BIG, yolo("b", ((1, 2),), new_coords=True)), "host", r"cannot decode n\.cfg:9 \[yolo\] #b, new_coords=1"),
        ((BIG, REGION), "host", r"cannot decode n\.cfg:9 \[region\] #1$"),
        ((BIG, yolo("a", ((1, 2),))), "host", "two have 2"),
        ((BIG, SMALL), "graph", "decoded already"),
    ],
)
def test_what_the_device_does_not_decode(heads: tuple[Head, ...], decode: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        yolo_config(dataclasses.replace(ABOUT, heads=heads, decode=decode), 0.3, 0.5)


def test_classifiers_have_none() -> None:
    assert yolo_config(dataclasses.replace(ABOUT, heads=(ClassifierHead("a", "", 2),)), 0.3, 0.5) == ""
