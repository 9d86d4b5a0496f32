"""Destination nnarchive: what DepthAI's parser makes of the maps is what dnc finds, and config.json says what is so.
The Myriad X compiler is a script that keeps the graph, but for the tests at the end, which want the real one."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import DestinationError, TargetError
from dnc.runtime.decoding import BoxHead
from dnc.runtime.engine import Engine
from dnc.runtime.runners.myriad import process, toolchain
from dnc.typing import Array
from tests.destinations.conftest import Box, pixels, same
from tests.destinations.networks import NETWORKS, REFUSED
from tests.networks import TINY

ort = pytest.importorskip("onnxruntime")
Engines = Callable[[str], Engine]
Write = Callable[..., Path]
INSTALLED = toolchain.damage("myriad") == ""

DETECTORS = [name for name in NETWORKS if name not in ("classifier", "batch_4")]
CONFIDENCE, IOU = 0.02, 0.4
HALF = 0.5
"""Pixels of inputs of 32, which is what weights in float16 and images in bytes may move a box by."""

COMPILER = """
import json, struct, sys
from pathlib import Path
request = json.load(sys.stdin)
Path(request["blob"]).write_bytes(bytes(52) + struct.pack("<II", 9709, 60) + Path(request["model"]).read_bytes())
Path(request["blob"]).with_suffix(".asked").write_text(json.dumps(request["precisions"]))
Path(request["config"]["MYRIAD_DUMP_INTERNAL_GRAPH_FILE_NAME"]).write_text("digraph {\\n}\\n")
print(json.dumps({"peak": 1, "shapes": {}}))
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script in place of the toolchain: a blob is the graph behind a blob's header."""
    script = tmp_path / "compiler.py"
    script.write_text(COMPILER, encoding="utf-8")
    monkeypatch.setattr(process, "_CHILD", script)
    monkeypatch.setattr(toolchain, "damage", lambda name, thorough=False: "")


