"""Videos, cameras and streams, read by OpenCV: files by their paths, cameras by their numbers, streams by addresses.

Source    what a command's argument names, if it is none of images
Video     one that is open, frame by frame
frames    its frames, read ahead by a thread of their own
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import threading
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dnc.errors import DncError, ImageError, warn
from dnc.evaluation.datasets import is_folder, is_there
from dnc.runtime.images import Pixels

__all__ = ["FORMATS", "VIDEOS", "Frame", "Source", "Video", "frames", "name_for_opencv"]

VIDEOS = frozenset(
    [".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts"]
) | {".webm", ".wmv"}
"""What is a video by its name."""
FORMATS = {".avi": "MJPG", ".m4v": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v", ".webm": "VP80"}
"""What videos can be written: by the suffix, an encoding that OpenCV's packages have."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_AHEAD = 4
"""Frames that are read and wait: one for each thread that runs images."""


@dataclass(frozen=True)
class Source:
    """A video, a stream or a camera that is not open yet. As text, how it is called where it is shown."""

    what: Path | str | int
    """A file, an address, or the number of a camera."""

    @classmethod
    def named(cls, argument: str) -> Source | None:
        """What a word names; None if that is left to images.

        A camera is a number that is no file. A pipe or a device (/dev/video0) is a video, whatever its name.
        """
        path = Path(argument)
        if not is_there(path):
            if argument.isdecimal():
                return cls(int(argument))
            return cls(argument) if _ADDRESS.match(argument) else None
        if is_folder(path):
            return None
        return cls(path) if path.suffix.lower() in VIDEOS or not path.is_file() else None

    def __str__(self) -> str:
        if isinstance(self.what, str):
            # Without the password that it may hold. No address need be a right one.
            return re.sub(r"://[^/?#]*@", "://", self.what, count=1)
        return f"camera {self.what}" if isinstance(self.what, int) else str(self.what)

    @property
    def file_name(self) -> str:
        """What a file that is made of it can be called."""
        if isinstance(self.what, Path):
            return self.what.name
        return re.sub(r"[^A-Za-z0-9.-]+", "-", str(self).rpartition("://")[2]).strip("-.") or "stream"


