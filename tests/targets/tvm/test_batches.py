"""Batches of any size, of an engine whose code is for one image; and of a fixed size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.bench.subject import Subject
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.errors import TargetError
from dnc.graph.work import read_work
from dnc.runtime.runners.tvm.session import MODEL_JSON, TvmSession
from dnc.targets import Target
from dnc.targets.cpu import Cpu
from dnc.targets.onnx import Onnx
from dnc.targets.tvm.target import Tvm
from dnc.typing import Array
from tests.networks import NETWORKS, write_network
from tests.targets.tvm.test_target import BOUND, close, compiled

pytest.importorskip("tvm.relax", exc_type=ImportError)
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="model.so is linked with g++"),
    pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning"),
]

Write = Callable[..., Path]

COUNTS = (1, 2, 3, 5, 16)


def equal(found: Sequence[Array], expected: Sequence[Array]) -> None:
    """Arrays of equal shapes and bits."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> dnc.Engine:
    """An engine that takes pixels and gives detections."""
    folder = tmp_path_factory.mktemp("detector")
    cfg = write_network(folder, "yolo", NETWORKS["yolo"])
    return compiled(cfg, folder / "e", input="u8", decode="graph+nms", preprocess="letterbox")


@pytest.mark.parametrize("name", ["yolo", "rnn", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS)])
def test_equal_to_single_images(name: str, write: Write, tmp_path: Path) -> None:
    """To the bit: every layer, states and what follows them, however many threads there are; and one image is what it
    is where its code is all that the engine has."""
    cfg = write(name)
    engine = compiled(cfg, tmp_path / "e", keep_layers=name == "yolo")
    assert engine.manifest.batch == "N"
    generator = np.random.default_rng(0)
    x = generator.random((max(COUNTS), *engine.manifest.input_shape), np.float32)
    states = {
        name: generator.normal(0, 0.3, (len(x), *shape)).astype(np.float32)
        for name, shape in engine.manifest.states.items()
    }
    alone = []
    for place in range(len(x)):
        own = {name: state[place : place + 1] for name, state in states.items()}
        alone.append([*engine.forward(x[place : place + 1], own), *own.values()])
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    expected = dict(run_all(network, x[:1]))
    if not states:
        close(alone[0], [expected[int(name.removeprefix("layer"))] for name in engine.manifest.outputs], BOUND)
    together = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
    for threads in (1, 2, 3):
        other = dnc.load(engine.folder, threads=threads)
        for count in COUNTS:
            own = {name: state[:count] for name, state in states.items()}
            equal([*other.forward(x[:count], own), *own.values()], [part[:count] for part in together])


def test_detections(detector: dnc.Engine) -> None:
    """They are one list of all images, best first, in which each row says of which; images are as they are alone."""
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(5)]
    alone = [detector(image, confidence=0.2) for image in images]
    assert sum(map(len, alone)) > len(images)
    assert detector(images, confidence=0.2) == alone
    assert list(detector.stream(images, batch=3, confidence=0.2)) == alone
    other_size = [*images, generator.integers(0, 256, (50, 30, 3), np.uint8)]
    assert detector(other_size, confidence=0.2)[:5] == alone
    inputs = detector.inputs
    (rows,) = detector.session.run(inputs.batch([inputs.prepare(image) for image in images], confidence=0.2))
    assert np.all(np.diff(rows[:, 2]) <= 0)
    for place, image in enumerate(images):
        (own,) = detector.session.run(inputs.batch([inputs.prepare(image)], confidence=0.2))
        assert np.all(own[:, 0] == 0)
        mine = rows[rows[:, 0] == place]
        equal([mine[:, 1:]], [own[:, 1:]])
    (none,) = detector.session.run(inputs.batch([inputs.prepare(image) for image in images], confidence=1e6))
    assert none.shape == (0, 7)


def test_wrong_numbers_of_images(detector: dnc.Engine) -> None:
    feeds = dict(Subject("e", detector.folder, 2, 3).feeds)
    with pytest.raises(TargetError, match=r"different numbers of them: input \(3, .* window \(2, 4\)"):
        detector.session.run({**feeds, "window": feeds["window"][:2]})
    with pytest.raises(TargetError, match=r"the inputs are no images"):
        detector.session.run({**feeds, "window": feeds["window"][:0], "input": feeds["input"][:0]})


def test_failure_in_one_image(detector: dnc.Engine) -> None:
    """The next run has other workers, and is right."""
    session = TvmSession(detector.folder, 2)
    feeds = dict(Subject("e", detector.folder, 2, 5).feeds)
    wanted = session.run(feeds)
    with pytest.raises(TargetError, match="TVM failed"):
        session.run({**feeds, "iou": np.zeros((1, 1), np.float32)})
    equal(session.run(feeds), wanted)


def test_bench(detector: dnc.Engine) -> None:
    """Work and times of layers are those of all images."""
    subjects = [Subject("e", detector.folder, 2, count) for count in (1, 4)]
    works = [read_work(detector.folder, detector.manifest, subject.batch) for subject in subjects]
    for one, four in zip(*works, strict=True):
        assert (four.operations, four.bytes) == (4 * one.operations, 4 * one.bytes)
    for subject in subjects:
        names = [name for name, _ in subject.session().profile(subject.feeds, 2)]
        assert names == [name for _, name in json.loads((detector.folder / MODEL_JSON).read_text())["kernels"]]


@pytest.mark.parametrize("name", ["attention", pytest.param("yolo1", marks=pytest.mark.slow)])
def test_fixed(name: str, write: Write, tmp_path: Path) -> None:
    """A batch of a size that was asked for has code of its own, and is the only one."""
    cfg = write(name)
    engine = compiled(cfg, tmp_path / "e", batch=3)
    assert engine.manifest.batch == 3
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    x = np.random.default_rng(0).random((3, *network.input_shape), np.float32)
    expected = dict(run_all(network, x))
    close(engine.forward(x), [expected[int(name.removeprefix("layer"))] for name in engine.manifest.outputs], BOUND)
    with pytest.raises(TargetError, match="TVM failed"):
        engine.session.run({"input": x[:2]})


def test_target_cpu_considers_it(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offers(self: Cpu, allowed: Collection[str] = ()) -> Sequence[Target]:
        return [Onnx(self.given), Tvm(self.given)]

    monkeypatch.setattr(Cpu, "candidates", offers)
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="cpu")
    measured: Mapping[str, Any] = engine.manifest.tuning["candidates"]
    assert (sorted(measured["milliseconds"]), measured["refused"]) == (["onnx", "tvm"], {})
    assert engine.manifest.batch == "N"
