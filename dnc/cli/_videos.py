"""Videos for `detect`: running an engine on frames, following objects through them, and writing what was drawn."""

from __future__ import annotations

import glob
import importlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dnc.cli import progress, remark
from dnc.cli._drawing import draw
from dnc.errors import DncError, printable, warn
from dnc.evaluation.datasets import find_images
from dnc.evaluation.videos import FORMATS, VIDEOS, Frame, Source, Video, frames, name_for_opencv
from dnc.files.writing import scratch_folder
from dnc.runtime.conversions import to_supervision
from dnc.runtime.decoding import Detection
from dnc.runtime.engine import Engine
from dnc.runtime.images import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Looked", "find_sources", "look", "tracking"]

_RATE = 25.0
"""Frames a second of what is written, where nobody says how many there were."""
_ROOM = "is the disk full, or the folder read-only?"
_SURE = 0.25
"""What a detection needs to begin a track. Less sure ones, of a lower --confidence, continue one."""

Tracks = list[int | None]
Follow = Callable[[Sequence[Detection]], Tracks]
"""Gives the detections of the next frame the numbers of their tracks; None to one that is not followed (yet)."""


class Looked(NamedTuple):
    """A frame and what the engine finds in it."""

    number: int
    pixels: Pixels
    boxes: list[Detection]
    tracks: Tracks
    """One for each box; None for all where nobody follows."""

    def to_json(self) -> dict[str, Any]:
        """`frame` and `objects`, in Darknet's form and order, those of tracks with their `track_id`."""
        pairs = sorted(zip(self.boxes, self.tracks, strict=True), key=lambda pair: pair[0].place)
        ids: list[dict[str, Any]] = [{} if track is None else {"track_id": track} for _, track in pairs]
        objects = [{**box.to_json(), **known} for (box, _), known in zip(pairs, ids, strict=True)]
        return {"frame": self.number, "objects": objects}

    def captioned(self) -> list[Detection]:
        """The boxes, with their tracks before their labels."""
        pairs = zip(self.boxes, self.tracks, strict=True)
        return [box if track is None else replace(box, label=f"#{track} {box.label}") for box, track in pairs]

    def __str__(self) -> str:
        pairs = list(zip(self.boxes, self.tracks, strict=True))
        others = Counter(box.label for box, track in pairs if track is None)
        words = [f"{box.label} #{track}" for box, track in pairs if track is not None]
        words += [f"{count} {label}" for label, count in others.items()]
        # A label comes out of the engine, which may come from anywhere.
        return printable(", ".join(words)) or "-"


def find_sources(arguments: Sequence[str], skip_bad: bool) -> list[Path | Source]:
    """What a command's arguments name, in their order: images as paths (see `find_images`), all else as `Source`.

    Raises DncError where there is no such file.
    """
    sources: list[Path | Source] = []
    for argument in arguments:
        source = Source.named(argument)
        if source is not None:
            sources.append(source)
            continue
        if Path(argument).suffix.lower() in VIDEOS and not skip_bad and not glob.has_magic(argument):
            raise DncError("there is no such video", argument)
        found = find_images([argument], skip_bad)
        sources += [Source(path) if path.suffix.lower() in VIDEOS else path for path in found]
    return sources


def tracking(confidence: float) -> Callable[[float], Follow]:
    """What begins to follow objects through a video of so many frames a second: ByteTrack, of the package trackers.

    Raises DncError where that is not installed.
    """
    try:
        trackers = importlib.import_module("trackers")
        kind = trackers.ByteTrackTracker
    except (ImportError, AttributeError) as error:
        hint = "pip install trackers; supervision has no tracker any more"
        raise DncError(f"--track needs the package trackers: {error}", hint=hint) from error
    sure = max(_SURE, confidence)

    def begin(rate: float) -> Follow:
        tracker = kind(frame_rate=rate, track_activation_threshold=sure, high_conf_det_threshold=sure)

        def follow(boxes: Sequence[Detection]) -> Tracks:
            detections = to_supervision(boxes)
            # It gives them back in an order of its own.
            detections.data["place"] = np.arange(len(boxes))
            found = tracker.update(detections)
            tracks: Tracks = [None] * len(boxes)
            for place, track in zip(found.data.get("place", ()), found.tracker_id, strict=True):
                tracks[place] = int(track) if track >= 0 else None
            return tracks

        return follow

    return begin


