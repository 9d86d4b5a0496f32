"""libdnc_runtime on networks with memory: a handle's frames are one sequence, and postprocessing by itself."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.targets import targets
from tests.embed import native
from tests.embed.native import NativeError
from tests.networks import NETWORKS, REMEMBERING
from tests.remembering import Frames, interpreted, noise

pytestmark = pytest.mark.slow
"""They compile C++."""

Write = Callable[..., Path]

FRAMES = noise(6)
CONFIDENCE = 0.22
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("openvino", {}),
    ("openvino", {"batch": 3}),
    ("openvino", {"input": "u8", "decode": "graph+nms", "preprocess": "letterbox"}),
    ("openvino", {"batch": 2, "input": "u8", "decode": "graph"}),
    ("tvm", {}),
    ("tvm", {"input": "u8", "decode": "graph+nms"}),
]


def compiled(write: Write, name: str, target: str = "openvino", **options: Any) -> dnc.Engine:
    if targets[target]().missing():
        pytest.skip(f"{target} is not installed")
    cfg = write(name, REMEMBERING[name], seed=1)
    return dnc.compile(cfg, target=target, out=cfg.with_name("e"), verify=False, **options)


def near(found: Sequence[Sequence[native.Box]], expected: Sequence[Sequence[Any]]) -> None:
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            sorted((box.class_id, *box.place, box.confidence) for box in one),
            sorted((box.class_id, box.center_x, box.center_y, box.width, box.height, box.confidence) for box in other),
            atol=1e-4,
        )


@pytest.fixture
def plain(write: Write) -> dnc.Engine:
    return compiled(write, "detector")


@pytest.mark.parametrize(("target", "options"), FORMS, ids=str)
def test_frames_are_remembered(target: str, options: dict[str, Any], write: Write, lib: c.CDLL) -> None:
    """Image by image, in one call, after a reset, and in streams beside it."""
    mode = {"preprocess": options["preprocess"]} if "preprocess" in options else {}
    plain = compiled(write, "detector", **mode)
    expected = interpreted(plain, FRAMES, confidence=CONFIDENCE)
    backward = interpreted(plain, FRAMES[::-1], confidence=CONFIDENCE)
    own = native.Engine(lib, compiled(write, "detector", target, **options).folder)
    streams = [own.stream(), own.stream()]
    found = []
    seen: list[list[Any]] = [[], []]
    for frame, other in zip(FRAMES, FRAMES[::-1], strict=True):
        found += own.detect([frame], CONFIDENCE)
        seen[0] += streams[0].detect([frame], CONFIDENCE)
        seen[1] += streams[1].detect([other], CONFIDENCE)
    near(found, expected)
    near(seen[0], expected)
    near(seen[1], backward)
    own.reset()
    near([*own.detect(FRAMES[:2], CONFIDENCE), *own.detect(FRAMES[2:], CONFIDENCE)], expected)
    # The other streams have theirs still, and a stream outlives what it was made of.
    own.close()
    near(
        streams[0].detect(FRAMES[:1], CONFIDENCE), interpreted(plain, [*FRAMES, FRAMES[0]], confidence=CONFIDENCE)[-1:]
    )
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("target", ["openvino", "tvm"])
def test_classes(target: str, write: Write, lib: c.CDLL) -> None:
    engine = compiled(write, "classifier", target)
    own = native.Engine(lib, engine.folder)
    found = [{best[0]: best[2] for best in own.classify([frame], 6)[0]} for frame in FRAMES]
    for one, classes in zip(found, interpreted(engine, FRAMES, top=6), strict=True):
        assert one == pytest.approx({best.class_id: best.confidence for best in classes}, abs=1e-5)
    own.close()


def test_a_call_that_fails_changes_nothing(plain: dnc.Engine, lib: c.CDLL) -> None:
    own = native.Engine(lib, plain.folder)
    expected = interpreted(plain, FRAMES, confidence=CONFIDENCE)
    found = own.detect(FRAMES[:2], CONFIDENCE)
    images = [native._image(frame, "rgb") for frame in FRAMES[2:4]]
    images[1].format = 77
    with (
        pytest.raises(NativeError, match="format 77 of an image is unknown"),
        own._results("dnc_detect", images, 0.2, 0.4),
    ):
        pass
    near([*found, *own.detect(FRAMES[2:], CONFIDENCE)], expected)
    own.close()


def test_threads(plain: dnc.Engine, lib: c.CDLL) -> None:
    """A call of several images has the memory as a whole; streams do not wait for each other."""
    own = native.Engine(lib, plain.folder)
    expected = [own.detect(FRAMES, CONFIDENCE) for _ in range(6)]
    own.reset()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: own.detect(FRAMES, CONFIDENCE), range(6)))
    assert sorted(map(expected.index, found)) == sorted(map(expected.index, expected))
    streams = [own.stream() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for one in pool.map(lambda stream: stream.detect(FRAMES, CONFIDENCE), streams):
            assert one == expected[0]
    for each in (own, *streams):
        each.close()


def sequence(own: native.Engine, engine: dnc.Engine, frames: Frames) -> list[list[Any]]:
    """By hand: dnc_run with the states of the frame before, and dnc_postprocess."""
    states: dict[str, Any] = {}
    found = []
    for frame in frames:
        x = own.preprocess(frame).view(np.float32).reshape(1, *engine.manifest.input_shape)
        run = own.run({"input": x, **states})
        found += own.postprocess(run, [(frame.shape[1], frame.shape[0])], CONFIDENCE, top=6)
        states = {name: array.copy() for name, array in run.arrays().items() if name in engine.manifest.states}
        run.close()
    return found


def test_postprocess(write: Write, plain: dnc.Engine, lib: c.CDLL) -> None:
    """What dnc_run gives, as the engine's own calls make it; whose memory is not among it."""
    own = native.Engine(lib, plain.folder)
    near(sequence(own, plain, FRAMES), interpreted(plain, FRAMES, history=True, confidence=CONFIDENCE))
    near(own.detect(FRAMES[:1], CONFIDENCE), interpreted(plain, FRAMES[:1], confidence=CONFIDENCE))
    own.close()
    engine = compiled(write, "classifier")
    own = native.Engine(lib, engine.folder)
    for one, classes in zip(sequence(own, engine, FRAMES), interpreted(engine, FRAMES, top=6), strict=True):
        assert {best[0]: best[2] for best in one} == pytest.approx(
            {best.class_id: best.confidence for best in classes}, abs=1e-5
        )
    own.close()


