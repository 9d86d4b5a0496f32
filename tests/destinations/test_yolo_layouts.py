"""Destinations `ultralytics` and `yolov5`: their layouts, read as their consumers read them, hold dnc's own boxes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import DestinationError, DncWarning
from dnc.graph.quantization import Range
from dnc.quantization.calibration import Calibration
from dnc.runtime.engine import Engine
from dnc.runtime.runners.onnx import import_onnxruntime
from dnc.typing import Array
from tests.destinations.conftest import Box, boxes_of, pixels, same
from tests.destinations.networks import NETWORKS, REFUSED

Engines = Callable[[str], Engine]
_QUICK = ("yolo", "non_square", "detection", "bgr")
DETECTORS = [
    pytest.param(name, marks=[] if name in _QUICK else pytest.mark.slow) for name in NETWORKS if name != "classifier"
]


class Opened:
    """An exported model in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        self.session = import_onnxruntime().InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        self.metadata: dict[str, Any] = self.session.get_modelmeta().custom_metadata_map

    @property
    def sides(self) -> list[tuple[str, list[Any], str]]:
        """Names, shapes and types of inputs and outputs."""
        return [
            (value.name, value.shape, value.type) for value in (*self.session.get_inputs(), *self.session.get_outputs())
        ]

    def __call__(self, images: Array) -> Array:
        [output] = self.session.run(None, {"images": images})
        return np.asarray(output)


def suppressed(rows: Array, scores: Array, confidence: float = 0.25, iou: float = 0.45) -> list[Box]:
    """Every class over the threshold is a box; of a class, a better box removes those that overlap it by more."""
    found: list[Box] = []
    for number in range(scores.shape[1]):
        order = [index for index in np.argsort(-scores[:, number], kind="stable") if scores[index, number] > confidence]
        while order:
            best, *order = order
            corners = _corners(rows[[best, *order]])
            found.append((number, float(scores[best, number]), *corners[0].tolist()))
            order = [index for index, shared in zip(order, _overlap(corners), strict=True) if shared <= iou]
    return found


def _corners(rows: Array) -> Array:
    return np.hstack([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2])


