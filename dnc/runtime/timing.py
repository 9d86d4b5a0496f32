"""How long alternatives take, compared so that a noisy machine cannot fool it.

The candidates are run in turn, round after round, so that whatever disturbs the machine disturbs all of them. What is
compared is not one median with another, but the ratio within each round; its median over the rounds is the result.

`interleave` times what is open already, in one go: what --autotune and target cpu choose by. The interval of a ratio
comes from resampling the rounds (bootstrap, percentiles), in blocks, because what disturbs one round disturbs the next.
Figures that people quote take more: dnc.bench.timing.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = [
    "Interval",
    "Ratio",
    "Run",
    "Timings",
    "device_name",
    "interleave",
    "processors",
    "turn",
    "typical",
    "warm_up",
]

_RESAMPLES = 2000
_WARM_UP = 3
"""Runs before the first round of `interleave`, at most: the first one allocates, the second one may still grow a pool.
"""
_WINDOW = 0.02
"""Seconds of a window of `warm_up`; one run, where that takes longer."""
_WINDOWS = 20
_STABLE = 0.03
"""By which share the medians of two windows in a row differ at most when it is over."""

Floats = npt.NDArray[np.float64]
Run = Callable[[], object]
"""What is timed. A float that it returns counts as the seconds it took: another process measures itself."""


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name() -> str:
    """The processor's name, as its maker gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Interval:
    """A number that was measured."""

    value: float
    low: float
    high: float
    """The interval that holds the true number with the confidence that was asked for."""


@dataclass(frozen=True)
class Ratio(Interval):
    """How many times as long one candidate takes as another."""

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def rounded(self) -> list[float]:
        """Itself and its ends to four decimals, for JSON."""
        return [round(number, 4) for number in (self.value, self.low, self.high)]


@dataclass(frozen=True)
class Timings:
    """Seconds of each candidate, by round."""

    seconds: Mapping[str, Floats]

    @property
    def rounds(self) -> int:
        """How often each was run."""
        return len(next(iter(self.seconds.values())))

    def median(self, name: str) -> float:
        """Seconds of one run."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, base: str, confidence: float = 0.95) -> Ratio:
        """The time of `name` as a multiple of that of `base`, compared round by round."""
        return Ratio(*np.exp(self._interval(name, base, confidence)).tolist())

    def _interval(self, name: str, base: str | None, confidence: float) -> Floats:
        values = self._logarithms(name, base)
        low, high = np.quantile(_block_medians(values), [(1 - confidence) / 2, (1 + confidence) / 2])
        return np.array([np.median(values), low, high])

    def _logarithms(self, name: str, base: str | None) -> Floats:
        """Those of the seconds by round, or of their ratios to those of `base`."""
        return np.log(self.seconds[name] if base is None else self.seconds[name] / self.seconds[base])

    def fastest(self) -> str:
        """The candidate with the lowest median; of equal ones the first."""
        return min(self.seconds, key=self.median)


def _block_medians(values: Floats) -> Floats:
    """Medians of resampled rounds. Blocks that go round the end have n ** (1/3) rounds, as for a median they should."""
    count = len(values)
    length = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(0).integers(0, count, (_RESAMPLES, -(-count // length)))
    places = (starts[:, :, None] + np.arange(length)) % count
    return np.asarray(np.median(values[places.reshape(_RESAMPLES, -1)[:, :count]], axis=1))


def typical(table: Floats) -> Floats:
    """The parts (K,) of a typical run, of the parts of many runs (N, K): the mean of the half of the runs whose sums
    lie in the middle. Their sum is that of a typical run, which a sum of medians is not."""
    order = np.argsort(table.sum(axis=1))
    quarter = len(order) // 4
    return np.asarray(np.mean(table[order[quarter : len(order) - quarter]], axis=0))


def interleave(
    candidates: Mapping[str, Run],
    *,
    seconds: float = 1.0,
    rounds: tuple[int, int] = (5, 1000),
    settle: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times the candidates in turn.

    Args:
        candidates: functions without arguments, by name; one call is one measurement.
        seconds: about how long the measuring may take, all together.
        rounds: at least and at most so many rounds, whatever the time.
        settle: for so many seconds each candidate runs untimed before it is timed, unless it takes ten times as long.
            Different engines need it: ONNX Runtime's threads spin for milliseconds after a run, in another's way.

    Each round runs them in another order: one that evicts the others' data from the cache is not always before the
    same one.
    """
    names = list(candidates)
    taken: dict[str, list[float]] = {name: [] for name in names}
    start = clock()
    for _ in range(_WARM_UP):
        for name in names:
            candidates[name]()
        if clock() - start > seconds / 4:
            break
    generator = np.random.default_rng(0)
    least, most = rounds
    start = clock()
    for number in range(most):
        if number >= least and clock() - start > seconds:
            break
        for place in generator.permutation(len(names)):
            name = names[place]
            fast = min(taken[name], default=0.0) < 10 * settle
            taken[name] += turn(candidates[name], settle if fast else 0.0, 0.0, clock)
    return Timings({name: np.array(values) for name, values in taken.items()})


def turn(run: Run, settle: float, least: float, clock: Callable[[], float]) -> list[float]:
    """Seconds of runs one after the other, that take `least` seconds together; at least of one."""
    start = before = clock()
    while before - start < settle:
        run()
        before = clock()
    taken: list[float] = []
    # What a run says that it took may be the mean of many.
    start = before
    while not taken or before - start < least:
        own = run()
        after = clock()
        taken.append(own if isinstance(own, float) else after - before)
        before = after
    return taken


def warm_up(run: Run, clock: Callable[[], float] = time.perf_counter) -> None:
    """Runs until the medians of two windows in a row agree, or for 20 windows."""
    last = 0.0
    for _ in range(_WINDOWS):
        median = float(np.median(turn(run, 0.0, _WINDOW, clock)))
        if abs(median - last) <= _STABLE * median:
            return
        last = median
