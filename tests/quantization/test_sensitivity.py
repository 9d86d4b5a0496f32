"""Precision int8 and mixed: compiled engines, the noise of layers, and how many of them stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

import dnc
from dnc.compiler.source import preprocessing_for
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import CalibrationError, PassError, TargetError
from dnc.evaluation.datasets import read_dataset
from dnc.graph.pipeline import Pipeline, Step
from dnc.graph.quantization import Range, attach_ranges
from dnc.graph.verification import photograph
from dnc.passes.quantize import Quantize
from dnc.quantization.calibration import Calibration
from dnc.quantization.collecting import calibrate
from dnc.quantization.noise import noises
from dnc.quantization.sensitivity import _feeds, choose_float_layers, drop
from dnc.runtime.engine import Engine
from dnc.runtime.inputs import Inputs
from dnc.runtime.manifest import Manifest
from dnc.targets import find
from dnc.targets.base import Candidate
from dnc.targets.onnx import Onnx
from tests import remembering
from tests.conftest import Result
from tests.networks import REMEMBERING

NET = """[net]
width=32
height=32
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=8
groups=8
size=3
pad=1
activation=leaky
[convolutional]
filters=8
size=1
activation=relu
[shortcut]
from=-2
activation=linear
[convolutional]
filters=14
size=1
activation=linear
[yolo]
mask=0,1
anchors=10,14, 23,27
classes=2
num=2
"""


@pytest.fixture
def measured(write: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A cfg, its calibration and a folder of images."""
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(photograph(), 40 * number, axis=1)).resize((48, 40)).save(images / f"{number}.png")
    cfg = write("net", NET)
    weights = cfg.with_suffix(".weights")
    network = Network.load(cfg, weights)
    paths = sorted(images.iterdir())
    table = tmp_path / "net.calibration.json"
    preprocessing = preprocessing_for(network, weights)
    calibrate(network, preprocessing, paths, symmetric=False, source=str(images)).write(table)
    return cfg, table, images


def forward(engine: Engine) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    preprocessing = engine.manifest.preprocessing
    assert preprocessing is not None
    return engine.forward(preprocessing(photograph())[None])[0]


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_int8(measured: tuple[Path, Path, Path], target: str, tmp_path: Path) -> None:
    if find(target)().missing():
        pytest.skip(f"{target} is not installed")
    cfg, table, _ = measured
    full = dnc.compile(cfg, target=target, out=tmp_path / "f.engine")
    eight = dnc.compile(cfg, target=target, out=tmp_path / "i.engine", precision="int8", calibration=table)
    applied = {item["name"]: item["applied"] for item in eight.manifest.passes if item["applied"]}
    assert applied["equalize"] == 1
    assert applied["quantize"] >= 3
    expected, found = forward(full), forward(eight)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    # Not float32, and near: a few roundings by 1/510 of a range each.
    assert 0 < error < 0.1


