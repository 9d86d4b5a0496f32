"""Running an engine: arrays, batches, threads, processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc.errors import DncError, TargetError
from tests.networks import NETWORKS, TINY

Write = Callable[..., Path]


@pytest.fixture
def engine(write: Write, tmp_path: Path) -> dnc.Engine:
    return dnc.compile(write("yolo"), out=tmp_path / "e", target="onnx")


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).random((3, 32, 32), np.float32)


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def test_is_opened_on_first_use(engine: dnc.Engine, x: np.ndarray) -> None:
    other = dnc.load(engine.folder)
    assert other._opened is None
    assert str(engine.folder) in repr(other)
    assert other.device == "CPU"
    session = other.session
    other.forward(x)
    assert other.session is session


def test_unbatched(engine: dnc.Engine, x: np.ndarray) -> None:
    """Without the batch axis the results come without it; float64 and lists are taken as float32."""
    single, batch = engine.forward(x), engine.forward(x[None])
    assert [output.shape for output in single] == [(21, 8, 8), (21, 16, 16)]
    assert equal([output[None] for output in single], batch)
    assert equal(engine.forward(x.astype(np.float64)), single)
    assert equal(engine.forward(x.tolist()), single)
    assert equal(engine.forward(np.asfortranarray(x)), single)


def test_batches(engine: dnc.Engine, x: np.ndarray) -> None:
    """Of any size, each image as if alone, up to the order of sums."""
    for count in (1, 2, 7):
        many = engine.forward(np.stack([x * scale for scale in range(1, count + 1)]))
        for number in range(count):
            for output, alone in zip(many, engine.forward(x * (number + 1)), strict=True):
                np.testing.assert_allclose(output[number], alone, rtol=0, atol=1e-5)
    assert [output.shape[0] for output in engine.forward(np.zeros((0, 3, 32, 32)))] == [0, 0]


def test_fixed_batch(write: Write, tmp_path: Path, x: np.ndarray) -> None:
    """Arrays must fit; images are filled up."""
    engine = dnc.compile(write("yolo"), out=tmp_path / "e", target="onnx", batch=2)
    assert engine.forward(np.stack([x, x]))[0].shape[0] == 2
    for shape in ((1, 3, 32, 32), (3, 3, 32, 32), (3, 32, 32)):
        with pytest.raises(DncError, match=r"the engine wants \(2, 3, 32, 32\)"):
            engine.forward(np.zeros(shape))
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    alone = engine(image, confidence=0.2)
    for count in (1, 2, 3, 5):
        assert engine([image] * count, confidence=0.2) == [alone] * count


def test_fixed_batch_of_one(write: Write, tmp_path: Path, x: np.ndarray) -> None:
    engine = dnc.compile(write("yolo"), out=tmp_path / "e", target="onnx", batch=1)
    assert engine.forward(x)[0].shape == (21, 8, 8)
    assert engine.forward(x[None])[0].shape == (1, 21, 8, 8)


def test_images(engine: dnc.Engine, tmp_path: Path) -> None:
    """A path, bytes, an array, a PIL image, a list of them: the same boxes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    expected = engine(pixels, confidence=0.2)
    assert expected
    path = tmp_path / "a.png"
    assert engine(path, confidence=0.2) == expected
    assert engine(str(path), confidence=0.2) == expected
    assert engine(path.read_bytes(), confidence=0.2) == expected
    assert engine(picture, confidence=0.2) == expected  # type: ignore[arg-type]
    small = pixels[:9, :9]
    assert engine([pixels, path, small], confidence=0.2)[:2] == [expected, expected]
    assert engine([]) == []
    assert engine((), confidence=0.2) == []


def test_pixels_of_different_sizes(write: Write, tmp_path: Path) -> None:
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx", input="u8")
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (20 + 3 * n % 6, 30, 3), np.uint8) for n in range(4)]
    assert engine(images, confidence=0.2) == [engine(image, confidence=0.2) for image in images]
    assert engine.forward(images[0])[0].shape == (14, 8, 8)
    with pytest.raises(DncError, match=r"the engine wants \(N, height, width, 3\)"):
        engine.forward(np.zeros((20, 30, 4), np.uint8))


def test_threads(write: Write, tmp_path: Path) -> None:
    """Eight threads that open one engine at once, each on its own inputs."""
    for name in ("yolo", "crnn"):
        engine = dnc.compile(write(name), out=tmp_path / name, target="onnx")
        inputs = np.random.default_rng(0).random((8, *engine.bundle.input_shape), np.float32)
        expected = [engine.forward(each) for each in inputs]
        for threads in (None, 1):
            other = dnc.load(engine.folder, threads=threads)
            with ThreadPoolExecutor(8) as pool:
                for _ in range(3):
                    results = list(pool.map(other.forward, inputs))
                    assert all(map(equal, results, expected))


def test_threads_of_images(engine: dnc.Engine) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (20 + n, 30 + n, 3), np.uint8) for n in range(8)]
    expected = [engine(image, confidence=0.2) for image in images]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda image: engine(image, confidence=0.2), images)) == expected


def test_threads_compile(write: Write, tmp_path: Path) -> None:
    """In a fresh process, where the plug-ins are not found yet."""
    code = """
import sys, dnc
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    engines = list(pool.map(lambda n: dnc.compile(sys.argv[1], out=f"{sys.argv[2]}/{n}", target="onnx"), range(8)))
print(len({engine.bundle.network["digest"] for engine in engines}))
"""
    command = [sys.executable, "-c", code, str(write("yolo")), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.returncode) == ("1\n", 0), result.stderr
    contents = {(tmp_path / str(number) / "engine.json").read_bytes() for number in range(8)}
    assert len(contents) == 1


