"""Destination `deepstream`: what an imitated Gst-nvinfer finds, how it is configured, and what it cannot hold."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import dnc
from dnc.compiler.compiling import compile
from dnc.compiler.options import CompileOptions
from dnc.destinations import deepstream
from dnc.destinations.base import Export
from dnc.destinations.deepstream import DeepStream
from dnc.errors import CalibrationError, DestinationError
from dnc.graph.quantization import Range
from dnc.quantization.calibration import Calibration
from dnc.runtime.decoding import Classification
from dnc.runtime.engine import Engine
from dnc.runtime.preprocessing import Preprocessing
from dnc.runtime.runners.onnx import OnnxRunner
from dnc.runtime.suppression import non_maximum_suppression
from dnc.typing import Array
from tests.destinations.conftest import Box, pixels, same
from tests.destinations.nvinfer import HEADER, WARNINGS, Nvinfer, Object, Parser, build, read_key_file

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or find_library("glib-2.0") is None, reason="needs g++ and GLib, as DeepStream does"
)

Engines = Callable[[str], Engine]
SOURCES = Path(deepstream.__file__).with_name("deepstream_parser")
DETECTORS = (
    *("yolo", "region", "detection", "non_square"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("scaled", "new_coords", "gaussian", "one_class", "letterbox")
    ),
)
INT8 = {"backend": "onnxruntime", "precision": "int8"}


@pytest.fixture(scope="session")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Parser:
    """The parser, built against the header of DeepStream 9."""
    return Parser(build(SOURCES / "nvdsinfer_dnc.cpp", tmp_path_factory.mktemp("parser") / "parser.so"))


def best_boxes(engine: Engine, tensors: Array, confidence: float, kind: str = "default") -> list[list[Box]]:
    """dnc's own boxes in such tensors, of which only the best class counts. Gst-nvinfer suppresses them as they are cut
    to the input, the parser as they are."""
    _, height, width = engine.manifest.input_shape
    outputs = engine.forward(tensors)
    sides = np.array([width, height], np.float32)
    found = []
    for image in range(len(tensors)):
        candidates = engine.postprocess.candidates(outputs, threshold=confidence, position=image)
        low, high = (candidates.boxes[:, :2] + side * candidates.boxes[:, 2:] / 2 for side in (-1, 1))
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        visible = (high > low).all(axis=1, keepdims=True)
        best = candidates.scores == candidates.scores.max(axis=1, keepdims=True)
        if kind == "default":
            boxes = np.hstack([(low + high) / 2, high - low]).astype(np.float32)
            candidates, best = candidates._replace(boxes=boxes), best & visible
        scores = np.where(best, candidates.scores, np.float32(0))
        left = non_maximum_suppression(candidates._replace(scores=scores), kind) * visible
        places = zip(*np.nonzero(left), strict=True)
        found.append([(int(k), float(left[b, k]), *(low[b] * sides), *(high[b] * sides)) for b, k in places])
    return found


def boxes_of(objects: list[Object]) -> list[Box]:
    """As they are compared."""
    return [
        (item.classId, item.confidence, item.left, item.top, item.left + item.width, item.top + item.height)
        for item in objects
    ]


def written(engine: Engine, folder: Path, **fields: Any) -> Path:
    """What is exported of an engine."""
    return dnc.export(engine.folder, "deepstream", folder / "out", **fields)


def with_preprocessing(engine: Engine, **fields: Any) -> Export:
    """An export of an engine whose images are prepared otherwise."""
    changed = dataclasses.replace(engine.manifest.preprocessing or Preprocessing(1, 1), **fields)
    other = dnc.load(engine.folder)
    other.manifest = dataclasses.replace(engine.manifest, preprocessing=changed)
    return Export(other)


def test_the_parser_reads_rows(parser: Parser) -> None:
    rows = np.array([[1, 2, 11, 22, 0.5, 1], [3, 4, 5, 6, 0.25, 0], [3, 4, 5, 6, 0.26, 0]], np.float32)
    found = parser(rows, (64, 32), [0.25, 0.5 - 1e-6])
    # A score equal to the threshold does not exceed it.
    assert found == [Object(1, 1, 2, 10, 20, 0.5), Object(0, 3, 4, 2, 2, float(np.float32(0.26)))]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((-5, -6, 10, 12, 0.9, 0), (0, 0, 10, 12)),
        ((60, 30, 99, 99, 0.9, 0), (60, 30, 4, 2)),
        ((-np.inf, -1e30, np.inf, 1e30, 0.9, 0), (0, 0, 64, 32)),
        ((70, 1, 80, 2, 0.9, 0), None),
        ((5, 5, 5, 9, 0.9, 0), None),
        ((9, 5, 5, 9, 0.9, 0), None),
        ((1, 1, 2, 2, np.nan, 0), None),
        ((1, 1, 2, 2, 0.9, np.nan), None),
        ((1, 1, 2, 2, 0.9, -1), None),
        ((1, 1, 2, 2, 0.9, 2), None),
        ((1, 1, 2, 2, 0.9, 1e30), None),
    ],
)
def test_the_parser_gives_boxes_on_the_input_alone(parser: Parser, row: tuple[float, ...], expected: Any) -> None:
    found = parser(np.array([row], np.float32), (64, 32), [0.25, 0.25])
    assert found is not None
    assert [tuple(item[1:5]) for item in found] == ([] if expected is None else [expected])


def test_the_parser_knows_as_many_classes_as_have_thresholds(parser: Parser) -> None:
    rows = np.array([[1, 1, 2, 2, 0.9, number] for number in range(4)], np.float32)
    for thresholds, classes, expected in (([0.1] * 4, 2, [0, 1]), ([0.1] * 3, 4, [0, 1, 2]), ([], 4, [])):
        found = parser(rows, (8, 8), thresholds, classes=classes)
        assert [item.classId for item in found or ()] == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 1},
        {"sides": (6, 2)},
        {"sides": (2, 5), "elements": 10},
        {"sides": (1, 2, 6)},
        {"sides": (12,)},
        {"sides": ()},
        {"sides": (715827883, 6), "elements": 2},
        {"sides": (3, 6)},
        {"sides": (2, 6), "elements": 13},
    ],
)
def test_the_parser_refuses_another_output(parser: Parser, fields: dict[str, Any], capfd: Any) -> None:
    rows = np.tile(np.array([1, 1, 2, 2, 0.9, 0], np.float32), (2, 1))
    assert parser(rows, (8, 8), [0.1], **fields) is None
    assert capfd.readouterr().err == "NvDsInferParseDnc: no output is (boxes, 6) of float32\n"


def test_the_parser_refuses_an_output_without_memory(parser: Parser) -> None:
    assert parser(None, (8, 8), [0.1]) is None


@pytest.mark.slow
@pytest.mark.parametrize(("deepstream", "flags"), [(8, []), (9, ["-DDNC_IOU=0.45f", "-DDNC_EXPONENT=0.6"])])
def test_damaged_outputs_under_sanitizers(tmp_path: Path, deepstream: int, flags: list[str]) -> None:
    program, source = tmp_path / "damaged", SOURCES / "nvdsinfer_dnc.cpp"
    line = ["g++", "-std=c++14", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *WARNINGS]
    line += [f"-DDEEPSTREAM={deepstream}", "-DPARSER=NvDsInferParseDnc", f"-I{HEADER}", *flags]
    files = [source, HEADER / "harness.cpp", HEADER / "damaged.cpp"]
    subprocess.run([*line, *files, "-o", program], check=True)
    subprocess.run([program], check=True, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_the_makefile_builds_it(tmp_path: Path) -> None:
    for source in SOURCES.iterdir():
        (tmp_path / source.name).write_text(source.read_text())
    includes = tmp_path / "DeepStream" / "sources" / "includes"
    includes.mkdir(parents=True)
    (includes / "nvdsinfer_custom_impl.h").write_text((HEADER / "nvdsinfer_custom_impl.h").read_text())
    subprocess.run(["make", "-s", "-C", tmp_path, "DEEPSTREAM=DeepStream"], check=True)
    assert b"NvDsInferParseDnc" in (tmp_path / "libnvdsinfer_dnc.so").read_bytes()


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes(engine: Engines, parser: Parser, tmp_path: Path, name: str) -> None:
    network, confidence = engine(name), 0.02
    nvinfer = Nvinfer(written(network, tmp_path, confidence=confidence), parser)
    tensors = pixels(network, seed=1, images=3)
    for objects, expected in zip(nvinfer.detect(tensors), best_boxes(network, tensors, confidence), strict=True):
        same(boxes_of(objects), expected)


@pytest.mark.parametrize("kind", ["greedynms", pytest.param("diounms", marks=pytest.mark.slow)])
def test_boxes_that_the_parser_suppresses(engine: Engines, tmp_path: Path, kind: str) -> None:
    network = engine("non_square")
    export = with_preprocessing(network)
    heads = (dataclasses.replace(network.manifest.heads[-1], nms_kind=kind, beta_nms=0.6),)  # type: ignore[call-arg]
    export.engine.manifest = dataclasses.replace(network.manifest, heads=heads)
    DeepStream().write(dataclasses.replace(export, confidence=0.02), tmp_path)
    [flags] = re.findall(r"^NMS \?= (.*)$", (tmp_path / "Makefile").read_text(), re.MULTILINE)
    assert flags == "-DDNC_IOU=0.45f -DDNC_EXPONENT=" + ("0.6" if kind == "greedynms" else "0.6000000238418579")
    nvinfer = Nvinfer(tmp_path, Parser(build(tmp_path / "nvdsinfer_dnc.cpp", tmp_path / "p.so", 9, *flags.split())))
    assert (nvinfer.property["cluster-mode"], list(nvinfer.suppression)) == (4, ["pre-cluster-threshold", "topk"])
    assert f"nms_kind={kind}" in (tmp_path / "README.md").read_text()
    tensors = pixels(network, seed=1, images=3)
    by_iou = best_boxes(network, tensors, 0.02)
    for objects, expected, other in zip(
        nvinfer.detect(tensors), best_boxes(network, tensors, 0.02, kind), by_iou, strict=True
    ):
        same(boxes_of(objects), expected)
        assert len(other) < len(expected)


def test_a_fixed_batch_runs_in_smaller_ones_too(engine: Engines, parser: Parser, tmp_path: Path) -> None:
    # Gst-nvinfer frees the first side of the input, whatever the model says, and builds an engine for 1 to batch-size.
    network = engine("batch_4")
    folder = written(network, tmp_path, confidence=0.1)
    model = ir.load(folder / "model.onnx")
    assert [next(iter(value.shape or ())) for value in (*model.graph.inputs, *model.graph.outputs)] == [4, 4]
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(["N", 3, 32, 32] if value.name == "input" else ["N", 128, 6])
    ir.save(model, folder / "model.onnx")
    nvinfer, tensors = Nvinfer(folder, parser), pixels(network, images=4)
    assert nvinfer.property["batch-size"] == 4
    expected = best_boxes(network, tensors, 0.1)
    for count in (1, 3, 4):
        for objects, boxes in zip(nvinfer.detect(tensors[:count]), expected, strict=False):
            same(boxes_of(objects), boxes)


def test_classes(engine: Engines, tmp_path: Path) -> None:
    network = engine("classifier")
    nvinfer = Nvinfer(written(network, tmp_path))
    tensors = pixels(network, images=4)
    assert nvinfer.labels == [list("01234")]
    outputs = network.forward(tensors)
    for image, (number, label, confidence) in enumerate(nvinfer.classify(tensors)):
        [best] = network.postprocess([output[image] for output in outputs], top=1)
        assert isinstance(best, Classification)
        assert (number, label) == (best.class_id, best.label)
        assert confidence == pytest.approx(best.confidence, abs=1e-6)
    assert not {path.name for path in nvinfer.folder.iterdir()} & {"Makefile", "nvdsinfer_dnc.cpp"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("yolo", {}),
        ("non_square", {"mean": (0.25,), "std": (0.5,)}),
        ("yolo", {"mean": (0.485, 0.456, 0.406), "std": (0.225,)}),
        ("yolo", {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "color": "bgr"}),
        ("bgr", {}),
        ("yolo", {"scale": 1.0, "mean": (127.0,), "std": (50.0, 75.0, 100.0)}),
        ("gray", {"mean": (0.5,), "std": (0.25,)}),
        ("yolo", {"scale": 1.0, "mean": (127.0,), "std": (128.0,)}),
    ],
)
def test_pixels_become_what_the_network_takes(
    engine: Engines, tmp_path: Path, name: str, fields: dict[str, Any]
) -> None:
    export = with_preprocessing(engine(name), **fields)
    p = export.preprocessing()
    destination = DeepStream()
    destination.check(export)
    destination.write(export, tmp_path)
    nvinfer = Nvinfer(tmp_path)
    shape = (p.height, p.width, *([p.channels] if p.channels > 1 else []))
    frame = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    # What the graph computes first, of all that depends on the input alone, is in it then.
    found = nvinfer.run(nvinfer.prepare(frame[None]))
    plain = with_preprocessing(engine(name), color="gray" if p.channels == 1 else "rgb", mean=(0.0,), std=(1.0,))
    (tmp_path / "plain").mkdir()
    destination.write(plain, tmp_path / "plain")
    expected = Nvinfer(tmp_path / "plain").run(p(frame)[None])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)  # float32, in another order


def test_letterbox_is_symmetric(engine: Engines, tmp_path: Path) -> None:
    for name, expected in (("letterbox", (1, 1)), ("yolo", (0, 0))):
        (tmp_path / name).mkdir()
        keys = Nvinfer(written(engine(name), tmp_path / name)).property
        assert (keys["maintain-aspect-ratio"], keys["symmetric-padding"]) == expected


def test_thresholds_sizes_and_files(engine: Engines, tmp_path: Path) -> None:
    folder = written(engine("yolo"), tmp_path, confidence=0.3, iou=0.6)
    nvinfer = Nvinfer(folder)
    assert nvinfer.suppression == {"pre-cluster-threshold": 0.3, "nms-iou-threshold": 0.6, "topk": 2 * (64 + 16)}
    assert nvinfer.property["infer-dims"] == [3, 32, 32]
    assert nvinfer.property["num-detected-classes"] == 3
    assert nvinfer.labels == [["0"], ["1"], ["2"]]
    named = ("onnx-file", "labelfile-path")
    assert all((folder / nvinfer.property[key]).is_file() for key in named)
    assert nvinfer.property["custom-lib-path"] in (folder / "Makefile").read_text()
    assert {path.name for path in folder.iterdir()} == {
        *("Makefile", "README.md", "config_infer_primary.txt", "deepstream_app_config.txt", "export.json"),
        *("labels.txt", "model.onnx", "nvdsinfer_dnc.cpp"),
    }


def test_the_pipeline(engine: Engines, tmp_path: Path) -> None:
    kinds = {
        "application": {"enable-perf-measurement": "integer", "perf-measurement-interval-sec": "integer"},
        "tiled-display": dict.fromkeys(("enable", "rows", "columns", "width", "height"), "integer"),
        "source0": {**dict.fromkeys(("enable", "type", "num-sources"), "integer"), "uri": "string"},
        "streammux": dict.fromkeys(("batch-size", "batched-push-timeout", "live-source", "width", "height"), "integer"),
        "primary-gie": {**dict.fromkeys(("enable", "gie-unique-id", "batch-size"), "integer"), "config-file": "string"},
        "osd": dict.fromkeys(("enable", "border-width", "text-size"), "integer"),
        "sink0": dict.fromkeys(("enable", "type", "sync"), "integer"),
    }
    read = read_key_file(written(engine("batch_4"), tmp_path) / "deepstream_app_config.txt", kinds)
    assert read.keys() == kinds.keys()
    sizes = {read[group][key] for group, key in (("source0", "num-sources"), ("streammux", "batch-size"))}
    assert sizes | {read["primary-gie"]["batch-size"]} == {4}
    assert (read["tiled-display"]["rows"], read["tiled-display"]["columns"]) == (2, 2)
    assert (tmp_path / "out" / read["primary-gie"]["config-file"]).is_file()


def test_labels_fit_their_lines(engine: Engines, tmp_path: Path, parser: Parser) -> None:
    network = engine("yolo")
    export = with_preprocessing(network)
    export.engine.manifest = dataclasses.replace(network.manifest, labels=("a;b", "", "dont_show c"))
    DeepStream().write(export, tmp_path)
    nvinfer = Nvinfer(tmp_path, parser)
    assert nvinfer.labels == [["a,b"], ["1"], ["dont_show c"]]
    # Darknet does not show it.
    assert nvinfer.property["filter-out-class-ids"] == [2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("yolo", ["make\ndeepstream-app -c", "confidence 0.25, IoU 0.45", "the best class", "For N streams"]),
        ("letterbox", ["pads with black"]),
        ("classifier", ["src-crop=", "process-mode=2"]),
        ("batch_4", ["batch-size=4"]),
    ],
)
def test_readme(engine: Engines, tmp_path: Path, name: str, words: list[str]) -> None:
    text = (written(engine(name), tmp_path) / "README.md").read_text()
    assert all(word in text for word in words), text
    assert ("For N streams" in text) == (name != "batch_4")


def _calibration(engine: Engine, path: Path, **fields: Any) -> Path:
    ranges = {name: Range.symmetric(2.0, -1.0, 2.0) for name in ("input", "layer000", "layer001")}
    given = {"digest": engine.manifest.network["digest"], "symmetric": True, **fields}
    Calibration(**{**given, "method": "norm", "preprocessing": {}, "images": {}, "ranges": ranges}).write(path)
    return path


def test_a_calibration_is_tensorrts(engine: Engines, tmp_path: Path) -> None:
    network = engine("yolo")
    table = _calibration(network, tmp_path / "c.json")
    folder = written(network, tmp_path, calibration=table, options={"tensorrt": "10.3.0"})
    lines = (folder / "calib.table").read_text().splitlines()
    assert lines[0] == "TRT-100300-EntropyCalibration2"
    names = {line.partition(": ")[0] for line in lines[1:]}
    graph = ir.load(folder / "model.onnx").graph
    assert names <= {value.name for node in graph for value in (*node.inputs, *node.outputs) if value is not None}
    keys = Nvinfer(folder).property
    assert (keys["network-mode"], keys["int8-calib-file"]) == (1, "calib.table")
    assert keys["model-engine-file"] == "model.onnx_b1_gpu0_int8.engine"


def test_the_input_keeps_its_name_behind_its_own_mean(engine: Engines, tmp_path: Path) -> None:
    # The range is that of what the first convolution reads.
    folder = written(engine("bgr"), tmp_path)
    graph = ir.load(folder / "model.onnx").graph
    [first] = [node for node in graph if node.op_type == "Conv"][:1]
    assert (graph.inputs[0].name, first.inputs[0] and first.inputs[0].name) == ("image", "input")


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"digest": "other"}, {}, "belongs to another network"),
        ({}, {"tensorrt": "11.0.0"}, "TensorRT 11.0.0 reads no calibrations"),
    ],
)
def test_a_calibration_that_is_none(
    engine: Engines, tmp_path: Path, fields: dict[str, Any], options: dict[str, str], message: str
) -> None:
    network = engine("yolo")
    with pytest.raises((CalibrationError, DestinationError), match=message) as caught:
        written(network, tmp_path, calibration=_calibration(network, tmp_path / "c.json", **fields), options=options)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_asymmetric_ranges_are_told(engine: Engines, tmp_path: Path) -> None:
    network = engine("yolo")
    with pytest.warns(Warning, match="not symmetric"):
        written(network, tmp_path, calibration=_calibration(network, tmp_path / "c.json", symmetric=False))


@pytest.mark.parametrize("version", ["8.6", "8.6.1.2", "x", "", "-1.0.0"])
def test_versions(version: str) -> None:
    with pytest.raises(DestinationError, match="three numbers"):
        DeepStream({"tensorrt": version})


def test_8_bits_and_halves_for_each_tensorrt(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("tiny")
    half = compile(cfg, None, "cuda", tmp_path / "half.engine", verify=False, options={**INT8, "precision": "fp16"})
    network = compile(cfg, None, "onnx", tmp_path / "plain.engine", verify=False)
    table = _calibration(network, tmp_path / "c.json")
    eight = compile(
        cfg, None, "cuda", tmp_path / "eight.engine", verify=False, options=INT8, calibration=table, precision="int8"
    )
    for number, (engine, tensorrt, mode, typed, calibrated) in enumerate(
        (
            (half, "10.3.0", 2, False, False),
            (half, "11.0.0", 0, True, False),
            (eight, "10.3.0", 1, False, True),
            (eight, "11.0.0", 0, True, False),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        nvinfer = Nvinfer(written(engine, folder, options={"tensorrt": tensorrt}))
        keys = nvinfer.property
        found = (keys["network-mode"], keys.get("strongly-typed", 0) == 1, "int8-calib-file" in keys)
        assert found == (mode, typed, calibrated)
        assert (folder / "out" / "calib.table").exists() == calibrated
        assert nvinfer.run(pixels(network)).shape == (1, 128, 6)
    with pytest.raises(DestinationError, match="not of float16"):
        written(half, tmp_path / "0", calibration=table)
    graph = ir.load(tmp_path / "3" / "out" / "model.onnx").graph
    assert any(node.op_type == "QuantizeLinear" for node in graph)


def test_a_cfg_is_compiled_for_tensorrt(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = dnc.export(write("tiny"), "deepstream", tmp_path / "out", verify=False)
    assert (folder / "model.onnx").is_file()
    assert DeepStream().prepared(CompileOptions(target="cuda")).options == {"backend": "onnxruntime"}
    assert DeepStream().prepared(CompileOptions(target="onnx")).options == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classes_differ", "a head of 3 classes and one of 2"),
        ("tree", "class tree"),
        ("recurrent", "remembers what it saw"),
        ("vector", "takes no images"),
    ],
)
def test_networks_that_it_cannot_hold(engine: Engines, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DestinationError, match=message):
        written(engine(name), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "u8"}, "takes pixels"),
        ({"decode": "graph"}, "--decode graph"),
        ({"precision": "bf16"}, "no mode for bf16"),
    ],
)
def test_engines_that_it_cannot_hold(
    write: Callable[..., Path], tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    engine = compile(write("tiny"), None, "onnx", tmp_path / "e.engine", verify=False, **fields)
    with pytest.raises(DestinationError, match=message) as caught:
        written(engine, tmp_path)
    assert caught.value.hint


def test_machine_code_is_no_onnx(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRunner, "runs_code", True)
    with pytest.raises(DestinationError, match="the engine has no ONNX") as caught:
        DeepStream().check(Export(engine("yolo")))
    assert "backend=onnxruntime" in caught.value.hint


def test_other_channels_and_integers(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = Path(write("tiny")).read_text()
    four = compile(write("four", cfg.replace("channels=3", "channels=4")), None, "onnx", tmp_path / "4.engine")
    with pytest.raises(DestinationError, match="the network takes 4"):
        written(four, tmp_path)
    signs = cfg.replace("filters=14\n", "filters=14\nxnor=1\n")
    xnor = compile(write("signs", signs), None, "onnx", tmp_path / "x.engine", verify=False)
    with pytest.raises(DestinationError, match="no ConvInteger") as caught:
        written(xnor, tmp_path)
    assert "[convolutional] #1" in str(caught.value.where)


def test_8_bits_that_are_not_tensorrts(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("tiny")
    table = _calibration(compile(cfg, None, "onnx", tmp_path / "p.engine", verify=False), tmp_path / "c.json")
    engine = compile(cfg, None, "onnx", tmp_path / "e.engine", verify=False, precision="int8", calibration=table)
    with pytest.raises(DestinationError, match="signed 8-bit numbers alone"):
        written(engine, tmp_path)
