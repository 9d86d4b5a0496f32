"""What is timed: an engine folder, with the threads, the batch and the callers that it is to have."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from dnc.errors import DncError
from dnc.graph.verification import photograph
from dnc.runtime.engine import load
from dnc.runtime.inputs import Feeds, Inputs, noise
from dnc.runtime.manifest import Manifest
from dnc.runtime.runners import Session
from dnc.runtime.timing import Run
from dnc.targets import Target, maker_of

__all__ = ["Callers", "Subject", "engine_name", "feeds", "unique"]

_BURST = 0.05
"""Seconds that all callers run before they wait for each other, so that this waiting does not count."""
_WARM_UP = 3
"""Bursts whose latencies are not kept."""


def feeds(manifest: Manifest, batch: int) -> Feeds:
    """Inputs by name: a photograph, so that the suppression of boxes has something to do; else noise; zero states."""
    inputs = Inputs(manifest)
    if manifest.preprocessing is None:
        return inputs.feeds(noise((batch, *manifest.input_shape), np.float32, np.random.default_rng(0)))
    image = photograph(manifest.preprocessing.channels)
    return inputs.feeds(np.stack([inputs.prepare(image).array] * batch))


@dataclass
class Subject:
    """An engine folder to time.

    Raises:
        DncError: the folder is no engine, holds code that nobody trusts, or cannot take batches of this size.
    """

    name: str
    folder: Path
    threads: int
    batch: int = 1
    streams: int = 1
    manifest: Manifest = field(init=False)
    latencies: list[float] = field(init=False, default_factory=list)
    """Seconds of each call, of several callers."""

    def __post_init__(self) -> None:
        self._engine = engine = load(self.folder, threads=self.threads)
        # From here on it is a folder, also for children and for devices, and of folders nobody asks.
        engine.check_trust()
        self.folder, self.manifest = engine.folder, engine.manifest
        fixed = self.manifest.batch
        if isinstance(fixed, int) and fixed != self.batch:
            hint = f"--batch {fixed}, or compile it with --batch {self.batch}"
            raise DncError(f"the engine takes batches of {fixed}, not of {self.batch}", self.folder, hint)
        self.feeds = feeds(self.manifest, self.batch)

    @property
    def target(self) -> Target:
        """What compiled it, with the same options."""
        return maker_of(self.manifest.target, self.manifest.options)

    def session(self) -> Session:
        """A new session that takes turns with others."""
        return self._engine.turn()

    @contextmanager
    def open(self) -> Iterator[Run]:
        """A new session, as a function that runs it once; or for several callers, that gives the seconds between one
        result and the next one, of all callers together."""
        session = self.session()

        def run() -> object:
            return session.run(self.feeds)

        if self.streams == 1:
            yield run
            return
        with Callers(run, self.streams) as callers:
            callers.latencies = self.latencies
            yield callers


class Callers:
    """Several threads that call a function at the same time, again and again.

    Each call of the object is a burst: every thread makes as many calls as fit into some time. The burst begins when
    all are ready, and ends with the last of them.
    """

    def __init__(self, run: Run, count: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.latencies: list[float] = []
        self._run, self._count, self._clock = run, count, clock
        self._calls, self._bursts = 1, 0
        self._failure: BaseException | None = None
        self._over = False
        self._begin, self._end = threading.Barrier(count + 1), threading.Barrier(count + 1)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def __enter__(self) -> Callers:
        start = self._clock()
        self._run()
        self._calls = max(1, round(_BURST / max(self._clock() - start, 1e-6)))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._begin.wait()
        for thread in self._threads:
            thread.join()

    def __call__(self) -> float:
        """A burst; seconds over the number of results."""
        self._bursts += 1
        start = self._clock()
        self._begin.wait()
        self._end.wait()
        seconds = self._clock() - start
        if self._failure is not None:
            raise self._failure
        return seconds / (self._count * self._calls)

    def _work(self) -> None:
        while True:
            self._begin.wait()
            if self._over:
                return
            try:
                for _ in range(self._calls):
                    start = self._clock()
                    self._run()
                    if self._bursts > _WARM_UP:
                        self.latencies.append(self._clock() - start)
            except BaseException as error:
                self._failure = error
            self._end.wait()


def unique(names: Sequence[str]) -> list[str]:
    """The names, of which those that come again are numbered."""
    found: list[str] = []
    for name in names:
        numbered = (name if number == 1 else f"{name} ({number})" for number in itertools.count(1))
        found.append(next(name for name in numbered if name not in found))
    return found


def engine_name(folder: str | PathLike[str]) -> str:
    """How an engine is called in tables."""
    return Path(folder).name.removesuffix(".engine")
