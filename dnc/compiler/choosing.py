"""Chooses the fastest of several engines for one network: builds each, runs them in turn, keeps one (target `cpu`).

Engines in other precisions than float32 are among them where the user says how much accuracy they may cost.

All run the same inputs with the same number of threads. What was measured stands in engine.json, under `tuning`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dnc.errors import TargetError
from dnc.files.places import as_text
from dnc.runtime.manifest import Manifest
from dnc.runtime.runners import Session
from dnc.runtime.timing import interleave, processors
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
    for candidate in candidates:
        name = candidate.target.title
        progress(f"building for {name}")
        place = folder / name
        place.mkdir()
        try:
            report = candidate.target.build(candidate.model, place, candidate.manifest, progress)
            session = candidate.target.runner().taking_turns().open(as_text(place), processors())
            session.run(feeds)
        except TargetError as error:
            first = first or error
            refused[name] = error.message
            continue
        built[name] = dataclasses.replace(candidate.manifest, report={**candidate.manifest.report, **report})
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
