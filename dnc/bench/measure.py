"""Measures engines and peers: latency, throughput, start-up time, memory, energy. The result is a `Recording`.

Its JSON holds every round, with those of the yardstick (`dnc.bench.yardstick`), so that recordings of different days
can be compared:

    schema      1
    made        when, and by which dnc
    settings    threads, batch, streams; the confidence of all intervals
    machine     see `dnc.bench.machine`
    engines     figures of each engine and peer, the first of which the ratios are to; seconds, bytes, joules
    rounds      opening, waited: see `dnc.runtime.timing.Openings`; seconds by engine
    notes       what could not be measured, and why
    layers, end_to_end      with --layers, --images, --video, --camera
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import dnc
from dnc.bench.energy import joules, meters
from dnc.bench.machine import machine
from dnc.bench.peers import Peer
from dnc.bench.subject import Subject
from dnc.bench.timing import CONFIDENCE, Opener, Openings, compete
from dnc.bench.yardstick import NAME as YARDSTICK
from dnc.bench.yardstick import yardstick
from dnc.errors import DncError, TargetError
from dnc.files.reading import read_json
from dnc.files.writing import scratch_folder
from dnc.runtime.timing import Interval, Ratio
from dnc.typing import Progress, silent

__all__ = ["Figures", "Recording", "Settings", "measure", "read_recording"]

SCHEMA = 1
_SHARES = (0.0, 0.5, 0.9, 0.99)
_STARTS = (3, 7)
"""Processes that are started for each engine, at least and at most, after one that is not counted."""
_START_SECONDS = 5.0
_MEMORY_RUNS = 10
_ENERGY_SECONDS = 2.0
_SETTLE = 0.02
_BUSY = 0.5
"""The share of disturbed rounds from which on there is a remark."""
_GPUS = ("CUDA", "Tensorrt")


@dataclass(frozen=True)
class Settings:
    """Settings that engines are run with."""

    threads: int
    batch: int = 1
    streams: int = 1
    seconds: float = 20.0
    """How long the timing takes, all together; start-up and energy come on top."""


@dataclass(frozen=True)
class Figures:
    """Measurements of an engine or a peer; None where there is none."""

    name: str
    kind: str
    """`engine` or `peer`."""
    device: str
    network: Mapping[str, Any]
    """cfg, digest, bflops, ... of engine.json; of a peer, that of the first engine."""
    latency: Mapping[str, float]
    """Seconds of one call: min, median, p90, p99; with one caller, low and high, the ends of the median's interval."""
    runs: int
    throughput: Interval
    """Images a second."""
    ratio: Ratio | None = None
    """Time as a multiple of the first engine's."""
    startup: Mapping[str, float] | None = None
    """Seconds from opening to the first result, `ready`; of that `open`, and before it `import`; from the start of the
    process to the result, `process`."""
    memory: int | None = None
    """Bytes that its process held at most."""
    energy: float | None = None
    """Joules for an image."""
    options: Mapping[str, str] = field(default_factory=dict)
    target: str = ""


