"""Candidates are timed in turn, on a clock that the tests hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dnc.runtime.timing import Timings, interleave, typical


class Clock:
    """Stands still but for what candidates take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, duration: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += duration()

        return run


def noisy(seed: int, factor: float = 1.0, drift: float = 0.0) -> Timings:
    """Two candidates on a machine with outliers and slow phases; the second takes `factor` times as long."""
    clock, generator = Clock(), np.random.default_rng(seed)

    def duration(scale: float) -> Callable[[], float]:
        def draw() -> float:
            load = 1 + drift * (int(clock.now) % 2)
            return scale * load * float(generator.lognormal(0, 0.02)) * (3 if generator.random() < 0.05 else 1) / 100

        return draw

    return interleave(
        {"a": clock.candidate("a", duration(1.0)), "b": clock.candidate("b", duration(factor))}, seconds=6, clock=clock
    )


def test_rounds_and_order() -> None:
    clock = Clock()
    names = ("a", "b", "c")
    timings = interleave({name: clock.candidate(name, lambda: 0.01) for name in names}, seconds=0.6, clock=clock)
    assert timings.rounds == pytest.approx(20, abs=1)
    measured = clock.calls[-3 * timings.rounds :]
    rounds = [measured[start : start + 3] for start in range(0, len(measured), 3)]
    assert all(sorted(each) == list(names) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 2
    assert timings.seconds["a"] == pytest.approx(np.full(timings.rounds, 0.01))


def test_at_least_and_at_most() -> None:
    clock = Clock()
    slow = {"a": clock.candidate("a", lambda: 10.0)}
    assert interleave(slow, seconds=0.1, clock=clock).rounds == 5
    assert interleave(slow, seconds=1e9, rounds=(1, 7), clock=clock).rounds == 7


def test_slow_candidates_are_warmed_up_once() -> None:
    clock = Clock()
    interleave({"a": clock.candidate("a", lambda: 10.0)}, seconds=0.1, rounds=(5, 5), clock=clock)
    assert len(clock.calls) == 6


def test_settling() -> None:
    """Three runs of a fast one before each measurement, none of one that takes as long as ten settlings."""
    clock = Clock()
    candidates = {"fast": clock.candidate("fast", lambda: 1.0), "slow": clock.candidate("slow", lambda: 25.0)}
    timings = interleave(candidates, seconds=1e9, rounds=(4, 4), settle=2.5, clock=clock)
    assert (timings.median("fast"), timings.median("slow")) == (1.0, 25.0)
    warm_up = 3
    assert clock.calls.count("fast") == warm_up + 4 * (3 + 1)
    # The first time nobody knows yet how long it takes.
    assert clock.calls.count("slow") == warm_up + 1 + 4


@pytest.mark.parametrize("seed", range(10))
def test_equal_ones_are_equal(seed: int) -> None:
    """At 99 %, ten times of ten, with slow phases of the machine that take half as long again."""
    ratio = noisy(seed, drift=0.5).ratio("b", "a", confidence=0.99)
    assert ratio.low <= 1 <= ratio.high
    assert ratio.high - ratio.low < 0.03


@pytest.mark.parametrize("seed", range(10))
def test_five_percent_is_seen(seed: int) -> None:
    timings = noisy(seed, factor=1.05, drift=0.5)
    ratio = timings.ratio("b", "a", confidence=0.99)
    assert 1 < ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(1.05, abs=0.01)
    assert timings.fastest() == "a"


def test_figures() -> None:
    timings = Timings({"a": np.array([1.0, 2.0, 4.0]), "b": np.array([2.0, 4.0, 8.0])})
    assert timings.median("b") == 4
    ratio = timings.ratio("b", "a")
    assert (ratio.value, ratio.low, ratio.high) == (2, 2, 2)
    assert str(ratio) == "2.000 (2.000 to 2.000)"


def test_the_parts_of_a_typical_run_add_up() -> None:
    """A run that was disturbed in one part, and one in another: medians of the parts would say 1 and 1."""
    table = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [50.0, 1.0], [0.1, 0.1], [2.0, 1.0], [1.0, 2.0]])
    assert typical(table).sum() == pytest.approx(3.0)
    assert typical(np.array([[4.0, 5.0]])).tolist() == [4.0, 5.0]


def test_rounds_in_a_row_are_resampled_together() -> None:
    """Slow phases of ten rounds make an interval wider than as many single rounds would."""
    phases = np.repeat(np.random.default_rng(0).normal(0, 0.1, 30), 10)
    mixed = np.random.default_rng(1).permutation(phases)
    wide, narrow = (Timings({"a": np.ones(300), "b": np.exp(values)}).ratio("b", "a") for values in (phases, mixed))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
