"""Destination `triton`: a repository that Triton loads, and whose ensemble finds what dnc finds."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.destinations.triton import Word, text_format
from dnc.errors import DestinationError
from dnc.runtime.decoding import Classification, Detection
from dnc.runtime.engine import Engine
from dnc.typing import Array
from tests.destinations.conftest import Box, same
from tests.destinations.networks import NETWORKS
from tests.destinations.real_triton import find_server, serving_for_real
from tests.destinations.small_triton import Message, SmallTriton, parse, serving
from tests.patience import PATIENCE

Engines = Callable[[str], Engine]

DETECTORS = [name for name in NETWORKS if name not in ("classifier", "batch_4")]
FAST = ("yolo", "letterbox")
SIZE = (45, 70)
"""Height and width of the images: neither a multiple of the network's, nor of its shape."""


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def pictures(engine: Engine, count: int = 1) -> Array:
    """Noise (N, H, W, C) of uint8."""
    channels = engine.manifest.input_shape[0]
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, channels), np.uint8)


def exported(engine: Engine, folder: Path, **given: Any) -> Path:
    return dnc.export(engine.folder, "triton", folder / "repository", **{"confidence": 0.1, **given})


def expected(engine: Engine, image: Array, confidence: float = 0.1, iou: float = 0.45) -> list[Box]:
    found = engine(image, confidence=confidence, iou=iou)
    return [(box.class_id, box.confidence, *box.box) for box in found if isinstance(box, Detection)]


def boxes(found: Mapping[str, Array]) -> list[Box]:
    assert (np.diff(found["scores"]) <= 0).all()
    return list(zip(found["classes"].tolist(), found["scores"].tolist(), *found["boxes"].T.tolist(), strict=True))


def config(repository: Path, name: str) -> Message:
    return parse((repository / name / "config.pbtxt").read_text())


@pytest.mark.parametrize("name", [name if name in FAST else slow(name) for name in DETECTORS])
def test_boxes_are_those_of_the_engine(engine: Engines, tmp_path: Path, name: str) -> None:
    made = engine(name)
    triton = SmallTriton(exported(made, tmp_path))
    [image] = pictures(made)
    same(boxes(triton.infer(f"{name}_ensemble", image=image)), expected(made, image))


def test_a_fixed_batch(engine: Engines, tmp_path: Path) -> None:
    made = engine("batch_4")
    repository = exported(made, tmp_path, iou=0.3)
    triton = SmallTriton(repository)
    assert triton.models["batch_4"].most == 0
    check_script(repository)
    four = pictures(made, 4)
    found = triton.infer("batch_4_ensemble", image=four)
    assert set(found) == {"boxes", "scores", "classes", "images"}
    for number, image in enumerate(four):
        one = {name: value[found["images"] == number] for name, value in found.items()}
        same(boxes(one), expected(made, image, iou=0.3))


def test_classes(engine: Engines, tmp_path: Path) -> None:
    made = engine("classifier")
    repository = exported(made, tmp_path)
    triton = SmallTriton(repository)
    check_script(repository)
    assert set(triton.models) == {"classifier", "classifier_preprocess", "classifier_ensemble"}
    [image] = pictures(made)
    [values] = triton.infer("classifier_ensemble", image=image).values()
    answers = made(image)
    assert [answer.class_id for answer in answers] == np.argsort(-values).tolist()
    given = [answer.confidence for answer in answers if isinstance(answer, Classification)]
    np.testing.assert_array_equal(given, np.sort(values)[::-1])
    assert (repository / "classifier" / "labels.txt").read_text().splitlines() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("batch", [None, 2])
def test_classes_of_another_rank(write: Callable[..., Path], tmp_path: Path, batch: int | None) -> None:
    # Its last layer gives (3, 1, 1).
    cfg = write("net", NETWORKS["classifier"].cfg.replace("filters=5", "filters=3").replace("\n[softmax]\n", ""))
    made = dnc.compile(cfg, None, "onnx", tmp_path / "net.engine", verify=False, batch=batch)
    assert made.manifest.output_shapes == ((3, 1, 1),)
    repository = exported(made, tmp_path)
    triton = SmallTriton(repository)
    several = pictures(made, 2)
    found = triton.infer("net_ensemble", image=several[0] if batch is None else several)["probabilities"]
    assert found.shape == ((3,) if batch is None else (2, 3))
    for values, image in zip(found.reshape(-1, 3), several, strict=False):
        assert [answer.class_id for answer in made(image)] == np.argsort(-values).tolist()


def test_nothing_found(engine: Engines, tmp_path: Path) -> None:
    made = engine("one_class")
    triton = SmallTriton(exported(made, tmp_path, confidence=1.0))
    found = triton.infer("one_class_ensemble", image=pictures(made)[0])
    assert {name: value.shape for name, value in found.items()} == {"boxes": (0, 4), "scores": (0,), "classes": (0,)}


