"""Kernels chosen by measuring: `--tune TRIALS` of target tvm, and of target cuda's back end tvm.

1. Each kernel of the network is timed alone, on the device. The trials are shared out among those that compute sums
   (convolutions, products) by their share of the network's time.
2. A trial writes a kernel in another way, builds it, and times it in turn with the kernel of the rule:

       tile N          the rule's own loops with the tile that its formula puts in place N
       MetaSchedule    for CPUs: a schedule from TVM's search, of multi-level tilings with random cost model

   The first are few and good, the second many.
3. The best of each kernel replaces the rule's if it certainly takes less than 98 % of its time.
4. The network as a whole is built both ways and timed in turn. Unless the tuned one is certainly faster, and its
   outputs are the same, the other is kept: the result is never slower than the untuned one.

`Tuner` is what CPUs (`dnc.targets.tvm.cpu_tuning`) and GPUs (`dnc.targets.cuda.tuning`) have in common; what builds,
and what measures, is theirs.

Trials are kept in the user's cache, in a file for each kind of device (what it is, threads, versions):

    {"schema": 1, "device": "…"}
    {"kernel": "…", "way": 3, "ratio": 0.94}
    {"kernel": "…", "way": [trace], "ratio": null, "error": "…"}

`kernel` is the structural hash of its loops before any schedule, so that networks share what they have in common;
`way` the place of a tile, or a trace of MetaSchedule; `ratio` its time as a multiple of the rule's. A line is written
when its trial ends: who is killed goes on from there. Ratios choose what is measured again for points 3 and 4, nothing
else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import onnx_ir as ir

import dnc
from dnc.errors import TargetError
from dnc.files.reading import parse_json, read_bounded
from dnc.graph.builder import where_of
from dnc.runtime.timing import Ratio, Run, interleave
from dnc.targets.tvm.remote import Lost
from dnc.typing import Array, Progress

__all__ = [
    "Candidates",
    "Database",
    "Forms",
    "Kernel",
    "Outputs",
    "Result",
    "Tuner",
    "Way",
    "key_of",
    "places_of",
    "summary",
    "versions",
]

Way = int | list[Any]
"""A tile's place, or a trace of MetaSchedule."""
Outputs = Sequence[Array]
Candidates = Generator[tuple[Way, Any], float | None, None]
Built = TypeVar("Built")
"""What there is to say of a library that was built."""

_SCHEMA = 1
_LARGEST = 1 << 26
"""Bytes of records; a trial takes some 100."""
_GAIN = 0.98
_CONFIDENCE = 0.99
_ROUNDS = (3, 3)
_HOPELESS = 1.5
"""A candidate that takes so many times as long is timed once."""
_FINAL_SECONDS = 0.6
_FINALISTS = 2
_NETWORK_SECONDS = 4.0
_FORMS = 60
"""Places of tiles that are looked at."""
_CLOSE = 1e-4
"""Of an output's largest value: sums of float32 in another order, through all layers."""
_CLOSE_ROUNDED = 2e-2
"""Where what they give is rounded to 11 bits or less: a sum that differs in its last bit may become another number."""


def versions() -> str:
    """Versions of what writes kernels, for the name of a device."""
    from importlib.metadata import version

    return f"TVM {version('apache-tvm')}, dnc {dnc.__version__}"


