"""A fixed piece of work that tells how fast the machine is just now, whatever the engines are.

It is timed in turn with an engine, and kept in the recording. When two recordings are compared, what the yardstick took
cancels the machine's own speed: its clock, its neighbours, its other processes. As in a network, all threads compute
(exponentials in the cache), then all copy (more than the cache holds), and wait for each other after each step. Only
numpy is used, whose version is recorded: an engine's library that has become slower must not make the yardstick slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from dnc.runtime.timing import Run

__all__ = ["NAME", "yardstick"]

NAME = "yardstick"
_STEPS = 4
_EXPONENTIALS = 1 << 18
_COPIED = 1 << 20
"""float32 numbers of one thread and step, 1 and 4 MB: a tenth of a millisecond or more."""


@contextmanager
def yardstick(threads: int) -> Iterator[Run]:
    """The work, on so many threads."""
    with ThreadPoolExecutor(max(1, threads - 1)) as pool:
        own = [_Share() for _ in range(threads)]

        def run() -> None:
            for _ in range(_STEPS):
                for step in ("compute", "copy"):
                    others = [pool.submit(getattr(stepper, step)) for stepper in own[1:]]
                    getattr(own[0], step)()
                    for future in others:
                        future.result()

        yield run


class _Share:
    """Arrays that one thread works on."""

    def __init__(self) -> None:
        self._small = np.linspace(-1, 1, _EXPONENTIALS, dtype=np.float32)
        self._result = np.empty_like(self._small)
        self._large = np.ones(_COPIED, np.float32)
        self._copy = np.zeros(_COPIED, np.float32)

    def compute(self) -> None:
        """Computes exponentials; the call leaves Python's lock to the other threads, as that of `copy` does."""
        np.exp(self._small, out=self._result)

    def copy(self) -> None:
        """Copies as much as the feature maps of a network's first layers hold."""
        np.copyto(self._copy, self._large)
