"""Chooses the fastest of several engines for one network: builds each, runs them in turn, keeps one (target `cpu`).

Engines in other precisions than float32 are among them where the user says how much accuracy they may cost.

All run the same inputs with the same number of threads. What was measured stands in engine.json, under `tuning`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnc.errors import TargetError
from dnc.runtime.manifest import Manifest
from dnc.runtime.runners import Session
from dnc.runtime.timing import interleave, processors
from dnc.targets import Target
from dnc.typing import Array, Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["SECONDS", "Candidate", "choose"]

SECONDS = 1.0
"""How long the timing takes, all together."""
_SETTLE = 0.02
"""After so long an engine is as fast as where it runs alone: its threads are awake, and those of the others asleep."""


@dataclass(frozen=True)
class Candidate:
    """A network made ready for one target."""

    target: Target
    model: ir.Model
    manifest: Manifest
    """engine.json, but for what `Target.build` reports."""


def choose(
    candidates: Sequence[Candidate],
    folder: Path,
    feeds: Mapping[str, Array],
    others: Mapping[str, str],
    progress: Progress = silent,
) -> Manifest:
    """Builds the candidates, times them if there are several, and leaves the files of the fastest in the folder.

    Args:
        candidates: at least one.
        folder: an empty folder.
        feeds: inputs by name.
        others: why further targets are no candidates, by name.
        progress: is told what happens now.

    Returns:
        The engine.json of the chosen one, with `tuning["candidates"]` and a line of it in `report["choice"]`.

    Raises:
        TargetError: every candidate refuses the network; what is told is what the first one said.
    """
    others = dict(others)
    sessions: dict[str, Session] = {}
    made: dict[str, Manifest] = {}
    first: TargetError | None = None
    for each in candidates:
        name = each.target.title
        progress(f"building for {name}")
        place = folder / name
        place.mkdir()
        try:
            report = each.target.build(each.model, place, each.manifest, progress)
            session = each.target.runner().taking_turns().open(place, processors())
            session.run(feeds)
        except TargetError as error:
            first = first or error
            others[name] = error.message
            continue
        made[name] = dataclasses.replace(each.manifest, report=report)
        sessions[name] = session
    if not made:
        assert first is not None
        raise first
    progress(f"timing {', '.join(sessions)}")
    chosen, measured, line = _time(sessions, feeds, others)
    # What is open cannot be moved on every system.
    sessions.clear()
    for path in sorted((folder / chosen).iterdir()):
        path.rename(folder / path.name)
    for each in candidates:
        shutil.rmtree(folder / each.target.title)
    manifest = made[chosen]
    return dataclasses.replace(
        manifest,
        tuning={**manifest.tuning, "candidates": measured},
        report={"choice": line, **manifest.report},
    )


def _time(
    sessions: Mapping[str, Session], feeds: Mapping[str, Array], others: Mapping[str, str]
) -> tuple[str, dict[str, Any], str]:
    """The fastest, what was measured, and that in words."""
    reasons = "".join(f"; {name}: {reason}" for name, reason in others.items())
    measured: dict[str, Any] = {"threads": processors(), "milliseconds": {}, "ratios": {}, "refused": dict(others)}
    if len(sessions) == 1:
        (chosen,) = sessions
        return chosen, measured, f"{chosen}, without timing{reasons}"
    runs = {name: _runner(session, feeds) for name, session in sessions.items()}
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


def _runner(session: Session, feeds: Mapping[str, Array]) -> Callable[[], object]:
    return lambda: session.run(feeds)
