"""What `dnc bench` prints: tables for a terminal, the same in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dnc.bench.behind import Behind
from dnc.bench.end_to_end import STAGES, EndToEnd
from dnc.bench.layers import BETWEEN, Layers
from dnc.bench.machine import describe
from dnc.bench.measure import Figures, Recording
from dnc.tables import Column, Table, show_line

__all__ = ["Report", "behind_report", "frames_report", "layers_report", "layers_table", "markdown", "recording_report"]

_BEYOND = 1.1
"""Of the peak of arithmetic, which nothing can exceed; less may be noise."""
_LONG = 40
"""Letters of a layer's name that leave room for the columns that matter in 80."""
_LAYERS_FIT = 0.15
"""By which share layers may miss the network's time before there is a remark."""


@dataclass
class Report:
    """Titles, lines of text and tables, in order."""

    parts: list[tuple[str, Sequence[str], Table | None]] = field(default_factory=list)

    def add(self, title: str, lines: Sequence[str] = (), table: Table | None = None) -> None:
        """Appends a part; the first may go without a title."""
        self.parts.append((title, lines, table))

    def show(self) -> None:
        """Prints it to stdout."""
        import click

        for number, (title, lines, table) in enumerate(self.parts):
            if number:
                click.echo()
            if title:
                click.echo(title)
            if table is not None:
                table.show()
            for line in lines:
                show_line(line)

    def markdown(self) -> str:
        """The same for a README or a summary of CI."""
        texts = []
        for title, lines, table in self.parts:
            texts += [f"### {title}"] if title else []
            texts += [markdown(table)] if table is not None else []
            texts += ["  \n".join(map(_escaped, lines))] if lines else []
        return "\n\n".join(texts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def markdown(table: Table) -> str:
    """A table in Markdown."""
    rows = [[column.title for column in table.columns]]
    rows += [["---:" if column.right else "---" for column in table.columns]]
    rows += [list(map(_escaped, row)) for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def recording_report(recording: Recording) -> Report:
    """The machine, the figures, and what they hold for."""
    settings, timings = recording.settings, recording.timings
    report = Report()
    report.add("", describe(recording.machine))
    how = f"{settings.threads} threads"
    if settings.batch > 1:
        how += f", batches of {settings.batch}"
    if settings.streams > 1:
        how += f", {settings.streams} callers at the same time"
    lines = [
        f"{how}; opened {timings.openings} times, {timings.rounds} rounds in turn; "
        f"intervals hold with {recording.confidence:.1%} confidence each"
    ]
    report.add("", [*lines, *recording.notes], _figures_table(recording))
    return report


def _figures_table(recording: Recording) -> Table:
    """A row for each engine and peer."""
    every = recording.figures
    titles = ("ms, median", "min", "p90", "p99", "images/s", "start-up", "memory", "energy")
    columns = [Column(""), *(Column(title, right=True) for title in titles)]
    shown = [True] * 6 + [any(value) for value in zip(*(_optional(figures) for figures in every), strict=True)]
    if len(every) > 1:
        columns.append(Column(f"of the time of {every[0].name}", right=True))
        shown.append(True)
    kept = [column for column, show in zip(columns, shown, strict=True) if show]
    table = Table(kept, spare=("p90", "min", "start-up", "memory", "energy"))
    for figures in every:
        latency = figures.latency
        median = _ms(latency["median"])
        if "low" in latency:
            median += f" ({_ms(latency['low'])} to {_ms(latency['high'])})"
        cells = [figures.name, median, *(_ms(latency[name]) for name in ("min", "p90", "p99"))]
        cells += [f"{figures.throughput.value:.4g}", *_optional(figures)]
        if len(every) > 1:
            cells.append(str(figures.ratio or 1))
        table.add(*(cell for cell, show in zip(cells, shown, strict=True) if show))
    return table


def _optional(figures: Figures) -> tuple[str, str, str]:
    """Start-up, memory and energy; empty where they are not known."""
    return (
        "" if figures.startup is None else f"{figures.startup['ready'] * 1e3:.0f} ms",
        "" if figures.memory is None else f"{figures.memory / 1e6:.0f} MB",
        "" if figures.energy is None else f"{figures.energy * 1e3:.3g} mJ",
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def layers_report(layers: Layers, report: Report, top: int = 0) -> None:
    """Adds the layers of an engine.

    Args:
        top: so many, those that take longest first; 0 for all in their order.
    """
    peaks = layers.peaks
    lines = []
    if peaks is not None:
        single = f"{peaks.bits / 1e9:.4g} GBOP/s on single bits, " if peaks.bits else ""
        lines.append(
            f"peaks measured here with {peaks.threads} threads in {peaks.precision}: {peaks.compute / 1e9:.4g} "
            f"GFLOP/s, {single}{peaks.bandwidth / 1e9:.4g} GB/s; more than that is moved where it stays in the caches"
        )
    if layers.joined:
        lines.append(f"joined with their neighbours: {', '.join(layers.joined)}")
    if any(row.bound == "compute" and row.roof > _BEYOND for row in layers.rows):
        lines.append(
            "layers compute faster than the peak that was measured: other programs disturbed it, so that shares of the "
            "roof are too high; measure again on a quiet machine"
        )
    if abs(layers.between) > _LAYERS_FIT * layers.seconds:
        lines.append("the layers do not add up to the network: was the machine busy? measure again")
    shown = "" if not 0 < top < len(layers.rows) else f": the {top} that take longest"
    report.add(f"{layers.engine}, layer by layer{shown}", lines, layers_table(layers, top))


def behind_report(tables: Sequence[Layers], compared: Sequence[Behind], report: Report, top: int = 0) -> None:
    """Adds where the first of several engines is behind the others: what there is most to win first, and so many of
    these as `top` says, or all."""
    first, *others = tables
    lost = [one for one in compared if one.lost > 0]
    sums = [sum(one.seconds[number] for one in compared) for number in range(len(tables))]
    numbers = [*(f"{layers.engine}, µs" for layers in tables), "behind, µs", f"of {first.engine}"]
    table = Table.of("layer", *numbers, right=numbers)
    shown = lost[: top or None]
    for one in shown:
        cells = [f"{seconds * 1e6:.1f}" for seconds in (*one.seconds, one.lost)]
        table.add(one.where, *cells, f"{one.lost / sums[0]:.1%}")
    whole = ", ".join(f"{layers.engine} {seconds * 1e6:.1f}" for layers, seconds in zip(tables, sums, strict=True))
    total = sum(one.lost for one in lost)
    lines = [
        f"behind in {len(lost)} of {len(compared)}, by {total * 1e6:.1f} µs, {total / sums[0]:.1%}; least times, which "
        f"add up to {whole} µs"
    ]
    if len(shown) < len(lost):
        lines.append(f"…and {len(lost) - len(shown)} more: --top 0")
    names = " or ".join(layers.engine for layers in others)
    report.add(f"Where {first.engine} is behind {names}", lines, table)


def layers_table(layers: Layers, top: int = 0) -> Table:
    """A row for each section, for what is between them, and for the network; `top` as for `layers_report`."""
    single = any(row.bits for row in layers.rows)
    bits = ["MBOP", "GBOP/s"] * single
    titles = ("layer", "µs", "share", "MFLOP", "MB", "GFLOP/s", "GB/s", *bits, "bound by", "of the roof")
    spare = ("MB", "MFLOP", "MBOP", "bound by", "GB/s", "GBOP/s")
    # With shorter names, columns that can be spared go first.
    long = any(row.also or len(row.where) > _LONG for row in layers.rows)
    left = ("layer", "bound by")
    columns = [Column(title, right=title not in left, folds=long and title == "layer") for title in titles]
    table = Table(columns, spare=spare)
    rows, rest = list(layers.rows), []
    if 0 < top < len(rows):
        slowest = sorted(rows, key=lambda row: row.seconds, reverse=True)
        rows, rest = slowest[:top], slowest[top:]
    for row in rows:
        table.add(
            " + ".join([row.where, *row.also]),
            f"{row.seconds * 1e6:.1f}",
            f"{row.share:.1%}",
            f"{row.operations / 1e6:.3f}",
            f"{row.bytes / 1e6:.3f}",
            _rate(row.operations, row.seconds),
            _rate(row.bytes, row.seconds),
            *([f"{row.bits / 1e6:.3f}" if row.bits else "", _rate(row.bits, row.seconds)] * single),
            row.bound,
            _roof(row.roof),
        )
    if rest:
        seconds = sum(row.seconds for row in rest)
        cells = [f"{seconds * 1e6:.1f}", f"{seconds / layers.seconds:.1%}"]
        table.add(f"…and {len(rest)} more: --top 0", *cells, *[""] * (len(titles) - 3))
    operations, moved = sum(row.operations for row in layers.rows), sum(row.bytes for row in layers.rows)
    between = f"{layers.between / layers.seconds:.1%}"
    table.add(BETWEEN, f"{layers.between * 1e6:.1f}", between, *[""] * (len(titles) - 3))
    totals = [f"{operations / 1e6:.3f}", f"{moved / 1e6:.3f}"]
    totals += [_rate(operations, layers.seconds), _rate(moved, layers.seconds)]
    if single:
        every = sum(row.bits for row in layers.rows)
        totals += [f"{every / 1e6:.3f}", _rate(every, layers.seconds)]
    table.add("network", f"{layers.seconds * 1e6:.1f}", "100.0%", *totals, "", "")
    return table


def _roof(share: float) -> str:
    """What is beyond the peaks says no more than that: caches are faster than memory, or the peaks were disturbed."""
    return f"{share:.0%}" if 0 < share <= 1 else ">100%" if share else ""


def _rate(count: float, seconds: float) -> str:
    """Billions a second; nothing where nothing is counted, or the time is too short to be measured."""
    return f"{count / seconds / 1e9:.4g}" if count and seconds else ""


def frames_report(results: Sequence[EndToEnd], report: Report) -> None:
    """Adds what frames took."""
    lines = [
        f"{result.engine}: {result.frames} frames of {result.source}, {result.results} results" for result in results
    ]
    report.add("From images to results", lines, _frames_table(results))


def _frames_table(results: Sequence[EndToEnd]) -> Table:
    """A row for each engine: milliseconds of each stage."""
    dropped = any(result.dropped is not None for result in results)
    titles = ["", *(f"{name}, ms" for name in STAGES), "total", "p99", "frames/s", *["dropped"] * dropped]
    table = Table([Column(title, right=bool(title)) for title in titles])
    for result in results:
        cells = [result.engine, *(_ms(result.stages[name]["median"]) for name in (*STAGES, "total"))]
        cells += [_ms(result.stages["total"]["p99"]), f"{result.rate:.4g}"]
        if dropped:
            share = (result.dropped or 0) / (result.frames + (result.dropped or 0))
            cells.append(f"{result.dropped} ({share:.0%})")
        table.add(*cells)
    return table