def test_number_of_threads(engine: dnc.Engine, x: np.ndarray) -> None:
    expected = engine.forward(x)
    for threads in (1, 3):
        for output, right in zip(dnc.load(engine.folder, threads=threads).forward(x), expected, strict=True):
            np.testing.assert_allclose(output, right, rtol=0, atol=1e-6)


def test_pickle(engine: dnc.Engine, x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is its folder, wherever it is unpickled, used before or not."""
    expected = engine.forward(x)
    monkeypatch.chdir(engine.folder.parent)
    relative = dnc.load("e", threads=2)
    data = pickle.dumps(relative)
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert copy._threads == 2
    np.testing.assert_allclose(copy.forward(x)[0], expected[0], rtol=0, atol=1e-6)


def _forward(engine: dnc.Engine, x: np.ndarray) -> list[np.ndarray]:
    return engine.forward(x)


@pytest.mark.parametrize("used", [False, True])
def test_spawn(used: bool, engine: dnc.Engine, x: np.ndarray) -> None:
    expected = engine.forward(x)
    given = engine if used else dnc.load(engine.folder)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert equal(pool.apply_async(_forward, (given, x)).get(60), expected)


@pytest.mark.parametrize("used", [False, True])
def test_fork(used: bool, engine: dnc.Engine, x: np.ndarray) -> None:
    """A child that inherits the engine, opened or not."""
    expected = engine.forward(x)
    given = engine if used else dnc.load(engine.folder)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        right = False
        try:
            right = all(equal(given.forward(x), expected) for _ in range(3))
        finally:
            os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_unknown_target(engine: dnc.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from dnc.targets import targets

    known = dict(targets)
    monkeypatch.setattr("dnc.runtime.targets", {name: known[name] for name in known if name != "onnx"})
    with pytest.raises(TargetError, match="unknown target 'onnx'"):
        dnc.load(engine.folder)


def test_model_that_onnxruntime_refuses(engine: dnc.Engine, monkeypatch: pytest.MonkeyPatch, x: np.ndarray) -> None:
    """Changed after it was checked, before it is opened."""
    other = dnc.load(engine.folder)
    (engine.folder / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(TargetError, match="ONNX Runtime refuses the model"):
        other.forward(x)


def test_runtime_needs_little(write: Write, tmp_path: Path) -> None:
    """An app that embeds an engine loads numpy and onnxruntime: nothing of the compiler, no command line, no Pillow."""
    engine = dnc.compile(write("tiny"), out=tmp_path / "e", target="onnx")
    code = """
import sys, numpy as np, dnc.runtime
loaded = [name for name in ("onnx", "onnx_ir", "PIL", "click", "rich", "sympy", "onnxruntime") if name in sys.modules]
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("onnx", "onnx_ir", "PIL", "click", "rich", "sympy", "onnxscript"):
            raise ImportError(name + " is not there")
sys.meta_path.insert(0, Blocked())
engine = dnc.runtime.load(sys.argv[1])
shape = engine.forward(np.zeros((3, 16, 16)))[0].shape
engine(np.zeros((20, 20, 3), np.uint8))
print(loaded, shape)
try:
    engine(sys.argv[1] + "/engine.json")
except dnc.DncError as error:
    print(error.message)
"""
    result = subprocess.run([sys.executable, "-c", code, str(engine.folder)], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines[0] == "[] (14, 8, 8)", result.stderr
    assert "Pillow" in lines[1]


def test_old_states_are_replaced_not_changed(write: Write, tmp_path: Path) -> None:
    """The arrays of the caller stay as they are."""
    engine = dnc.compile(write("rnn"), out=tmp_path / "e", target="onnx")
    states = {name: np.ones((1, *shape), np.float32) for name, shape in engine.bundle.states.items()}
    given = dict(states)
    engine.forward(np.ones(12), states)
    assert all((array == 1).all() for array in given.values())
    assert all(states[name] is not given[name] for name in states)


def test_seeds() -> None:
    """What the tests above rely on."""
    assert "nms_kind=greedynms" in NETWORKS["yolo"]
    assert NETWORKS["tiny"] == TINY


def test_forward_of_what_has_no_batch_axis_or_takes_pixels(write: Write, tmp_path: Path) -> None:
    cfg = write("tiny")
    decoded = dnc.compile(cfg, target="onnx", out=tmp_path / "nms.engine", decode="graph+nms")
    (rows,) = decoded.forward(np.zeros((3, 16, 16), np.float32))
    assert rows.ndim == 2
    assert rows.shape[1] == 7
    pixels = dnc.compile(cfg, target="onnx", out=tmp_path / "u8.engine", input="u8")
    assert pixels.forward(np.zeros((5, 9, 3), np.uint8))[0].shape == (14, 8, 8)
    with pytest.raises(DncError, match="the engine takes pixels, uint8"):
        pixels.forward(np.zeros((5, 9, 3), np.float32))


def test_a_fixed_batch_that_is_not_full_has_states_of_its_size(write: Write, tmp_path: Path) -> None:
    recurrent = TINY.replace("[yolo]", "[crnn]\noutput=14\nhidden=4\npad=1\n\n[yolo]")
    cfg = write("recurrent", recurrent)
    engine = dnc.compile(cfg, target="onnx", out=tmp_path / "e", batch=2)
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    one, two = engine(image, confidence=0.0), engine([image, image], confidence=0.0)
    assert one == two[0]
    assert one