def test_keep_leaves_layers_out(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    cfg, table, _ = measured
    out = tmp_path / "k.engine"
    engine = dnc.compile(cfg, target="onnx", out=out, precision="int8", calibration=table, keep=["0-3"])
    assert next(item["applied"] for item in engine.manifest.passes if item["name"] == "quantize") == 0
    plain = dnc.compile(cfg, target="onnx", out=tmp_path / "f.engine")
    np.testing.assert_allclose(forward(engine), forward(plain), rtol=0, atol=1e-5, err_msg="float32, equalized")


def test_mixed(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Without labels: against what float32 finds."""
    cfg, table, images = measured
    engine = dnc.compile(cfg, target="onnx", out=tmp_path / "m.engine", precision="mixed", calibration=table)
    assert "against what float32 finds" in engine.manifest.report["mixed"]
    again = dnc.compile(
        cfg, target="onnx", out=tmp_path / "n.engine", precision="mixed", calibration=table, data=[str(images)]
    )
    assert again.manifest.report == engine.manifest.report
    with pytest.raises(PassError, match="precision mixed decides itself"):
        dnc.compile(cfg, target="onnx", precision="mixed", calibration=table, passes=["fold-batchnorm", "quantize"])


def quantization(keep: Collection[str]) -> list[Step]:
    return [Step(Quantize(Onnx().quantization(), keep=list(keep)))]


def prepared(measured: tuple[Path, Path, Path], tmp_path: Path) -> tuple[Manifest, ir.Model, Network]:
    """A manifest, and the model after the passes, with its ranges."""
    cfg, table, _ = measured
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    model = lower(network)
    attach_ranges(model, Calibration.read(table).ranges)
    Pipeline(Onnx().optimizations()).run(model)
    return dnc.compile(cfg, target="onnx", out=tmp_path / "x.engine").manifest, model, network


def test_noises(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A layer whose range is a hundred times too wide is the noisiest; what is not quantized is not asked."""
    manifest, model, _ = prepared(measured, tmp_path)
    wide = 100 * Calibration.read(measured[1]).ranges["layer001"].high
    inputs = Inputs(manifest)
    feeds = [inputs.batch([inputs.prepare(photograph())])]
    clean = noises(model, quantization, feeds)
    attach_ranges(model, {"layer001": Range(-wide, wide)})
    found = noises(model, quantization, feeds)
    assert sorted(found) == [0, 1, 2, 3]
    assert max(found, key=lambda layer: found[layer]) in (1, 2)
    assert max(clean.values()) < 0.02 < max(found.values())


@pytest.mark.parametrize(("max_drop", "count"), [(100.0, 0), (0.0, None)])
def test_as_few_as_the_drop_allows(
    measured: tuple[Path, Path, Path], tmp_path: Path, max_drop: float, count: int | None
) -> None:
    manifest, model, _ = prepared(measured, tmp_path)
    dataset = read_dataset(str(measured[2]))
    told: list[str] = []
    found = choose_float_layers(model, Onnx(), manifest, quantization, dataset, max_drop=max_drop, progress=told.append)
    assert found.layers == 4
    assert not found.labelled
    assert abs(found.full - found.reached) * 100 <= max_drop
    if count is not None:
        assert len(found.kept) == count
    assert any(text.startswith("quantizing layer 0 alone, 1 of 4") for text in told)


def test_noise_is_measured_on_what_is_remembered(write: Callable[..., Path], tmp_path: Path) -> None:
    """The states that one image has left are an input of the next one."""
    cfg = write("detector", REMEMBERING["detector"])
    engine = dnc.compile(cfg, target="onnx", out=tmp_path / "e", verify=False)
    frames, paths = remembering.noise(3), [tmp_path / f"{number}.png" for number in range(3)]
    for frame, path in zip(frames, paths, strict=True):
        Image.fromarray(frame).save(path)
    model = lower(Network.load(cfg, cfg.with_suffix(".weights")), batch=1)
    states: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for feeds, frame in zip(_feeds(model, engine.manifest, paths), frames, strict=True):
        for name in engine.manifest.states:
            expected = states.get(name, np.zeros_like(feeds[name]))
            np.testing.assert_allclose(feeds[name], expected, atol=1e-5)
        engine.forward(engine.inputs.prepare(frame).array[None], states)
        states = {name: states[name] for name in engine.manifest.carried}
    assert len(states) == 3
    assert all(array.any() for array in states.values())


def test_drop(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Nothing against itself; something against a network whose weights are zero, which finds nothing."""
    manifest, _, network = prepared(measured, tmp_path)
    target, dataset = Onnx(), read_dataset(str(measured[2]))
    exact = Candidate(target, lower(network), manifest)
    assert drop(exact, exact, dataset) == 0
    arrays = tuple({key: np.zeros_like(array) for key, array in each.items()} for each in network.arrays)
    empty = Candidate(target, lower(network.with_arrays(arrays)), manifest)
    assert drop(exact, empty, dataset) > 20


def test_what_is_missing(
    measured: tuple[Path, Path, Path],
    command: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg, table, _ = measured
    with pytest.raises(CalibrationError, match="precision int8 needs a calibration"):
        dnc.compile(cfg, target="onnx", out=tmp_path / "a.engine", precision="int8")
    with pytest.raises(CalibrationError, match="precision fp32 needs no calibration"):
        dnc.compile(cfg, target="onnx", out=tmp_path / "a.engine", calibration=table)
    with monkeypatch.context() as context:
        context.setattr(Onnx, "quantization", lambda self: None)
        with pytest.raises(TargetError, match="target onnx has no 8-bit arithmetic"):
            dnc.compile(cfg, target="onnx", out=tmp_path / "a.engine", precision="int8", calibration=table)
    other = command("compile", cfg, "-t", "onnx", "--precision", "int8", "-o", tmp_path / "a.engine")
    assert other.code == 1
    assert "dnc calibrate obj.data net.cfg" in other.err
    assert not (tmp_path / "a.engine").exists()


def test_a_table_of_another_network(
    measured: tuple[Path, Path, Path], write: Callable[..., Path], tmp_path: Path
) -> None:
    other = write("other", NET, seed=1)
    with pytest.raises(CalibrationError, match="belongs to another network"):
        dnc.compile(other, target="onnx", out=tmp_path / "a.engine", precision="int8", calibration=measured[1])


def test_command(measured: tuple[Path, Path, Path], command: Callable[..., Result], tmp_path: Path) -> None:
    cfg, table, images = measured
    out = tmp_path / "c.engine"
    mixed = ["--precision", "mixed", "--calibration", table, "--max-drop", 50, "--data", images, "--keep", "0"]
    result = command("compile", cfg, "-t", "onnx", "-o", out, *mixed)
    assert result.code == 0, result.err
    assert "layers in float32" in result.out