def _overlap(corners: Array) -> Array:
    """IoU of the first box with each of the others."""
    low, high = np.maximum(corners[1:, :2], corners[:1, :2]), np.minimum(corners[1:, 2:], corners[:1, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    area = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    return np.asarray(common / (area[1:] + area[0] - common))


@pytest.mark.parametrize("name", DETECTORS)
def test_ultralytics(engine: Engines, tmp_path: Path, name: str) -> None:
    made = engine(name)
    p, classes = made.manifest.preprocessing, made.manifest.heads[-1].classes
    assert p is not None
    batch = NETWORKS[name].options.get("batch", 1)
    opened = Opened(dnc.export(made.folder, "ultralytics", tmp_path / "net.onnx"))
    images = pixels(made, images=batch)
    output = opened(images)
    entry, result = opened.sides
    assert entry == ("images", [batch, p.channels, p.height, p.width], "tensor(float)")
    assert result == ("output0", [batch, 4 + classes, output.shape[2]], "tensor(float)")
    for rows, expected in zip(output, boxes_of(made, images), strict=True):
        same(suppressed(rows[:4].T, rows[4:].T), expected)
    metadata = opened.metadata
    read = {key: ast.literal_eval(metadata[key]) for key in ("stride", "batch", "channels", "imgsz", "names", "args")}
    assert read["names"] == {number: str(number) for number in range(classes)}
    assert (read["imgsz"], read["batch"], read["channels"]) == ([p.height, p.width], batch, p.channels)
    # Of two grids, the coarser one's; without any, YOLOv8's.
    assert read["stride"] == {"yolo": 8, "detection": 32}.get(name, 4)
    assert (metadata["task"], metadata["end2end"], read["args"]["nms"]) == ("detect", "False", False)


@pytest.mark.parametrize("name", DETECTORS)
def test_yolov5(engine: Engines, tmp_path: Path, name: str) -> None:
    made = engine(name)
    classes = made.manifest.heads[-1].classes
    opened = Opened(dnc.export(made.folder, "yolov5", tmp_path / "net.onnx"))
    batch = NETWORKS[name].options.get("batch", 2)
    images = pixels(made, images=batch)
    output = opened(images)
    entry, result = opened.sides
    assert entry == ("images", [made.manifest.batch, *made.manifest.input_shape], "tensor(float)")
    assert result == ("output0", [made.manifest.batch, output.shape[1], 5 + classes], "tensor(float)")
    for rows, expected in zip(output, boxes_of(made, images), strict=True):
        same(suppressed(rows[:, :4], rows[:, 4:5] * rows[:, 5:]), expected)
    assert ast.literal_eval(opened.metadata["names"]) == {number: str(number) for number in range(classes)}
    assert int(opened.metadata["stride"]) > 0


def test_a_classifier(engine: Engines, tmp_path: Path) -> None:
    made = engine("classifier")
    opened = Opened(dnc.export(made.folder, "ultralytics", tmp_path / "net.onnx"))
    images = pixels(made)
    assert opened.sides[1] == ("output0", [1, 5], "tensor(float)")
    np.testing.assert_allclose(opened(images), made.forward(images)[0].reshape(1, 5), rtol=1e-6)
    assert opened.metadata["task"] == "classify"
    with pytest.raises(DestinationError, match="no boxes"):
        dnc.export(made.folder, "yolov5", tmp_path / "other.onnx")


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("destination", ["ultralytics", pytest.param("yolov5", marks=pytest.mark.slow)])
def test_refused(engine: Engines, tmp_path: Path, destination: str, name: str) -> None:
    message, where = {
        "classes_differ": ("a head of 3 classes and one of 2", "[yolo] #2"),
        "tree": ("the class tree of [region]", "[region] #2"),
        "recurrent": ("the network remembers what it saw", "[crnn] #1"),
        "vector": ("the network takes no images", "vector.cfg"),
    }[name]
    with pytest.raises(DestinationError) as caught:
        dnc.export(engine(name).folder, destination, tmp_path / "out")
    assert message in caught.value.message
    assert str(caught.value.where).endswith(where)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def _calibration(engine: Engine, path: Path) -> Path:
    ranges = {name: Range(-4, 4, -4, 4) for name in ("input", "layer000", "layer001", "layer004", "layer005")}
    Calibration(engine.manifest.network["digest"], "minmax", False, {}, {}, ranges).write(path)
    return path


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"keep_layers": True}, 1e-3),
        # What ONNX Runtime fuses of halves differs by what else is in the graph: 0.03 of 64 pixels for each rounding.
        pytest.param({"precision": "fp16"}, 0.2, marks=pytest.mark.slow),
        pytest.param({"precision": "int8"}, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_other_engines(engine: Engines, tmp_path: Path, options: dict[str, Any], tolerance: float) -> None:
    """Input and output are float32, and one each, whatever the engine computes in or puts out besides."""
    if options.get("precision") == "int8":
        options = {**options, "calibration": _calibration(engine("yolo"), tmp_path / "c.json")}
    cfg = engine("yolo").folder.with_name("yolo.cfg")
    made = dnc.compile(cfg, None, "onnx", tmp_path / "engine", verify=False, **options)
    images = pixels(made)
    [expected] = boxes_of(made, images)
    for destination in ("ultralytics", "yolov5"):
        opened = Opened(dnc.export(made.folder, destination, tmp_path / f"{destination}.onnx"))
        assert [kind for _, _, kind in opened.sides] == ["tensor(float)"] * 2
        rows = opened(images)[0]
        if destination == "ultralytics":
            same(suppressed(rows[:4].T, rows[4:].T), expected, tolerance)
        else:
            same(suppressed(rows[:, :4], rows[:, 4:5] * rows[:, 5:]), expected, tolerance)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"decode": "graph"}, "the engine gives what --decode graph made of its heads", "without --decode"),
        ({"decode": "graph+nms"}, "the engine gives what --decode graph+nms made of its heads", "without --decode"),
        ({"input": "u8"}, "the engine takes pixels", "without --input"),
    ],
)
def test_engines_that_do_more(
    engine: Engines, tmp_path: Path, options: dict[str, Any], message: str, hint: str
) -> None:
    cfg = engine("yolo").folder.with_name("yolo.cfg")
    made = dnc.compile(cfg, None, "onnx", tmp_path / "engine", verify=False, **options)
    with pytest.raises(DestinationError) as caught:
        dnc.export(made.folder, "ultralytics", tmp_path / "out")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_readme_says_what_differs(engine: Engines, tmp_path: Path, write: Callable[..., Path]) -> None:
    cfg = write("net", NETWORKS["yolo"].cfg.replace("classes=3", "classes=3\nnms_kind=greedynms"))
    with pytest.warns(DncWarning, match="not as nms_kind=greedynms of the cfg says"):
        text = (dnc.export(cfg, "ultralytics", tmp_path / "out", confidence=0.3) / "README.md").read_text()
    assert "nms_kind=greedynms" in text
    assert "stretched to 32 x 32 pixels" in text
    assert "confidence 0.3, IoU 0.45" in text
    text = (dnc.export(engine("yolo").folder, "ultralytics", tmp_path / "other") / "README.md").read_text()
    assert "nms_kind" not in text


@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ("ultralytics", 'YOLO("non_square.onnx").predict("image.jpg", conf=0.3, iou=0.6)'),
        ("yolov5", "--weights non_square.onnx --imgsz 32 64 --conf-thres 0.3 --iou-thres 0.6 "),
    ],
)
def test_the_command_has_size_and_thresholds(engine: Engines, tmp_path: Path, destination: str, said: str) -> None:
    out = dnc.export(engine("non_square").folder, destination, tmp_path / "out", confidence=0.3, iou=0.6)
    assert said in (out / "README.md").read_text()
