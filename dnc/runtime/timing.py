"""How long alternatives take, compared so that a noisy machine cannot fool it.

The candidates are run in turn, round after round, so that whatever disturbs the machine disturbs all of them. What is
compared is not one median with another, but the ratio within each round; its median over the rounds is the result.

`interleave` times what is open already, in one go: what --autotune and target cpu choose by. The interval of a ratio
comes from resampling the rounds (bootstrap, percentiles), in blocks, because what disturbs one round disturbs the next.

`compete` is for figures that people quote. Two sessions of one engine may differ by a percent or two for as long as
they are open, by where their memory lies; so all are opened anew several times, in another order. Rounds of one opening
say nothing about the next one: each opening counts as one number. The result is their mean, of logarithms, without
the tenth at either end, in which something else happened; its interval is Tukey and McLaughlin's (Sankhya A 25, 1963),
as wide as Student's t says for so few. Resampling them would not do: the ends of a few numbers are no 99.9 % interval.

Rounds in which another process took a processor away are left out where enough are left without: that happens to all
candidates alike, and what is left says more.

`CONFIDENCE` is such that ten comparisons of equal engines in a row find none slower in 99 of 100 cases.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnc.typing import Progress, silent

__all__ = [
    "CONFIDENCE",
    "Interval",
    "Opener",
    "Ratio",
    "Run",
    "Timings",
    "compete",
    "device_name",
    "interleave",
    "mean_interval",
    "processors",
    "student",
    "trimmed_mean",
    "typical",
    "waited",
    "warm_up",
]

CONFIDENCE = 0.999

_RESAMPLES = 2000
_WARM_UP = 3
"""Runs before the first round of `interleave`, at most: the first one allocates, the second one may still grow a pool.
"""
_WINDOW = 0.02
"""Seconds of a window of the warm-up of `compete`; one run, where that takes longer."""
_WINDOWS = 20
_STABLE = 0.03
"""By which share the medians of two windows in a row differ at most when it is over."""
_LEAST, _ENOUGH, _PLANNED = 6, 8, 20
"""Openings: as many whatever the time; as many before a narrow interval ends it; as many in the time given."""
_ROUNDS = 3
"""Rounds of an opening, at least."""
_WAITED = 0.05
"""Seconds of waiting for a processor, for each second: as much is found where nothing else runs."""

Floats = npt.NDArray[np.float64]
Run = Callable[[], object]
"""What is timed. A float that it returns counts as the seconds it took: another process measures itself."""
Opener = Callable[[], AbstractContextManager[Run]]


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


def waited() -> float:
    """Seconds that the threads of this process have been ready to run and no processor was free (Linux; else 0)."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_bytes().split()[1])
        except (OSError, IndexError, ValueError):
            # The thread has ended, or the kernel does not count.
            continue
    return total / 1e9


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


@dataclass(frozen=True)
class Timings:
    """Seconds of each candidate, by round."""

    seconds: Mapping[str, Floats]
    opening: npt.NDArray[np.intp] | None = None
    """Which opening each round belongs to; None where there was but one."""
    runs: Mapping[str, Floats] = field(default_factory=dict)
    """Seconds of every single run, where a round has several."""
    waited: Floats | None = None
    """By round, seconds that threads waited for a processor for each second of the round."""

    @property
    def rounds(self) -> int:
        """How often each was run."""
        return len(next(iter(self.seconds.values())))

    @property
    def openings(self) -> int:
        """How often each was opened."""
        return 1 if self.opening is None else len(np.unique(self.opening))

    def quiet(self) -> Timings:
        """The rounds that waited for no processor, as far as is known; all of them where too few openings have any."""
        if self.waited is None or self.opening is None:
            return self
        chosen = self.waited <= _WAITED
        if len(np.unique(self.opening[chosen])) < _LEAST:
            return self
        seconds = {name: values[chosen] for name, values in self.seconds.items()}
        return Timings(seconds, self.opening[chosen], self.runs, self.waited[chosen])

    @property
    def disturbed(self) -> float:
        """The share of the rounds that waited for a processor."""
        return 0.0 if self.waited is None else float(np.mean(self.waited > _WAITED))

    def median(self, name: str) -> float:
        """Seconds of one run."""
        return float(np.median(self.seconds[name]))

    def quantiles(self, name: str, shares: tuple[float, ...]) -> list[float]:
        """Seconds that these shares of all runs took at most."""
        return [float(each) for each in np.quantile(self.runs.get(name, self.seconds[name]), shares)]

    def by_opening(self, name: str, base: str | None = None) -> Floats:
        """Median of the logarithm of the seconds, or of their ratio to those of `base`, for each opening."""
        values = np.log(self.seconds[name] if base is None else self.seconds[name] / self.seconds[base])
        if self.opening is None:
            return np.array([np.median(values)])
        return np.array([np.median(values[self.opening == each]) for each in np.unique(self.opening)])

    def time(self, name: str, confidence: float = CONFIDENCE) -> Interval:
        """Seconds of one run."""
        return Interval(*np.exp(self._interval(name, None, confidence)).tolist())

    def ratio(self, name: str, base: str, confidence: float = 0.95) -> Ratio:
        """The time of `name` as a multiple of that of `base`, compared round by round."""
        return Ratio(*np.exp(self._interval(name, base, confidence)).tolist())

    def _interval(self, name: str, base: str | None, confidence: float) -> Floats:
        if self.openings > 1:
            return mean_interval(self.by_opening(name, base), confidence)
        values = np.log(self.seconds[name] if base is None else self.seconds[name] / self.seconds[base])
        low, high = np.quantile(_block_medians(values), [(1 - confidence) / 2, (1 + confidence) / 2])
        return np.array([np.median(values), low, high])

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


