"""Destination `ovms`: what the client prints of a server that follows config.json, and what is refused."""

from __future__ import annotations

import io
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import dnc
from dnc.darknet.cfg import find_cfg
from dnc.destinations.base import Export
from dnc.destinations.ovms import _config
from dnc.errors import DestinationError
from dnc.runtime.decoding import Classification, Detection
from dnc.runtime.engine import Engine
from dnc.runtime.manifest import Manifest
from tests.destinations.model_server import check_config, serving
from tests.destinations.networks import NETWORKS, REFUSED
from tests.manifests import manifest
from tests.networks import write_network

pytest.importorskip("openvino", exc_type=ImportError)

Pixels = npt.NDArray[np.uint8]
Ask = Callable[[bytes], list[list[float]]]

CONFIDENCE = 0.2
"""Random networks are seldom surer."""


def picture(channels: int = 3, width: int = 45, height: int = 31) -> Pixels:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def file_of(pixels: Pixels) -> bytes:
    """The same pixels, whoever decodes them."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def compiled(folder: Path, name: str, **options: Any) -> Engine:
    """One of `NETWORKS` or `REFUSED`, for target openvino."""
    (folder / "a.tree").write_text("a -1\nb -1\naa 0\n")
    small = (NETWORKS | REFUSED)[name]
    cfg = write_network(folder, name, small.cfg)
    return dnc.compile(cfg, None, "openvino", folder / f"{name}.engine", verify=False, **{**small.options, **options})


@contextmanager
def asking(engine: Engine, out: Path, confidence: float = CONFIDENCE) -> Iterator[Ask]:
    """Gives what asks a server for an engine, by the client that was exported with it."""
    dnc.export(engine.folder, "ovms", out, confidence=confidence)
    client = runpy.run_path(str(out / "client.py"))
    with serving(out / "config.json") as url:
        yield lambda file: client["ask"](url, file, client["THRESHOLDS"])


def compare(rows: list[list[float]], found: list[Detection] | list[Classification]) -> None:
    """Rows of the server with what dnc finds; as sums in float32 in another order."""
    assert found, "nothing to compare"
    if isinstance(found[0], Classification):
        [scores] = rows
        assert len(scores) == len(found)
        np.testing.assert_allclose(
            [scores[one.class_id] for one in found], [one.confidence for one in found], rtol=1e-5
        )
        return
    boxes = [box for box in found if isinstance(box, Detection)]
    assert [row[:2] for row in rows] == [[0, box.class_id] for box in boxes]
    expected = [[box.confidence, box.center_x, box.center_y, box.width, box.height] for box in boxes]
    np.testing.assert_allclose([row[2:] for row in rows], expected, rtol=1e-4, atol=1e-5)


FAST = ("letterbox", "classifier")
SLOW = sorted(NETWORKS.keys() - {*FAST, "batch_4"})


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_server_gives_dncs_boxes(tmp_path: Path, name: str) -> None:
    engine = compiled(tmp_path, name)
    # What [detection] gives is not activated, and small.
    confidence = 0.01 if name == "detection" else CONFIDENCE
    with asking(engine, tmp_path / "out", confidence) as ask:
        # Gray is repeated, transparency dropped.
        for channels in (3, 1, 4):
            pixels = picture(channels)
            compare(ask(file_of(pixels)), engine(pixels, confidence=confidence))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"batch": 1}, {"preprocess": "letterbox"}])
def test_yolov4_tiny(tmp_path: Path, options: dict[str, Any]) -> None:
    """Its nms_kind=greedynms is the server's too. Of a network with random weights, few boxes are as sure as this."""
    confidence = 0.5
    cfg = write_network(tmp_path, "yolov4-tiny", find_cfg("yolov4-tiny").read_text(encoding="utf-8"))
    options = {**options, "width": 96, "height": 64}
    engine = dnc.compile(cfg, None, "openvino", tmp_path / "e.engine", verify=False, **options)
    with asking(engine, tmp_path / "out", confidence) as ask:
        compare(ask(file_of(picture())), engine(picture(), confidence=confidence))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["letterbox", "classifier"])
def test_engines_that_take_pixels(tmp_path: Path, name: str) -> None:
    engine = compiled(tmp_path, name, input="u8")
    with asking(engine, tmp_path / "out") as ask:
        compare(ask(file_of(picture())), engine(picture(), confidence=CONFIDENCE))


