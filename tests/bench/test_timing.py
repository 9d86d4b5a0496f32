"""Candidates are opened and timed in turn, on a clock that the tests hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from dnc.bench.timing import CONFIDENCE, Opener, Openings, compete, mean_interval, student, waited
from tests.runtime.test_timing import Clock


@pytest.fixture(autouse=True)
def _quick() -> None:
    """Windows are as long as they are."""


class Bench(Clock):
    """Candidates that are opened; each opening has a speed of its own, as memory lies elsewhere."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = np.random.default_rng(seed)
        self.open: list[str] = []

    def opener(self, name: str, factor: float = 1.0, spread: float = 0.01, load: float = 0.0) -> Opener:
        @contextmanager
        def opened() -> Iterator[Callable[[], None]]:
            speed = 0.01 * factor * float(self.generator.lognormal(0, spread))
            self.open.append(name)

            def duration() -> float:
                slow = 1 + load * (int(self.now / 3) % 2)
                return speed * slow * float(self.generator.lognormal(0, 0.03))

            yield self.candidate(name, duration)
            self.open.remove(name)

        return opened


def ratio_of(seed: int, factor: float, load: float = 0.0) -> tuple[float, float, float]:
    bench = Bench(seed)
    timings = compete(
        {"a": bench.opener("a", load=load), "b": bench.opener("b", factor, load=load)},
        seconds=20,
        clock=bench,
        waiting=lambda: 0.0,
    )
    ratio = timings.ratio("b", "a", CONFIDENCE)
    return ratio.low, ratio.value, ratio.high


def test_equal_engines_whose_openings_differ_are_equal() -> None:
    """Openings that differ by 1 %, on a machine that at times takes half as long again. One interval in a thousand
    misses: two of fifteen would be something else."""
    found = [ratio_of(seed, 1.0, load=0.5) for seed in range(15)]
    assert sum(not low <= 1 <= high for low, _, high in found) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_an_engine_slower_by_five_percent_is_slower(seed: int) -> None:
    low, value, _ = ratio_of(seed, 1.05, load=0.5)
    assert low > 1
    # Two openings of 1 % each, over eight or more of them.
    assert value == pytest.approx(1.05, abs=0.02)


def test_all_are_open_at_once_and_closed_after_it() -> None:
    bench = Bench()
    both: list[int] = []
    original = bench.candidate

    def candidate(name: str, duration: Callable[[], float]) -> Callable[[], None]:
        run = original(name, duration)

        def counted() -> None:
            both.append(len(bench.open))
            run()

        return counted

    bench.candidate = candidate  # type: ignore[method-assign]
    timings = compete({"a": bench.opener("a"), "b": bench.opener("b")}, seconds=0.1, clock=bench, waiting=lambda: 0.0)
    assert bench.open == []
    assert both[-1] == 2
    # The time is long over, but fewer openings make no interval.
    assert timings.openings == 6
    assert timings.rounds == 6 * 3
    # A turn settles for two runs of 10 ms, then times two or three.
    assert 2 * timings.rounds <= len(timings.runs["a"]) <= 3 * timings.rounds


def test_narrow_intervals_end_it() -> None:
    bench = Bench()
    exact = {name: bench.opener(name, spread=0.0) for name in ("a", "b")}
    timings = compete(exact, seconds=10, narrow=0.5, clock=bench, waiting=lambda: 0.0)
    assert timings.openings == 8
    wild = {"a": bench.opener("a"), "yardstick": bench.opener("yardstick", spread=2.0)}
    assert compete(wild, aside=["yardstick"], narrow=0.5, clock=bench, waiting=lambda: 0.0).openings == 8


def test_a_run_may_measure_itself() -> None:
    bench = Bench()

    @contextmanager
    def remote() -> Iterator[Callable[[], float]]:
        yield lambda: bench.candidate("remote", lambda: 0.01)() or 0.002

    timings = compete({"remote": remote}, seconds=0.1, clock=bench, waiting=lambda: 0.0)
    assert timings.median("remote") == 0.002


def test_rounds_that_waited_are_left_out() -> None:
    opening = np.repeat(np.arange(6), 2)
    seconds = {"a": np.tile([1.0, 9.0], 6)}
    busy = np.tile([0.0, 0.9], 6)
    timings = Openings(seconds, opening, waited=busy)
    assert timings.disturbed == 0.5
    assert timings.quiet().seconds["a"].tolist() == [1.0] * 6
    # With five openings left there would be too few.
    busy[0] = 0.9
    assert Openings(seconds, opening, waited=busy).quiet().rounds == 12


@pytest.mark.parametrize("count", [6, 20])
def test_an_interval_holds_the_mean_as_often_as_it_says(count: int) -> None:
    """At 90 %, of 2000 samples: the share is right within four standard deviations, 0.027."""
    generator = np.random.default_rng(1)
    samples = generator.normal(3.0, 1.0, (2000, count))
    inside = sum(low <= 3.0 <= high for _, low, high in (mean_interval(sample, 0.9) for sample in samples))
    assert inside / 2000 == pytest.approx(0.9, abs=0.027)


def test_openings_in_which_something_else_happened_do_not_count() -> None:
    values = np.random.default_rng(2).normal(0, 0.01, 20)
    value, low, high = mean_interval(values, CONFIDENCE)
    values[7:9] = 5.0
    disturbed = mean_interval(values, CONFIDENCE)
    assert disturbed[0] == pytest.approx(value, abs=0.005)
    assert disturbed[2] - disturbed[1] < 2 * (high - low)


@pytest.mark.parametrize(
    ("share", "freedom", "expected"),
    [(0.975, 1, 12.706), (0.975, 7, 2.3646), (0.9995, 5, 6.8688), (0.9995, 19, 3.8834), (0.5, 3, 0.0)],
)
def test_student(share: float, freedom: float, expected: float) -> None:
    """Tabulated to five digits; the integral is as exact."""
    assert student(share, freedom) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_waiting_for_a_processor_never_shrinks() -> None:
    before = waited()
    assert before >= 0
    assert waited() >= before
