"""Has it become slower? Two engines, or two recordings of `dnc bench --json`, for CI.

Two engines run in turn, and what is compared is their ratio (`dnc.bench.timing.compete`).

Two recordings were made at different times, when the machine may have been faster or slower. Each has the yardstick's
times beside its engine's: what is compared is the engine's time as a multiple of the yardstick's. A network of many
small layers suffers more than the yardstick from waiting for a processor, so only the rounds that waited for none are
taken, if there are enough. Where most rounds waited, the machine is not known well: beside one other process an engine
takes up to twice as long, and the yardstick perhaps not, so that the interval reaches further by a factor of one and
the share of these rounds. It is Welch's for trimmed means (Yuen, Biometrika 61, 1974), over the openings of
either recording: they are independent, and may spread differently.

It is slower where the whole interval of the ratio lies above the threshold; what is within the noise passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dnc.bench.measure import Figures, Recording
from dnc.bench.timing import CONFIDENCE, student, trimmed_mean
from dnc.bench.yardstick import NAME as YARDSTICK
from dnc.errors import DncError
from dnc.runtime.timing import Ratio

__all__ = ["Difference", "compare_recordings", "parse_threshold"]

_OPENINGS = 4
"""With fewer, no interval is worth its name."""
_BUSY = 0.5
"""The share of rounds that waited for a processor from which on there is a remark, and the interval is wider."""
_SAME = ("cpu", "architecture", "usable")
_SAME_SETTINGS = ("threads", "batch", "streams")


@dataclass(frozen=True)
class Difference:
    """An engine's time as a multiple of another one's."""

    old: str
    new: str
    ratio: Ratio
    threshold: float
    """0.05 for 5 %."""
    notes: tuple[str, ...] = ()

    @property
    def slower(self) -> bool:
        """Whether it is slower by more than the threshold, for certain."""
        return self.ratio.low > 1 + self.threshold

    def __str__(self) -> str:
        verdict = "slower by more than" if self.slower else "not slower for certain by more than"
        limit = f"{self.threshold * 100:.3g} %"
        return f"{self.new} takes {self.ratio} times as long as {self.old}: {verdict} {limit}"

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        return {**asdict(self), "slower": self.slower}


def parse_threshold(text: str) -> float:
    """`5%` or `0.05` as a share; raises ValueError."""
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= number < 100:
        raise ValueError(text)
    return number


def compare_recordings(old: Recording, new: Recording, names: tuple[str, str], threshold: float) -> list[Difference]:
    """Compares the engines of two recordings, by their names, or the only one of either.

    Args:
        names: what they are called, their files.

    Raises:
        DncError: they were made on different machines or with different settings, or have no engine in common.
    """
    if "remote" in old.machine or "remote" in new.machine:
        hint = "compare the engines themselves: dnc bench --diff OLD NEW --remote HOST:PORT"
        raise DncError("recordings of a device have no yardstick of that device", " and ".join(names), hint)
    for what in _SAME:
        if old.machine.get(what) != new.machine.get(what):
            values = f"{what}: {old.machine.get(what)} and {new.machine.get(what)}"
            hint = "record both on one machine"
            raise DncError(f"the recordings were made on different machines ({values})", " and ".join(names), hint)
    for what in _SAME_SETTINGS:
        before, after = getattr(old.settings, what), getattr(new.settings, what)
        if before != after:
            raise DncError(f"the recordings have {before} and {after} {what}", " and ".join(names))
    notes = _changes(old.machine, new.machine)
    pairs = _pairs(old, new, names)
    differences = []
    for before, after in pairs:
        own = list(notes)
        if before.network.get("digest") != after.network.get("digest"):
            cfgs = f"{before.network.get('cfg')} and {after.network.get('cfg')}"
            if before.network.get("cfg") != after.network.get("cfg"):
                raise DncError(f"the recordings are of different networks: {cfgs}", " and ".join(names))
            own.append(f"the weights or the cfg of {before.network.get('cfg')} have changed")
        ratio, more = _ratio(old, new, before.name, after.name)
        titles = names if before.name == after.name else (f"{before.name} in {names[0]}", f"{after.name} in {names[1]}")
        if len(pairs) > 1 and before.name == after.name:
            titles = (f"{before.name} in {names[0]}", f"in {names[1]} {after.name}")
        differences.append(Difference(*titles, ratio, threshold, (*own, *more)))
    return differences


def _pairs(old: Recording, new: Recording, names: tuple[str, str]) -> list[tuple[Figures, Figures]]:
    before = {figures.name: figures for figures in old.figures if figures.kind == "engine"}
    after = {figures.name: figures for figures in new.figures if figures.kind == "engine"}
    if len(before) == len(after) == 1:
        return list(zip(before.values(), after.values(), strict=True))
    common = [(before[name], after[name]) for name in before if name in after]
    if not common:
        what = f"the recordings have no engine in common: {', '.join(before)}; {', '.join(after)}"
        raise DncError(what, " and ".join(names))
    return common


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Notes on what else differs, and may be why."""
    notes = []
    for what in ("governor", "turbo", "os"):
        if old.get(what) != new.get(what):
            notes.append(f"{what}: {old.get(what)}, now {new.get(what)}")
    before, after = old.get("libraries", {}), new.get("libraries", {})
    notes += [
        f"{name} {before.get(name)}, now {after.get(name)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    return notes


def _ratio(old: Recording, new: Recording, before: str, after: str) -> tuple[Ratio, list[str]]:
    notes, parts, unknown = [], [], 0.0
    for recording, name, when in ((old, before, "old"), (new, after, "new")):
        timings = recording.timings.quiet()
        if recording.timings.disturbed > _BUSY:
            notes.append(f"other processes ran in {recording.timings.disturbed:.0%} of the {when} recording")
            unknown += float(np.log1p(recording.timings.disturbed))
        values = timings.by_opening(name, YARDSTICK)
        if len(values) < _OPENINGS:
            hint = "record for longer: --seconds"
            raise DncError(f"the {when} recording has {len(values)} openings, too few to compare", name, hint)
        parts.append(trimmed_mean(values))
    squared = sum(part[1] for part in parts)
    weighed = sum(part[1] ** 2 / part[2] for part in parts)
    freedom = squared**2 / weighed if weighed else min(part[2] for part in parts)
    reach = student((1 + CONFIDENCE) / 2, freedom) * squared**0.5 + unknown
    change = parts[1][0] - parts[0][0]
    return Ratio(*np.exp([change, change - reach, change + reach]).tolist()), notes
