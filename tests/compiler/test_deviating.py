"""`dnc compile` says how far an engine with 8-bit numbers is from float32, and warns of one that is far."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc.compiler import deviating
from dnc.compiler.options import CompileOptions
from dnc.compiler.source import preprocessing_for
from dnc.darknet.network import Network
from dnc.errors import DncWarning
from dnc.graph.quantization import Range
from dnc.graph.verification import photograph
from dnc.quantization.calibration import Calibration
from dnc.quantization.collecting import calibrate
from dnc.runtime.engine import Engine
from dnc.runtime.manifest import Manifest, read_manifest
from dnc.targets import find
from tests.conftest import Result
from tests.manifests import manifest

Compile = Callable[..., Engine]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(np.roll(photograph(), 40 * number, axis=1)).resize((48, 40)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def eight(write: Callable[..., Path], tmp_path: Path, images: Path) -> Compile:
    """Compiles a network to 8 bits, as it was calibrated on the first four images, or with a changed calibration."""

    def make(name: str = "tiny", change: Callable[[Calibration], Calibration] | None = None, **options: Any) -> Engine:
        cfg = write(name)
        network = Network.load(cfg, cfg.with_suffix(".weights"))
        table = tmp_path / "table.json"
        if not table.exists():
            preprocessing = preprocessing_for(network, cfg.with_suffix(".weights"))
            paths = sorted(images.iterdir())[:4]
            measured = calibrate(network, preprocessing, paths, symmetric=False, source=str(images))
            (measured if change is None else change(measured)).write(table)
        told = {"target": "onnx", "precision": "int8", **options}
        return dnc.compile(cfg, out=tmp_path / "e", calibration=table, **told)

    return make


def told(make: Callable[[], Engine]) -> tuple[Manifest, list[str]]:
    """The engine's manifest, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = make()
    return engine.manifest, [str(each.message) for each in caught if issubclass(each.category, DncWarning)]


@pytest.mark.parametrize("target", ["onnx", "openvino", pytest.param("cpu", marks=pytest.mark.slow)])
def test_it_is_measured(target: str, eight: Compile) -> None:
    """On the images that were calibrated on, of which the folder has one more."""
    if find(target)().missing():
        pytest.skip(f"{target} is not installed")
    made, said = told(lambda: eight(target=target))
    found = made.deviation
    assert said == []
    assert (found["measured"], found["images"], found["kind"]) == (True, 4, "boxes")
    assert [head["output"] for head in found["heads"]] == [head.output for head in made.heads]
    assert all(0 < head["error"] < 0.2 for head in found["heads"])
    assert found["text"].startswith("on 4 images the heads are ")


def test_ranges_that_are_cut_are_warned_of(eight: Compile) -> None:
    """All are a quarter of what they were."""

    def cut(calibration: Calibration) -> Calibration:
        ranges = {
            key: dataclasses.replace(known, low=known.low / 4, high=known.high / 4)
            for key, known in calibration.ranges.items()
        }
        return dataclasses.replace(calibration, ranges=ranges)

    made, said = told(lambda: eight("tiny", cut))
    assert made.deviation["measured"]
    (warning,) = said
    assert warning.startswith("8 bits cost this network much: on 4 images")
    assert "dnc diagnose" in warning


@pytest.mark.parametrize(("kind", "kept", "lost", "new", "error", "warned"), [
    ("boxes", 80, 20, 19, 0.9, False),
    ("boxes", 80, 21, 20, 0.0, True),
    ("boxes", 10, 20, 0, 0.0, True),
    ("classes", 95, 5, 5, 0.9, False),
    ("classes", 93, 7, 7, 0.0, True),
    ("boxes", 2, 3, 3, 0.44, False),
    ("boxes", 2, 0, 0, 0.46, True),
    ("", 0, 0, 0, 0.46, True),
])  # fmt: skip
def test_bounds(kind: str, kept: int, lost: int, new: int, error: float, warned: bool, tmp_path: Path) -> None:
    heads = [{"output": "a", "where": "", "error": error}]
    counts = {"kind": kind, "kept": kept, "lost": lost, "new": new, "heads": heads}
    changed = (lost + new) / max(2 * kept + lost + new, 1)
    found = manifest(deviation={"measured": True, "text": "so it is", "changed": changed, **counts})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deviating.tell(found, tmp_path)
    assert len(caught) == warned


