"""How long engines take, for figures that people quote.

Two sessions of one engine may differ by a percent or two for as long as they are open, by where their memory lies; so
`compete` opens all anew several times, in another order. Rounds of one opening say nothing about the next one: each
opening counts as one number. The result is their mean, of logarithms, without the tenth at either end, in which
something else happened; its interval is Tukey and McLaughlin's (Sankhya A 25, 1963), as wide as Student's t says for so
few. Resampling them would not do: the ends of a few numbers are no 99.9 % interval.

Rounds in which another process took a processor away are left out where enough are left without: that happens to all
candidates alike, and what is left says more.

`CONFIDENCE` is such that ten comparisons of equal engines in a row find none slower in 99 of 100 cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnc.runtime.timing import Interval, Run, Timings, turn, warm_up
from dnc.typing import Progress, silent

__all__ = ["CONFIDENCE", "Opener", "Openings", "compete", "mean_interval", "student", "trimmed_mean", "waited"]

CONFIDENCE = 0.999

_LEAST, _ENOUGH, _PLANNED = 6, 8, 20
"""Openings: as many whatever the time; as many before a narrow interval ends it; as many in the time given."""
_ROUNDS = 3
"""Rounds of an opening, at least."""
_WAITED = 0.05
"""Seconds of waiting for a processor, for each second: as much is found where nothing else runs."""

Floats = npt.NDArray[np.float64]
Opener = Callable[[], AbstractContextManager[Run]]


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
class Openings(Timings):
    """Seconds of candidates that were opened several times, by round."""

    opening: npt.NDArray[np.intp]
    """Which opening each round belongs to."""
    runs: Mapping[str, Floats] = field(default_factory=dict)
    """Seconds of every single run: a round has several."""
    waited: Floats | None = None
    """By round, seconds that threads waited for a processor for each second of the round."""

    @property
    def openings(self) -> int:
        """How often each was opened."""
        return len(np.unique(self.opening))

    def quiet(self) -> Openings:
        """The rounds that waited for no processor, as far as is known; all of them where too few openings have any."""
        if self.waited is None:
            return self
        chosen = self.waited <= _WAITED
        if len(np.unique(self.opening[chosen])) < _LEAST:
            return self
        seconds = {name: values[chosen] for name, values in self.seconds.items()}
        return Openings(seconds, self.opening[chosen], self.runs, self.waited[chosen])

    @property
    def disturbed(self) -> float:
        """The share of the rounds that waited for a processor."""
        return 0.0 if self.waited is None else float(np.mean(self.waited > _WAITED))

    def quantiles(self, name: str, shares: tuple[float, ...]) -> list[float]:
        """Seconds that these shares of all runs took at most."""
        return [float(value) for value in np.quantile(self.runs.get(name, self.seconds[name]), shares)]

    def by_opening(self, name: str, base: str | None = None) -> Floats:
        """Median of the logarithm of the seconds, or of their ratio to those of `base`, for each opening."""
        values = self._logarithms(name, base)
        return np.array([np.median(values[self.opening == number]) for number in np.unique(self.opening)])

    def time(self, name: str, confidence: float = CONFIDENCE) -> Interval:
        """Seconds of one run."""
        return Interval(*np.exp(self._interval(name, None, confidence)).tolist())

    def _interval(self, name: str, base: str | None, confidence: float) -> Floats:
        if self.openings > 1:
            return mean_interval(self.by_opening(name, base), confidence)
        return super()._interval(name, base, confidence)


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
) -> Openings:
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
        timings = Openings(
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
            progress(f"timing {', '.join(names)}, {begin - start:.0f} of {seconds:.0f} s: {_so_far(timings)}")
            rounds = 0
            while rounds < _ROUNDS or clock() - begin < seconds / _PLANNED:
                before, idle = clock(), waiting()
                for place in generator.permutation(len(names)):
                    name = names[place]
                    fast = min(taken[name], default=0.0) < 10 * settle
                    several = turn(opened[name], settle if fast else 0.0, settle, clock)
                    taken[name].append(float(np.median(several)))
                    runs[name] += several
                shares.append(max(0.0, waiting() - idle) / max(clock() - before, 1e-9))
                opening.append(number)
                rounds += 1
        number += 1


def _is_narrow(timings: Openings, aside: Collection[str], narrow: float, confidence: float) -> bool:
    if not timings.rounds:
        return False
    timings = timings.quiet()
    first, *others = (name for name in timings.seconds if name not in aside)
    intervals: list[Interval] = [timings.ratio(name, first, confidence) for name in others]
    intervals = intervals or [timings.time(first, confidence)]
    return all(part.high - part.low <= 2 * narrow * part.value for part in intervals)


def _so_far(timings: Openings) -> str:
    return f"{timings.openings} openings, {timings.rounds} rounds" if timings.rounds else "the first opening"
