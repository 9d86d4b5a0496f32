"""Chooses the fastest of several engines for one network: builds each, runs them in turn, keeps one (target `cpu`).

Engines in other precisions than float32 are among them where the user says how much accuracy they may cost.

All run the same inputs with the same number of threads, from arrays to arrays, as an application sees it. What was
measured stands in engine.json, under `tuning`.

What no device has run yet is no candidate by its time alone: its target says whether it takes the place of what is
proven, by its outputs and by the time of the device (`Target.replaces`).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dnc.errors import TargetError
from dnc.files.places import as_text
from dnc.runtime.manifest import Manifest
from dnc.runtime.runners import Session
from dnc.runtime.timing import interleave, processors
from dnc.targets import Target
from dnc.targets.base import Candidate
from dnc.typing import Progress, silent

__all__ = ["SECONDS", "choose"]

SECONDS = 1.0
"""How long the timing takes, all together."""
_SETTLE = 0.02
"""After so long an engine is as fast as where it runs alone: its threads are awake, and those of the others asleep."""


def choose(
    candidates: Sequence[Candidate],
    folder: Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    refused: Mapping[str, str],
    progress: Progress = silent,
) -> Manifest:
    """Builds the candidates, times them if there are several, and leaves the files of the fastest in the folder.

    Args:
        candidates: at least one.
        folder: an empty folder.
        feeds: inputs by name.
        refused: why further targets are no candidates, by name.

    Returns:
        The manifest of the chosen one, with `tuning["candidates"]` and a line of it in `report["choice"]`.

    Raises:
        TargetError: every candidate refuses the network; the message is the first one's.
    """
    refused = dict(refused)
    sessions: dict[str, Session] = {}
    built: dict[str, Manifest] = {}
    first: TargetError | None = None
    with ThreadPoolExecutor(processors()) as pool:
        building = [_build(candidate, folder, pool, progress) for candidate in candidates]
        for candidate, build in zip(candidates, building, strict=True):
            name = candidate.target.title
            try:
                report = build()
            except TargetError as error:
                first = first or error
                refused[name] = error.message
                continue
            built[name] = dataclasses.replace(candidate.manifest, report={**candidate.manifest.report, **report})
    for candidate in candidates:
        if candidate.target.title in built and (proven := candidate.target.proven()) is not None:
            _replace(candidate.target, proven.title, folder, feeds, built, refused, progress)
    for candidate in candidates:
        name = candidate.target.title
        if name in built:
            try:
                session = candidate.target.runner().taking_turns().open(as_text(folder / name), processors())
                session.run(feeds)
            except TargetError as error:
                first = first or error
                refused[name] = error.message
                del built[name]
                continue
            sessions[name] = session
    if not built:
        assert first is not None
        raise first
    progress(f"timing {', '.join(sessions)}")
    fastest, measured, line = _time(sessions, feeds, refused)
    # What is open cannot be moved on every system.
    sessions.clear()
    for path in sorted((folder / fastest).iterdir()):
        path.rename(folder / path.name)
    for candidate in candidates:
        shutil.rmtree(folder / candidate.target.title)
    manifest = built[fastest]
    tuning = {**manifest.tuning, "candidates": measured}
    return dataclasses.replace(manifest, tuning=tuning, report={"choice": line, **manifest.report})


def _build(
    candidate: Candidate, folder: Path, pool: ThreadPoolExecutor, progress: Progress
) -> Callable[[], Mapping[str, str]]:
    """Builds a candidate into a folder of its own, now if that goes on elsewhere; what gives its report."""
    target, place = candidate.target, folder / candidate.target.title
    place.mkdir()

    def build(tell: Progress) -> Mapping[str, str]:
        return target.build(candidate.model, place, candidate.manifest, tell)

    if target.builds_apart:
        # Who tells what happens is this thread alone.
        future = pool.submit(build, silent)
        progress(f"building for {target.title}")
        return future.result

    def told() -> Mapping[str, str]:
        progress(f"building for {target.title}")
        return build(progress)

    return told


def _replace(
    target: Target,
    proven: str,
    folder: Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    built: dict[str, Manifest],
    refused: dict[str, str],
    progress: Progress,
) -> None:
    """Leaves one of two: what is proven, or what no device has run yet, if that is right and faster."""
    progress(f"trying {target.title}")
    taken, text = False, f"left out: {proven} was not built, which it would have to equal"
    if proven in built:
        try:
            taken, text = target.replaces(folder / target.title, folder / proven, feeds, progress)
        except TargetError as error:
            # Nothing can be tried here: an old driver, or no library of it.
            text = f"left out: {error.message}"
    del built[proven if taken else target.title]
    if taken:
        refused[proven] = f"{target.title} is {text}"
    else:
        refused[target.title] = text


def _time(
    sessions: Mapping[str, Session], feeds: Mapping[str, npt.NDArray[Any]], refused: Mapping[str, str]
) -> tuple[str, dict[str, Any], str]:
    """The fastest, what was measured, and that in words."""
    reasons = "".join(f"; {name}: {reason}" for name, reason in refused.items())
    measured: dict[str, Any] = {"threads": processors(), "milliseconds": {}, "ratios": {}, "refused": dict(refused)}
    if len(sessions) == 1:
        (chosen,) = sessions
        return chosen, measured, f"{chosen}, without timing{reasons}"
    runs = {name: partial(session.run, feeds) for name, session in sessions.items()}
    timings = interleave(runs, seconds=SECONDS, settle=_SETTLE)
    chosen = timings.fastest()
    words = []
    for name in sessions:
        measured["milliseconds"][name] = round(timings.median(name) * 1e3, 4)
        if name != chosen:
            ratio = timings.ratio(name, chosen)
            measured["ratios"][name] = [round(number, 4) for number in (ratio.value, ratio.low, ratio.high)]
            words.append(f"{name} takes {ratio} times as long")
    taken = f"{chosen}, {timings.median(chosen) * 1e3:.2f} ms with {processors()} threads"
    return chosen, measured, f"{taken}; {'; '.join(words)}{reasons}"