def test_images_that_are_gone(eight: Compile, images: Path) -> None:
    """There is an engine all the same, which says so; others can be named."""
    eight()
    others = shutil.move(images, images.with_name("others"))
    made, said = told(eight)
    assert said == []
    assert not made.deviation["measured"]
    assert made.deviation["text"].startswith(
        "not compared with float32: the images that were calibrated on are not there"
    )
    assert "--data" in made.deviation["text"]
    made, _ = told(lambda: eight(data=[str(others)]))
    assert (made.deviation["measured"], made.deviation["images"]) == (True, 5)
    for path in Path(others).iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    shutil.move(others, images)
    made, _ = told(eight)
    assert "are not where they were" in made.deviation["text"]


def test_a_table_without_images(eight: Compile) -> None:
    made, _ = told(lambda: eight("tiny", lambda calibration: dataclasses.replace(calibration, images={})))
    assert "the calibration names no images; name images with --data" in made.deviation["text"]


def test_an_image_that_cannot_be_read(eight: Compile, images: Path) -> None:
    eight()
    for path in images.iterdir():
        path.write_bytes(b"no image")
    made, _ = told(eight)
    assert not made.deviation["measured"]


def test_a_cpu_of_another_kind(eight: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs here is not what runs there."""
    monkeypatch.setenv("DNC_ISA", "avx2")
    made, said = told(lambda: eight(options={"isa": "avx512vnni"}))
    assert said == []
    assert "it is for CPUs with 8-bit arithmetic vnni, and this one has another (avx2)" in made.deviation["text"]
    made, _ = told(lambda: eight(options={"isa": "avx2"}))
    assert (made.arithmetic, made.deviation["measured"], made.deviation["isa"]) == ("pairs", True, "avx2")


def test_a_device_that_is_not_here(eight: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnc.targets.cuda.target.gpus", lambda: [])

    def symmetric(calibration: Calibration) -> Calibration:
        return dataclasses.replace(calibration, symmetric=True)

    made, _ = told(lambda: eight("tiny", symmetric, target="cuda"))
    assert not made.deviation["measured"]
    assert made.deviation["text"].startswith("not compared with float32: ")


def test_a_network_on_vectors(write: Callable[..., Path], tmp_path: Path) -> None:
    cfg = write("vector")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    names = ("input", *(f"layer{layer.index:03d}" for layer in network.layers))
    table = tmp_path / "table.json"
    Calibration(network.digest, "minmax", False, {}, {}, {name: Range(-1, 1, -1, 1) for name in names}).write(table)
    out = tmp_path / "e"
    made = dnc.compile(cfg, target="onnx", precision="int8", calibration=table, out=out).manifest
    assert made.deviation["text"] == "not compared with float32: the network takes no images"


def test_it_can_be_left_out(eight: Compile, write: Callable[..., Path], tmp_path: Path) -> None:
    assert eight(verify=False).manifest.deviation == {}
    assert dnc.compile(write("tiny"), target="onnx", out=tmp_path / "f").manifest.deviation == {}


@pytest.mark.parametrize(("flops", "images", "count"), [(1e6, 200, 100), (1e6, 5, 5), (1e10, 100, 20), (1e11, 100, 4)])
def test_how_many_images(
    flops: float, images: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as take no longer than so much work, from all over the list."""
    paths = [tmp_path / f"{number:03d}.png" for number in range(images)]
    for path in paths:
        path.touch()

    class Layer:
        def flops(self) -> float:
            return flops

    source: Any = type("Source", (), {"network": type("Network", (), {"layers": [Layer()]}), "calibration": None})
    found = deviating._images(source, CompileOptions(data=[str(tmp_path)]))
    assert len(found) == count
    assert found[0] == paths[0]
    assert found[-1] in paths[-images // count :]


def test_it_is_shown(command: Callable[..., Result], eight: Compile, images: Path, tmp_path: Path) -> None:
    """By compile and info, in text and as JSON."""
    folder = eight().folder
    text = read_manifest(folder).deviation["text"]
    result = command("info", folder)
    assert f"8 bits         {text}" in result.out.splitlines()
    assert json.loads(command("info", folder, "--json").out)["deviation"]["text"] == text
    options = ("--target", "onnx", "--precision", "int8", "--calibration", tmp_path / "table.json")
    result = command("compile", tmp_path / "tiny.cfg", *options, "-o", tmp_path / "f")
    assert result.code == 0
    lines = result.out.splitlines()
    assert f"  8 bits: {text}" in lines
    assert any(line.startswith("  made for: CPUs with 8-bit arithmetic ") for line in lines)
