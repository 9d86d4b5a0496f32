"""Recordings that are compared: noise passes, what is slower does not, what cannot be compared is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dnc.bench.difference import compare_recordings, parse_threshold
from dnc.bench.measure import Figures, Recording, Settings
from dnc.bench.timing import Openings
from dnc.bench.yardstick import NAME
from dnc.errors import DncError
from dnc.runtime.timing import Interval

NAMES = ("old.json", "new.json")


def recording(
    seed: int = 0, factor: float = 1.0, pace: float = 1.0, busy: float = 0.0, openings: int = 12, **changes: Any
) -> Recording:
    """An engine of 5 ms with openings that differ by 1 %, and rounds by 3 %.

    Args:
        seed: of the noise.
        factor: how many times as long the engine takes.
        pace: how many times as long everything takes.
        busy: the share of rounds in which another process runs, which makes the yardstick half as slow again, and the
            engine three times.
        openings: how many.
        changes: fields of the recording.
    """
    generator = np.random.default_rng(seed)
    opening = np.repeat(np.arange(openings), 8)
    shifts = generator.normal(0, 0.01, openings)[opening]
    waited = generator.random(len(opening)) < busy
    engine = 0.005 * factor * pace * np.exp(shifts + generator.normal(0, 0.03, len(opening))) * (1 + 2 * waited)
    yard = 0.002 * pace * np.exp(generator.normal(0, 0.03, len(opening))) * (1 + 0.5 * waited)
    figures = Figures("engine", "engine", "CPU", {"cfg": "a.cfg", "digest": "d"}, {}, 0, Interval(1, 1, 1))
    about = {"cpu": "x", "architecture": "y", "usable": 2, "libraries": {"numpy": "2"}}
    share = np.where(waited, 0.7, 0.0)
    timings = Openings({"engine": engine, NAME: yard}, opening, waited=share)
    fields: dict[str, Any] = {"settings": Settings(2), "machine": about, "figures": (figures,), "timings": timings}
    return Recording(**{**fields, **changes})


@pytest.mark.parametrize("seed", range(20))
def test_noise_passes_and_what_is_slower_does_not(seed: int) -> None:
    """On a machine that has become slower by 30 %, with another process in a third of the rounds."""
    old = recording(seed)
    (noise,) = compare_recordings(old, recording(seed + 100, pace=1.3, busy=0.3), NAMES, 0.05)
    assert not noise.slower
    assert "not slower for certain by more than 5 %" in str(noise)
    (worse,) = compare_recordings(old, recording(seed + 100, 1.15, pace=1.3, busy=0.3), NAMES, 0.05)
    assert worse.slower
    assert str(worse).endswith("times as long as old.json: slower by more than 5 %")
    assert worse.ratio.value == pytest.approx(1.15, abs=0.03)
    (allowed,) = compare_recordings(old, recording(seed + 100, 1.15), NAMES, 0.2)
    assert not allowed.slower


def test_a_busy_machine_is_told() -> None:
    (found,) = compare_recordings(recording(), recording(1, busy=0.9), NAMES, 0.05)
    assert any("other processes ran in" in note and "new recording" in note for note in found.notes)


@pytest.mark.parametrize("seed", range(20))
def test_a_busy_machine_decides_nothing(seed: int) -> None:
    """What takes 1.5 times as long where another process ran in most rounds need not be slower; elsewhere it is."""
    old, busy = recording(seed), recording(seed + 100, 1.5, busy=0.8)
    (found,) = compare_recordings(old, busy, NAMES, 0.05)
    assert not found.slower
    assert found.ratio.low < 1.5 / (1 + busy.timings.disturbed) < 1.5 * (1 + busy.timings.disturbed) < found.ratio.high
    (certain,) = compare_recordings(old, recording(seed + 100, 1.5, busy=0.4), NAMES, 0.05)
    assert certain.slower


def test_the_interval_covers() -> None:
    """The ratio of 300 pairs that differ by 4 %: three or more of them outside would be something else."""
    found = [
        compare_recordings(recording(seed), recording(seed + 1000, 1.04), NAMES, 0.05)[0].ratio for seed in range(300)
    ]
    assert sum(not ratio.low <= 1.04 <= ratio.high for ratio in found) <= 2


def test_what_cannot_be_compared() -> None:
    old = recording()
    for changes, said in (
        ({"machine": {**old.machine, "cpu": "z"}}, "different machines"),
        ({"settings": Settings(4)}, "2 and 4 threads"),
        ({"settings": Settings(2, batch=8)}, "1 and 8 batch"),
        (
            {"figures": (dataclasses.replace(old.figures[0], network={"cfg": "b.cfg", "digest": "e"}),)},
            "different networks: a.cfg and b.cfg",
        ),
    ):
        with pytest.raises(DncError, match=said):
            compare_recordings(old, recording(**changes), NAMES, 0.05)
    with pytest.raises(DncError, match="3 openings, too few"):
        compare_recordings(old, recording(openings=3), NAMES, 0.05)


def test_what_has_changed_is_told() -> None:
    old = recording()
    weights = dataclasses.replace(old.figures[0], network={"cfg": "a.cfg", "digest": "e"})
    about = {**old.machine, "governor": "powersave", "libraries": {"numpy": "3"}}
    (found,) = compare_recordings(old, recording(1, figures=(weights,), machine=about), NAMES, 0.05)
    assert "the weights or the cfg of a.cfg have changed" in found.notes
    assert "numpy 2, now 3" in found.notes
    assert "governor: None, now powersave" in found.notes


def test_several_engines_are_paired_by_name() -> None:
    old = recording()
    timings = Openings({**old.timings.seconds, "b": old.timings.seconds["engine"]}, old.timings.opening)
    both = (dataclasses.replace(old.figures[0], name="b"), old.figures[0])
    one = dataclasses.replace(old, timings=timings, figures=both)
    assert [each.old for each in compare_recordings(one, one, NAMES, 0.05)] == ["b in old.json", "engine in old.json"]
    other = dataclasses.replace(old, figures=(both[0], dataclasses.replace(both[1], name="c")))
    with pytest.raises(DncError, match="no engine in common"):
        compare_recordings(
            dataclasses.replace(one, figures=(both[1], dataclasses.replace(both[1], name="d"))), other, NAMES, 0.05
        )


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("0", 0.0), ("12.5%", 0.125)])
def test_thresholds(text: str, share: float) -> None:
    assert parse_threshold(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "five", "-5%", "nan", "inf"])
def test_no_thresholds(text: str) -> None:
    with pytest.raises(ValueError):
        parse_threshold(text)