def test_files(tmp_path: Path) -> None:
    """The client as it is, what it prints, and what the server is told."""
    engine = compiled(tmp_path, "scaled", batch=1)
    dnc.export(engine.folder, "ovms", tmp_path / "out", confidence=CONFIDENCE, iou=0.3)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    model = {"scaled/1/model.xml", "scaled/1/model.bin"}
    assert names == {"README.md", "client.py", "config.json", "export.json", "labels.txt", *model}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "model_config_list": [
            {
                "config": {
                    "name": "scaled",
                    "base_path": "scaled",
                    "target_device": "CPU",
                    "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"},
                }
            }
        ]
    }
    image = tmp_path / "image.png"
    image.write_bytes(file_of(picture()))
    client = [sys.executable, str(tmp_path / "out" / "client.py")]
    with serving(tmp_path / "out" / "config.json") as url:
        found = subprocess.run([*client, "--url", url, str(image)], capture_output=True, text=True, check=True).stdout
        few = [*client, "--url", f"{url}/", "--confidence", "1", str(image)]
        assert subprocess.run(few, capture_output=True, text=True, check=True).stdout == f"{image}:\n"
        image.write_bytes(b"no image")
        failed = subprocess.run([*client, "--url", url, str(image)], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.endswith('400 {"error": "Image parsing failed"}\n')
    lines = found.splitlines()
    boxes = engine.detect(picture(), confidence=CONFIDENCE, iou=0.3)
    assert lines[0] == f"{image}:"
    assert len(lines) == 1 + len(boxes) > 1
    for line, box in zip(lines[1:], boxes, strict=True):
        label, *numbers = line.split()
        sides = (box.center_x - box.width / 2, box.center_y - box.height / 2)
        assert label == box.label
        # Printed with 4 digits.
        np.testing.assert_allclose([*map(float, numbers)][:3], [box.confidence, *sides], atol=1e-4)
    gone = subprocess.run([*client, "--url", url, str(image)], capture_output=True, text=True, check=False)
    assert gone.returncode == 1
    assert gone.stderr.startswith(url)


@pytest.mark.slow
def test_classes_that_the_client_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = compiled(tmp_path, "classifier")
    image = tmp_path / "image.png"
    image.write_bytes(file_of(picture()))
    with asking(engine, tmp_path / "out"), serving(tmp_path / "out" / "config.json") as url:
        monkeypatch.setattr(sys, "argv", ["client.py", "--url", url, str(image)])
        runpy.run_path(str(tmp_path / "out" / "client.py"), run_name="__main__")
    classes = engine(picture())
    assert capsys.readouterr().out.splitlines() == [f"{image}:", *(f"  {c.label} {c.confidence:.4f}" for c in classes)]


@pytest.mark.parametrize(
    ("options", "device", "hint"),
    [
        ({"precision": "bf16"}, "CPU", "bf16"),
        ({"precision": "int8"}, "CPU", "f32"),
        ({"precision": "fp16"}, "CPU", "f32"),
        ({"precision": "fp16", "device": "GPU.1"}, "GPU.1", "f16"),
        ({"device": "NPU"}, "NPU", None),
    ],
)
def test_where_and_how_precisely_it_runs(options: dict[str, str], device: str, hint: str | None) -> None:
    class Given(Export):
        @property
        def manifest(self) -> Manifest:
            return manifest(options=options)

    [entry] = _config(Given(cast(Engine, None)))["model_config_list"]
    check_config({"model_config_list": [entry]})
    assert entry["config"]["target_device"] == device
    assert entry["config"].get("plugin_config", {}).get("INFERENCE_PRECISION_HINT") == hint


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("batch_4", "takes batches of 4, and a request has one image", "compile it without --batch"),
        ("tree", "class tree", "dnc detect"),
        pytest.param("classes_differ", "a head of 3 classes and one of 2", "", marks=pytest.mark.slow),
        pytest.param("recurrent", "remembers what it saw", "", marks=pytest.mark.slow),
        pytest.param("vector", "takes no images", "", marks=pytest.mark.slow),
    ],
)
def test_refusals(tmp_path: Path, name: str, message: str, hint: str) -> None:
    engine = compiled(tmp_path, name)
    with pytest.raises(DestinationError, match=message) as caught:
        dnc.export(engine.folder, "ovms", tmp_path / "out")
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_boxes_that_are_decoded_already_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="--decode graph made of its heads"):
        dnc.export(write("tiny"), "ovms", tmp_path / "out", decode="graph", verify=False)


def test_what_no_graph_or_server_can_do(write: Callable[..., Path], tmp_path: Path) -> None:
    corners = NETWORKS["gaussian"].cfg + "\nnms_kind=cornersnms\n"
    with pytest.raises(DestinationError, match="cornersnms moves boxes") as caught:
        dnc.export(write("corners", corners), "ovms", tmp_path / "out", verify=False)
    assert "[Gaussian_yolo]" in str(caught.value)
    many = NETWORKS["one_class"].cfg.replace("channels=3", "channels=6")
    with pytest.raises(DestinationError, match="takes 6 channels, and the server decodes"):
        dnc.export(write("many", many), "ovms", tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is no engine that is damaged, nor a folder that cannot be written."""

    def save(*_: object, **__: object) -> None:
        raise RuntimeError("Exception from src/core/src/model.cpp:1:\nstd::bad_alloc")

    engine = compiled(tmp_path, "yolo")
    monkeypatch.setattr("openvino.save_model", save)
    with pytest.raises(MemoryError):
        dnc.export(engine.folder, "ovms", tmp_path / "out")
    assert not (tmp_path / "out").exists()