def look(
    engine: Engine,
    source: Source,
    show: Callable[[Looked], None],
    *,
    every: int = 1,
    begin: Callable[[float], Follow] | None = None,
    out: Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> None:
    """Runs the engine on a video, and says on stderr how fast that was.

    Args:
        show: is given each frame that was looked at, in order.
        every: of so many frames, one is looked at.
        begin: `tracking`, to follow objects.
        out: the file to draw into.
        quiet: nothing is shown frame by frame, so that a terminal shows how far it is.
        options: as for `Engine.stream`.

    Raises:
        ImageError: the video cannot be read.
        DncError: OpenCV is not installed, or `out` cannot be written.
    """
    video = Video(source.what)
    rate = (video.rate or _RATE) / every
    follow = None if begin is None else begin(rate)
    count = found = last = 0
    waiting: deque[Frame] = deque()

    def pixels(ahead: Iterable[Frame]) -> Iterator[Pixels]:
        for frame in ahead:
            waiting.append(frame)
            yield frame.pixels

    def tell() -> None:
        seconds = time.perf_counter() - start
        speed = f"{count} frame{'s' * (count != 1)} in {seconds:.1f} s, {count / seconds:.1f} a second"
        dropped = (last - 1) // every + 1 - count
        speed += f" ({dropped} dropped)" if dropped else ""
        written = f"; drawn into {out}, without sound" if out is not None else ""
        remark(f"{source}: {speed}, {found} box{'es' * (found != 1)}{written}")

    start = time.perf_counter()
    try:
        with progress(quiet or not sys.stdout.isatty()) as report, ExitStack() as stack:
            report("opening the engine")
            _ = engine.session
            start = time.perf_counter()
            write = None if out is None else stack.enter_context(_film(out, rate))
            ahead = stack.enter_context(closing(frames(video, every)))
            for boxes in stack.enter_context(closing(engine.stream(pixels(ahead), **options))):
                frame = waiting.popleft()
                tracks: Tracks = [None] * len(boxes) if follow is None else follow(boxes)
                looked = Looked(*frame, boxes, tracks)
                if write is not None:
                    # What was dropped on the way would make all of it run too fast.
                    times = max(1, (frame.number - last) // every) if video.live else 1
                    write(draw(looked.pixels, looked.captioned()), times)
                count, found, last = count + 1, found + len(boxes), frame.number
                show(looked)
                speed = count / (time.perf_counter() - start)
                report(f"{source}  frame {last}{f' of {video.count}' if video.count else ''}  {speed:.1f} a second")
    except KeyboardInterrupt:
        if count:
            tell()
        raise
    tell()


@contextmanager
def _film(path: Path, rate: float) -> Iterator[Callable[[Image, int], None]]:
    """Writes a video: what the block gives is a function that adds a picture so many times.

    It is at its place when the block ends, whole. Ctrl-C ends it as well: what was written so far is a video, and how
    else would one end a camera. An error leaves nothing.

    Raises DncError where it cannot be written.
    """
    place = Path(os.path.realpath(path))
    with _naming(path):
        place.parent.mkdir(parents=True, exist_ok=True)
    # It can be drawn again.
    with scratch_folder(place.name, place.parent) as folder:
        film = _Film(folder / f"new{place.suffix.lower()}", path, rate)
        ended: KeyboardInterrupt | None = None
        try:
            yield film.write
        except KeyboardInterrupt as interrupt:
            ended = interrupt
        finally:
            film.close()
        if film.count:
            film.check()
            with _naming(path):
                film.new.replace(place)
        if ended is not None:
            raise ended


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What goes wrong with a file is said of the video; the results, which may have no place either, are another's."""
    try:
        yield
    except OSError as error:
        raise DncError(f"cannot write the video: {error.strerror or error}", path, _ROOM) from error


class _Film:
    """A video that OpenCV writes; `place` is what it is to be."""

    def __init__(self, new: Path, place: Path, rate: float) -> None:
        self.new, self.count = new, 0
        self._place, self._rate = place, rate
        self._cv2 = importlib.import_module("cv2")
        self._writer: Any = None
        self._size = (0, 0)
        self._told = False

    def write(self, picture: Image, times: int) -> None:
        """Adds a picture. All have the size of the first one, as a video's must: others are scaled, with a warning."""
        if self._writer is None:
            self._size = picture.size
            code = self._cv2.VideoWriter.fourcc(*FORMATS[self.new.suffix])
            self._writer = self._cv2.VideoWriter(name_for_opencv(self.new), code, self._rate, picture.size)
            if not self._writer.isOpened():
                what = f"this OpenCV writes no {self.new.suffix} of {picture.width} x {picture.height}"
                raise DncError(what, self._place, "try .avi")
        if picture.size != self._size:
            if not self._told:
                now, then = (f"{width} x {height}" for width, height in (picture.size, self._size))
                warn(DncError(f"the frames are {now} from here on: they are scaled to {then}", self._place))
                self._told = True
            picture = picture.resize(self._size)
        pixels = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
        for _ in range(times):
            self._writer.write(pixels)
        self.count += times

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.release()

    def check(self) -> None:
        """Raises DncError if the last picture is not there: OpenCV does not say that a disk is full."""
        written = self._cv2.VideoCapture(name_for_opencv(self.new))
        written.set(self._cv2.CAP_PROP_POS_FRAMES, self.count - 1)
        good = written.grab()
        written.release()
        if not good:
            raise DncError("cannot write the video", self._place, _ROOM)