@pytest.mark.parametrize("decode", ["host", "graph", "graph+nms"])
def test_postprocess_of_a_batch(decode: str, write: Write, lib: c.CDLL) -> None:
    cfg = write("yolo")
    engine = dnc.compile(
        cfg, target="openvino", out=cfg.with_name("e"), verify=False, decode=decode, preprocess="resize"
    )
    own = native.Engine(lib, engine.folder)
    x = np.stack([own.preprocess(frame).view(np.float32).reshape(engine.manifest.input_shape) for frame in FRAMES[:3]])
    run = own.run({"input": x})
    sizes = [(frame.shape[1], frame.shape[0]) for frame in FRAMES[:3]]
    found = own.postprocess(run, sizes)
    near(found, engine(FRAMES[:3]))
    assert [[box.pixels for box in one] for one in found] == [
        [box.pixels for box in one] for one in own.detect(FRAMES[:3])
    ]
    assert own.postprocess(run, sizes[:1]) == found[:1]
    assert own.postprocess(run, []) == []
    with pytest.raises(NativeError, match="the outputs are of 3 images, not of 4"):
        own.postprocess(run, sizes + sizes[:1])
    with pytest.raises(NativeError, match="an image of 0x5 pixels"):
        own.postprocess(run, [(0, 5)])
    own.close()
    # Outputs outlive their engine.
    assert own.postprocess(run, sizes) == found
    run.close()


def test_postprocess_of_what_takes_no_images(write: Write, lib: c.CDLL) -> None:
    """Classes of a vector; and of a network without a head nothing."""
    cfg = write("rnn")
    engine = dnc.compile(cfg, target="openvino", out=cfg.with_name("e"), verify=False)
    own = native.Engine(lib, engine.folder)
    x = np.random.default_rng(0).random((2, 12), np.float32)
    run = own.run({"input": x})
    for place, one in enumerate(own.postprocess(run, [(1, 1)] * 2, top=3)):
        expected = engine.postprocess(engine.forward(x), top=3, position=place)
        assert [best[0] for best in one] == [best.class_id for best in expected]
    run.close()
    own.close()
    cfg = write("headless", NETWORKS["tiny"].partition("[yolo]")[0])
    own = native.Engine(lib, dnc.compile(cfg, target="openvino", out=cfg.with_name("h"), verify=False).folder)
    run = own.run({"input": np.zeros((1, 3, 16, 16), np.float32)})
    with pytest.raises(NativeError, match="this network has no head that gives boxes or classes"):
        own.postprocess(run, [(1, 1)])
    run.close()
    own.close()
