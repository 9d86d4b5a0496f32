"""Trials of kernels that were measured (`dnc.targets.tvm.tuning`), kept in the user's cache.

A file for each kind of device (what it is, threads, versions):

    {"schema": 1, "device": "…"}
    {"kernel": "…", "way": 3, "ratio": 0.94}
    {"kernel": "…", "way": [trace], "ratio": null, "error": "…"}

`kernel` is the structural hash of its loops before any schedule, so that networks share what they have in common;
`way` the place of a tile, or a trace of MetaSchedule; `ratio` its time as a multiple of the rule's. Of several lines
for one way the last holds. A line is written when its trial ends: who is killed goes on from there. Ratios choose what
is measured again, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnc.files.reading import parse_json, read_bounded

__all__ = ["Database", "Way"]

Way = int | list[Any]
"""A tile's place, or a trace of MetaSchedule."""
_SCHEMA = 1
_LARGEST = 1 << 26
"""Bytes of records; a trial takes some 100."""


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
        self._found: dict[str, dict[str, tuple[Way, float | None]]] = {}
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
        self._found.setdefault(kernel, {})[json.dumps(way)] = way, ratio

    def trials(self, kernel: str) -> Sequence[tuple[Way, float | None]]:
        """Trials of a kernel, in order: the way, and its ratio if it ran."""
        return list(self._found.get(kernel, {}).values())

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