def name_for_opencv(path: str | PathLike[str]) -> str | bytes:
    """The name of a file as OpenCV takes it: bytes where it is no UTF-8, for OpenCV crashes if that is given as text.
    Older ones (4.5) take text alone."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return os.fspath(path)


class Video:
    """A video file, a stream or a camera.

    Args:
        what: the file; the address, as rtsp://… or http://…; or the camera's number.

    Raises:
        ImageError: OpenCV cannot open it.
        DncError: OpenCV is not installed.
    """

    def __init__(self, what: Path | str | int) -> None:
        self.name = str(Source(what))
        try:
            self._cv2 = importlib.import_module("cv2")
        except ImportError as error:
            hint = 'pip install "darknet-compiler[video]", or pip install opencv-python-headless'
            raise DncError("videos and cameras need OpenCV, which is not installed", self.name, hint) from error
        if isinstance(what, Path) and not is_there(what):
            raise ImageError("there is no such video", what)
        self.stalls = not (isinstance(what, Path) and what.is_file())
        """Whether a frame may be waited for, of a camera, a server or a pipe."""
        self._capture = self._open(what if isinstance(what, int) else name_for_opencv(what))
        if not self._capture.isOpened():
            raise ImageError(*_refusal(what))
        self.rate = self._number(self._cv2.CAP_PROP_FPS)
        """Frames a second, as the file or the camera says; 0 if it does not."""
        self.count = int(self._number(self._cv2.CAP_PROP_FRAME_COUNT))
        """Frames, as the file says, which may guess; 0 if nobody knows."""
        piped = isinstance(what, Path) and what.is_fifo()
        self.live = self.stalls and not self.count and not piped
        """Whether frames come by themselves, and are gone if nobody takes them."""

    @property
    def pace(self) -> float:
        """Frames a second that come by themselves; 0 if they wait to be read."""
        return self.rate if self.live else 0.0

    def read(self) -> Pixels | None:
        """The next frame, (H, W, 3) in RGB or (H, W); None after the last one."""
        good, frame = self._capture.read()
        if not good:
            return None
        pixels: npt.NDArray[np.uint8] = frame[:, :, ::-1] if frame.ndim == 3 else frame
        return pixels

    def skip(self) -> bool:
        """Passes over the next frame, whose pixels are not made; False after the last one."""
        return bool(self._capture.grab())

    def close(self) -> None:
        """Lets go of the file or the camera."""
        self._capture.release()

    def _open(self, what: str | bytes | int) -> Any:
        opened: list[Any] = []

        def open_it() -> None:
            # OpenCV has numbers of 32 bits, and says so by an exception.
            with suppress(self._cv2.error):
                opened.append(self._cv2.VideoCapture(what))

        if self.stalls:
            # OpenCV waits for half a minute, or for ever. This thread can be interrupted meanwhile.
            thread = threading.Thread(target=open_it, daemon=True)
            thread.start()
            thread.join()
        else:
            open_it()
        return opened[0] if opened else self._cv2.VideoCapture()

    def _number(self, key: int) -> float:
        value = float(self._capture.get(key))
        # What is not known is 0, negative or not even a number.
        return value if 0 < value < 1e9 else 0.0


def _refusal(what: Path | str | int) -> tuple[str, str, str]:
    if isinstance(what, int):
        return "the camera cannot be opened", str(Source(what)), "is it plugged in, and may this user read /dev/video*?"
    if isinstance(what, str):
        return "the stream cannot be opened", str(Source(what)), "is the address right, and does somebody answer there?"
    return "the video cannot be read", str(what), "OpenCV knows no such format, or the file is damaged"


class Frame(NamedTuple):
    """A frame of a video."""

    number: int
    """Its place in the video, from 1."""
    pixels: Pixels


def frames(video: Video, every: int = 1) -> Generator[Frame, None, None]:
    """The frames of a video in their order, or the first and every `every`-th one after it, read by a thread of its own
    that is a few ahead. Of what is live, those that nobody is ready for are dropped, the oldest first.

    Closes the video when it ends or is closed. A file that breaks off before the end that it announces is a warning.

    Raises:
        ImageError: there is no frame.
    """
    ahead = _Ahead(video, every)
    last = 0
    try:
        while (frame := ahead.take()) is not None:
            yield frame
            last = frame.number
    finally:
        ahead.close()
    if not last:
        raise ImageError("there is no frame", video.name, "the file is damaged, or the stream ended at once")
    # Some formats have no number of frames, and OpenCV multiplies seconds and rates.
    if not video.live and video.count - ahead.read > max(2, video.count // 50):
        what = f"the video ends after {ahead.read} of {video.count} frames"
        warn(ImageError(what, video.name, "the file is damaged, or says a wrong number"))


class _Ahead:
    """A thread that reads a video."""

    def __init__(self, video: Video, every: int) -> None:
        self.read = 0
        """Frames so far, the ones passed over included."""
        self._video, self._every = video, every
        self._changed = threading.Condition()
        self._waiting: deque[Frame] = deque()
        self._failure: BaseException | None = None
        self._ended = self._closed = False
        self._thread = threading.Thread(target=self._run, name="dnc-video", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """The next frame; None after the last one. Raises what went wrong with reading it."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            self._changed.notify()
            if self._waiting:
                return self._waiting.popleft()
            if self._failure is not None:
                raise self._failure
            return None

    def close(self) -> None:
        """Ends the thread; one that waits for a camera or a server ends when that answers."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if not self._video.stalls:
            self._thread.join()

    def _run(self) -> None:
        try:
            for number in itertools.count(1):
                if (number - 1) % self._every:
                    if not self._video.skip():
                        break
                else:
                    pixels = self._video.read()
                    if pixels is None or not self._put(Frame(number, pixels)):
                        break
                self.read = number
        except BaseException as error:
            self._failure = error
        finally:
            self._video.close()
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _put(self, frame: Frame) -> bool:
        """Leaves a frame for `take`; False if nobody will take it."""
        with self._changed:
            if self._video.live and len(self._waiting) >= _AHEAD:
                self._waiting.popleft()
            self._changed.wait_for(lambda: len(self._waiting) < _AHEAD or self._closed)
            self._waiting.append(frame)
            self._changed.notify()
            return not self._closed
