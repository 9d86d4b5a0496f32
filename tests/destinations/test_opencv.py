"""Destination `opencv` and `dnc.opencv`, against what OpenCV 4's own reader made of the same networks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

import dnc
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.destinations.base import Export
from dnc.destinations.opencv import LEGACY_NAMES, OpenCV
from dnc.errors import CfgError, DestinationError, DncError, DncWarning, WeightsError
from dnc.runtime.engine import Engine
from dnc.typing import Array
from tests import ROOT, goldens
from tests.destinations.conftest import boxes_of, pixels, same
from tests.destinations.networks import NETWORKS
from tests.golden.record_opencv import CASES, Case, input_of, text_of
from tests.networks import write_network

Engines = Callable[[str], Engine]

TOLERANCE = 1e-4
"""Of OpenCV 4's own: it adds 1e-6 to the variances of batch normalization, Darknet 1e-5."""


def recorded() -> tuple[dict[str, list[str]], dict[str, Array]]:
    """The names of each case's outputs, and `CASE/OUTPUT`."""
    with np.load(goldens.FOLDER / "opencv" / "rows.npz") as file:
        names: dict[str, list[str]] = json.loads(str(file["told"]))["names"]
        return names, {key: file[key] for key in file.files if key != "told"}


NAMES, ROWS = recorded()


def files_of(case: Case, folder: Path) -> tuple[Path, Path]:
    """The cfg and the weights of a case."""
    cfg, weights = folder / "net.cfg", folder / "net.weights"
    cfg.write_text(text_of(case))
    with np.load(goldens.FOLDER / "micro" / f"{case.micro}.npz") as file:
        weights.write_bytes(file["weights"].tobytes())
    return cfg, weights