@dataclass(frozen=True)
class Recording:
    """A measurement."""

    settings: Settings
    machine: Mapping[str, Any]
    figures: tuple[Figures, ...]
    timings: Openings
    notes: tuple[str, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    confidence: float = CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        timings = self.timings
        return {
            "schema": SCHEMA,
            "made": dict(self.made),
            "settings": {**asdict(self.settings), "confidence": self.confidence},
            "machine": dict(self.machine),
            "engines": [asdict(figures) for figures in self.figures],
            "rounds": {
                "opening": timings.opening.tolist(),
                "waited": [] if timings.waited is None else [float(f"{value:.4g}") for value in timings.waited],
                "seconds": {
                    name: [float(f"{value:.6g}") for value in values] for name, values in timings.seconds.items()
                },
            },
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recording:
        """Inverse of `to_json`; raises KeyError, TypeError, ValueError or OverflowError for what is none."""
        settings = {name: value for name, value in content["settings"].items() if name != "confidence"}
        rounds = content["rounds"]
        opening = np.array(rounds["opening"], np.intp)
        waited = np.array(rounds["waited"], np.float64)
        seconds = {str(name): np.array(values, np.float64) for name, values in rounds["seconds"].items()}
        if any(array.shape != opening.shape for array in (waited, *seconds.values())) or not len(opening):
            raise ValueError("its rounds do not fit together")
        if not all(np.isfinite(values).all() and (values > 0).all() for values in seconds.values()):
            raise ValueError("its seconds are not positive")
        figures = []
        for entry in content["engines"]:
            ratio = None if entry["ratio"] is None else Ratio(**entry["ratio"])
            figures.append(Figures(**{**entry, "throughput": Interval(**entry["throughput"]), "ratio": ratio}))
        if not figures or any(engine.name not in seconds for engine in figures) or YARDSTICK not in seconds:
            raise ValueError("it has no rounds of an engine or of the yardstick")
        return cls(
            Settings(**settings),
            dict(content["machine"]),
            tuple(figures),
            Openings(seconds, opening, waited=waited),
            tuple(content["notes"]),
            dict(content["made"]),
            float(content["settings"]["confidence"]),
        )


_LARGEST_RECORDING = 1 << 26
"""Bytes."""


def read_recording(path: Path) -> Recording:
    """Reads what `dnc bench --json` printed. Raises DncError if it is no recording, or a newer dnc made it."""
    hint = "make one with `dnc bench ENGINE --json > FILE`"
    try:
        content = read_json(path, _LARGEST_RECORDING)
    except OSError as error:
        raise DncError(f"cannot read the recording: {error.strerror or error}", path, hint) from error
    except ValueError as error:
        raise DncError(f"this is no recording: {error}", path, hint) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int):
        raise DncError("this is no recording: it has no schema number", path, hint)
    if schema > SCHEMA:
        raise DncError(f"the recording has schema {schema}, this dnc reads up to {SCHEMA}", path, "update dnc")
    try:
        return Recording.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DncError(f"this is no recording: {error!r}", path, hint) from error


def measure(
    subjects: Sequence[Subject],
    peers: Sequence[Peer] = (),
    *,
    seconds: float = 20.0,
    extras: bool = True,
    device: str = "",
    progress: Progress = silent,
) -> Recording:
    """Measures engines, in turn, and peers with them.

    Args:
        subjects: the engines, with the same threads, batch and callers; the others are compared with the first.
        peers: other libraries; one that does not run becomes a note.
        seconds: how long the timing may take.
        extras: start-up time, memory and energy as well.
        device: where the engines run, if not here.

    Raises:
        TargetError: an engine does not run.
    """
    first = subjects[0]
    settings = Settings(first.threads, first.batch, first.streams, seconds)
    made_on = machine() | ({"remote": device} if device else {})
    notes: list[str] = []
    if device:
        notes.append(f"the engines ran on the device at {device}, and the machine above sent them there")
    running = [peer for peer in peers if _runs(peer, notes, progress)]
    starts = _start_ups(subjects, progress) if extras else {}
    candidates: dict[str, Opener] = {subject.name: subject.open for subject in subjects}
    candidates |= {peer.title: peer.open for peer in running}
    candidates[YARDSTICK] = lambda: yardstick(settings.threads)
    timings = compete(candidates, seconds=seconds, settle=_SETTLE, aside=[YARDSTICK], progress=progress)
    figures = []
    for subject in subjects:
        start = starts.get(subject.name, {})
        progress(f"energy of {subject.name}")
        energy, reason = _energy(subject, start.get("device", "")) if extras else (None, "")
        if reason and reason not in notes:
            notes.append(reason)
        manifest, where = subject.manifest, start.get("device", device)
        more: dict[str, Any] = {"startup": start.get("startup"), "memory": start.get("memory"), "energy": energy}
        more |= {"options": dict(manifest.options), "target": manifest.target, **_timed(timings, first, subject)}
        figures.append(Figures(subject.name, "engine", where, manifest.network, **more))
    for peer in running:
        more = {"startup": {"ready": peer.told["open"]}, "memory": peer.told["memory"], **_timed(timings, first, peer)}
        figures.append(Figures(peer.title, "peer", "CPU", first.manifest.network, **more))
    if timings.disturbed > _BUSY:
        notes.append(f"other processes ran in {timings.disturbed:.0%} of the rounds: intervals are wide")
    made = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "dnc": dnc.__version__}
    return Recording(settings, made_on, tuple(figures), timings, tuple(notes), made)