def test_classes_that_are_not_shown(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("net", NETWORKS["yolo"].cfg)
    names = ["a dog", "dont_show", 'caf\u00e9 "x"']
    (tmp_path / "names").write_text("\n".join(names), encoding="utf-8")
    made = dnc.compile(cfg, None, "onnx", tmp_path / "net.engine", verify=False, labels=tmp_path / "names")
    repository = exported(made, tmp_path)
    [image] = pictures(made)
    found = boxes(SmallTriton(repository).infer("net_ensemble", image=image))
    assert {box[0] for box in found} == {0, 2}
    same(found, expected(made, image))
    assert (repository / "net" / "labels.txt").read_text(encoding="utf-8").splitlines() == names


GPU = 'gpu_execution_accelerator { name: "cuda" parameters { key: "use_tf32" value: "0" } }'


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({}, ["max_batch_size: 8\n", "count: 1 kind: KIND_AUTO", "dynamic_batching { }", GPU]),
        slow({"max_batch": "2"}, ["max_batch_size: 2\n"]),
        slow({"kind": "cpu", "instances": "3"}, ["instance_group { count: 3 kind: KIND_CPU }\n"]),
        slow({"kind": "gpu"}, ["kind: KIND_GPU", GPU]),
        slow({"accelerator": "openvino"}, ['cpu_execution_accelerator { name: "openvino" }', "kind: KIND_CPU"]),
        (
            {"accelerator": "tensorrt"},
            [
                "kind: KIND_GPU",
                'key: "precision_mode" value: "FP32"',
                'key: "trt_profile_max_shapes" value: "input:8x3x32x32"',
                "dims: [ 3, 32, 32 ] zero_data: true",
            ],
        ),
    ],
)
def test_options(engine: Engines, tmp_path: Path, options: dict[str, str], texts: list[str]) -> None:
    repository = exported(engine("one_class"), tmp_path, options=options)
    written = (repository / "one_class" / "config.pbtxt").read_text()
    assert [text for text in texts if text not in written] == []
    assert ("gpu_execution_accelerator" in written) == ("KIND_CPU" not in written)
    SmallTriton(repository)