class Database:
    """The trials of one kind of device.

    Args:
        folder: the cache; None to keep nothing.

    A file that is damaged, or of another device, counts as empty; a line that is torn is left out.
    """

    def __init__(self, folder: Path | None, device: str) -> None:
        digest = hashlib.sha256(device.encode()).hexdigest()[:16]
        self.path = None if folder is None else folder / "tvm" / f"{digest}.jsonl"
        self._head = {"schema": _SCHEMA, "device": device}
        self._found: dict[str, list[tuple[Way, float | None]]] = {}
        text = ""
        if self.path is not None:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = read_bounded(self.path, _LARGEST).decode("utf-8")
        head, *lines = [_parsed(line) for line in text.split("\n")]
        self._fits = head == self._head
        self._torn = bool(text) and not text.endswith("\n")
        for item in lines if self._fits else ():
            if item is not None and isinstance(item.get("kernel"), str) and isinstance(item.get("way"), int | list):
                ratio = item.get("ratio")
                self._add(item["kernel"], item["way"], float(ratio) if isinstance(ratio, int | float) else None)

    def _add(self, kernel: str, way: Way, ratio: float | None) -> None:
        self._found.setdefault(kernel, []).append((way, ratio))

    def trials(self, kernel: str) -> Sequence[tuple[Way, float | None]]:
        """Trials of a kernel, in order: the way, and its ratio if it ran."""
        return self._found.get(kernel, [])

    def put(self, kernel: str, way: Way, ratio: float | None, error: str = "") -> None:
        """Keeps a trial; that the file cannot be written is no error."""
        self._add(kernel, way, ratio)
        if self.path is None:
            return
        item = {"kernel": kernel, "way": way, "ratio": ratio, **({"error": error} if error else {})}
        before = "\n" * self._torn if self._fits else json.dumps(self._head) + "\n"
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self._fits else "w", encoding="utf-8") as file:
                file.write(before + json.dumps(item) + "\n")
            self._fits, self._torn = True, False


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = parse_json(line.encode())
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


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
    best: Way | None = None
    """What replaces the rule's kernel; None if nothing does."""
    ratio: Ratio | None = None

    @property
    def title(self) -> str:
        """Title for messages: `layer 36`, or the function's name."""
        numbers = [place.rpartition("#")[2] for place in self.layers if "#" in place]
        return f"layer {numbers[0]}" if numbers else self.name

    def to_json(self) -> dict[str, Any]:
        """Converts what was won to JSON values."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "rule": self.rule,
            "calls": self.calls,
            "microseconds": round(self.seconds * 1e6, 1),
            "share": round(self.share, 4),
            "trials": self.trials,
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


class Tuner(ABC, Generic[Built]):
    """The kernels of one network on one device.

    Args:
        device: what measurements hold for.
        cache: the folder to keep trials in; None to keep none.
    """

    rules: frozenset[str]
    """The rules whose kernels are tuned: those that compute sums, and for what no rule wrote, "none"."""

    def __init__(self, device: str, place: str, cache: Path | None, progress: Progress, *, precision: str) -> None:
        self.device, self.place, self.progress = device, place, progress
        self._close = _CLOSE if precision == "fp32" else _CLOSE_ROUNDED
        self.database = Database(cache, device)

    @abstractmethod
    def kernels(self) -> Sequence[Kernel]:
        """Kernels that can be timed alone, with the seconds that they take."""

    @abstractmethod
    def candidates(self, kernel: Kernel, known: Sequence[tuple[Way, float | None]]) -> Candidates:
        """Ways of writing a kernel that are not known yet, each with what `runs` wants for it. It is sent the ratio of
        each."""

    @abstractmethod
    def write(self, kernel: Kernel, way: Way) -> Any:
        """Writes what `runs` wants for a way; None, or TargetError, if it cannot be written so any more."""

    @abstractmethod
    def runs(self, kernel: Kernel, candidates: Mapping[str, Any]) -> Mapping[str, Run]:
        """Makes what times several candidates, by name, of which "rule" stands for the rule's own; raises TargetError
        if one of them cannot be built or run."""

    @abstractmethod
    def winner(self, kernel: Kernel, way: Way, candidate: Any) -> Any:
        """Writes what `build` wants for a way that won."""

    @abstractmethod
    def build(self, path: Path, chosen: Mapping[str, Any]) -> Built:
        """Writes the library of the network, with what is chosen for some kernels, by their functions' names."""

    @abstractmethod
    def networks(self, libraries: Mapping[str, Path]) -> tuple[Mapping[str, Run], Mapping[str, Outputs]]:
        """Makes what times whole networks, and what they compute of the same inputs."""

    def tune(self, path: Path, scratch: Path, trials: int) -> Result[Built]:
        """Writes the library of the network, with kernels that were chosen by measuring.

        Args:
            scratch: a folder for another one.
            trials: how many kernels to try, all together; those that the cache knows count.

        Raises:
            TargetError: TVM fails; the device fails.
        """
        kernels = sorted(self.kernels(), key=lambda kernel: -kernel.seconds)
        total = sum(kernel.seconds for kernel in kernels)
        for kernel in kernels:
            kernel.share = kernel.seconds / total
        _share_out([kernel for kernel in kernels if self.rules & set(re.split(r"[+,]", kernel.rule))], trials)
        chosen: dict[str, Any] = {}
        done = 0
        for kernel in kernels:
            if kernel.trials:
                self._try(kernel, f"{{}} of {trials} trials", done)
                done += kernel.trials
                won = self._final(kernel)
                if won is not None:
                    chosen[kernel.name] = won
        self.progress("compiling the network")
        built = self.build(path, {})
        ratio, why = None, "no kernel is faster than the rule's"
        if chosen:
            tuned = scratch / path.name
            library = self.build(tuned, chosen)
            self.progress("timing the whole network")
            ratio, why = self._compare(path, tuned)
            if not why:
                shutil.copyfile(tuned, path)
                built = library
        record = {
            "device": self.device,
            "measured_at": self.place,
            "trials": trials,
            "kept": bool(chosen) and not why,
            "ratio": ratio and ratio.rounded(),
            "dropped": why,
            "kernels": [kernel.to_json() for kernel in kernels if kernel.trials],
        }
        return Result(built, record)

    def _try(self, kernel: Kernel, count: str, done: int) -> None:
        """The trials of a kernel."""
        known = list(self.database.trials(kernel.key))
        if len(known) >= kernel.trials:
            return
        candidates = self.candidates(kernel, known)
        ratio: float | None = None
        for number in range(len(known), kernel.trials):
            ratios = [ratio for _, ratio in self.database.trials(kernel.key) if ratio is not None]
            best = f", best {min(ratios):.2f} of the untuned" if ratios else ""
            self.progress(f"tuning {kernel.title}, {count.format(done + number)}{best}")
            try:
                way, candidate = next(candidates) if number == len(known) else candidates.send(ratio)
            except StopIteration:
                break
            try:
                ratio, why = self._trial(kernel, candidate)
            except Lost as error:
                # Perhaps it was this one that ended the server: it is not tried again.
                self.database.put(kernel.key, way, None, error.message)
                raise
            self.database.put(kernel.key, way, ratio, why)

    def _trial(self, kernel: Kernel, candidate: Any) -> tuple[float | None, str]:
        """A candidate's time as a multiple of the rule's, or why it has none."""
        try:
            runs = self.runs(kernel, {"rule": None, "candidate": candidate})
            once = _seconds(runs["candidate"]) / _seconds(runs["rule"])
            if once > _HOPELESS:
                return round(once, 4), ""
            timings = interleave(runs, rounds=_ROUNDS, seconds=0.0)
        except Lost:
            raise
        except TargetError as error:
            return None, error.message
        return round(float(np.median(timings.seconds["candidate"] / timings.seconds["rule"])), 4), ""

    def _final(self, kernel: Kernel) -> Any:
        """The best candidates once more, for longer; what `build` wants for the one that certainly wins, or None."""
        ran = [(ratio, way) for way, ratio in self.database.trials(kernel.key) if ratio is not None and ratio < 1]
        candidates: dict[str, Any] = {"rule": None}
        ways: dict[str, Way] = {}
        for number, (_, way) in enumerate(sorted(ran, key=lambda item: item[0])[:_FINALISTS]):
            # What an older dnc or TVM could write, this one perhaps cannot.
            with contextlib.suppress(TargetError):
                candidate = self.write(kernel, way)
                if candidate is not None:
                    candidates[f"candidate{number}"], ways[f"candidate{number}"] = candidate, way
        if not ways:
            return None
        try:
            runs = self.runs(kernel, candidates)
            timings = interleave(runs, seconds=_FINAL_SECONDS * len(candidates), rounds=(15, 1000))
        except Lost:
            raise
        except TargetError:
            return None
        best = min(ways, key=timings.median)
        ratio = timings.ratio(best, "rule", _CONFIDENCE)
        if ratio.high >= _GAIN:
            return None
        kernel.ratio, kernel.best = ratio, ways[best]
        return self.winner(kernel, ways[best], candidates[best])

    def _compare(self, path: Path, tuned: Path) -> tuple[Ratio | None, str]:
        """The tuned network's time as a multiple of the other's; and why it is not to be had, if so."""
        runs, outputs = self.networks({"rule": path, "tuned": tuned})
        for output, expected in zip(outputs["tuned"], outputs["rule"], strict=True):
            bound = self._close * np.abs(expected).max(initial=0)
            if not np.allclose(output, expected, rtol=0, atol=bound, equal_nan=True):
                return None, "its outputs differ"
        timings = interleave(runs, seconds=_NETWORK_SECONDS, rounds=(15, 1000))
        ratio = timings.ratio("tuned", "rule", _CONFIDENCE)
        return ratio, "" if ratio.high < 1 else "the network as a whole is not certainly faster"


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


