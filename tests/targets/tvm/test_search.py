"""How a tuner divides its time: on a device whose clock and kernels are planted, so that every run is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc.errors import TargetError
from dnc.runtime.timing import interleave

pytest.importorskip("tvm.relax", exc_type=ImportError)
from dnc.targets.tvm import tuning
from dnc.targets.tvm.tuning import Kernel

_BUILD, _FORM, _RUN = 20.0, 2.0, 0.005
"""Seconds that it takes to build the network, to write four forms of a kernel, and to run something."""


@dataclass
class _Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class _Job:
    """What is done at some time, on one of the processors."""

    clock: _Clock
    end: float
    make: Callable[[], Any]

    def ready(self) -> bool:
        return self.clock.now >= self.end

    def result(self, seconds: float | None = None) -> Any:
        if seconds is not None and self.clock.now + seconds < self.end:
            self.clock.now += seconds
            raise TimeoutError
        self.clock.now = max(self.clock.now, self.end)
        return self.make()


@dataclass
class _Plan:
    """Kernels: seconds of the rule's, and those of the forms that are something else, as a multiple of them."""

    kernels: Mapping[str, tuple[float, Mapping[int, float]]]
    wrong: frozenset[tuple[str, int]] = frozenset()
    failing: frozenset[tuple[str, int]] = frozenset()
    interrupt: int = -1
    """The trial in which somebody presses Ctrl-C."""
    processors: int = 16
    most: int = 40
    """Forms of a kernel."""
    trials: list[tuple[str, int]] = field(default_factory=list)
    built: list[Mapping[str, int]] = field(default_factory=list)
    at_once: int = 0


class _Tuner(tuning.Tuner[str]):
    rules = frozenset({"product"})
    batch = 4

    def __init__(self, plan: _Plan, cache: Path | None = None) -> None:
        self.time = _Clock()
        super().__init__("planted", "planted", cache, lambda _: None, precision="fp32", clock=self.time)
        self.plan, self.ahead = plan, plan.processors
        self._free = [0.0] * plan.processors
        self._handed: dict[str, int] = {}

    def _later(self, seconds: float, make: Callable[[], Any]) -> _Job:
        first = min(range(len(self._free)), key=self._free.__getitem__)
        self._free[first] = max(self._free[first], self.time.now) + seconds
        busy = sum(end > self.time.now for end in self._free)
        self.plan.at_once = max(self.plan.at_once, busy)
        return _Job(self.time, self._free[first], make)

    def kernels(self) -> Sequence[Any]:
        self.time.now += 1.0
        planted = self.plan.kernels.items()
        return [Kernel(name, name, (), "product", 1, seconds) for name, (seconds, _) in planted]

    def write(self, kernel: Any, count: int) -> Any:
        known = [way for way, _ in self.database.trials(kernel.key)]
        following = [way for way in range(1, self.plan.most) if way not in known][:count]
        return self._later(_FORM, lambda: [(way, way) for way in following])

    def rewrite(self, kernel: Any, ways: Sequence[Any]) -> Any:
        return self._later(_FORM, lambda: [(way, way) for way in ways])

    def runs(self, kernel: Any, candidates: Mapping[str, Any]) -> Mapping[str, Any]:
        self.plan.trials.append((kernel.name, candidates["candidate"]))
        if len(self.plan.trials) == self.plan.interrupt:
            raise KeyboardInterrupt
        if self.plan.trials[-1] in self.plan.failing:
            raise TargetError("the process that measures has ended")
        seconds, forms = self.plan.kernels[kernel.name]

        def run(way: int | None) -> float:
            self.time.now += _RUN
            return seconds * (1.0 if way is None else forms.get(way, 1.2))

        return {name: lambda way=way: run(way) for name, way in candidates.items()}

    def differs(self, kernel: Any, way: Any) -> str:
        return "output 0 is off" if self.plan.trials[-1] in self.plan.wrong else ""

    def winner(self, kernel: Any, way: Any, candidate: Any) -> Any:
        return way

    def build(self, path: Path, chosen: Mapping[str, Any]) -> Any:
        def built() -> str:
            self.plan.built.append(dict(chosen))
            path.write_text(repr(sorted(chosen.items())))
            return path.read_text()

        return self._later(_BUILD, built)

    def networks(self, libraries: Mapping[str, Path]) -> Any:
        """The time of the device is that of its kernels; whoever timed copies would see a hundred times as much."""

        def run(chosen: Mapping[str, int]) -> float:
            self.time.now += _RUN
            planted = self.plan.kernels.items()
            return sum(seconds * forms.get(chosen.get(name, 0), 1.0) for name, (seconds, forms) in planted)

        contents = {name: dict(eval(path.read_text())) for name, path in libraries.items()}
        outputs = {name: [np.ones(3)] for name in libraries}
        return {name: lambda chosen=chosen: run(chosen) for name, chosen in contents.items()}, outputs