def test_one_request_at_a_time(engine: Engines, tmp_path: Path) -> None:
    repository = exported(engine("one_class"), tmp_path, options={"max_batch": "1"})
    assert config(repository, "one_class")["max_batch_size"] == [1]
    assert "dynamic_batching" not in config(repository, "one_class")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("one_class", {"accelerator": "tensorrt", "kind": "cpu"}, "accelerator=tensorrt contradicts kind=cpu"),
        ("one_class", {"accelerator": "openvino", "kind": "gpu"}, "accelerator=openvino contradicts kind=gpu"),
        ("one_class", {"max_batch": "0"}, "max_batch=0 of destination triton is not a whole number from 1 to 1024"),
        ("one_class", {"kind": "tpu"}, "kind=tpu of destination triton is not one of auto, cpu, gpu"),
        ("tree", {}, "class tree"),
        ("classes_differ", {}, "3 classes and one of 2"),
        ("recurrent", {}, "remembers"),
        ("vector", {}, "takes no images"),
    ],
)
def test_refused(engine: Engines, tmp_path: Path, name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(DestinationError, match=message):
        exported(engine(name), tmp_path, options=options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"), [({"input": "u8"}, "takes pixels"), ({"decode": "graph"}, "--decode graph")]
)
def test_engines_with_more_in_the_graph(
    write: Callable[..., Path], tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    cfg = write("net", NETWORKS["one_class"].cfg)
    made = dnc.compile(cfg, None, "onnx", tmp_path / "net.engine", verify=False, **given)
    with pytest.raises(DestinationError, match=message):
        exported(made, tmp_path)


@pytest.mark.slow
def test_half_precision(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("net", NETWORKS["yolo"].cfg)
    made = dnc.compile(cfg, None, "onnx", tmp_path / "net.engine", verify=False, precision="fp16")
    repository = exported(made, tmp_path, options={"accelerator": "tensorrt"})
    assert 'value: "FP16"' in (repository / "net" / "config.pbtxt").read_text()
    [image] = pictures(made)
    same(boxes(SmallTriton(repository).infer("net_ensemble", image=image)), expected(made, image))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo", "batch_4", "classifier"])
def test_openvino(write: Callable[..., Path], tmp_path: Path, name: str) -> None:
    pytest.importorskip("openvino", exc_type=ImportError)
    small = NETWORKS[name]
    made = dnc.compile(
        write("net", small.cfg), None, "openvino", tmp_path / "net.engine", verify=False, **small.options
    )
    repository = exported(made, tmp_path)
    assert {path.name for path in (repository / "net" / "1").iterdir()} == {"model.xml", "model.bin"}
    triton = SmallTriton(repository)
    several = pictures(made, 4)
    if name == "batch_4":
        found = triton.infer("net_ensemble", image=several)
        found = {key: value[found["images"] == 2] for key, value in found.items()}
        same(boxes(found), expected(made, several[2]))
    elif name == "yolo":
        same(boxes(triton.infer("net_ensemble", image=several[0])), expected(made, several[0]))
    else:
        [values] = triton.infer("net_ensemble", image=several[0]).values()
        assert values.shape == (1, 5)
        assert [answer.class_id for answer in made(several[0])] == np.argsort(-values[0]).tolist()
    for options in ({"kind": "gpu"}, {"accelerator": "tensorrt"}):
        with pytest.raises(DestinationError, match="engine of target openvino"):
            exported(made, tmp_path, options=options)


@pytest.mark.slow
def test_engines_for_gpus(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("net", NETWORKS["yolo"].cfg)
    made = dnc.compile(
        cfg, None, "cuda", tmp_path / "net.engine", verify=False, options={"backend": "onnxruntime"}, precision="tf32"
    )
    repository = exported(made, tmp_path)
    written = (repository / "net" / "config.pbtxt").read_text()
    assert "KIND_GPU" in written
    assert 'key: "use_tf32" value: "1"' in written
    SmallTriton(repository)
    with pytest.raises(DestinationError, match="for NVIDIA's GPUs"):
        exported(made, tmp_path, options={"kind": "cpu"})


def test_text() -> None:
    given = {"a": 'x"\\y\n\u00e9', "b": [1, -1], "c": Word("TYPE_FP32"), "d": {"e": True, "f": {}}, "g": [{"h": 1}] * 2}
    read = {
        "a": [given["a"]],
        "b": [1, -1],
        "c": ["TYPE_FP32"],
        "d": [{"e": ["true"], "f": [{}]}],
        "g": [{"h": [1]}] * 2,
    }
    assert parse(text_format(given)) == read


@pytest.mark.parametrize("name", ["yolo", "batch_4", "classifier"])
def test_the_official_protobuf_reads_it(engine: Engines, tmp_path: Path, name: str) -> None:
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    protobuf = pytest.importorskip("google.protobuf.text_format")
    repository = exported(engine(name), tmp_path, options={"accelerator": "tensorrt"})
    for path in repository.glob("*/config.pbtxt"):
        message = protobuf.Parse(path.read_text(), messages.ModelConfig())
        # Whatever it writes again is what the tests' own reader makes of the file.
        again = parse(protobuf.MessageToString(message, use_index_order=True))
        mine = parse(path.read_text())
        assert {key for key in mine if mine[key] != [0] and key != "zero_data"} == set(again)
        assert [tensor["dims"] for tensor in again["input"]] == [tensor["dims"] for tensor in mine["input"]]
        assert message.name == path.parent.name


def asked(repository: Path, server: str, tmp_path: Path, images: Array) -> list[list[tuple[float, ...]]]:
    """What client.py prints of each image: class, score and, of boxes, the four sides."""
    files = []
    for number, image in enumerate(images):
        files.append(str(tmp_path / f"{number}.npy"))
        np.save(files[-1], image)
    command = [sys.executable, str(repository / "client.py"), *files, "-u", server]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    parts = [part.splitlines() for part in done.stdout.split("Image ")[1:]]
    assert [part[0] for part in parts] == [f"'{file}':" for file in files]
    rows = [[re.fullmatch(r" {4}(\S+) \((\d+)\) = \2(?: \[(.+)\])?", line) for line in part[1:]] for part in parts]
    return [[(int(row[2]), float(row[1]), *map(float, (row[3] or "").split())) for row in part if row] for part in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_class", "batch_4", "classifier"])
@pytest.mark.parametrize("real", [False, True])
def test_the_client(engine: Engines, tmp_path: Path, name: str, real: bool) -> None:
    pytest.importorskip("tritonclient.http")
    if real and find_server() is None:
        pytest.skip("nvidia-pytriton is not installed")
    made = engine(name)
    repository = exported(made, tmp_path, confidence=0.25)
    images = pictures(made, 6 if name == "batch_4" else 2)
    (tmp_path / "scratch").mkdir()
    served = serving_for_real(repository, tmp_path / "scratch") if real else serving(SmallTriton(repository))
    with served as server:
        answers = asked(repository, server, tmp_path, images)
    for image, found in zip(images, answers, strict=True):
        if name == "classifier":
            wanted = [(each.class_id, each.confidence) for each in made(image) if isinstance(each, Classification)]
            np.testing.assert_allclose(found, wanted, atol=1e-6)
        else:
            # It prints tenths of a pixel; best first, as dnc.
            np.testing.assert_allclose(found, expected(made, image, 0.25), atol=0.06)


def check_script(repository: Path) -> None:
    script = (repository / "client.py").read_text()
    assert "@" not in script
    assert len(script.splitlines()) < 60
    compile(script, "client.py", "exec")


def test_the_readme(engine: Engines, tmp_path: Path) -> None:
    text = (exported(engine("letterbox"), tmp_path) / "README.md").read_text()
    assert "tritonserver --model-repository=/models" in text
    assert "confidence 0.1, IoU 0.45" in text
    assert "uint8 (height, width, 3) of RGB" in text
    assert "ratio of the sides kept" in text