class Forms:
    """The forms that a rule has for a kernel, those that its formula likes best first, each once.

    Args:
        write: gives the tirx.PrimFunc of a place; None if no rule matches.
        tried: places that do not count any more.
    """

    def __init__(self, write: Callable[[int], Any], tried: Iterable[int]) -> None:
        self._write = write
        known = list(tried)
        self._seen = {_hash(write(place)) for place in (0, *known)}
        self._next = max(known, default=0) + 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        """Place and function of the next one."""
        while self._next < _FORMS:
            place = self._next
            self._next += 1
            function = self._write(place)
            mark = _hash(function)
            if mark not in self._seen:
                self._seen.add(mark)
                return place, function
        raise StopIteration


def _hash(function: Any) -> int | None:
    from tvm_ffi import structural_hash

    return None if function is None else int(structural_hash(function))


def key_of(loops: Any) -> str:
    """Key of a kernel in the database, by its loops before any schedule."""
    from tvm_ffi import structural_hash

    return f"{structural_hash(loops) % (1 << 64):016x}"


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
    if record["ratio"] is not None:
        value, low, high = record["ratio"]
        text += f"; network {value:.3f} ({low:.3f} to {high:.3f}) of its time"
    return text + (", kept" if record["kept"] else f"; nothing is changed: {record['dropped']}")
