"""Networks with memory on images: one frame after the other, as the reference interpreter computes them."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import DncError, ImageError
from dnc.targets import targets
from tests.networks import REMEMBERING
from tests.patience import PATIENCE
from tests.remembering import CLOSE, Frames, interpreted, near, noise, numbers

Write = Callable[..., Path]

CONFIDENCE = 0.22


@pytest.fixture
def frames() -> Frames:
    return noise(6)


@pytest.fixture
def engine(write: Write) -> dnc.Engine:
    return compiled(write, "detector")


def compiled(write: Write, name: str, target: str = "onnx", **options: Any) -> dnc.Engine:
    cfg = write(name, REMEMBERING[name], seed=1)
    return dnc.compile(cfg, target=target, out=cfg.with_name("e"), verify=False, **options)


@pytest.mark.parametrize("target", ["onnx", "openvino", pytest.param("tvm", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", REMEMBERING)
def test_frames_are_remembered(name: str, target: str, write: Write, frames: Frames) -> None:
    """Call by call, in a list, in a stream, and anew after a reset: what the interpreter gives; and without memory,
    which would be seen, something else."""
    if targets[target]().missing():
        pytest.skip(f"{target} is not installed")
    engine = compiled(write, name, target)
    options: dict[str, Any] = {"confidence": CONFIDENCE, "top": 6}
    expected = interpreted(engine, frames, **options)
    assert sum(map(len, expected)) > 20
    near([engine(frame, **options) for frame in frames], expected)
    engine.reset()
    near([*engine(frames[:2], **options), *engine(frames[2:], **options)], expected)
    near(list(engine.stream(frames, **options)), expected)
    engine.reset()
    if name == "detector":
        near([engine.detect(frame, confidence=CONFIDENCE) for frame in frames], expected)
    else:
        near([engine.classify(frame, top=6) for frame in frames], expected)
    engine.reset()
    alone = []
    for frame in frames:
        engine.reset()
        alone.append(engine(frame, **options))
    near(alone[:1], expected[:1])
    assert numbers(alone[1:]) != numbers(expected[1:])
    for one, other in zip(numbers(alone[1:]), numbers(expected[1:]), strict=True):
        assert len(one) != len(other) or np.abs(np.subtract(one, other)).max() > 10 * CLOSE


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 1},
        {"batch": 3},
        {"batch": 2, "input": "u8", "decode": "graph+nms"},
        {"input": "u8", "decode": "graph+nms", "preprocess": "letterbox"},
        {"decode": "graph"},
        {"keep_layers": True},
    ],
    ids=str,
)
def test_engines_of_every_form(options: dict[str, Any], write: Write, frames: Frames) -> None:
    """A fixed batch, which one frame fills; pixels and suppression in the graph; more outputs than the heads'."""
    frames = frames[:4]
    mode = {"preprocess": options["preprocess"]} if "preprocess" in options else {}
    expected = interpreted(compiled(write, "detector", **mode), frames, confidence=CONFIDENCE)
    engine = compiled(write, "detector", **options)
    near(engine.detect(frames, confidence=CONFIDENCE), expected)
    near(list(engine.stream(frames, confidence=CONFIDENCE, batch=options.get("batch"))), expected)
    engine.reset()
    near([engine.detect(frame, confidence=CONFIDENCE) for frame in frames], expected)


def test_forward_and_postprocess(engine: dnc.Engine, frames: Frames) -> None:
    """`forward` has the states that it is given, not the engine's memory; results of what it gives, step by step."""
    expected = interpreted(engine, frames, confidence=CONFIDENCE)
    states: dict[str, Any] = {}
    found = []
    for frame in frames:
        image = engine.inputs.prepare(frame)
        outputs = engine.forward(image.array, states)
        found.append(engine.postprocess(outputs, image.size, confidence=CONFIDENCE))
        engine.forward(image.array)
    near(found, interpreted(engine, frames, history=True, confidence=CONFIDENCE))
    near(engine(frames, confidence=CONFIDENCE), expected)
    states = {}
    by_hand = []
    for frame in frames:
        image = engine.inputs.prepare(frame)
        outputs = engine.session.run(engine.inputs.batch([image], states=states))
        states = engine.inputs.following(outputs)
        by_hand.append(engine.postprocess(outputs, image.size, confidence=CONFIDENCE))
    near(by_hand, expected)