def _runs(peer: Peer, notes: list[str], progress: Progress) -> bool:
    """Whether a peer runs the network; if not, the reason becomes a note."""
    progress(f"starting {peer.name}")
    try:
        with peer.open() as run:
            run()
    except TargetError as error:
        notes.append(error.message + (f" ({error.hint})" if error.hint else ""))
        return False
    return True


def _timed(timings: Openings, first: Subject, subject: Subject | Peer) -> dict[str, Any]:
    """The figures that come from the timings."""
    name = subject.title if isinstance(subject, Peer) else subject.name
    quiet = timings.quiet()
    time_of_one = quiet.time(name)
    batch = first.batch
    throughput = Interval(batch / time_of_one.value, batch / time_of_one.high, batch / time_of_one.low)
    latencies = subject.latencies if isinstance(subject, Subject) and subject.streams > 1 else None
    if latencies:
        numbers = np.quantile(latencies, _SHARES).tolist()
        runs = len(latencies)
    else:
        numbers = timings.quantiles(name, _SHARES)
        runs = len(timings.runs.get(name, timings.seconds[name]))
    latency = dict(zip(("min", "median", "p90", "p99"), numbers, strict=True))
    if not latencies:
        latency |= {"median": time_of_one.value, "low": time_of_one.low, "high": time_of_one.high}
    ratio = None if subject is first else quiet.ratio(name, first.name, CONFIDENCE)
    return {"latency": latency, "runs": runs, "throughput": throughput, "ratio": ratio}


def _start_ups(subjects: Sequence[Subject], progress: Progress) -> dict[str, dict[str, Any]]:
    """Medians over fresh processes, which are started in turn."""
    starts: dict[str, list[dict[str, Any]]] = {subject.name: [] for subject in subjects}
    with scratch_folder("bench") as scratch:
        files = {}
        for number, subject in enumerate(subjects):
            files[subject.name] = scratch / f"{number}.npz"
            np.savez(files[subject.name], **subject.feeds)  # type: ignore[arg-type]
        begin = time.perf_counter()
        least, most = _STARTS
        for number in range(most + 1):
            if number > least and time.perf_counter() - begin > _START_SECONDS * len(subjects):
                break
            for subject in subjects:
                progress(f"starting {subject.name} in a process of its own, {number + 1}")
                told = _start(subject, files[subject.name])
                if number:
                    # The first one reads the files from the disk, and fills the caches of libraries that have one.
                    starts[subject.name].append(told)
    figures = {}
    for name, several in starts.items():
        keys = ("import", "open", "ready", "process")
        medians = {key: float(np.median([start[key] for start in several])) for key in keys}
        held = [start["memory"] for start in several]
        memory = None if None in held else int(np.median(held))
        figures[name] = {"startup": medians, "memory": memory, "device": several[-1]["device"]}
    return figures


def _start(subject: Subject, inputs: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "dnc.bench.child", str(subject.folder.absolute()), str(inputs)]
    command += [str(subject.threads), str(_MEMORY_RUNS)]
    search = [str(Path(dnc.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))}
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise TargetError(f"the engine does not start in a process of its own: {last}", subject.folder)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ready = told["open"] + told["first"]
    return {**told, "ready": ready, "process": seconds - told["rest"]}


def _energy(subject: Subject, device: str) -> tuple[float | None, str]:
    """Joules for an image, of everything that counts them; or why they are not known."""
    counters, reason = meters(gpu=device in _GPUS)
    if not counters:
        return None, f"energy is not known: {reason}"
    with subject.open() as run:
        run()
        spent, runs = joules(run, counters, _ENERGY_SECONDS)
    return sum(spent.values()) / (runs * subject.batch), ""
