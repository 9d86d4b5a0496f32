"""Small videos for tests, written by OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc.evaluation.videos import name_for_opencv
from dnc.runtime.images import Pixels

RATE = 12.5


def write_video(path: Path, count: int = 12, size: tuple[int, int] = (64, 48)) -> Path:
    """A video whose frames are gray noise in big squares, of a red that grows with their number: see `red`."""
    cv2 = pytest.importorskip("cv2")
    code = {".avi": "MJPG", ".webm": "VP80"}.get(path.suffix, "mp4v")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), RATE, size)
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {path.suffix}")
    generator = np.random.default_rng(0)
    for number in range(count):
        shade = generator.integers(0, 100, (size[1] // 8, size[0] // 8, 1), np.uint8)
        frame = np.kron(shade, np.ones((8, 8, 3), np.uint8))
        frame[:, :, 2] = 100 + 10 * (number % 15)
        writer.write(frame)
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[Pixels], float]:
    """All frames, in RGB, and how many there are a second."""
    cv2: Any = pytest.importorskip("cv2")
    capture = cv2.VideoCapture(name_for_opencv(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    frames = []
    while (read := capture.read())[0]:
        frames.append(np.ascontiguousarray(read[1][:, :, ::-1]))
    capture.release()
    return frames, rate


def red(frame: Pixels) -> int:
    """Which frame of `write_video` this is, from 0."""
    return round((float(np.median(frame[:, :, 0])) - 100) / 10)
