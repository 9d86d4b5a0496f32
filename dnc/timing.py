"""How long alternatives take, compared so that a noisy machine cannot fool it.

The candidates are run in turn, round after round, so that whatever disturbs the machine disturbs all of them. What is
compared is not one median with another, but the ratio within each round: its median over the rounds, with an interval
from resampling the rounds (bootstrap, percentiles).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Ratio", "Timings", "interleave", "processors"]

_RESAMPLES = 2000
_WARM_UP = 3
"""Runs before the first round, at most: the first one allocates, the second one may still grow a pool."""


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Ratio:
    """How many times as long one candidate takes as another."""

    value: float
    low: float
    high: float
    """The interval that holds the true ratio with the confidence that was asked for."""

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Timings:
    """Seconds of each candidate, by round."""

    seconds: Mapping[str, npt.NDArray[np.float64]]

    @property
    def rounds(self) -> int:
        """How often each was run."""
        return len(next(iter(self.seconds.values())))

    def median(self, name: str) -> float:
        """Seconds of one run."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, base: str, confidence: float = 0.95) -> Ratio:
        """The time of `name` as a multiple of that of `base`, compared round by round."""
        ratios = self.seconds[name] / self.seconds[base]
        generator = np.random.default_rng(0)
        samples = np.median(ratios[generator.integers(0, len(ratios), (_RESAMPLES, len(ratios)))], axis=1)
        low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Ratio(float(np.median(ratios)), float(low), float(high))

    def fastest(self) -> str:
        """The candidate with the lowest median; of equal ones the first."""
        return min(self.seconds, key=self.median)


def interleave(
    candidates: Mapping[str, Callable[[], object]],
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
        clock: for tests.

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
            start_of_turn = before = clock()
            while before - start_of_turn < settle and min(taken[name], default=0.0) < 10 * settle:
                candidates[name]()
                before = clock()
            candidates[name]()
            taken[name].append(clock() - before)
    return Timings({name: np.array(values) for name, values in taken.items()})
