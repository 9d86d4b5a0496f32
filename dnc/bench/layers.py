"""Where a network's time goes: by section of the cfg, against what the machine can do (a roofline).

The engine says how long each of its nodes takes (`Session.profile`); nodes are added up by section. Nothing is scaled:
what the network takes beside its nodes, measured without a profile and in turn with it, is a row of its own, "between
layers"; it is negative where measuring the nodes slows them down. What an engine has joined with a neighbour has no
row, or less in it: the neighbour's time includes it, and its row names it.

    bound    compute or memory: which of the two peaks the section's operations and bytes come to first
    roof     the least time that the peaks allow, as a share of the time it takes
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dnc.bench.peaks import Peaks, peaks
from dnc.bench.subject import Subject
from dnc.graph.work import Work, place_of, read_work
from dnc.runtime.timing import warm_up
from dnc.typing import Progress, silent

__all__ = ["BETWEEN", "MADE", "Layer", "Layers", "attribute", "profile", "profiles"]

BETWEEN = "between layers"
MADE = "made by the engine"
_SECONDS = 6.0
"""How long a profile and the network without one take turns, of each engine; and how often at least."""
_CHUNKS = 4
_CHUNK_SECONDS = 0.03
_RUNS = (6, 30)


@dataclass(frozen=True)
class Layer:
    """A section and its time."""

    where: str
    """`a.cfg:22 [convolutional] #0`, as far as is known."""
    seconds: float
    operations: float
    bytes: float
    share: float
    """Of the network's time."""
    bound: str
    """`compute` or `memory`; empty where nothing is computed or moved."""
    roof: float
    """The share of its time that the peaks would allow."""
    also: tuple[str, ...] = ()
    """Other sections that nodes of this one compute as well, `#1`."""
    bits: float = 0.0
    """Operations on single bits."""
    least: float = 0.0
    """Seconds in the chunk in which it took least: what disturbs the machine only adds to them."""

    @property
    def place(self) -> str:
        """`#0`, as others name it in `also`; what belongs to no section, by its name."""
        return self.where.rpartition(" ")[2] if "#" in self.where else self.where

    @property
    def operations_per_second(self) -> float:
        """Rate that the section reaches."""
        return self.operations / self.seconds if self.seconds > 0 else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Rate that the section reaches."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Layers:
    """Sections of an engine that have nodes of their own, in order."""

    engine: str
    rows: tuple[Layer, ...]
    seconds: float
    """Of the network as a whole, without a profile."""
    between: float
    """Seconds of it that are in no row."""
    joined: tuple[str, ...]
    """Sections that compute something and have no row."""
    peaks: Peaks | None
    """None where they are not measured: on a GPU."""