def trimmed_mean(values: Floats) -> tuple[float, float, int]:
    """The mean of at least two independent numbers without the tenth at either end, the square of its standard error,
    and the degrees of freedom that this has."""
    count = len(values)
    cut = count // 10
    order = np.sort(values)
    left = count - 2 * cut
    # What was cut off still counts, as the nearest of what is left.
    spread = float(np.var(np.clip(order, order[cut], order[count - 1 - cut]), ddof=1))
    return float(np.mean(order[cut : count - cut])), spread * (count - 1) / (left * (left - 1)), left - 1


def mean_interval(values: Floats, confidence: float) -> Floats:
    """The trimmed mean of at least two independent numbers, and the ends of its interval."""
    mean, squared, freedom = trimmed_mean(values)
    reach = student((1 + confidence) / 2, freedom) * squared**0.5
    return mean + np.array([0, -reach, reach])


@cache
def student(share: float, freedom: float) -> float:
    """The quantile of Student's t distribution with so many degrees of freedom.

    With t = sqrt(freedom) tan(angle), the density is proportional to cos(angle) ** (freedom - 1).
    """
    angles = np.linspace(-np.pi / 2, np.pi / 2, 100_001)
    density = np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum(density) / density.sum()])
    return float(np.sqrt(freedom) * np.tan(np.interp(share, below, angles)))


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
            fast = min(taken[name], default=0.0) < 10 * settle
            taken[name] += _turn(candidates[name], settle if fast else 0.0, 0.0, clock)
    return Timings({name: np.array(values) for name, values in taken.items()})


def _turn(run: Run, settle: float, least: float, clock: Callable[[], float]) -> list[float]:
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


def compete(
    candidates: Mapping[str, Opener],
    *,
    seconds: float = 20.0,
    settle: float = 0.02,
    aside: Collection[str] = (),
    narrow: float = 0.01,
    confidence: float = CONFIDENCE,
    clock: Callable[[], float] = time.perf_counter,
    waiting: Callable[[], float] = waited,
    progress: Progress = silent,
) -> Timings:
    """Opens the candidates again and again, and times them in turn.

    Each is warmed up until the medians of windows of its runs agree. A turn settles as in `interleave`, then times runs
    for as long as it settled; the turn's median is the round's figure.

    Args:
        candidates: what opens each, by name: contexts that give a function without arguments.
        seconds: after so long it ends, once there are 6 openings.
        settle: see `interleave`.
        aside: candidates whose interval does not matter.
        narrow: it ends earlier once there are 8 openings and all intervals, of the ratios to the first candidate or of
            the seconds if there is one alone, reach no further than this share of their values.
        confidence: of these intervals.
        clock, waiting: for tests; see `waited`.
        progress: is told what happens now.

    Returns:
        The timings, with their openings and every single run.
    """
    names = list(candidates)
    taken: dict[str, list[float]] = {name: [] for name in names}
    runs: dict[str, list[float]] = {name: [] for name in names}
    opening: list[int] = []
    shares: list[float] = []
    generator = np.random.default_rng(0)
    start = clock()
    number = 0
    while True:
        timings = Timings(
            {name: np.array(values) for name, values in taken.items()},
            np.array(opening, np.intp),
            {name: np.array(values) for name, values in runs.items()},
            np.array(shares),
        )
        over = clock() - start > seconds
        if number >= _LEAST and (over or (number >= _ENOUGH and _is_narrow(timings, aside, narrow, confidence))):
            return timings
        begin = clock()
        with ExitStack() as stack:
            opened: dict[str, Run] = {}
            for place in generator.permutation(len(names)):
                name = names[place]
                progress(f"opening {name}, {number + 1}")
                opened[name] = stack.enter_context(candidates[name]())
                warm_up(opened[name], clock)
            progress(f"timing {', '.join(names)}: {_so_far(timings)}")
            rounds = 0
            while rounds < _ROUNDS or clock() - begin < seconds / _PLANNED:
                before, idle = clock(), waiting()
                for place in generator.permutation(len(names)):
                    name = names[place]
                    fast = min(taken[name], default=0.0) < 10 * settle
                    several = _turn(opened[name], settle if fast else 0.0, settle, clock)
                    taken[name].append(float(np.median(several)))
                    runs[name] += several
                shares.append(max(0.0, waiting() - idle) / max(clock() - before, 1e-9))
                opening.append(number)
                rounds += 1
        number += 1


def warm_up(run: Run, clock: Callable[[], float] = time.perf_counter) -> None:
    """Runs until the medians of two windows in a row agree, or for 20 windows."""
    last = 0.0
    for _ in range(_WINDOWS):
        median = float(np.median(_turn(run, 0.0, _WINDOW, clock)))
        if abs(median - last) <= _STABLE * median:
            return
        last = median


def _is_narrow(timings: Timings, aside: Collection[str], narrow: float, confidence: float) -> bool:
    if not timings.rounds:
        return False
    timings = timings.quiet()
    first, *others = (name for name in timings.seconds if name not in aside)
    intervals: list[Interval] = [timings.ratio(name, first, confidence) for name in others]
    intervals = intervals or [timings.time(first, confidence)]
    return all(each.high - each.low <= 2 * narrow * each.value for each in intervals)


def _so_far(timings: Timings) -> str:
    return f"{timings.openings} openings, {timings.rounds} rounds" if timings.rounds else "the first opening"