def compare(name: str, found: dict[str, Array]) -> None:
    """Outputs and OpenCV 4's: the same rows, of which w and h are up to 200."""
    assert list(found) == NAMES[name]
    for output, rows in found.items():
        expected = ROWS[f"{name}/{output}"]
        assert rows.shape == expected.shape
        assert np.abs(rows - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_the_file_says_what_opencv_4_computed(name: str, tmp_path: Path) -> None:
    """Without OpenCV: what its layer Region does stands below, the rest runs in ONNX Runtime."""
    cfg, weights = files_of(CASES[name], tmp_path)
    dnc.export(cfg, "opencv", tmp_path / "net.onnx", weights=weights, verify=False)
    compare(name, run(tmp_path / "net.onnx", input_of(CASES[name])))


@pytest.mark.parametrize("name", CASES)
def test_opencv_reads_it(name: str, tmp_path: Path) -> None:
    """Bytes in place of files, and the outputs by the indices that programs of before use."""
    pytest.importorskip("cv2", exc_type=ImportError)
    import dnc.opencv

    cfg, weights = files_of(CASES[name], tmp_path)
    net = dnc.opencv.readNetFromDarknet(cfg.read_bytes(), np.fromfile(weights, np.uint8))
    names = list(net.getUnconnectedOutLayersNames())
    layers = net.getLayerNames()
    assert [layers[number - 1] for number in net.getUnconnectedOutLayers()] == names
    net.setInput(input_of(CASES[name]), "data")
    compare(name, dict(zip(names, map(np.asarray, net.forward(names)), strict=True)))
    np.testing.assert_array_equal(net.forward(), net.forward(names[-1]))


@pytest.mark.parametrize("names", [("cfgFile", "darknetModel"), ("bufferCfg", "bufferModel")])
def test_errors_of_bytes_name_the_argument(names: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("cv2", exc_type=ImportError)
    import dnc.opencv

    cfg, weights = (file.read_bytes() for file in files_of(Case("yolo_plain"), tmp_path))

    def refusal(cfg: bytes, weights: bytes) -> str:
        with pytest.raises(DncError) as caught:
            dnc.opencv.readNetFromDarknet(**dict(zip(names, (cfg, weights), strict=True)))
        assert "dnc-opencv" not in str(caught.value)
        return str(caught.value)

    assert f"at {names[0]}:" in refusal(cfg.replace(b"filters=", b"filter=", 1), weights)
    assert f"{names[1]} holds" in refusal(cfg, weights[:50])
    assert f"at {names[1]}" in refusal(cfg, b"")
    odd = cfg.replace(b"[yolo]", b"[yolo]\nfoo=1", 1)
    with pytest.warns(DncWarning, match=rf"at {names[0]}:\d+ \[yolo\]"):
        dnc.opencv.readNetFromDarknet(**dict(zip(names, (odd, weights), strict=True)))
    with pytest.warns(DncWarning, match=r"\[yolo\]"):
        refusal(odd, b"")
    with pytest.raises(DestinationError, match="no weights are given"):
        dnc.opencv.readNetFromDarknet(cfg)


def run(file: Path, x: Array) -> dict[str, Array]:
    """The outputs of an export."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = onnx.load(file)
    regions = {node.output[0]: node for node in model.graph.node if node.op_type == "Region"}
    names = [output.name for output in model.graph.output]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in regions.values():
        model.graph.node.remove(node)
    del model.graph.output[:]
    wanted = [regions[name].input[0] if name in regions else name for name in names]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = {}
    for name, value in zip(names, session.run(wanted, {"data": x}), strict=True):
        assert name not in regions or regions[name].name == name
        found[name] = region(regions[name], value, constants, x.shape[2:]) if name in regions else value
    return found


def region(node: onnx.NodeProto, x: Array, constants: dict[str, Array], size: tuple[int, ...]) -> Array:
    """What OpenCV's layer makes of (N, h, w, n * (5 + classes))."""
    said = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, said["anchors"], 5 + said["classes"]).copy()
    sides = constants[node.input[-1]].reshape(-1, 2) / np.array(size[::-1] if len(node.input) == 3 else (width, height))

    def squash(values: Array) -> Array:
        return 1 / (1 + np.exp(-values))

    if said.get("new_coords"):
        x[..., 2:4] = x[..., 2:4] ** 2 * 4 * sides
    else:
        x[..., :2], x[..., 4], x[..., 2:4] = squash(x[..., :2]), squash(x[..., 4]), np.exp(x[..., 2:4]) * sides
        if said.get("softmax"):
            x[..., 5:] = np.exp(x[..., 5:]) / np.exp(x[..., 5:]).sum(axis=-1, keepdims=True)
        else:
            x[..., 5:] = squash(x[..., 5:])
    row, column = np.indices((height, width))
    x[..., :2] = (x[..., :2] - 0.5) * said.get("scale_x_y", 1) + 0.5 + np.stack([column, row], -1)[:, :, None]
    x[..., :2] /= (width, height)
    scores = x[..., 4:5] * x[..., 5:]
    x[..., 5:] = np.where(scores > np.float32(said["thresh"]), scores, 0)
    rows = x.reshape(batch, -1, x.shape[-1])
    if said.get("nms_threshold", 0.4):
        for image in rows:
            for number in range(5, rows.shape[-1]):
                suppress(image, number, said.get("nms_threshold", 0.4))
    return rows if batch > 1 else rows[0]


def suppress(rows: Array, number: int, threshold: float) -> None:
    """Sets the scores of a class to 0 where a better box overlaps by more."""
    low, high = rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2
    kept: list[int] = []
    for place in np.argsort(-rows[:, number], kind="stable"):
        if rows[place, number] == 0:
            break
        shared = np.maximum(np.minimum(high[place], high[kept]) - np.maximum(low[place], low[kept]), 0).prod(axis=1)
        areas = rows[[place], 2:4].prod(axis=1) + rows[kept, 2:4].prod(axis=1)
        if (shared / (areas - shared) > threshold).any():
            rows[place, number] = 0
        else:
            kept.append(int(place))


@pytest.mark.parametrize(
    "name", ["yolo", "scaled", "new_coords", "gaussian", "detection", "one_class", "non_square", "batch_4"]
)
def test_boxes_are_dncs_own(name: str, engine: Engines, tmp_path: Path) -> None:
    """Also of heads that OpenCV 4 refused, and with a threshold under its own."""
    made = engine(name)
    low = 0.001 if name == "detection" else 0.05
    dnc.export(made.folder, "opencv", tmp_path / "net.onnx", confidence=low)
    x = pixels(made, images=4 if name == "batch_4" else 1)
    outputs = run(tmp_path / "net.onnx", x)
    for number, expected in enumerate(boxes_of(made, x, confidence=low, iou=1)):
        rows = np.concatenate([rows if len(x) == 1 else rows[number] for rows in outputs.values()])
        places, classes = np.nonzero(rows[:, 5:])
        width, height = made.manifest.input_shape[2], made.manifest.input_shape[1]
        corners = rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2
        sides = np.hstack(corners) * (width, height, width, height)
        found: list[Any] = [
            (int(label), float(rows[place, 5 + label]), *map(float, sides[place]))
            for place, label in zip(places, classes, strict=True)
        ]
        same(found, expected)


def test_names_of_layers_are_counted_from_the_cfg(engine: Engines, tmp_path: Path) -> None:
    """[region] has a name of its own, and is there twice like any other."""
    dnc.export(engine("yolo").folder, "opencv", tmp_path / "net.onnx")
    assert [output.name for output in onnx.load(tmp_path / "net.onnx").graph.output] == ["yolo_2", "yolo_6"]
    region = "[region]\nanchors=1,2\nclasses=3\nsoftmax=1\nnum=1\n"
    cfg = write_network(
        tmp_path,
        "two",
        f"[net]\nwidth=16\nheight=16\nchannels=3\n[convolutional]\nfilters=8\nactivation=linear\n{region}[route]\nlayers=0\n{region}",
    )
    dnc.compile(cfg, None, "onnx", tmp_path / "two.engine", verify=False)
    dnc.export(tmp_path / "two.engine", "opencv", tmp_path / "two.onnx")
    names = [output.name for output in onnx.load(tmp_path / "two.onnx").graph.output]
    assert names == ["detection_out", "detection_out_1"]


@pytest.mark.parametrize(
    ("text", "name"), [("", "softmax_3"), ("[cost]\n", "identity_4"), ("[dropout]\n\n[cost]\n", "identity_5")]
)
def test_what_follows_the_classes_names_them(text: str, name: str, tmp_path: Path) -> None:
    cfg, weights = files_of(Case("softmax"), tmp_path)
    cfg.write_text(f"{cfg.read_text()}\n{text}")
    dnc.export(cfg, "opencv", tmp_path / "net.onnx", weights=weights, verify=False)
    assert [output.name for output in onnx.load(tmp_path / "net.onnx").graph.output] == [name]


def test_sides_are_free_where_the_network_leaves_them(tmp_path: Path) -> None:
    def sides(micro: str) -> list[str | int]:
        cfg, weights = files_of(Case(micro), tmp_path)
        dnc.export(cfg, "opencv", tmp_path / "net.onnx", weights=weights, verify=False)
        return [
            side.dim_param or side.dim_value
            for side in onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim
        ]

    assert sides("yolo_plain")[2:] == ["height", "width"]
    assert sides("avgpool")[2:] == ["height", "width"]
    assert sides("connected")[2:] == [11, 13]
    assert sides("reorg_old")[2:] == [8, 12]


@pytest.mark.parametrize(
    ("name", "said"),
    [("tree", "tree.cfg:19 [region] #2"), ("recurrent", "[crnn] #1"), ("vector", "takes no images")],
)
def test_refused(name: str, said: str, engine: Engines, tmp_path: Path) -> None:
    with pytest.raises(DestinationError) as caught:
        dnc.export(engine(name).folder, "opencv", tmp_path / "out")
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"input": "u8"}, {"decode": "graph"}, {"precision": "fp16"}])
def test_engines_in_another_form_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    cfg, weights = files_of(Case("yolo_plain"), tmp_path)
    with pytest.raises(DestinationError, match="engine"):
        dnc.export(cfg, "opencv", tmp_path / "net.onnx", weights=weights, verify=False, **options)
    assert not (tmp_path / "net.onnx").exists()


