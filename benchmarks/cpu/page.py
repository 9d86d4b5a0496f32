"""What was measured as tables: the part of benchmarks/cpu.md between two comments, from benchmarks/cpu/measured.jsonl.

A line {"machine": …} says on what, and with which versions; it holds for those after it. The others are

    isa, kind, network      what was measured: see `benchmarks.cpu.__main__`
    rounds                  how many
    seconds                 median of one run, by engine and peer
    to, ratios              seconds as multiples of those of `to`, compared round by round: value and 95 % interval
    notes                   what is left out, and why
    versions                of peers that are no packages of this interpreter
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.measured import Row, keep, put, read

__all__ = ["MEASURED", "PAGE", "append", "tables", "write"]

MEASURED = Path(__file__).with_name("measured.jsonl")
PAGE = MEASURED.parent.with_suffix(".md")
_ORDER = ("host", "amx", "avx512vnni", "avxvnni", "avx512", "avx2", "sse", "i8mm", "dotprod", "neon", "unknown")
_TITLES = {
    "amx": "AVX-512 with AMX",
    "avx512vnni": "AVX-512 with VNNI",
    "avx512": "AVX-512 without VNNI",
    "avxvnni": "AVX2 with VNNI",
    "avx2": "AVX2",
}
_EIGHTS = ("bf16", "int8")
BATCH = 16
"""How many images are run as one."""


def append(path: Path, machine: Row, row: Row) -> None:
    """Adds a row to a file, and what it was measured on where that is news."""
    before = [line for line in read(path) if "machine" in line]
    lines = [machine] if not before or before[-1] != machine else []
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in [*lines, row])


def write(path: Path) -> None:
    """Keeps the rows of a file beside this module, and writes their tables into the page."""
    rows = read(path)
    if not rows:
        raise SystemExit(f"{path} holds nothing that was measured: --results writes it")
    keep(MEASURED, rows)
    put(PAGE, tables(rows))


def tables(rows: Sequence[Row]) -> str:
    """All rows as Markdown, by the instruction set."""
    text = ""
    for isa in sorted({row["isa"] for row in rows if "isa" in row}, key=_ORDER.index):
        machines = [row for row in rows if row.get("machine", {}).get("isa") == isa]
        own = [row for row in rows if row.get("isa") == isa]
        text += f"## {_TITLES.get(isa, isa)}\n\n{_machine(machines[-1]['machine'], own)}"
        for kind, write_kind in _KINDS.items():
            # What was measured last counts.
            found = {row["network"]: row for row in own if row["kind"] == kind}
            if found:
                text += write_kind(list(found.values())) + _notes(found.values())
    return text


def _machine(told: Row, rows: Iterable[Row]) -> str:
    versions = dict(told["versions"])
    for row in rows:
        versions |= row["versions"]
    held = f", held down to {_TITLES.get(told['held'], told['held'])}" if told["held"] else ""
    text = f"{told['cpu']}{held}, {told['threads']} threads for all, {told['date']}; "
    return text + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n\n"


def _notes(rows: Iterable[Row]) -> str:
    """Each reason once, with the networks for which something was left out."""
    whole: dict[str, list[str]] = {}
    for row in rows:
        for note in row["notes"]:
            whole.setdefault(note, []).append(row["network"])
    every = len(list(rows))
    lines = [f"- {note}" + (f" ({', '.join(of)})" if len(of) < every else "") for note, of in whole.items()]
    return "Left out:\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    text = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)]) + "\n\n"


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _networks(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.get("seconds", {})))
    lines, speeds = [], {name: [] for name in names}
    ours: dict[str, dict[str, float]] = {"float32": {}, "bf16 or int8": {}}
    for row in rows:
        if "to" not in row:
            continue
        lines.append([row["network"], f"{row['to'].removeprefix('plain ')} {row['seconds'][row['to']] * 1e3:.2f}"])
        for name in names:
            ratio = row["ratios"].get(name)
            lines[-1].append(f"{ratio[0]:.2f}" if ratio else "")
            if ratio:
                speeds[name].append(1 / ratio[0])
            if ratio and name.startswith("dnc"):
                least = ours["bf16 or int8" if name.endswith(_EIGHTS) else "float32"]
                least[row["network"]] = min(ratio[0], least.get(row["network"], math.inf))
    lines.append(["speed, geometric mean", "1", *(_speed(speeds[name], len(rows)) for name in names)])
    text = "### One image\n\nTimes as multiples of that of the fastest peer in float32; below 1 is faster.\n\n"
    text += _table(["network", "fastest peer, ms", *names], lines)
    for kind, least in ours.items():
        if least:
            behind = [f"{name} {ratio:.2f}" for name, ratio in least.items() if ratio > 1]
            text += (
                f"The fastest of dnc's engines in {kind} is {_mean(1 / ratio for ratio in least.values()):.2f} times "
            )
            text += "as fast as the fastest peer in float32, in the geometric mean"
            text += f"; behind with {', '.join(behind)}.\n\n" if behind else ", and nowhere behind.\n\n"
    return text


def _speed(values: Sequence[float], every: int) -> str:
    return "" if not values else f"{_mean(values):.2f}" + (f" (of {len(values)})" if len(values) < every else "")


def _xnor(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        seconds = row.get("seconds", {})
        for name in (name.removesuffix(" xnor") for name in seconds if name.endswith(" xnor")):
            bits, full = seconds[f"{name} xnor"], seconds.get(f"{name} float32")
            of = row["ratios"][f"{name} xnor"][0] / row["ratios"][f"{name} float32"][0] if full else 0.0
            cells = [row["network"], name, f"{bits * 1e3:.2f}", f"{full * 1e3:.2f}" if full else ""]
            lines.append([*cells, f"{of:.2f}" if full else "", f"{1 / of:.1f}" if full else ""])
    heads = ["network", "engine", "xnor, ms", "float32, ms", "xnor / float32", "times as fast"]
    text = "efficientnet-b0-xnor beside efficientnet-b0; convolutions beside the same in float32."
    return f"### Binary convolutions\n\n{text}\n\n" + _table(heads, lines)


def _batches(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        seconds, ratios = row.get("seconds", {}), row.get("ratios", {})
        for name, whole in seconds.items():
            engine, _, count = name.partition(", ")
            if count == "1":
                continue
            single = seconds.get(f"{engine}, 1")
            one = f"{single * 1e3:.2f}" if single else ""
            lines.append([row["network"], engine, one, f"{whole * 1e3 / BATCH:.2f}", f"{ratios[name][0]:.2f}"])
    heads = ["network", "engine", "1 image, ms", f"of {BATCH} images each, ms", "of the fastest peer's time"]
    return f"### Batches\n\nOne engine, run with 1 image and with {BATCH}.\n\n" + _table(heads, lines)


_KINDS: Mapping[str, Callable[[Sequence[Row]], str]] = {"networks": _networks, "xnor": _xnor, "batches": _batches}
