"""What has frames to look at: a node of ROS 2, with stand-ins for its modules, and a pipeline of GStreamer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import dnc
from tests.examples.conftest import EXAMPLES, load
from tests.patience import PATIENCE, until


class Stand:
    """A message: what it is given and asked for is there."""

    def __init__(self, **fields: Any) -> None:
        self.results: list[Any] = []
        self.detections: list[Any] = []
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__[name] = Stand()
        return self.__dict__[name]


class Node:
    """Keeps what is published, and who subscribed."""

    def __init__(self, name: str) -> None:
        self.published: list[Any] = []
        self.subscribed: dict[str, Any] = {}

    def create_publisher(self, kind: type, topic: str, depth: int) -> Any:
        return SimpleNamespace(publish=self.published.append)

    def create_subscription(self, kind: type, topic: str, callback: Any, depth: int) -> None:
        self.subscribed[topic] = callback


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, where ROS 2 is what stands above."""
    names = ("rclpy", "rclpy.node", "sensor_msgs", "sensor_msgs.msg", "vision_msgs", "vision_msgs.msg")
    modules = {name: ModuleType(name) for name in names}
    modules["rclpy.node"].Node = Node  # type: ignore[attr-defined]
    for name in ("Image", "Detection2D", "Detection2DArray", "ObjectHypothesisWithPose"):
        setattr(modules["sensor_msgs.msg" if name == "Image" else "vision_msgs.msg"], name, Stand)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return load("ros2_node")


def test_ros2_publishes_boxes(ros: ModuleType, engine: dnc.Engine, image: npt.NDArray[np.uint8]) -> None:
    """Of BGR rows that are padded, with the header of their image."""
    node = ros.Detector(engine)
    rows = np.zeros((40, 160), np.uint8)
    rows[:, :150] = image[:, :, ::-1].reshape(40, 150)
    message = Stand(header="when", encoding="bgr8", data=rows.tobytes(), width=50, height=40, step=160)
    try:
        node.subscribed["image"](message)
        until(lambda: len(node.published) == 1)
        with pytest.raises(KeyError, match="yuv422_yuy2"):
            node.subscribed["image"](Stand(encoding="yuv422_yuy2"))
    finally:
        node.newest.put(None)
    (found,) = node.published
    assert found.header == "when"
    expected = engine.detect(image)
    assert len(expected) > 5
    assert [one.results[0].hypothesis.class_id for one in found.detections] == [box.label for box in expected]
    assert [one.results[0].hypothesis.score for one in found.detections] == [box.confidence for box in expected]
    first, box = found.detections[0].bbox, expected[0]
    assert (first.center.position.x, first.size_y) == (box.center_x * 50, box.height * 40)


def test_ros2_takes_the_newest(ros: ModuleType) -> None:
    """While the first is at work, four come: the last of them is next, and nothing is left."""
    begun, go_on = threading.Semaphore(0), threading.Event()
    worked: list[int] = []

    def work(number: int) -> None:
        worked.append(number)
        begun.release()
        go_on.wait(PATIENCE)

    newest = ros.Newest(work)
    newest.put(1)
    assert begun.acquire(timeout=PATIENCE)
    for number in (2, 3, 4, 5):
        newest.put(number)
    go_on.set()
    assert begun.acquire(timeout=PATIENCE)
    newest.put(None)
    newest.join(PATIENCE)
    assert worked == [1, 5]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "gstreamer.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_gstreamer(engine: dnc.Engine) -> None:
    """Three frames of a test picture, all alike; a pipeline that fails is told."""
    if shutil.which("gst-launch-1.0") is None:
        pytest.skip("there is no gst-launch-1.0")
    picture = "videotestsrc pattern=smpte75 num-buffers=3"
    result = run(engine.folder, picture, "--size", "64x48", "-c", "0.1")
    assert result.returncode == 0, result.stderr
    *lines, last = result.stdout.splitlines()
    assert last == "3 frames"
    frames: dict[str, list[str]] = {}
    for line in lines:
        number, box = line.split(" ", 1)
        frames.setdefault(number, []).append(box)
    assert list(frames) == ["1", "2", "3"]
    assert frames["1"] == frames["2"]
    assert {box.split()[0] for box in frames["1"]} <= {"cat", "dog"}
    result = run(engine.folder, f"filesrc location={engine.folder}/absent ! decodebin")
    assert result.returncode == 1
    assert "absent" in result.stderr
