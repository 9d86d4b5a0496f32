"""Precision int8 and mixed: compiled engines, the noise of layers, and how many of them stay in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

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
from dnc.quantization.sensitivity import Mixed, _costs, _feeds, _fewest, choose_float_layers, drop
from dnc.runtime.engine import Engine
from dnc.runtime.inputs import Inputs
from dnc.runtime.manifest import Manifest
from dnc.runtime.runners.onnx import OnnxRunner
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
filters=24
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=24
groups=24
size=3
pad=1
activation=leaky
[convolutional]
filters=24
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


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier run has measured says nothing of this one."""
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "dnc"))


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
    assert f"{min(len(found.kept), 4)} of 4 layers in float32" in str(found)
    assert any(text.startswith("quantizing layer 0 alone, 1 of 4") for text in told)


@pytest.mark.parametrize(
    ("losses", "max_drop", "asked", "expected"),
    [
        ([0.4] * 11, 0.5, [0], 0),
        # A quarter of the noise of 31 may be left, 7; it suffices, and so does half of it.
        ([1, 1, 0.4, 0.4, 0.4, 0.4], 0.5, [0, 2, 1], 2),
        # So much is lost that a sixteenth is left, 1; that suffices, and 3 does not.
        ([9, 9, 9, 9, 0.1, 0.1], 0.5, [0, 4, 3], 4),
        ([9, 9, 9, 9, 9, 0.1], 0.5, [0, 4], 5),
        # It is never enough.
        ([9] * 6, 0.5, [0, 4], 5),
        ([0.1, 0, 0, 0, 0, 0], 0.0, [0, 4, 3, 2], 2),
    ],
)
def test_few_engines_find_how_many(losses: list[float], max_drop: float, asked: list[int], expected: int) -> None:
    """Layers with noises of 16, 8, 4, 2 and 1, or as many as there are losses: those with so many in float32."""
    noise = [2.0**power for power in reversed(range(len(losses) - 1))]
    found = []

    def reached(count: int) -> float:
        found.append(count)
        return 0.5 - losses[count] / 100

    count, best = _fewest(reached, noise, 0.5, max_drop)
    assert found == asked
    assert count == expected
    assert best == (0.5 if expected == len(noise) else 0.5 - losses[expected] / 100)


def test_layers_of_infinite_noise_come_first() -> None:
    """Nothing can be said of what is left as long as one of them is quantized."""
    noise = [math.inf, math.inf, 1, 1]
    assert _fewest(lambda count: 0.5 * (count >= 2), noise, 0.5, 1) == (2, 0.5)
    assert _fewest(lambda _: 0.5, noise, 0.5, 1) == (0, 0.5)
    assert _fewest(lambda count: 0.5 * (count > 2), [*noise, 0], 0.5, 1)[0] == 4


def test_a_layer_of_little_work_goes_to_float32_first(write: Callable[..., Path], tmp_path: Path) -> None:
    """The mean layer costs twice what one without work costs."""
    cfg = write("net", NET)
    model = lower(Network.load(cfg, cfg.with_suffix(".weights")))
    found = _costs(model, dnc.compile(cfg, target="onnx", out=tmp_path / "x.engine", verify=False).manifest)
    assert sorted(found) == list(range(6))
    assert np.mean(list(found.values())) == pytest.approx(2)
    # 3 x 3 x 3 for each of its numbers, and 3 x 3.
    assert found[0] > 2 * (found[1] - 1) + 1


class Counting(Onnx):
    """Counts the engines that it builds."""

    built = 0

    def build(self, *args: Any, **values: Any) -> Mapping[str, str]:
        type(self).built += 1
        return super().build(*args, **values)


def test_what_was_measured_is_kept(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Another drop is asked without an engine; other ranges are measured, and so is what a damaged file had."""
    manifest, model, _ = prepared(measured, tmp_path)
    dataset, cache = read_dataset(str(measured[2])), tmp_path / "cache"

    def asked(max_drop: float) -> tuple[Mixed, int, list[str]]:
        Counting.built, told = 0, list[str]()
        found = choose_float_layers(
            model, Counting(), manifest, quantization, dataset, max_drop=max_drop, cache=cache, progress=told.append
        )
        return found, Counting.built, [text for text in told if text.startswith(("quantizing", "noise"))]

    first, built, told = asked(0.0)
    assert built > 1
    assert told
    assert asked(0.0) == (first, 0, [])
    loose, *rest = asked(100.0)
    assert not loose.kept
    assert not loose.labelled
    assert rest == [0, []]
    for file in cache.rglob("found.json"):
        file.write_text(file.read_text()[:-1] + "x")
    assert asked(0.0) == (first, built, told)
    for file in cache.rglob("found.json"):
        file.write_text('{"1": -1, "accuracy": 7}')
    assert asked(0.0) == (first, built, told)
    attach_ranges(model, {"layer001": Range(-100, 100)})
    again = asked(100.0)
    # What float32 reaches is what it was; its boxes are the truth, and so it is built.
    assert again[1] == 2
    assert again[2] == told


def test_what_was_measured_on_other_images(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """An image of the same name, or other labels, are another data set."""
    manifest, model, _ = prepared(measured, tmp_path)
    target, dataset, cache = Counting(), read_dataset(str(measured[2])), tmp_path / "cache"
    candidate = Candidate(target, model, manifest)
    (image, *_), texts = sorted(measured[2].iterdir()), []
    for change in (
        lambda: None,
        lambda: [path.with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n") for path in sorted(measured[2].iterdir())],
        lambda: image.with_suffix(".txt").write_text("1 0.5 0.5 0.2 0.2\n"),
        lambda: Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(image),
    ):
        change()
        Counting.built = 0
        for _ in range(2):
            texts.append(drop(candidate, candidate, dataset, cache=cache))
        assert Counting.built == 1
    assert texts == [0.0] * 8


def test_a_cache_is_no_must(measured: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """One that cannot be written changes nothing."""
    manifest, model, _ = prepared(measured, tmp_path)
    (tmp_path / "cache").write_text("no folder")
    candidate = Candidate(Onnx(), model, manifest)
    assert drop(candidate, candidate, read_dataset(str(measured[2])), cache=tmp_path / "cache") == 0


def test_noise_is_measured_on_what_is_remembered(write: Callable[..., Path], tmp_path: Path) -> None:
    """The states that one image has left are an input of the next one."""
    cfg = write("detector", REMEMBERING["detector"])
    engine = dnc.compile(cfg, target="onnx", out=tmp_path / "e", verify=False)
    frames, paths = remembering.noise(3), [tmp_path / f"{number}.png" for number in range(3)]
    for frame, path in zip(frames, paths, strict=True):
        Image.fromarray(frame).save(path)
    model = lower(Network.load(cfg, cfg.with_suffix(".weights")), batch=1)
    states: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for feeds, frame in zip(_feeds(model, engine.manifest, read_dataset(list(map(str, paths)))), frames, strict=True):
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


def _no_device(*_: Any) -> Any:
    raise TargetError("no GPU", "scratch", "get one")


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
    with monkeypatch.context() as context:
        context.setattr(OnnxRunner, "open", _no_device)
        with pytest.raises(
            TargetError, match="accuracy is measured on engines, which cannot run here: no GPU"
        ) as caught:
            dnc.compile(cfg, target="onnx", out=tmp_path / "a.engine", precision="mixed", calibration=table)
        assert "--keep LAYERS" in caught.value.hint
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
