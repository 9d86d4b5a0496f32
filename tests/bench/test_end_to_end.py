"""Frames that come, frames that are missed, and where the time of a frame goes; on a clock that stands still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnc.bench.end_to_end import STAGES, Files, run
from dnc.bench.subject import Subject
from dnc.errors import DncError, ImageError
from dnc.runtime.images import Pixels
from dnc.runtime.runners.onnx import OnnxRunner


class World:
    """A clock that moves when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Frames:
    """Frames that take 10 ms to decode."""

    name = "frames"

    def __init__(self, world: World, count: int, rate: float = 0.0) -> None:
        self.pace = rate
        self.read_ones: list[int] = []
        self._world, self._count, self._next = world, count, 0

    def read(self) -> Pixels | None:
        if self._next == self._count:
            return None
        self._world.now += 0.01
        self.read_ones.append(self._next)
        self._next += 1
        return np.zeros((20, 30, 3), np.uint8)

    def skip(self) -> bool:
        self._next = min(self._next + 1, self._count)
        return self._next < self._count


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def subject(engines: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """An engine whose network takes 30 ms."""
    slow = Subject("tiny", engines / "tiny.engine", 1)
    session = slow.session()
    original = session.run
    monkeypatch.setattr(OnnxRunner, "open", lambda *_: session)

    def taking(inputs: object) -> list[object]:
        world.now += 0.03
        return original(inputs)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(session, "run", taking)
    return slow


def test_stages(subject: Subject, world: World) -> None:
    found = run(subject, Frames(world, 5), seconds=100, clock=world, sleep=world.sleep)
    assert (found.frames, found.dropped) == (5, None)
    assert found.seconds == pytest.approx(0.2)
    assert found.rate == pytest.approx(25)
    medians = {name: found.stages[name]["median"] for name in STAGES}
    # Nothing but decoding and the network moves this clock.
    assert medians == pytest.approx({"decode": 0.01, "preprocess": 0, "infer": 0.03, "postprocess": 0})
    assert found.stages["total"]["p99"] == pytest.approx(0.04)
    assert found.to_json()["frames_per_second"] == pytest.approx(25)


def test_time_is_over(subject: Subject, world: World) -> None:
    assert run(subject, Frames(world, 1000), seconds=0.2, clock=world, sleep=world.sleep).frames == 6
    assert run(subject, Frames(world, 1000), seconds=0.0, least=9, clock=world, sleep=world.sleep).frames == 9


def test_a_fast_engine_waits_for_frames(subject: Subject, world: World) -> None:
    found = run(subject, Frames(world, 10), seconds=100, rate=20, clock=world, sleep=world.sleep)
    assert (found.frames, found.dropped) == (10, 0)
    assert found.rate == pytest.approx(20, rel=0.1)


def test_a_slow_engine_misses_frames(subject: Subject, world: World) -> None:
    """40 ms for each, and one comes every 20 ms: every other one is missed."""
    frames = Frames(world, 20)
    found = run(subject, frames, seconds=100, rate=50, clock=world, sleep=world.sleep)
    assert frames.read_ones[:5] == [0, 2, 4, 6, 8]
    assert found.frames == 10
    assert found.dropped == 9


def test_a_camera_does_not_wait(subject: Subject, world: World) -> None:
    """Its frames are gone; nothing is skipped by reading."""
    frames = Frames(world, 10, rate=50)
    found = run(subject, frames, seconds=100, clock=world, sleep=world.sleep)
    assert frames.read_ones == list(range(10))
    assert found.dropped == 9


def test_files_go_round(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, side in zip(paths, (5, 6), strict=True):
        Image.fromarray(np.zeros((side, 4, 3), np.uint8)).save(path)
    files = Files(paths, 3)
    sizes = []
    for _ in range(3):
        frame = files.read()
        assert frame is not None
        sizes.append(len(frame))
    assert sizes == [5, 6, 5]
    assert files.skip()
    paths[0].write_bytes(b"no image")
    with pytest.raises(ImageError):
        files.read()


def test_real_files(engines: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "a.png")
    subject = Subject("tiny", engines / "tiny.engine", 1)
    found = run(subject, Files([tmp_path / "a.png"], 3), seconds=0.0, least=3)
    assert found.frames == 3
    assert all(found.stages[name]["median"] > 0 for name in STAGES)


def test_networks_without_images_and_sources_without_frames(engines: Path, subject: Subject, world: World) -> None:
    with pytest.raises(DncError, match="takes no images"):
        run(Subject("vector", engines / "vector.engine", 1), Frames(world, 3), seconds=1)
    with pytest.raises(DncError, match="no frame"):
        run(subject, Frames(world, 0), seconds=1, clock=world, sleep=world.sleep)
