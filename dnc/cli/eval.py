"""dnc eval"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from dnc.cli import print_json, progress_bar, remark
from dnc.cli._lists import SHARE, WHOLE, exif_option, workers_options
from dnc.tables import Column, Table

if TYPE_CHECKING:
    from dnc.evaluation.reports import Report


@click.command(epilog="Example: dnc eval fp32.engine int8.engine --data coco.data --like-darknet")
@click.argument("engines", nargs=-1, required=True, metavar="ENGINE...", type=click.Path())
@click.option("--data", type=click.Path(), metavar="X.data", help="Darknet's .data file; its `valid` list is taken.")
@click.option(
    "--images",
    multiple=True,
    type=click.Path(),
    metavar="PATH",
    help="Instead, a list, a folder, a quoted glob or an image; repeatable.",
)
@click.option("--train", is_flag=True, help="Take the `train` list of the .data file.")
@click.option(
    "--labels",
    type=click.Path(),
    metavar="PATH",
    help="A folder of YOLO labels, else they are where Darknet has them; of a classifier, names that paths contain.",
)
@click.option(
    "--annotations", type=click.Path(), metavar="X.json", help="COCO's annotations instead; images go by their names."
)
@click.option("--allow-unlabelled", is_flag=True, help="An image without labels has no objects.")
@click.option("--limit", type=int, metavar="N", help="Take the first N images.")
@click.option("--seed", type=int, metavar="N", help="With --limit, take a sample of them.")
@click.option("--like-darknet", is_flag=True, help="What `detector map` prints, instead of COCO's AP.")
@click.option(
    "--points",
    type=click.IntRange(min=0),
    metavar="N",
    default=101,
    show_default=True,
    help="Recalls of Darknet's mAP: 101, 11, or 0 for the area.",
)
@click.option(
    "--iou",
    type=SHARE,
    metavar="X",
    default=0.5,
    show_default=True,
    help="Overlap that Darknet's figures take for a match; its -iou_thresh.",
)
@click.option(
    "--confidence",
    "-c",
    type=SHARE,
    metavar="X",
    default=0.25,
    show_default=True,
    help="For Darknet's TP, FP and FN; its -thresh.",
)
@click.option("--top", type=WHOLE, metavar="K", default=5, show_default=True, help="Classes of a classifier.")
@click.option("--threads", type=WHOLE, metavar="N", help="Threads for one image; else the engine's choice.")
@exif_option
@click.option("--skip-bad", is_flag=True, help="Warn about an image that cannot be read, and go on.")
@workers_options
@click.option("--json", "as_json", is_flag=True, help="Print a list with one object for each engine.")
def command(
    engines: tuple[str, ...],
    data: str | None,
    images: tuple[str, ...],
    train: bool,
    limit: int | None,
    seed: int | None,
    threads: int | None,
    skip_bad: bool,
    scheduler: str | None,
    workers: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how often engines are right: mAP, top-1, top-5.

    Detectors: COCO's AP, AP50 and AP75, or with --like-darknet mAP@0.50, TP, FP, FN and average IoU. Classifiers: top-1
    and top-5. Of several engines, the difference to the first is printed.
    """
    from dnc.evaluation.cluster import cluster
    from dnc.evaluation.datasets import read_dataset
    from dnc.evaluation.metrics import evaluate
    from dnc.evaluation.reports import DarknetReport
    from dnc.runtime.arithmetic import of_isa, this_isa
    from dnc.runtime.engine import load

    if (data is None) == (not images):
        raise click.UsageError("give either --data or --images")
    if train and data is None:
        raise click.UsageError("--train is for --data")
    loaded = [load(engine, threads=threads) for engine in engines]
    source = images if data is None else data
    dataset = read_dataset(source, key="train" if train else "valid", limit=limit, seed=seed, skip_bad=skip_bad)
    remark(str(dataset))
    if any(engine.manifest.arithmetic for engine in loaded):
        remark(f"measured on {this_isa()}, {of_isa()}")
    reports = []
    with cluster(scheduler, workers) as others:
        for engine in loaded:
            with progress_bar(str(engine.folder), len(dataset.entries)) as bar:
                reports.append(evaluate(engine, dataset, skip_bad=skip_bad, progress=bar, workers=others, **options))
    if as_json:
        own = {"isa": this_isa(), "arithmetic": of_isa().name}
        print_json([{**report.to_json(), **own, "difference": _differences(report, reports[0])} for report in reports])
    elif len(reports) == 1 and isinstance(reports[0], DarknetReport):
        click.echo(reports[0].text())
    else:
        _table(reports).show()


def _differences(report: Report, first: Report) -> dict[str, float]:
    """The figures less those of the first engine, where it has them too."""
    values = {figure.name: figure.value for figure in first.figures}
    return {figure.name: figure.value - values[figure.name] for figure in report.figures if figure.name in values}


def _table(reports: Sequence[Report]) -> Table:
    """A row for each figure, a column for each engine and for its difference to the first."""
    columns = [Column(""), Column(reports[0].engine, right=True)]
    for report in reports[1:]:
        columns += [Column(report.engine, right=True), Column("difference", right=True)]
    table = Table(columns)
    percent = {figure.name: figure.percent for report in reports for figure in report.figures}
    for name, share in percent.items():
        cells = []
        for report in reports:
            value = {figure.name: figure.value for figure in report.figures}.get(name)
            change = _differences(report, reports[0]).get(name)
            cells.append("" if value is None else _number(value, share, ""))
            if report is not reports[0]:
                cells.append("" if change is None else _number(change, share, "+"))
        table.add(name, *cells)
    return table


def _number(value: float, share: bool, sign: str) -> str:
    return f"{value * 100:{sign}.2f} %" if share else f"{value:{sign}.0f}"
