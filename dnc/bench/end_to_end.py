"""From image files, a video or a camera to boxes, and where the time goes on the way.

    decode         the file's or the stream's next picture becomes pixels; of a camera, the wait for it as well
    preprocess     pixels become the network's input
    infer          the network
    postprocess    its maps become boxes, with the suppression of those that repeat

It is what an application does with `engine(image)`, one frame after the other: the engine tells its observer when each
stage begins, so nothing of the runtime is done in another way for the measurement.

With a frame rate, frames come at their times, as from a camera: who is still busy when the next one comes misses it,
and takes the newest one after that. Files are read as fast as they can be without a rate, and none is missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dnc.bench.subject import Subject
from dnc.errors import DncError
from dnc.runtime.engine import load
from dnc.runtime.images import Pixels, read_image

__all__ = ["STAGES", "EndToEnd", "Files", "Source", "run"]

STAGES = ("decode", "preprocess", "infer", "postprocess")


class Source(Protocol):
    """Frames."""

    name: str

    @property
    def pace(self) -> float:
        """Frames a second that come by themselves, of a camera; 0 if they wait to be read."""
        ...

    def read(self) -> Pixels | None:
        """The next frame, decoded: (H, W, C) in RGB; None after the last one."""
        ...

    def skip(self) -> bool:
        """Passes over the next frame; False after the last one."""
        ...


class Files:
    """Image files, round and round.

    Raises ImageError where one cannot be read.
    """

    pace = 0.0

    def __init__(self, paths: Sequence[Path], channels: int, exif: bool | None = None) -> None:
        self.name = f"{len(paths)} images"
        self._paths, self._channels, self._exif, self._next = paths, channels, exif, 0

    def read(self) -> Pixels | None:
        """The next file."""
        path = self._paths[self._next % len(self._paths)]
        self._next += 1
        return read_image(path, self._channels, exif=self._exif)

    def skip(self) -> bool:
        """There is always another one."""
        self._next += 1
        return True


@dataclass(frozen=True)
class EndToEnd:
    """What a run of frames took."""

    engine: str
    source: str
    frames: int
    dropped: int | None
    """Frames that came while the engine was busy; None where nothing comes by itself."""
    seconds: float
    stages: Mapping[str, Mapping[str, float]]
    """Seconds of a frame by stage, and of all together as `total`: median, p90, p99, mean."""
    results: int
    """Boxes or classes, of all frames together."""

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "frames_per_second": self.rate}


def run(
    subject: Subject,
    source: Source,
    *,
    seconds: float,
    least: int = 1,
    rate: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[str], None] = lambda _: None,
) -> EndToEnd:
    """Runs an engine on frames until they end or the time is over.

    Args:
        subject: the engine, with a batch of 1.
        least: frames at least.
        rate: frames a second that come, whether the engine is ready or not; the source's own, or none, if 0.

    Raises:
        DncError: the engine takes no images, a frame cannot be read, or there is none.
    """
    if subject.manifest.preprocessing is None:
        raise DncError("this network takes no images", subject.folder)
    paced = rate or source.pace
    table: list[list[float]] = []
    results = dropped = 0
    moments: list[float] = []
    with load(subject.folder, threads=subject.threads) as engine:
        engine.observer = lambda _: moments.append(clock())
        _ = engine.session
        start = clock()
        number = 0
        while True:
            missed = 0
            if paced:
                newest = int((clock() - start) * paced)
                # What a camera's driver could not hand over is gone; of a file, the frames that are late are passed by.
                while number < newest and (source.pace or source.skip()):
                    missed += 1
                    number += 1
                sleep(max(0.0, start + number / paced - clock()))
            moments[:] = [clock()]
            if len(table) >= least and moments[0] - start > seconds:
                break
            pixels = source.read()
            if pixels is None:
                break
            results += len(engine(pixels))
            table.append(np.diff(moments).tolist())
            dropped += missed
            number += 1
            if len(table) == 1:
                # The first frame opened libraries and allocated.
                progress(f"running {subject.name} on {source.name}")
        taken = clock() - start
    if not table:
        raise DncError("there is no frame", source.name)
    times = np.array(table)
    columns = {**dict(zip(STAGES, times.T, strict=True)), "total": times.sum(axis=1)}
    stages = {name: _figures(values) for name, values in columns.items()}
    return EndToEnd(subject.name, source.name, len(table), dropped if paced else None, taken, stages, results)


def _figures(values: npt.NDArray[np.float64]) -> dict[str, float]:
    median, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
    return {"median": median, "p90": p90, "p99": p99, "mean": float(np.mean(values))}