def test_streams_have_memories_of_their_own(engine: dnc.Engine, frames: Frames) -> None:
    """Two cameras in turn, beside calls of the engine; and a stream does not begin where another one ended."""
    other = frames[::-1]
    expected = [interpreted(engine, each, confidence=CONFIDENCE) for each in (frames, other)]
    streams = [engine.stream(each, confidence=CONFIDENCE) for each in (frames, other)]
    found: list[list[Any]] = [[], []]
    calls = []
    for frame in frames:
        for one, stream in zip(found, streams, strict=True):
            one.append(next(stream))
        calls.append(engine(frame, confidence=CONFIDENCE))
    near(found[0], expected[0])
    near(found[1], expected[1])
    near(calls, expected[0])
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_stream_is_in_order_whatever_its_threads_do(
    workers: int, engine: dnc.Engine, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later a frame comes, the sooner it is prepared."""
    many = frames * 3
    expected = interpreted(engine, many, confidence=CONFIDENCE)
    prepare = engine.inputs.prepare
    numbers = itertools.count()
    prepared: set[int] = set()
    changed = threading.Condition()

    def late(pixels: Any, out: Any) -> Any:
        number = next(numbers)
        with changed:
            # All that are being prepared at the same time wait for the last of them.
            last = number - number % workers + workers - 1
            if number != last and last < len(many):
                changed.wait_for(lambda: last in prepared, timeout=PATIENCE)
            prepared.add(number)
            changed.notify_all()
        return prepare(pixels, out)

    monkeypatch.setattr(engine.inputs, "prepare", late)
    near(list(engine.stream(many, confidence=CONFIDENCE, workers=workers)), expected)


def test_a_frame_that_fails_ends_its_stream(engine: dnc.Engine, frames: Frames) -> None:
    """And nobody waits for its turn for ever."""
    broken: list[Any] = [*frames[:2], b"no image", *frames]
    found: list[Any] = []
    with pytest.raises(ImageError):
        found.extend(engine.stream(broken, confidence=CONFIDENCE, workers=3))
    near(found, interpreted(engine, frames[:2], confidence=CONFIDENCE))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dnc-stream")]


def test_an_observer_that_fails_ends_its_stream(engine: dnc.Engine, frames: Frames) -> None:
    """The frames after it, which wait for its turn, are let go."""
    stages = itertools.count()

    def fail(_: str) -> None:
        if next(stages) == 3:
            raise ValueError("no more")

    engine.observer = fail
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(ValueError, match="no more"):
            list(engine.stream(frames, workers=3))
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert ended.wait(PATIENCE)


def test_batches_of_a_stream(engine: dnc.Engine, frames: Frames, write: Write) -> None:
    with pytest.raises(DncError, match="batch=2: each frame needs what the network remembers of the one before"):
        engine.stream(frames, batch=2)
    near(list(engine.stream(frames, batch=1)), interpreted(engine, frames))
    fixed = compiled(write, "detector", batch=2)
    with pytest.raises(DncError, match="batch=3: the engine takes 2"):
        fixed.stream(frames, batch=3)
    near(list(fixed.stream(frames, batch=2)), interpreted(fixed, frames))


def test_a_call_that_fails_changes_nothing(engine: dnc.Engine, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = interpreted(engine, frames, confidence=CONFIDENCE)
    near(engine(frames[:2], confidence=CONFIDENCE), expected[:2])
    with pytest.raises(ImageError):
        engine([frames[2], b"no image"])
    runs = itertools.count()
    session_run = engine.session.run

    def fail(feeds: Any) -> Any:
        if next(runs) == 1:
            raise DncError("the cable is out")
        return session_run(feeds)

    with monkeypatch.context() as patched:
        patched.setattr(engine.session, "run", fail)
        with pytest.raises(DncError, match="cable"):
            engine(frames[2:])
    near(engine(frames[2:], confidence=CONFIDENCE), expected[2:])


def test_lists_from_several_threads(engine: dnc.Engine, frames: Frames) -> None:
    """Each has the memory as a whole: the same list again and again gives what it gives in one thread."""
    lists = 8
    expected = [engine(frames, confidence=CONFIDENCE) for _ in range(lists)]
    engine.reset()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: engine(frames, confidence=CONFIDENCE), range(lists)))
    for one in found:
        assert one in expected
    assert sorted(map(expected.index, found)) == sorted(map(expected.index, expected))


def test_async_runs_in_the_order_of_the_calls(engine: dnc.Engine, frames: Frames) -> None:
    many = frames * 4

    async def main() -> list[Any]:
        return await asyncio.gather(*(engine.detect_async(frame, confidence=CONFIDENCE) for frame in many))

    near(asyncio.run(main()), interpreted(engine, many, confidence=CONFIDENCE))
    engine.close()


def test_pickles_and_forks_begin_anew(engine: dnc.Engine, frames: Frames) -> None:
    first = engine(frames[0], confidence=CONFIDENCE)
    engine(frames[1])
    assert pickle.loads(pickle.dumps(engine))(frames[0], confidence=CONFIDENCE) == first
    # Whoever has the memory when a child is forked keeps it.
    with engine._memory.turn():
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            right = False
            try:
                right = engine(frames[0], confidence=CONFIDENCE) == first
            finally:
                os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