def _planted(**more: Any) -> _Plan:
    """Six kernels, the first of which takes half of the time. Some have a form that is faster, at different places."""
    kernels: dict[str, tuple[float, dict[int, float]]] = {
        "a": (50e-6, {7: 0.9, 19: 0.7}),
        "b": (20e-6, {2: 0.6}),
        "c": (12e-6, {}),
        "d": (10e-6, {3: 0.8}),
        "e": (5e-6, {11: 0.5}),
        "f": (3e-6, {1: 0.985}),
    }
    return _Plan(kernels, **more)


_BEST = {"a": 19, "b": 2, "d": 3, "e": 11}


def _tune(
    plan: _Plan, folder: Path, seconds: float | None, trials: int | None = None, cache: Path | None = None
) -> Any:
    tuner = _Tuner(plan, cache)
    (folder / "scratch").mkdir(exist_ok=True)
    result = tuner.tune(folder / "model.so", folder / "scratch", trials, seconds)
    return tuner, result, dict(eval((folder / "model.so").read_text()))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What times runs in turn knows the planted clock only by what the runs say."""
    monkeypatch.setattr(tuning, "interleave", lambda runs, **how: interleave(runs, **{**how, "seconds": 0.0}))


def test_three_minutes(tmp_path: Path) -> None:
    """They suffice for the best forms of all kernels, with what builds and compares the network at the end."""
    plan = _planted()
    tuner, result, chosen = _tune(plan, tmp_path, 180.0)
    assert chosen == _BEST
    assert result.record["kept"]
    assert tuner.time.now <= 180
    assert plan.at_once >= 6
    assert plan.built[0] == {}
    assert [kernel["best"] for kernel in result.record["kernels"] if kernel["name"] == "f"] == ["rule"]


@pytest.mark.parametrize("seconds", [30.0, 60.0, 66.0, 75.0, 100.0])
@pytest.mark.parametrize("processors", [1, 2, 16])
def test_within_its_time(tmp_path: Path, seconds: float, processors: int) -> None:
    """Whatever it is given, once the network is built for the first time."""
    tuner, result, chosen = _tune(_planted(processors=processors), tmp_path, seconds)
    assert tuner.time.now <= seconds
    assert any(chosen.items() <= {**_BEST, "a": way}.items() for way in (7, 19))
    assert result.built == (tmp_path / "model.so").read_text()


def test_a_build_that_takes_longer_than_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network without tuning is kept, in time."""
    plan = _planted()
    later = _Tuner._later

    def slower(self: Any, seconds: float, make: Callable[[], Any]) -> Any:
        return later(self, seconds * (10 if plan.built and seconds == _BUILD else 1), make)

    monkeypatch.setattr(_Tuner, "_later", slower)
    tuner, result, chosen = _tune(plan, tmp_path, 120.0)
    assert chosen == {}
    assert not result.record["kept"]
    assert result.record["dropped"] == "there was no time left to build the network"
    assert tuner.time.now <= 120


def test_time_goes_where_there_is_most_to_gain(tmp_path: Path) -> None:
    """By the share of the network's time; less where nothing is won; never to those that have no form left."""
    plan = _planted(processors=2)
    _tune(plan, tmp_path, 80.0)
    counts = [sum(name == one for name, _ in plan.trials) for one in "abcdef"]
    assert counts[0] > counts[1] >= counts[2] >= counts[4] >= counts[5]
    everything = _planted(most=6)
    tuner, *_ = _tune(everything, tmp_path, 1e6)
    assert len(everything.trials) == 6 * 5
    assert tuner.time.now < 100