def opened(path: Path) -> tuple[dict[str, Any], bytes]:
    """config.json and the model of an archive, of which nothing depends on who wrote it and when."""
    with tarfile.open(path, "r:xz") as tar:
        entries = tar.getmembers()
        assert [(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries] == [
            (0, 0, 0, "", 0o644)
        ] * 2
        config, model = (file.read() for entry in entries if (file := tar.extractfile(entry)))
    fields = json.loads(config)
    assert [entry.name for entry in entries] == ["config.json", fields["model"]["metadata"]["path"]]
    return fields, model


def exported(source: Path, folder: Path, **options: Any) -> tuple[dict[str, Any], bytes]:
    return opened(dnc.export(source, "nnarchive", folder / "n.tar.xz", confidence=CONFIDENCE, iou=IOU, **options))


def suppressed(boxes: Sequence[Box], iou: float) -> list[Box]:
    """The best of those that are on the image, whatever their classes are."""
    kept: list[Box] = []
    real = [box for box in boxes if box[4] > box[2] and box[5] > box[3]]
    for box in sorted(real, key=lambda box: -box[1]):
        if all(overlap(box, other) < iou for other in kept):
            kept.append(box)
    return kept


def overlap(one: Box, other: Box) -> float:
    sides = [min(one[4 + axis], other[4 + axis]) - max(one[2 + axis], other[2 + axis]) for axis in (0, 1)]
    common = math.prod(max(side, 0.0) for side in sides)
    return common / (sum((box[4] - box[2]) * (box[5] - box[3]) for box in (one, other)) - common)


def clipped(number: int, score: float, center: Sequence[float], size: Sequence[float], image: Sequence[int]) -> Box:
    """A box, in pixels and within the image."""
    left, top = (min(max(c - s / 2, 0.0), float(side)) for c, s, side in zip(center, size, image, strict=True))
    right, bottom = (min(max(c + s / 2, 0.0), float(side)) for c, s, side in zip(center, size, image, strict=True))
    return number, score, left, top, right, bottom


def parsed(maps: Mapping[str, Array], config: Mapping[str, Any]) -> list[Box]:
    """What DepthAI's DetectionParser makes of the maps of one image by its formula for YOLOv5: DetectionParserUtils.cpp
    of depthai-core, decodeV5AB."""
    (head,) = config["model"]["heads"]
    about = head["metadata"]
    assert (head["parser"], about["subtype"]) == ("YOLO", "yolov5")
    assert about["n_classes"] == len(about["classes"])
    names = sorted(name for name in about["yolo_outputs"] if "_yolo" in name)
    height, width = config["model"]["inputs"][0]["shape"][2:]
    boxes = []
    for name, stride, anchors in zip(names, about["strides"], about["anchors"], strict=True):
        rows = maps[name][0].reshape(len(anchors), 5 + about["n_classes"], *maps[name].shape[2:])
        for anchor, row, column in np.argwhere(rows[:, 4] >= about["conf_threshold"]).tolist():
            x, y, w, h, objectness, *classes = rows[anchor, :, row, column].tolist()
            score = objectness * max(classes)
            if score >= about["conf_threshold"]:
                center = (2 * x - 0.5 + column) * stride, (2 * y - 0.5 + row) * stride
                size = 4 * w * w * anchors[anchor][0], 4 * h * h * anchors[anchor][1]
                boxes.append(clipped(classes.index(max(classes)), score, center, size, (width, height)))
    return suppressed(boxes, about["iou_threshold"])


def expected(engine: Engine, x: Array, confidence: float = CONFIDENCE, iou: float = IOU) -> list[Box]:
    """dnc's own boxes of an input (1, C, H, W), each with its best class, suppressed without regard to classes."""
    manifest = engine.manifest
    _, height, width = manifest.input_shape
    maps = dict(zip(manifest.outputs, engine.forward(x), strict=True))
    boxes = []
    for head in manifest.heads:
        assert isinstance(head, BoxHead)
        found = head.candidates(maps[head.output], confidence)
        for box, scores in zip(found.boxes.tolist(), found.scores, strict=True):
            if scores.any():
                center, size = (box[0] * width, box[1] * height), (box[2] * width, box[3] * height)
                boxes.append(clipped(int(scores.argmax()), float(scores.max()), center, size, (width, height)))
    return suppressed(boxes, iou)


def prepared(config: Mapping[str, Any], image: Array) -> Array:
    """The input (1, C, H, W) that config.json says for RGB pixels of 0 to 255 (C, H, W)."""
    about = config["model"]["inputs"][0]["preprocessing"]
    mean, scale = (np.array(about[name], np.float32).reshape(-1, 1, 1) for name in ("mean", "scale"))
    ordered = image[::-1] if about["dai_type"].startswith("BGR") else image
    return ((ordered - mean) / scale)[None].astype(np.float32)


def run(model: bytes, config: Mapping[str, Any], x: Array) -> dict[str, Array]:
    names = [output["name"] for output in config["model"]["outputs"]]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    maps = dict(zip(names, session.run(names, {config["model"]["inputs"][0]["name"]: x}), strict=True))
    assert [list(maps[output["name"]].shape) for output in config["model"]["outputs"]] == [
        output["shape"] for output in config["model"]["outputs"]
    ]
    assert all(np.isfinite(array).all() for array in maps.values())
    return maps


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes_of_onnx(name: str, engine: Engines, tmp_path: Path) -> None:
    """The parser's formula gives Darknet's boxes, whatever the head is."""
    made = engine(name)
    config, model = exported(made.folder, tmp_path)
    image = pixels(made)[0]
    x = prepared(config, image * 255)
    given = made.manifest.preprocessing
    assert given is not None
    ordered = image[::-1] if given.color == "bgr" else image
    mean, std = (np.array(numbers, np.float32).reshape(-1, 1, 1) for numbers in (given.mean, given.std))
    np.testing.assert_allclose(x[0], (ordered - mean) / std, atol=1e-5)
    same(parsed(run(model, config, x), config), expected(made, x))


def test_sides_that_are_no_squares(write: Write, tmp_path: Path) -> None:
    """[detection] without sqrt gives sides as they are; the parser squares what it is given."""
    cfg = write("plain", NETWORKS["detection"].cfg.replace("sqrt=1", "sqrt=0"), seed=3)
    made = dnc.compile(cfg, target="onnx", out=tmp_path / "e", verify=False)
    config, model = exported(made.folder, tmp_path)
    x = pixels(made)
    same(parsed(run(model, config, x), config), expected(made, x))


def test_config(engine: Engines, tmp_path: Path) -> None:
    """Finer grids come first, whatever the order of the cfg is: names, strides and anchors are of one order."""
    config, _ = exported(engine("yolo").folder, tmp_path)
    assert config["model"]["metadata"] == {"name": "yolo", "path": "yolo.onnx", "precision": "float32"}
    assert config["model"]["inputs"] == [
        {
            "name": "input",
            "dtype": "float32",
            "input_type": "image",
            "shape": [1, 3, 32, 32],
            "layout": "NCHW",
            "preprocessing": {
                "resize_mode": "STRETCH",
                "mean": [0.0] * 3,
                "scale": [255.0] * 3,
                "dai_type": "RGB888p",
            },
        }
    ]
    assert [(output["name"], output["shape"]) for output in config["model"]["outputs"]] == [
        ("output1_yolov5", [1, 16, 8, 8]),
        ("output2_yolov5", [1, 16, 4, 4]),
    ]
    metadata = config["model"]["heads"][0]["metadata"]
    assert metadata["strides"] == [4, 8]
    assert metadata["anchors"] == [[[10.0, 14.0], [23.0, 27.0]], [[23.0, 27.0], [37.0, 58.0]]]
    assert (metadata["classes"], metadata["conf_threshold"], metadata["iou_threshold"]) == (
        ["0", "1", "2"],
        CONFIDENCE,
        IOU,
    )


@pytest.mark.parametrize(
    ("name", "mode", "frame"),
    [("letterbox", "LETTERBOX", "RGB888p"), ("bgr", "STRETCH", "BGR888p"), ("gray", "STRETCH", "GRAY8")],
)
def test_images(name: str, mode: str, frame: str, engine: Engines, tmp_path: Path) -> None:
    config, _ = exported(engine(name).folder, tmp_path)
    about = config["model"]["inputs"][0]["preprocessing"]
    assert (about["resize_mode"], about["dai_type"]) == (mode, frame)


def test_classifier(engine: Engines, tmp_path: Path) -> None:
    made = engine("classifier")
    config, model = exported(made.folder, tmp_path)
    x = pixels(made)
    np.testing.assert_allclose(run(model, config, x)["classes"][0], made.forward(x)[0].reshape(-1), rtol=1e-6)
    (head,) = config["model"]["heads"]
    assert (head["parser"], head["outputs"]) == ("ClassificationParser", ["classes"])
    assert head["metadata"] == {"classes": list("01234"), "n_classes": 5, "is_softmax": True}


def test_values_that_are_no_probabilities(write: Write, tmp_path: Path) -> None:
    """The parser makes probabilities of them itself."""
    cfg = write("logits", NETWORKS["classifier"].cfg.replace("[softmax]\n", ""))
    config, _ = exported(cfg, tmp_path, target="onnx", verify=False)
    assert config["model"]["heads"][0]["metadata"]["is_softmax"] is False


def test_same_bytes(engine: Engines, tmp_path: Path) -> None:
    """And a folder holds the same archive, with a README whose program is one."""
    source = engine("yolo").folder
    first = dnc.export(source, "nnarchive", tmp_path / "a.tar.xz")
    folder = dnc.export(source, "nnarchive", tmp_path / "b")
    assert {path.name for path in folder.iterdir()} == {"yolo.tar.xz", "README.md", "export.json"}
    assert first.read_bytes() == (folder / "yolo.tar.xz").read_bytes()
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "modelconverter convert rvc4 --path yolo.tar.xz" in text


@pytest.mark.parametrize("name", [*REFUSED, "batch_4"])
def test_what_it_cannot_hold(name: str, engine: Engines, tmp_path: Path) -> None:
    why = {
        "classes_differ": "a head of 3 classes and one of 2",
        "tree": "class tree",
        "recurrent": "remembers what it saw",
        "vector": "takes no images",
        "batch_4": "takes batches of 4, and a camera gives one image",
    }[name]
    with pytest.raises(DestinationError, match=why):
        exported(engine(name).folder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cfg", "options", "why"),
    [
        (TINY.replace("width=16", "width=15"), {}, r"8 x 8 cells on 15 x 16 pixels has no whole stride\n.*\[yolo\]"),
        (TINY, {"precision": "bf16"}, "knows no weights in bf16"),
        (TINY, {"decode": "graph"}, "--decode graph"),
        (TINY, {"input": "u8"}, "takes pixels"),
    ],
)
def test_what_it_cannot_say(cfg: str, options: dict[str, str], why: str, write: Write, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=why):
        exported(write("net", cfg), tmp_path, target="onnx", verify=False, **options)
    assert not (tmp_path / "n.tar.xz").exists()


@pytest.mark.parametrize("color", ["bgr", "rgb"])
def test_blob(color: str, compiler: None, write: Write, tmp_path: Path) -> None:
    """A cfg becomes a blob if nothing else is said: of bytes as the camera gives them, with the parser's maps."""
    cfg = write("tiny")
    options = {"color": color, "numerics": "no"}
    config, blob = exported(cfg, tmp_path, options=options)
    about = config["model"]["inputs"][0]
    assert (about["dtype"], config["model"]["metadata"]["path"]) == ("uint8", "tiny.blob")
    assert about["preprocessing"] == {
        "resize_mode": "STRETCH",
        "mean": [0.0] * 3,
        "scale": [1.0] * 3,
        "dai_type": f"{color.upper()}888p",
    }
    assert {output["dtype"] for output in config["model"]["outputs"]} == {"float16"}
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(np.float32)
    found = parsed(run(blob[60:], config, prepared(config, image)), config)
    plain = dnc.compile(cfg, target="onnx", out=tmp_path / "e", batch=1, verify=False)
    same(found, expected(plain, image[None] / 255), HALF)


def test_blob_of_an_engine(compiler: None, write: Write, tmp_path: Path) -> None:
    """Compiled once more, as the engine was: its blob puts out other maps."""
    cfg = write("tiny")
    options = {"shaves": "3", "numerics": "no", "color": "rgb"}
    made = dnc.compile(cfg, target="myriad", out=tmp_path / "e", options=options)
    assert exported(made.folder, tmp_path) == exported(cfg, tmp_path, options=options)
    folder = dnc.export(made.folder, "nnarchive", tmp_path / "f")
    text = (folder / "README.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    compile(program, "README.md", "exec")
    assert 'dai.NNArchive("tiny.tar.xz")' in program
    floats = dnc.compile(cfg, target="myriad", out=tmp_path / "g", options={"input": "fp16", "numerics": "no"})
    with pytest.raises(DestinationError, match="cameras give bytes"):
        exported(floats.folder, tmp_path)


def test_without_the_toolchain(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "empty"))
    with pytest.raises(TargetError, match="dnc toolchain install myriad"):
        exported(write("tiny"), tmp_path)


@pytest.mark.parametrize("name", ["yolo", "classifier", "gray"])
def test_luxonis_schema(name: str, engine: Engines, tmp_path: Path) -> None:
    """Luxonis' own classes read it, and find in it what they want of such a head."""
    schema = pytest.importorskip("luxonis_ml.nn_archive")
    config, _ = exported(engine(name).folder, tmp_path)
    read = schema.Config(**config)
    kind = "HeadClassificationMetadata" if name == "classifier" else "HeadYOLOMetadata"
    assert type(read.model.heads[0].metadata).__name__ == kind


def through_depthai(depthai: Any, kind: Any, archive: Any, maps: Mapping[str, Array]) -> Any:
    """What a parser of DepthAI, on the host, makes of the outputs of one image."""
    with depthai.Pipeline(createImplicitDevice=False) as pipeline:
        parser = pipeline.create(kind)
        parser.setRunOnHost(True)
        parser.setNNArchive(archive)
        given, results = parser.input.createInputQueue(), parser.out.createOutputQueue()
        pipeline.start()
        data = depthai.NNData()
        for output, array in maps.items():
            data.addTensor(output, np.ascontiguousarray(array[0]), depthai.TensorInfo.DataType.FP32)
        data.setTransformation(depthai.ImgTransformation(*archive.getInputSize()))
        given.send(data)
        return results.get()


@pytest.mark.parametrize("name", ["yolo", "region", "gaussian", "detection", "non_square"])
def test_depthai_s_parser(name: str, engine: Engines, tmp_path: Path) -> None:
    """DepthAI opens it, and its parser finds the same boxes."""
    depthai = pytest.importorskip("depthai", minversion="3.9")
    made = engine(name)
    config, model = exported(made.folder, tmp_path)
    archive = depthai.NNArchive(str(tmp_path / "n.tar.xz"))
    x = pixels(made)
    width, height = archive.getInputSize()
    detections = through_depthai(depthai, depthai.node.DetectionParser, archive, run(model, config, x)).detections
    found = [
        (box.label, box.confidence, box.xmin * width, box.ymin * height, box.xmax * width, box.ymax * height)
        for box in detections
    ]
    same(found, expected(made, x))


def test_depthai_s_classes(engine: Engines, tmp_path: Path) -> None:
    depthai = pytest.importorskip("depthai", minversion="3.12")
    made = engine("classifier")
    config, model = exported(made.folder, tmp_path)
    archive = depthai.NNArchive(str(tmp_path / "n.tar.xz"))
    x = pixels(made)
    found = through_depthai(depthai, depthai.beta.node.ClassificationParser, archive, run(model, config, x))
    values = made.forward(x)[0].reshape(-1)
    assert found.getTopClass() == str(values.argmax())
    np.testing.assert_allclose(found.scores, np.sort(values)[::-1], rtol=1e-5)


real = pytest.mark.skipif(not INSTALLED, reason="the toolchain is not installed: dnc toolchain install myriad")


@real
@pytest.mark.parametrize("name", ["yolo", "gaussian", "classifier"])
def test_real_blob(name: str, write: Write, tmp_path: Path) -> None:
    """The compiler takes the parser's maps, gives the same bytes twice, and calls outputs as config.json does."""
    cfg = write(name, NETWORKS[name].cfg)
    options = {"numerics": "no"}
    config, blob = exported(cfg, tmp_path, options=options, verify=False)
    assert exported(cfg, tmp_path, options=options, verify=False)[1] == blob
    for output in config["model"]["outputs"]:
        assert output["name"].encode() in blob
