"""Frames that are worked on ahead of the result that is waited for, whose results come in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dnc.runtime.timing import processors

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Done", "default_workers", "in_order"]

_END: Any = object()
"""What no frame is."""


class Done(NamedTuple):
    """The results of frames, up to one that has none."""

    results: Sequence[Any]
    error: Exception | None


def default_workers() -> int:
    """Threads that run images: one more than there are processors, for while some compute, others wait for memory or
    for Python's lock (benchmarks/embedding.md); 4 at most, because an engine by itself uses all processors."""
    return min(processors() + 1, 4)


def in_order(
    frames: Iterable[Any],
    work: Callable[[Sequence[Any], int], Done],
    batch: int,
    workers: int,
    with_frames: bool,
) -> Generator[Any, None, None]:
    """The results of frames, in their order; `frames` is read by the caller's thread, up to two parts for each worker
    ahead of the result that it waits for, or not at all while a result is ready.

    Args:
        work: what threads of its own do with a part of the frames, and with its number.
        batch: as many frames are a part.
        workers: as many threads there are, which end with it.
        with_frames: gives (frame, result) for each frame.

    What `frames` raises, and the error of a part, is raised in the place of the result.
    """
    from concurrent.futures import ThreadPoolExecutor

    source = iter(frames)
    waiting: deque[tuple[list[Any], Future[Done]]] = deque()
    failure: Exception | None = None
    more = True
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dnc-stream")
    turns = itertools.count()
    try:
        while more or waiting:
            if waiting and (not more or len(waiting) >= 2 * workers or waiting[0][1].done()):
                part, future = waiting.popleft()
                results, error = future.result()
                yield from zip(part, results, strict=False) if with_frames else results
                if error is not None:
                    raise error
                continue
            part = []
            try:
                while len(part) < batch and (more := (frame := next(source, _END)) is not _END):
                    part.append(frame)
            except Exception as error:
                failure, more = error, False
            if part:
                waiting.append((part, pool.submit(work, part, next(turns))))
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