def test_trials(tmp_path: Path) -> None:
    """As many as were asked for, whatever time that takes; those that are known count, and the best of them stays."""
    plan = _planted()
    _, _, chosen = _tune(plan, tmp_path, None, 60, tmp_path)
    assert [sum(name == one for name, _ in plan.trials) for one in "abcdef"] == [30, 12, 8, 6, 3, 1]
    assert chosen == {"a": 19, "b": 2, "d": 3}
    again = _planted()
    _, result, found = _tune(again, tmp_path, None, 60, tmp_path)
    assert found == chosen
    assert set(again.trials) <= set(plan.trials)
    assert len(again.trials) <= 2 * 6
    assert result.record["trials"] == 60


def test_what_is_wrong_or_fails(tmp_path: Path) -> None:
    """However fast it is, it is not taken, is said, and is not tried again; the next best is."""
    plan = _planted(wrong=frozenset({("a", 19), ("b", 2)}), failing=frozenset({("d", 3), ("c", 5)}))
    _, result, chosen = _tune(plan, tmp_path, 180.0, cache=tmp_path)
    assert chosen == {"a": 7, "e": 11}
    failed = {kernel["name"]: kernel["failed"] for kernel in result.record["kernels"]}
    assert failed == {"a": 1, "b": 1, "c": 1, "d": 1, "e": 0, "f": 0}
    assert "4 forms failed or gave other numbers, as: " in tuning.summary(result.record)
    again = _planted()
    _, _, chosen = _tune(again, tmp_path, 180.0, cache=tmp_path)
    assert chosen == {"a": 7, "e": 11}
    assert not set(again.trials) & (plan.wrong | plan.failing)


@pytest.mark.parametrize("trial", [1, 2, 12, 40])
def test_interrupted(tmp_path: Path, trial: int) -> None:
    """The first Ctrl-C ends the trials: what they found is built and compared."""
    plan = _planted(interrupt=trial)
    _, result, chosen = _tune(plan, tmp_path, None, 1000)
    assert len(plan.trials) == trial
    assert result.record["stopped"] == "Ctrl-C"
    won = [(name, way) for name, way in plan.trials[:-1] if plan.kernels[name][1].get(way, 1) < 0.98]
    assert chosen == {name: way for name, way in won if way == max(w for n, w in won if n == name)}
    assert result.record["kept"] == bool(won)


def test_interrupted_before_the_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While kernels are timed, too: the network is built by then, and is kept."""

    def kernels(self: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Tuner, "kernels", kernels)
    _, result, chosen = _tune(_planted(), tmp_path, 180.0)
    assert chosen == {}
    assert result.record["stopped"] == "Ctrl-C"
    assert (result.record["kept"], result.record["kernels"]) == (False, [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, TargetError("it cannot be written")])
def test_what_won_and_cannot_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[KeyboardInterrupt] | TargetError
) -> None:
    """It leaves nothing of itself behind."""

    def winner(self: Any, kernel: Any, way: Any, candidate: Any) -> Any:
        if (kernel.name, way) == ("a", 19):
            raise error
        return way

    monkeypatch.setattr(_Tuner, "winner", winner)
    _, _, chosen = _tune(_planted(), tmp_path, 1e6)
    assert chosen["a"] == 7


def test_interrupted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one leaves the network as it was first."""
    plan = _planted(interrupt=40)

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Tuner, "networks", stop)
    _, result, chosen = _tune(plan, tmp_path, None, 1000)
    assert chosen == {}
    assert result.record["dropped"] == "it was stopped before the network was built and compared"


def test_never_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are faster alone and slower together are not kept."""
    networks = _Tuner.networks

    def contrary(self: Any, libraries: Mapping[str, Path]) -> Any:
        runs, outputs = networks(self, libraries)
        return {"rule": runs["rule"], "tuned": lambda: runs["rule"]() * 1.01}, outputs

    monkeypatch.setattr(_Tuner, "networks", contrary)
    _, result, chosen = _tune(_planted(), tmp_path, 180.0)
    assert chosen == {}
    assert result.record["dropped"] == "the network as a whole is not certainly faster"