def profile(
    subject: Subject,
    places: Mapping[str, str] | None = None,
    *,
    measured: Peaks | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Layers:
    """Measures an engine's sections.

    Args:
        places: sections of its cfg by `#` and their number, where the cfg is known; the engine may know them itself.
        measured: the peaks, if they are known.

    Raises:
        TargetError: the engine does not tell how long its layers take, or its model cannot be read.
    """
    (layers,) = profiles([(subject, places or {})], measured=measured, progress=progress, clock=clock)
    return layers


def profiles(
    subjects: Sequence[tuple[Subject, Mapping[str, str]]],
    *,
    measured: Peaks | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Layers]:
    """`profile` of several engines with their places, which take turns."""
    prepared = [_Profiled(subject, measured, progress, clock) for subject, _ in subjects]
    progress(f"timing the layers of {', '.join(subject.name for subject, _ in subjects)}")
    start = clock()
    while len(prepared[0].chunks) < _CHUNKS or clock() - start < _SECONDS * len(prepared):
        for one in prepared:
            one.measure()
    return [
        attribute(one.subject.name, one.work, one.chunks, one.limits, places)
        for one, (_, places) in zip(prepared, subjects, strict=True)
    ]


class _Profiled:
    """An engine whose sections are measured, chunk by chunk."""

    def __init__(
        self, subject: Subject, measured: Peaks | None, progress: Progress, clock: Callable[[], float]
    ) -> None:
        self.subject, self._clock = subject, clock
        self.work = read_work(subject.folder, subject.manifest, subject.batch)
        # A run on a GPU copies its inputs there, and where one is there may be no compiler for it.
        known = measured is not None or subject.target.name == "cuda"
        bits = any(node.bits for node in self.work)
        self.limits = measured if known else peaks(subject.target, subject.threads, progress, bits=bits)
        self._session = subject.session()
        start = clock()
        self._session.run(subject.feeds)
        self._runs = int(np.clip(_CHUNK_SECONDS / max(clock() - start, 1e-6), *_RUNS))
        self.chunks: list[tuple[float, list[tuple[str, float]]]] = []
        """Seconds of the network and, just after, of each node."""

    def measure(self) -> None:
        """Adds a chunk."""
        feeds, whole = self.subject.feeds, []
        warm_up(lambda: self._session.run(feeds))
        for _ in range(self._runs):
            before = self._clock()
            self._session.run(feeds)
            whole.append(self._clock() - before)
        self.chunks.append((float(np.median(whole)), self._session.profile(feeds, self._runs)))


def attribute(
    engine: str,
    work: Sequence[Work],
    chunks: Sequence[tuple[float, Sequence[tuple[str, float]]]],
    limits: Peaks | None,
    places: Mapping[str, str],
) -> Layers:
    """Adds nodes up by section.

    Args:
        work: what its sections compute.
        chunks: seconds of the network and, just after, of each node; several times.
        limits: the peaks, if they are known.
    """
    taken, shortest, whole, also = _by_section([*(node.place for node in work), MADE], chunks)
    rows = []
    for node in (*work, Work(MADE, MADE)):
        if node.place not in also:
            continue
        # Zero where it is too short to be measured.
        seconds = taken[node.place]
        least, bound = 0.0, "memory"
        if limits is not None:
            least = limits.attainable(node.operations, node.bytes, node.bits)
            moving = node.bytes / limits.bandwidth
            bound = "compute" if limits.computing(node.operations, node.bits) > moving else "memory"
        where = places.get(node.place, node.where)
        share = seconds / whole
        roof = least / seconds if seconds else 0.0
        others = tuple(other.place for other in work if other.place in also[node.place])
        bound = bound if least else ""
        once = shortest[node.place]
        rows.append(Layer(where, seconds, node.operations, node.bytes, share, bound, roof, others, node.bits, once))
    # An engine's order is not the cfg's; what belongs to no section comes last.
    rows.sort(key=lambda row: int(row.place[1:]) if row.place[1:].isdecimal() else sys.maxsize)
    joined = [
        places.get(node.place, node.where)
        for node in work
        if (node.operations or node.bits) and node.place.startswith("#") and node.place not in also
    ]
    between = whole - sum(taken.values())
    return Layers(engine, tuple(rows), whole, between, tuple(joined), limits)


def _by_section(
    places: Sequence[str], chunks: Sequence[tuple[float, Sequence[tuple[str, float]]]]
) -> tuple[dict[str, float], dict[str, float], float, dict[str, set[str]]]:
    """Seconds by place, the least of them, seconds of the network, and the places that have nodes with the others that
    these compute."""
    columns = {place: number for number, place in enumerate(places)}
    # The network's time stands beside its nodes', so that both are those of the same chunks.
    table = np.zeros((len(chunks), len(columns) + 1))
    also: dict[str, set[str]] = {}
    for row, (whole, nodes) in zip(table, chunks, strict=True):
        row[-1] = whole
        for name, seconds in nodes:
            # A name holds words, of each of which the parts may be places: the first word with a place counts.
            words = ([place for place in map(place_of, word.split("+")) if place in columns] for word in name.split())
            place, *rest = next(filter(None, words), [MADE])
            row[columns[place]] += seconds
            also.setdefault(place, set()).update(other for other in rest if other != place)
    # Of chunks, the fastest quarter: what disturbs the machine disturbs layers unequally.
    quiet = table[np.argsort(table.sum(axis=1))[: -(-len(table) // 4)]]
    *means, whole = np.mean(quiet, axis=0).tolist()
    least = table[:, :-1].min(axis=0).tolist()
    return dict(zip(columns, means, strict=True)), dict(zip(columns, least, strict=True)), whole, also
