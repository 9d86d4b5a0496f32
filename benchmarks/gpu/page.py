"""What was measured as tables: the part of benchmarks/gpu.md between two comments, from benchmarks/gpu/*.jsonl.

A file is one run. A line {"machine": …} says on what, by which versions and which command; the others are

    network, precision, images, peer    what was measured: see `benchmarks.gpu.__main__`
    device, host                        seconds
    ratio                               device, as a multiple of the first of its row: value and 95 % interval
    error                               from the right values
    wrong                               why there is nothing of this
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measured
from benchmarks.measured import Row, read

__all__ = ["PAGE", "keep", "table", "tables", "write"]

_HERE = Path(__file__).parent
PAGE = _HERE.parent / "gpu.md"
_OWN = ("dnc", "dnc new", "dnc tuned", "dnc single kernels")
_SHORT = {"dnc single kernels": "dnc, single"}
Rows = Sequence[Row]


def keep(path: Path) -> None:
    """Puts the rows of a run beside this module, named after the GPU and the day."""
    rows = read(path)
    machine = next(row["machine"] for row in reversed(rows) if "machine" in row)
    title = re.sub(r"\W+", "-", machine["gpu"].partition(" (")[0].removeprefix("NVIDIA ")).lower()
    measured.keep(_HERE / f"{title}-{machine['date']}.jsonl", rows)


def write() -> None:
    """Writes the tables into the page, the last run first."""
    measured.put(PAGE, tables())


def tables() -> str:
    """All runs as Markdown."""
    runs = [read(path) for path in _HERE.glob("*.jsonl")]
    return "".join(table(rows) for rows in sorted(runs, key=_date, reverse=True))


def _machine(rows: Rows) -> Mapping[str, Any]:
    return next(row["machine"] for row in rows if "machine" in row)


def _date(rows: Rows) -> str:
    return str(_machine(rows)["date"])


def table(rows: Rows) -> str:
    """A run as Markdown."""
    machine = _machine(rows)
    text = f"## {machine['gpu']}, {machine['date']}\n\n"
    text += f"{machine['host']}; {', '.join(f'{name} {version}' for name, version in machine['versions'].items())}\n\n"
    commands = list(dict.fromkeys(row["machine"]["command"] for row in rows if "machine" in row))
    text += "".join(f"    {command}\n" for command in commands) + "\n"
    # What was measured last counts.
    cells = {(row["network"], row["precision"], row["images"], row["peer"]): row for row in rows if "network" in row}
    groups = list(dict.fromkeys((images, precision) for _, precision, images, _ in cells))
    for images, precision in groups:
        text += _table(images, precision, cells)
    return text + _summary(cells)


def _table(images: int, precision: str, cells: Mapping[Any, Mapping[str, Any]]) -> str:
    own = {key: row for key, row in cells.items() if key[1:3] == (precision, images)}
    peers = list(dict.fromkeys(peer for *_, peer in own))
    timed = [peer for peer in peers if any("device" in row for key, row in own.items() if key[3] == peer)]
    title = f"### {precision}, {images} image{'s' * (images > 1)}: microseconds on the device\n\n"
    heads = ["network", *(_SHORT.get(peer, peer) for peer in timed), "dnc / best peer", "error of dnc"]
    heads += ["array to arrays: dnc", "best peer"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    notes = []
    for network in dict.fromkeys(key[0] for key in own):
        row = {peer: own.get((network, precision, images, peer), {}) for peer in peers}
        values = [_micro(row[peer].get("device")) for peer in timed]
        ours, theirs = _best(row, "device", own=True), _best(row, "device", own=False)
        ratio = f"{ours / theirs:.2f}" if ours and theirs else ""
        error = row.get("dnc", {}).get("error")
        told = "" if error is None else "NaN" if math.isnan(error) else f"{error:.0e}"
        hosts = [_micro(_best(row, "host", own=mine)) for mine in (True, False)]
        lines.append("| " + " | ".join([network, *values, ratio, told, *hosts]) + " |")
        notes += [f"- {network}, {peer}: {cell['wrong']}\n" for peer, cell in row.items() if "wrong" in cell]
        if boxes := row.get("dnc boxes", {}).get("host"):
            notes.append(f"- {network}: from bytes to boxes {_micro(boxes)} us\n")
    return title + "\n".join(lines) + "\n\n" + "".join(notes) + "\n" * bool(notes)


def _best(row: Mapping[str, Mapping[str, Any]], what: str, *, own: bool) -> float | None:
    """The least of dnc's, as it is by default, or of the others'."""
    names = ("dnc",) if own else tuple(peer for peer in row if peer not in _OWN and peer != "dnc boxes")
    return min((row[name][what] for name in names if name in row and row[name].get(what)), default=None)


def _micro(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.0f}"


def _summary(cells: Mapping[Any, Mapping[str, Any]]) -> str:
    """The geometric mean over all rows, and where dnc loses."""
    ratios = {}
    for network, precision, images in dict.fromkeys(key[:3] for key in cells):
        row = {key[3]: cell for key, cell in cells.items() if key[:3] == (network, precision, images)}
        ours, theirs = _best(row, "device", own=True), _best(row, "device", own=False)
        if ours and theirs:
            ratios[f"{network} {precision} {images}"] = ours / theirs
    if not ratios:
        return ""
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    lost = [f"{name} {ratio:.2f}" for name, ratio in _worst_first(ratios) if ratio > 1]
    text = f"dnc takes {mean:.2f} times what the best peer takes, in the geometric mean of {len(ratios)} rows; it is "
    return text + (f"behind in {len(lost)}: {', '.join(lost)}.\n\n" if lost else "ahead in all.\n\n")


def _worst_first(ratios: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return iter(sorted(ratios.items(), key=lambda item: -item[1]))
