"""Kernels chosen by measuring: `--tune TRIALS|TIME` of target tvm, and of target cuda's back end tvm.

1. The network is built as the rules write it: that is kept, whatever happens afterwards.
2. Each kernel of it is timed alone, on the device. Those that compute sums (convolutions, products) are written in
   other ways, built, and timed in turn with the kernel of the rule:

       tile N          the rule's own loops with the tile that its formula puts in place N
       MetaSchedule    for CPUs: a schedule from TVM's search, of multi-level tilings with random cost model

   The first are few and good, the second many. Next comes the kernel with the most to gain, by its share of the
   network's time and by how many of its last trials won nothing. Where it disturbs no measuring, several are written at
   once while others are measured.
3. One that seems faster than what the kernel has so far is timed for longer, and gives the same numbers as the rule's:
   it replaces that if it certainly takes less than 98 % of its time. One that fails, ends the process that measures, or
   gives other numbers is not tried again.
4. The network as a whole is built both ways and timed in turn. Unless the tuned one is certainly faster, and its
   outputs are the same, the other is kept: the result is never slower than the untuned one.

A number of trials is shared out among kernels by their shares of the time, those that are known count. A time ends the
trials so early that the fourth step, which takes as long as the first and what was seen of it, is over with it. Ctrl-C
ends the trials too; a second one leaves out the fourth step.

`Tuner` is what CPUs (`dnc.targets.tvm.cpu_tuning`) and GPUs (`dnc.targets.cuda.tuning`) have in common; what builds,
and what measures, is theirs. `dnc.targets.tvm.trials` keeps what was measured.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

import dnc
from dnc.errors import TargetError
from dnc.graph.builder import where_of
from dnc.graph.verification import differs
from dnc.runtime.timing import Ratio, Run, interleave
from dnc.targets.tvm.remote import Lost
from dnc.targets.tvm.trials import Database, Way
from dnc.typing import Array, Progress

__all__ = [
    "STOPPED",
    "Kernel",
    "Made",
    "Outputs",
    "Pending",
    "Result",
    "Tuner",
    "closeness",
    "compared",
    "places_of",
    "summary",
    "versions",
]

Outputs = Sequence[Array]
Written = Sequence[tuple[Way, Any]]
"""Ways of writing a kernel, each with what `Tuner.runs` wants for it, or a TargetError, which says why it is none."""
Built = TypeVar("Built")
"""What there is to say of a library that was built."""
Thing = TypeVar("Thing", covariant=True)

_GAIN = 0.98
_CONFIDENCE = 0.99
_ROUNDS = (3, 3)
_HOPELESS = 1.5
"""A candidate that takes so many times as long is timed once."""
_FINAL_SECONDS = 0.6
"""For each of two."""
_FINALISTS = 2
"""So many of the ways that are known to be faster are timed anew."""
_BETTER = 0.99
"""A way that takes more than this of the best one's time has won nothing."""
_NETWORK_SECONDS = 4.0
STOPPED = "Ctrl-C"
"""What ended the trials."""
_RESERVE = 1.5
"""A build takes so many times as long as the one before, at most: other kernels may be slower to compile."""
_CLOSE = 1e-4
"""Of an output's largest value: sums of float32 in another order, through all layers."""
_CLOSE_ROUNDED = 2e-2
"""Where what they give is rounded to 11 bits or less: a sum that differs in its last bit may become another number."""


def closeness(precision: str) -> float:
    """By how much outputs of a network may be off that is computed in another way, of their largest value."""
    return _CLOSE if precision == "fp32" else _CLOSE_ROUNDED


def versions() -> str:
    """Versions of what writes kernels, for the name of a device."""
    from importlib.metadata import version

    return f"TVM {version('apache-tvm')}, dnc {dnc.__version__}"