def test_signs_are_multiplied_as_numbers(tmp_path: Path) -> None:
    """An engine has integers for them, which OpenCV has not."""
    cfg, weights = files_of(Case("xnor"), tmp_path)
    dnc.compile(cfg, weights, "onnx", tmp_path / "xnor.engine", verify=False)
    with pytest.raises(DestinationError, match="signs"):
        dnc.export(tmp_path / "xnor.engine", "opencv", tmp_path / "net.onnx")
    dnc.export(cfg, "opencv", tmp_path / "net.onnx", weights=weights, verify=False)
    [found] = run(tmp_path / "net.onnx", input_of(Case("xnor"))).values()
    expected = dict(run_all(Network.load(cfg, weights), input_of(Case("xnor"))))
    assert np.abs(found - expected[max(expected)]).max() < TOLERANCE


def test_readme(engine: Engines, tmp_path: Path) -> None:
    text = (dnc.export(engine("classifier").folder, "opencv", tmp_path / "out") / "README.md").read_text()
    assert "`softmax_3`" in text
    assert (tmp_path / "out" / "classifier.names").read_text() == "0\n1\n2\n3\n4\n"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("non_square", {}),
        ("non_square", {"mean": (0.5,), "std": (0.25,)}),
        ("non_square", {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}),
        ("bgr", {}),
        ("gray", {"mean": (0.5,), "std": (0.25,)}),
        ("letterbox", {"mean": (0.5,)}),
        ("classifier", {}),
        ("classifier", {"std": (0.2, 0.3, 0.25)}),
    ],
)
def test_the_readmes_program(
    name: str, fields: dict[str, Any], engine: Engines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it makes of a picture is what dnc does, of one that need not be resized."""
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    other = dnc.load(engine(name).folder)
    p = other.manifest.preprocessing
    assert p is not None
    p = dataclasses.replace(p, **fields)
    other.manifest = dataclasses.replace(other.manifest, preprocessing=p)
    OpenCV().write(Export(other), tmp_path)
    monkeypatch.chdir(tmp_path)
    # As wide as high, which a letterbox puts between bars.
    width = p.height if p.mode == "letterbox" else p.width
    cv2.imwrite("image.jpg", np.random.default_rng(0).integers(0, 256, (p.height, width, 3), np.uint8))
    scope: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)[0], scope)
    assert all(np.isfinite(output).all() for output in scope["outputs"])
    if name == "classifier":
        np.testing.assert_allclose(scope["outputs"][0].ravel(), other.forward(scope["blob"])[0].ravel(), atol=1e-5)
    image = scope["image"] if p.channels == 1 else scope["image"][:, :, ::-1]
    # Its bars are 128, not 127.5.
    np.testing.assert_allclose(scope["blob"], p(image)[None], atol=2e-3 if p.mode == "letterbox" else 1e-5)


# The module dnc.opencv.


@pytest.fixture
def opencv() -> Any:
    pytest.importorskip("cv2", exc_type=ImportError)
    import dnc.opencv

    return dnc.opencv


def test_read_net_takes_what_opencvs_does(opencv: Any, tmp_path: Path) -> None:
    case = Case("yolo_plain")
    cfg, weights = files_of(case, tmp_path)
    texts, data, numbers = (str(cfg), str(weights)), (cfg.read_bytes(), weights.read_bytes()), input_of(case)
    nets = [
        opencv.readNetFromDarknet(cfg, weights),
        opencv.readNetFromDarknet(cfgFile=texts[0], darknetModel=texts[1]),
        opencv.readNetFromDarknet(bufferCfg=data[0], bufferModel=bytearray(data[1])),
        opencv.readNetFromDarknet(texts[0], None),
        opencv.readNet(*texts),
        opencv.readNet(texts[1], config=texts[0]),
        opencv.readNet(*texts, "Darknet"),
        opencv.readNet("darknet", np.frombuffer(data[1], np.uint8), np.frombuffer(data[0], np.uint8)),
        opencv.readNet("darknet", bufferModel=data[1], bufferConfig=data[0]),
        opencv.readNet(framework="darknet", bufferModel=data[1], bufferConfig=data[0]),
    ]
    found = []
    for net in nets:
        net.setInput(numbers)
        found.append(net.forward())
    for rows in found[1:]:
        np.testing.assert_array_equal(rows, found[0])


def test_the_rest_is_opencvs(opencv: Any, engine: Engines, tmp_path: Path) -> None:
    import cv2

    assert opencv.NMSBoxes is cv2.dnn.NMSBoxes
    with pytest.raises(AttributeError):
        opencv.readNetFromNothing  # noqa: B018
    dnc.export(engine("one_class").folder, "opencv", tmp_path / "net.onnx")
    assert opencv.readNet(tmp_path / "net.onnx").getUnconnectedOutLayersNames() == ("yolo_2",)
    assert opencv.readNet(model=str(tmp_path / "net.onnx")).getUnconnectedOutLayersNames() == ("yolo_2",)


@pytest.mark.parametrize("across", [False, True])
def test_detection_model(across: bool, opencv: Any, tmp_path: Path) -> None:
    """OpenCV's own class, made of a Net and of files, against its rules applied to the rows."""
    import cv2

    cfg, weights = files_of(Case("yolo_two_heads"), tmp_path)
    frame = (np.random.default_rng(0).random((120, 90, 3)) * 255).astype(np.uint8)
    channels = int(input_of(Case("yolo_two_heads")).shape[1])
    assert channels == 3
    net = opencv.readNetFromDarknet(cfg, weights)
    net.setInput(cv2.dnn.blobFromImage(frame, 1 / 255, (64, 64), swapRB=True))
    classes, scores, boxes = [], [], []
    for row in np.concatenate(net.forward(net.getUnconnectedOutLayersNames())):
        best = int(row[5:].argmax())
        if row[5 + best] >= 0.3:
            x, y, width, height = (int(number) for number in row[:4] * np.array([90, 120, 90, 120], np.float32))
            left, top = max(0, min(x - width // 2, 89)), max(0, min(y - height // 2, 119))
            classes.append(best)
            scores.append(float(row[5 + best]))
            boxes.append([left, top, max(1, min(width, 90 - left)), max(1, min(height, 120 - top))])
    groups = [np.arange(len(classes))] if across else [np.flatnonzero(np.array(classes) == k) for k in range(3)]
    expected = []
    for group in groups:
        kept = cv2.dnn.NMSBoxes([boxes[i] for i in group], [scores[i] for i in group], 0.3, 0.4)
        expected += [(classes[group[i]], scores[group[i]], *boxes[group[i]]) for i in kept]
    assert len(expected) > 5
    for model in (
        cv2.dnn.DetectionModel(net),
        opencv.DetectionModel(opencv.readNetFromDarknet(cfg, weights)),
        opencv.DetectionModel(str(weights), str(cfg)),
        opencv.DetectionModel(network=net),
    ):
        model.setInputParams(scale=1 / 255, size=(64, 64), swapRB=True)
        model.setNmsAcrossClasses(across)
        found: Any = model.detect(frame, 0.3, 0.4)
        assert [(k, score, *box) for k, score, box in zip(*(part.tolist() for part in found), strict=True)] == expected


def test_detection_model_of_the_file(opencv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in C++, where nothing of dnc is: by the environment."""
    import cv2

    cfg, weights = files_of(Case("yolo_two_heads"), tmp_path)
    dnc.export(cfg, "opencv", tmp_path / "net.onnx", weights=weights, verify=False)
    monkeypatch.setenv(LEGACY_NAMES, "1")
    frame = (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)
    found = []
    for model in (cv2.dnn.DetectionModel(str(tmp_path / "net.onnx")), opencv.DetectionModel(weights, cfg)):
        model.setInputParams(scale=1 / 255, size=(64, 64))
        found.append([np.asarray(part).tolist() for part in model.detect(frame, 0.3, 0.4)])
    assert len(found[0][0]) > 5
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in goldens.MICRO if name not in ("conv_lstm", "crnn")])
def test_every_feature(name: str, opencv: Any, tmp_path: Path) -> None:
    """OpenCV computes what Darknet did, of layers that it never had a reader for as well; heads stand above."""
    cfg, weights = files_of(Case(name), tmp_path)
    net = opencv.readNetFromDarknet(cfg, weights)
    net.setInput(input_of(Case(name)), "data")
    found = net.forward()
    assert np.isfinite(found).all()
    if not re.match("yolo|gaussian|detection", net.getLayerNames()[-1]):
        *_, (_, expected) = run_all(Network.load(cfg, weights), input_of(Case(name)))
        assert np.abs(found.ravel() - expected.ravel()).max() <= TOLERANCE
    if name == "scale_channels_wh":
        # OpenCV 5.0's new engine, which takes files without boxes first, fails when it multiplies these maps.
        return
    dnc.export(cfg, "opencv", tmp_path / "net.onnx", weights=weights, verify=False)
    direct = opencv.readNetFromONNX(str(tmp_path / "net.onnx"))
    direct.setInput(input_of(Case(name)))
    outputs = dict(
        zip(
            direct.getUnconnectedOutLayersNames(),
            map(np.asarray, direct.forward(direct.getUnconnectedOutLayersNames())),
            strict=True,
        )
    )
    np.testing.assert_allclose(outputs[net.getUnconnectedOutLayersNames()[-1]], found, atol=TOLERANCE, rtol=TOLERANCE)


def test_classification_model(opencv: Any, tmp_path: Path) -> None:
    cfg = write_network(tmp_path, "classifier", NETWORKS["classifier"].cfg)
    files = str(cfg.with_suffix(".weights")), str(cfg)
    frame = (np.random.default_rng(0).random((40, 40, 3)) * 255).astype(np.uint8)
    found = []
    for kind in (opencv.ClassificationModel, opencv.Model):
        model = kind(*files)
        model.setInputParams(scale=1 / 255, size=(32, 32), swapRB=True)
        found.append(model.classify(frame) if kind is opencv.ClassificationModel else model.predict(frame))
    (number, confidence), [values] = found
    assert values.shape == (1, 5, 1, 1)
    assert (number, confidence) == (values.argmax(), pytest.approx(float(values.max())))


def test_mistakes_are_said(opencv: Any, tmp_path: Path) -> None:
    cfg, weights = files_of(Case("yolo_plain"), tmp_path)
    with pytest.raises(CfgError, match=r"read|exist"):
        opencv.readNetFromDarknet(tmp_path / "none.cfg", weights)
    with pytest.raises(DncError):
        opencv.readNetFromDarknet("", "")
    with pytest.raises(WeightsError):
        opencv.readNetFromDarknet(cfg, tmp_path / "none.weights")
    with pytest.raises(WeightsError, match="end within layer 2"):
        opencv.readNetFromDarknet(cfg, weights.read_bytes()[:-400])
    cfg.write_text(cfg.read_text().replace("[yolo]", "[yoolo]"))
    with pytest.raises(CfgError, match=r"yoolo") as caught:
        opencv.readNetFromDarknet(cfg, weights)
    assert f"{cfg}:" in str(caught.value)


def test_without_a_cfg(opencv: Any, engine: Engines, tmp_path: Path) -> None:
    for read in (opencv.readNetFromDarknet, lambda: opencv.readNet("net.weights")):
        with pytest.raises(DestinationError, match=r"no \.cfg file is given"):
            read()
    with pytest.raises(DncError, match="cannot read the cfg: Is a directory"):
        opencv.readNetFromDarknet(engine("one_class").folder)


def test_opencv_is_missing_or_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import dnc.opencv

    cfg, weights = files_of(Case("yolo_plain"), tmp_path)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DestinationError, match="OpenCV is not installed") as caught:
        dnc.opencv.readNetFromDarknet(cfg, weights)
    assert "pip install" in caught.value.hint
    old = ModuleType("cv2")
    old.__version__ = "4.2.0-dev"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", old)
    with pytest.raises(DestinationError, match=r"OpenCV 4.2.0-dev is older than 4.5"):
        _ = dnc.opencv.blobFromImage


def test_the_environment_is_as_it_was(opencv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = files_of(Case("yolo_plain"), tmp_path)
    for before in (None, "0"):
        monkeypatch.delenv(LEGACY_NAMES, raising=False)
        if before is not None:
            monkeypatch.setenv(LEGACY_NAMES, before)
        assert opencv.readNetFromDarknet(*files).getLayerNames()[-1] == "yolo_3"
        assert os.environ.get(LEGACY_NAMES) == before


def test_the_page_runs(
    opencv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """docs/guides/leaving-opencv.md, with small networks in place of those that it names."""
    import cv2

    page = (ROOT / "docs" / "guides" / "leaving-opencv.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path, "yolov4-tiny", NETWORKS["yolo"].cfg)
    write_network(tmp_path, "darknet19", NETWORKS["classifier"].cfg)
    cv2.imwrite("dog.jpg", np.full((50, 70, 3), 99, np.uint8))
    scope: dict[str, Any] = {}
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    assert [kind for kind, _ in blocks].count("python") == 4
    for kind, text in blocks:
        if kind == "python":
            exec(text, scope)
        elif kind == "sh":
            code, _, err = command(*text.split()[1:])
            assert (code, err) == (0, ""), err
    assert cv2.dnn.readNetFromONNX("yolov4-tiny.onnx").getUnconnectedOutLayersNames() == ("yolo_2", "yolo_6")
