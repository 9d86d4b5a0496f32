"""libdnc_runtime on engines of target tvm: what Python computes, and what it refuses."""

from __future__ import annotations

import ctypes as c
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import dnc
import dnc.targets
from tests.embed import native
from tests.embed.native import NativeError
from tests.embed.test_bundle import sign
from tests.embed.test_engine import IMAGES, hold, noise, same

pytestmark = pytest.mark.slow
"""They compile C++."""

pytest.importorskip("tvm_ffi")
if dnc.targets.targets["tvm"]().missing():
    pytest.skip("tvm is not installed", allow_module_level=True)

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def lib(compiler: None) -> c.CDLL:
    return native.library(native.build_library())


def compiled(write: Write, name: str, **options: object) -> dnc.Engine:
    cfg = write(name)
    return dnc.compile(cfg, target="tvm", out=cfg.with_name("e"), verify=False, **options)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:confidence=1e")
@pytest.mark.parametrize("options", [{}, {"input": "u8"}, {"decode": "graph"}, {"decode": "graph+nms"}], ids=str)
def test_boxes(lib: c.CDLL, write: Write, options: dict[str, object]) -> None:
    engine = compiled(write, "yolo", **options)
    assert hold(lib, engine, IMAGES, confidence=0.2) > 0
    assert hold(lib, engine, IMAGES, confidence=1e6) == 0


def test_arrays_and_threads(lib: c.CDLL, write: Write) -> None:
    """Arrays on any border, from several threads at once, each with its own numbers."""
    engine = compiled(write, "yolo")
    own = native.Engine(lib, engine.folder)
    generator = np.random.default_rng(0)
    room = generator.random((8, 3 * 32 * 32 + 1), np.float32)
    inputs = [row[place % 2 :][: 3 * 32 * 32].reshape(1, 3, 32, 32) for place, row in enumerate(room)]
    expected = [engine.forward(x)[0] for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: own.run({"input": x}), inputs * 5))
    for outputs, wanted in zip(found, expected * 5, strict=True):
        np.testing.assert_array_equal(next(iter(outputs.arrays().values())), wanted)
        outputs.close()
    own.close()


def test_states(lib: c.CDLL, write: Write) -> None:
    """States are inputs, their successors outputs."""
    engine = compiled(write, "rnn")
    own = native.Engine(lib, engine.folder)
    x = np.random.default_rng(1).random((1, *engine.manifest.input_shape), np.float32)
    states = {name: np.full((1, *shape), 0.5, np.float32) for name, shape in engine.manifest.states.items()}
    run = own.run({"input": x, **states})
    outputs = run.arrays()
    after = dict(states)
    np.testing.assert_array_equal(outputs[engine.manifest.outputs[0]], engine.forward(x, after)[0])
    for name in states:
        np.testing.assert_array_equal(outputs[name], after[name])
    run.close()
    own.close()


def test_batches(lib: c.CDLL, write: Write) -> None:
    """Of any number of images, on any number of threads: Python's numbers, which are those of single images, from
    several callers at once."""
    engine = compiled(write, "yolo", keep_layers=True)
    # No image of an odd place begins where TVM reads it.
    x = np.random.default_rng(0).random((16 * 3 * 32 * 32 + 1,), np.float32)[1:].reshape(16, 3, 32, 32)
    alone = [engine.forward(image[None]) for image in x]

    def check(own: native.Engine, count: int) -> None:
        run = own.run({"input": x[:count]})
        for found, parts in zip(run.arrays().values(), zip(*alone[:count], strict=True), strict=True):
            np.testing.assert_array_equal(found, np.concatenate(parts))
        run.close()

    for threads in (1, 2, 3):
        own = native.Engine(lib, engine.folder, threads)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(partial(check, own), [1, 2, 3, 5, 16] * 2))
        own.close()


def test_batches_of_states(lib: c.CDLL, write: Write) -> None:
    engine = compiled(write, "crnn")
    own = native.Engine(lib, engine.folder, 2)
    generator = np.random.default_rng(1)
    x = generator.random((5, *engine.manifest.input_shape), np.float32)
    states = {name: generator.random((5, *shape), np.float32) for name, shape in engine.manifest.states.items()}
    run = own.run({"input": x, **states})
    expected = [*engine.forward(x, states), *states.values()]
    for found, other in zip(run.arrays().values(), expected, strict=True):
        np.testing.assert_array_equal(found, other)
    run.close()
    own.close()


def test_batches_of_detections(lib: c.CDLL, write: Write) -> None:
    """One list of all images, which says of each row whose it is, best first."""
    engine = compiled(write, "yolo", input="u8", decode="graph+nms", preprocess="letterbox")
    own = native.Engine(lib, engine.folder, 2)
    x = np.stack([engine.inputs.prepare(image).array for image in [*IMAGES[:1] * 2, noise(7), noise(8), IMAGES[0]]])
    for threshold in (0.2, 1e6):
        feeds = engine.inputs.feeds(x, confidence=threshold)
        run = own.run(feeds)
        (expected,) = engine.session.run(feeds)
        assert (len(expected) > 5) == (threshold < 1)
        np.testing.assert_array_equal(run.arrays()["detections"], expected)
        run.close()
    images = [noise(1), noise(2, 90, 40), noise(3, 90, 40), noise(4, 90, 40), noise(5)]
    alone = [engine(image, confidence=0.2) for image in images]
    for count in (0, 1, 2, 5):
        for found, boxes, image in zip(own.detect(images[:count], 0.2), alone, images, strict=False):
            same(found, boxes, image)
    own.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "riscv64"}, "the engine is for riscv64"),
        ({"cpuinfo": ["no_such_flag"]}, "this processor lacks no_such_flag"),
        ({"mcpu": 3}, "it lacks mcpu"),
        ({"outputs": []}, "the model's outputs are not those in engine.json"),
    ],
    ids=str,
)
def test_what_it_refuses(lib: c.CDLL, write: Write, change: dict[str, object], said: str) -> None:
    """A machine that cannot run the code never gets to it."""
    engine = compiled(write, "tiny")
    about = engine.folder / "model.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **change}))
    manifest = engine.folder / "engine.json"
    fields = json.loads(manifest.read_text())
    fields["files"]["model.json"] = {
        "size": about.stat().st_size,
        "sha256": hashlib.sha256(about.read_bytes()).hexdigest(),
    }
    sign(engine.folder, fields)
    with pytest.raises(NativeError, match=said):
        native.Engine(lib, engine.folder)


def test_another_engine_in_the_same_place(lib: c.CDLL, write: Write, tmp_path: Path) -> None:
    """The system's loader goes by names, and takes a library that it has for the one that replaced it."""
    x = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    opened = []
    for seed in range(3):
        engine = dnc.compile(write("yolo", seed=seed), out=tmp_path / "e", target="tvm", verify=False)
        opened.append(native.Engine(lib, engine.folder))
        outputs = opened[-1].run({"input": x})
        for found, wanted in zip(outputs.arrays().values(), engine.forward(x), strict=True):
            np.testing.assert_array_equal(found, wanted)
        outputs.close()
    for own in opened:
        own.close()