@dataclass
class Kernel:
    """A function of the network, and what became of it."""

    name: str
    key: str
    layers: tuple[str, ...]
    """The sections of the cfg that call it, where they are known."""
    rule: str
    calls: int
    seconds: float
    """Of all calls together, as the rule wrote it."""
    share: float = 0.0
    """Of the network's time."""
    trials: int = 0
    """That it may have."""
    tried: int = 0
    """That it had, those that were known among them."""
    misses: int = 0
    """So many of the last ones won nothing."""
    failed: int = 0
    """So many of them, by now, could not be written, did not run, or gave other numbers."""
    complaint: str = ""
    """Of the first of those."""
    known: list[Way] = field(default_factory=list)
    """What was faster once, and is to be timed anew."""
    over: bool = False
    """Whether there is no other way of writing it."""
    best: Way | None = None
    """What replaces the rule's kernel; None if nothing does."""
    ratio: Ratio | None = None
    winner: Any = None
    """What `Tuner.build` wants for it."""

    @property
    def title(self) -> str:
        """Title for messages: `layer 36`, or the function's name."""
        numbers = [place.rpartition("#")[2] for place in self.layers if "#" in place]
        return f"layer {numbers[0]}" if numbers else self.name

    @property
    def taken(self) -> float:
        """What the best so far takes, as a multiple of the rule's time."""
        return 1.0 if self.ratio is None else self.ratio.value

    @property
    def promise(self) -> float:
        """What one more trial may win, to compare kernels by."""
        return self.share / (1 + self.misses)

    @property
    def left(self) -> int:
        """How many trials it may have yet."""
        return 0 if self.over else max(0, self.trials - self.tried)

    def learn(self, ratio: float | None, best: float) -> None:
        """Counts a trial; `best` is the lowest ratio before it."""
        self.tried += 1
        self.misses = 0 if ratio is not None and ratio < _BETTER * min(best, 1.0) else self.misses + 1

    def fails(self, error: TargetError) -> None:
        """Counts one that failed."""
        self.failed, self.complaint = self.failed + 1, self.complaint or error.message

    def to_json(self) -> dict[str, Any]:
        """Converts what was won to JSON values."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "rule": self.rule,
            "calls": self.calls,
            "microseconds": round(self.seconds * 1e6, 1),
            "share": round(self.share, 4),
            "trials": min(self.trials, self.tried),
            "failed": self.failed,
            **({"complaint": self.complaint} if self.complaint else {}),
            "best": _title(self.best),
            "ratio": self.ratio and self.ratio.rounded(),
        }


def _title(way: Way | None) -> str:
    return "rule" if way is None else f"tile {way}" if isinstance(way, int) else "MetaSchedule"


@dataclass(frozen=True)
class Result(Generic[Built]):
    """A network that was tuned."""

    built: Built
    """Of the library that is kept."""
    record: Mapping[str, Any]
    """What was measured and won, for engine.json."""


class Pending(Protocol[Thing]):
    """What is being made, elsewhere or when it is asked for."""

    def ready(self) -> bool:
        """Whether `result` need not wait."""

    def result(self, seconds: float | None = None) -> Thing:
        """The thing, once. Raises TargetError if it cannot be made; TimeoutError if that takes more than so many
        seconds."""


class Made(Generic[Thing]):
    """What is made when it is asked for."""

    def __init__(self, make: Callable[[], Thing]) -> None:
        self._make = make

    def ready(self) -> bool:
        return True

    def result(self, seconds: float | None = None) -> Thing:
        return self._make()


class Tuner(ABC, Generic[Built]):
    """The kernels of one network on one device.

    Args:
        device: what measurements hold for.
        place: where they are made, in words.
        cache: the folder to keep trials in; None to keep none.
        clock: gives seconds.
    """

    rules: frozenset[str]
    """The rules whose kernels are tuned: those that compute sums, and for what no rule wrote, "none"."""
    ahead: int = 1
    """Of so many kernels other forms are written at once, while others are measured."""
    batch: int = 1
    """So many of a kernel."""
    final_seconds: ClassVar[float | None] = None
    network_seconds: ClassVar[float | None] = None
    """How long a kernel, and the network, are timed before they are taken, where that is not as usual."""

    def __init__(
        self,
        device: str,
        place: str,
        cache: Path | None,
        progress: Progress,
        *,
        precision: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device, self.place, self.progress, self.clock = device, place, progress, clock
        self.close = closeness(precision)
        self.database = Database(cache, device)
        self.deadline: float | None = None
        self.stopped = ""
        """What ended the trials before they were over."""

    def base(self, path: Path, scratch: Path) -> Built:
        """Writes the network without tuning, which is kept whatever happens."""
        self.progress("compiling the network")
        return self.build(path, {}).result()

    @abstractmethod
    def kernels(self) -> Sequence[Kernel]:
        """Kernels that can be timed alone, with the seconds that they take."""

    @abstractmethod
    def write(self, kernel: Kernel, count: int) -> Pending[Written]:
        """Writes so many more forms of a kernel, at most; none if there are no more."""

    @abstractmethod
    def rewrite(self, kernel: Kernel, ways: Sequence[Way]) -> Pending[Written]:
        """Writes what was tried before."""

    def tell(self, kernel: Kernel, way: Way, ratio: float | None) -> None:
        """Hears what became of a form of `write`."""

    @abstractmethod
    def runs(self, kernel: Kernel, candidates: Mapping[str, Any]) -> Mapping[str, Run]:
        """Makes what times several candidates, by name, of which "rule" stands for the rule's own; raises TargetError
        if one of them cannot be built or run."""

    def differs(self, kernel: Kernel, way: Way) -> str:
        """How the numbers of the "candidate" that `runs` opened last differ from those of the rule's kernel; empty if
        they do not, or the network alone is compared."""
        return ""

    @abstractmethod
    def winner(self, kernel: Kernel, way: Way, candidate: Any) -> Any:
        """Writes what `build` wants for a way that won."""

    @abstractmethod
    def build(self, path: Path, chosen: Mapping[str, Any]) -> Pending[Built]:
        """Writes the library of the network, with what is chosen for some kernels, by their functions' names."""

    @abstractmethod
    def networks(self, libraries: Mapping[str, Path]) -> tuple[Mapping[str, Run], Mapping[str, Outputs]]:
        """Makes what times whole networks, and what they compute of the same inputs."""

    def tune(self, path: Path, scratch: Path, trials: int | None, deadline: float | None = None) -> Result[Built]:
        """Writes the library of the network, with kernels that were chosen by measuring.

        Args:
            scratch: a folder for another one.
            trials: how many kernels to try, all together; those that the cache knows count. None for as many as there
                are.
            deadline: when it has to be over, by the clock.

        Raises:
            TargetError: TVM refuses the network; the device fails.
        """
        with _interruptible():
            start = self.clock()
            self.deadline = deadline
            built = self.base(path, scratch)
            reserve = _RESERVE * (self.clock() - start) + self._network_seconds
            kernels: Sequence[Kernel] = ()
            try:
                if not self.stopped:
                    kernels = self._started(trials)
                    self._search(kernels, trials, None if deadline is None else deadline - reserve)
            except KeyboardInterrupt:
                self.stopped = STOPPED
            chosen = {kernel.name: kernel.winner for kernel in kernels if kernel.best is not None}
            ratio, why = None, "no kernel is faster than the rule's"
            if chosen:
                tuned = scratch / path.name
                library, ratio, why = self._finish(path, tuned, chosen)
                if library is not None and not why:
                    shutil.copyfile(tuned, path)
                    built = library
        tried = [kernel for kernel in kernels if kernel.tried or kernel.failed]
        record = {
            "device": self.device,
            "measured_at": self.place,
            "trials": sum(kernel.tried for kernel in tried) if trials is None else trials,
            "seconds": round(self.clock() - start, 1),
            **({"stopped": self.stopped} if self.stopped else {}),
            "kept": bool(chosen) and not why,
            "ratio": ratio and ratio.rounded(),
            "dropped": why,
            "kernels": [kernel.to_json() for kernel in tried],
        }
        return Result(built, record)

    def _started(self, trials: int | None) -> list[Kernel]:
        """All kernels, those that take longest first, with what is known of them."""
        kernels = sorted(self.kernels(), key=lambda kernel: -kernel.seconds)
        total = sum(kernel.seconds for kernel in kernels)
        for kernel in kernels:
            kernel.share = kernel.seconds / total
        tunable = [kernel for kernel in kernels if self.rules & set(re.split(r"[+,]", kernel.rule))]
        if trials is None:
            for kernel in tunable:
                kernel.trials = sys.maxsize
        else:
            _share_out(tunable, trials)
        for kernel in tunable:
            known = self.database.trials(kernel.key) if kernel.trials else ()
            best = 1.0
            for _, ratio in known:
                kernel.learn(ratio, best)
                best = min(best, 1.0 if ratio is None else ratio)
            ran = [(ratio, way) for way, ratio in known if ratio is not None and ratio < 1]
            kernel.known = [way for _, way in sorted(ran, key=lambda item: item[0])[:_FINALISTS]]
        return kernels

    def _search(self, kernels: Sequence[Kernel], trials: int | None, until: float | None) -> None:
        """Measures forms of kernels: those that were faster once, then others, until there are no more, or so long."""
        writing: list[tuple[Kernel, Pending[Written]]] = []
        while not self._over(until):
            self._write_ahead(kernels, writing)
            if not writing:
                return
            turn = next((one for one in writing if one[1].ready()), writing[0])
            kernel, pending = turn
            again = bool(kernel.known)
            try:
                written = pending.result(self._left(until))
            except TimeoutError:
                return
            except Lost:
                raise
            except TargetError as error:
                # What writes its forms fails; the rule's is there in any case.
                written = []
                kernel.fails(error)
            writing.remove(turn)
            if again:
                kernel.known = []
            elif not written:
                kernel.over = True
            for way, candidate in written:
                if self._over(until):
                    return
                self.progress(self._title(kernels, kernel, trials, until, again))
                self._measure(kernel, way, candidate, again, until)

    def _write_ahead(self, kernels: Sequence[Kernel], writing: list[tuple[Kernel, Pending[Written]]]) -> None:
        """Has forms written, of those kernels first that promise most."""
        busy = {kernel.name for kernel, _ in writing}
        waiting = [kernel for kernel in kernels if kernel.name not in busy and (kernel.known or kernel.left)]
        for kernel in sorted(waiting, key=lambda one: -one.promise)[: self.ahead - len(writing)]:
            if kernel.known:
                writing.append((kernel, self.rewrite(kernel, kernel.known)))
            else:
                writing.append((kernel, self.write(kernel, min(kernel.left, self.batch))))

    def _measure(self, kernel: Kernel, way: Way, candidate: Any, again: bool, until: float | None) -> None:
        """Times a candidate, and takes it for the kernel if it is the best so far and gives the same numbers."""
        ratio, why = None, ""
        try:
            ratio = self._timed(kernel, way, candidate)
        except Lost as error:
            # Perhaps it was this one that ended the server: it is not tried again.
            self.database.put(kernel.key, way, None, error.message)
            raise
        except TargetError as error:
            if self._over(until):
                return  # Perhaps it had no time left.
            why = error.message
            kernel.fails(error)
        ratios = [known for _, known in self.database.trials(kernel.key) if known is not None]
        if not again:
            kernel.learn(ratio, min(ratios, default=1.0))
            self.tell(kernel, way, ratio)
        if not again or why:
            self.database.put(kernel.key, way, ratio, why)

    def _timed(self, kernel: Kernel, way: Way, candidate: Any) -> float:
        """A candidate's time as a multiple of the rule's; raises TargetError if it has none, or gives other numbers."""
        if isinstance(candidate, TargetError):
            raise candidate
        runs = self.runs(kernel, {"rule": None, "candidate": candidate})
        once = _seconds(runs["candidate"]) / _seconds(runs["rule"])
        if once > _HOPELESS:
            return round(once, 4)
        timings = interleave(runs, rounds=_ROUNDS, seconds=0.0)
        ratio = round(float(np.median(timings.seconds["candidate"] / timings.seconds["rule"])), 4)
        if ratio >= min(kernel.taken, _GAIN):
            return ratio
        if why := self.differs(kernel, way):
            raise TargetError(f"it gives other numbers: {why}")
        seconds = _FINAL_SECONDS if self.final_seconds is None else self.final_seconds
        certain = interleave(runs, seconds=2 * seconds, rounds=(15, 1000)).ratio("candidate", "rule", _CONFIDENCE)
        if certain.high < _GAIN and certain.value < kernel.taken:
            # Ctrl-C comes before all of it, or behind.
            winner = self.winner(kernel, way, candidate)
            kernel.ratio, kernel.best, kernel.winner = certain, way, winner
        return ratio

    def _finish(self, path: Path, tuned: Path, chosen: Mapping[str, Any]) -> tuple[Built | None, Ratio | None, str]:
        """What was built with what is chosen, its time as a multiple of the other's, and why it is not to be had, if
        so."""
        try:
            self.progress("compiling the network")
            library = self.build(tuned, chosen).result(self._left(self.deadline))
            self.progress("timing the whole network")
            return library, *self.compare(path, tuned)
        except TimeoutError:
            return None, None, "there was no time left to build the network"
        except KeyboardInterrupt:
            return None, None, "it was stopped before the network was built and compared"
        except Lost:
            raise
        except TargetError as error:
            return None, None, error.message

    def compare(self, path: Path, tuned: Path) -> tuple[Ratio | None, str]:
        """Another network's time as a multiple of that of the one that it would replace; and why it may not, if so."""
        seconds, left = self._network_seconds, self._left(self.deadline)
        networks = self.networks({"rule": path, "tuned": tuned})
        return compared(*networks, self.close, seconds if left is None else min(left, seconds))

    @property
    def _network_seconds(self) -> float:
        return _NETWORK_SECONDS if self.network_seconds is None else self.network_seconds

    def _left(self, until: float | None) -> float | None:
        return None if until is None else max(0.0, until - self.clock())

    def _over(self, until: float | None) -> bool:
        return until is not None and self.clock() >= until

    def _title(
        self, kernels: Sequence[Kernel], kernel: Kernel, trials: int | None, until: float | None, again: bool
    ) -> str:
        if again:
            return f"timing {kernel.title} again"
        done = sum(min(one.tried, one.trials) for one in kernels)
        ratios = [ratio for _, ratio in self.database.trials(kernel.key) if ratio is not None]
        best = f", best {min(ratios):.2f} of the untuned" if ratios else ""
        left = self._left(until)
        count = f"{done} trials" if trials is None else f"{done} of {trials} trials"
        return f"tuning {kernel.title}, {count}" + (f", {left:.0f} s left" if left is not None else "") + best


def compared(
    runs: Mapping[str, Run], outputs: Mapping[str, Outputs], close: float, seconds: float
) -> tuple[Ratio | None, str]:
    """The time of the network "tuned" as a multiple of that of "rule"; and why it may not take its place, if so."""
    if why := differs(outputs["tuned"], outputs["rule"], close):
        return None, f"its outputs differ: {why}"
    ratio = interleave(runs, seconds=seconds, rounds=(15, 1000)).ratio("tuned", "rule", _CONFIDENCE)
    return ratio, "" if ratio.high < 1 else "the network as a whole is not certainly faster"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, and the program does not know of it: whoever catches that goes on."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _seconds(run: Run) -> float:
    seconds = run()
    assert isinstance(seconds, float)
    return seconds


def _share_out(kernels: Sequence[Kernel], trials: int) -> None:
    """Gives each kernel its trials, by its share; what rounding leaves goes to the largest."""
    total = sum(kernel.share for kernel in kernels)
    for kernel in kernels:
        kernel.trials = int(trials * kernel.share / total)
    for kernel in kernels[: trials - sum(kernel.trials for kernel in kernels)]:
        kernel.trials += 1


def places_of(kernels: Sequence[Sequence[str]], model: ir.Model) -> dict[str, tuple[str, ...]]:
    """The sections of the cfg that each function computes.

    Args:
        kernels: what `dnc.targets.tvm.provenance.kernels_of` says of the functions.
    """
    places = {node.name: where_of(node) for node in model.graph}
    sections: dict[str, dict[str, None]] = {}
    for function, nodes in kernels:
        for node in nodes.split("+"):
            if places.get(node):
                sections.setdefault(function, {})[places[node]] = None
    return {function: tuple(several) for function, several in sections.items()}


def summary(record: Mapping[str, Any]) -> str:
    """Sums up what was won, in a line for the report."""
    won = [kernel["best"] for kernel in record["kernels"] if kernel["best"] != "rule"]
    searched = won.count("MetaSchedule")
    text = f"of {len(record['kernels'])} kernels {len(won) - searched} are faster with other tiles"
    text += f", {searched} by MetaSchedule" * bool(searched)
    failed = sum(kernel["failed"] for kernel in record["kernels"])
    complaint = next((kernel["complaint"] for kernel in record["kernels"] if "complaint" in kernel), "")
    text += f", {failed} forms failed or gave other numbers, as: {complaint}" * bool(failed)
    if record["ratio"] is not None:
        value, low, high = record["ratio"]
        text += f"; network {value:.3f} ({low:.3f} to {high:.3f}) of its time"
    return text + (", kept" if record["kept"] else f"; nothing is changed: {record['dropped']}")
