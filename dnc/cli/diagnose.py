"""dnc diagnose"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dnc.cli import print_json, progress, remark
from dnc.cli._lists import SHARE, WHOLE
from dnc.cli._options import compile_options, compile_options_of, refuse
from dnc.tables import Table

if TYPE_CHECKING:
    from dnc.diagnosis.report import Diagnosis, LayerDiagnosis

_OF_ENGINE = ("weights", "calibration", "data")
"""Options of the compiler that say something of an engine, too."""
_OTHERWISE = ("batch", "input", "decode", "tune", "remote", "keep_layers", "dump_dir")
"""Those that would have no effect."""
_CULPRITS = 10


@click.command(
    epilog="Example: dnc diagnose yolov4-tiny.cfg --precision int8 --calibration yolov4-tiny.calibration.json "
    "--data coco.data --html yolov4-tiny.html"
)
@click.argument("what", metavar="ENGINE|CFG", type=click.Path())
@click.option("--weights", "-w", type=click.Path(), help="The .weights; else as for dnc compile.")
@click.option("--cfg", type=click.Path(), help="Of an engine, what it was made of; else it is looked for by its name.")
@click.option("--against", metavar="ENGINE", type=click.Path(), help="Compare with this engine; else with float32.")
@click.option(
    "--layer-images",
    "images",
    type=WHOLE,
    metavar="N",
    default=8,
    show_default=True,
    help="Look at the layers on so many of the images.",
)
@click.option(
    "--limit",
    "compared",
    type=WHOLE,
    metavar="N",
    default=100,
    show_default=True,
    help="Take N of the images, from all over them: on these what is found is compared, and evaluated.",
)
@click.option(
    "--shown", type=WHOLE, metavar="N", default=12, show_default=True, help="Report so many images that change most."
)
@click.option(
    "--measured",
    type=click.IntRange(min=0),
    metavar="N",
    default=3,
    show_default=True,
    help="Evaluate so many of the layers that would win most in float32; 0: evaluate nothing.",
)
@click.option(
    "--confidence", "-c", type=SHARE, metavar="X", default=0.25, show_default=True, help="Boxes count from here on."
)
@click.option("--times", type=click.Path(), metavar="X.json", help="What dnc bench --layers --json measured.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write one page with all of it.")
@click.option(
    "--model-explorer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of an engine, write node data for Model Explorer: the noise of the nodes of model.onnx.",
)
@click.option(
    "--netron",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of an engine, write an attachment for Netron: open it while the engine's model is shown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@compile_options
@click.pass_context
def command(
    context: click.Context,
    /,
    what: str,
    weights: str | None,
    cfg: str | None,
    against: str | None,
    images: int,
    compared: int,
    shown: int,
    measured: int,
    confidence: float,
    times: str | None,
    html: Path | None,
    model_explorer: Path | None,
    netron: Path | None,
    as_json: bool,
    **fields: object,
) -> None:
    """Show where an engine with 8 or 16 bits loses accuracy.

    \b
    NET.cfg    compiled as by dnc compile, with the same options, for one image at a time
    ENGINE     an engine; its cfg, weights and, with 8 bits, its --calibration are needed as well

    Of every layer: the noise that it adds by itself, and what comes of it at the heads; the kind of loss: its range
    cuts values off, its step is too large, sums of pairs saturate, its weights are too coarse, or the arithmetic. Then
    the layers that would win most in float32, and the images on which boxes come and go. Noise is in dB beside the
    signal: -20 dB is 10 % of its size.
    """
    from dnc.compiler.source import is_engine
    from dnc.diagnosis.diagnosing import Wanted, diagnose
    from dnc.diagnosis.overlays import for_model_explorer, for_netron, write_overlay
    from dnc.diagnosis.page import write_page
    from dnc.diagnosis.times import read_times
    from dnc.files.writing import check_places
    from dnc.graph.work import read_places
    from dnc.runtime.engine import load

    if is_engine(what):
        refuse(context, fields.keys() - set(_OF_ENGINE), "is for a cfg: an engine is compiled already")
    else:
        refuse(context, ("cfg", "model_explorer", "netron"), "is for an engine")
        refuse(context, _OTHERWISE, "has no effect: a network is diagnosed image by image, with outputs of its own")
    # Before all that takes long.
    check_places(path for path in (html, model_explorer, netron) if path is not None)
    engine = load(what) if model_explorer or netron else None
    places = {} if engine is None else read_places(engine.folder, engine.manifest)
    seconds = None if times is None else read_times(times, what)
    options = compile_options_of(**fields)  # type: ignore[arg-type]
    wanted = Wanted(images, compared, shown, measured, confidence)
    with progress(not as_json) as tell:
        found = diagnose(what, weights, options, cfg=cfg, against=against, times=seconds, wanted=wanted, progress=tell)
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)
    if html is not None:
        write_page(found, html)
        remark(f"the page is {html}")
    for path, overlay in ((model_explorer, for_model_explorer), (netron, for_netron)):
        if path is not None:
            write_overlay(overlay(found, places), path)


def _show(found: Diagnosis) -> None:
    """The tables."""
    click.echo(f"{found.engine.title} ({found.engine.target} {found.engine.precision}) against {found.against.title}")
    if found.engine.arithmetic:
        click.echo(f"8-bit arithmetic {found.engine.arithmetic}")
    click.echo(f"layers on {found.images}, what is found on {found.compared} images: {found.source}\n")
    _layers(found).show()
    click.echo("\nthe worst layers:" if found.culprits else "\nno layer loses anything that matters")
    if found.culprits:
        _culprits(found).show()
    click.echo()
    _heads(found).show()
    for line in _found(found):
        click.echo(line)
    if found.keep:
        click.echo("\nwhat float32 would win:")
        _kept(found).show()
    for note in found.notes:
        click.echo(f"note: {note}")


def _db(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


def _share(share: float) -> str:
    return f"{share * 100:.2g} %" if share else ""


def _layers(found: Diagnosis) -> Table:
    """A row for each layer that was looked at."""
    timed = any(layer.seconds is not None for layer in found.layers)
    right = ["own", "typical", "accumulated", "at heads", "largest error", "clipped", "pairs", "range used", "ms"]
    titles = ["layer", "bits", *right[:-1], "kind", *right[-1:] * timed]
    table = Table.of(*titles, right=right)
    for layer in found.layers:
        if not layer.measured:
            continue
        cells = [
            layer.where,
            layer.precision,
            *map(_db, (layer.own, layer.typical, layer.accumulated, layer.at_heads)),
            f"{layer.largest_error:.2g}" if layer.largest_error else "",
            _share(layer.saturated),
            _share(layer.saturated_pairs),
            "" if layer.range is None else f"{layer.range.used:.0%}",
            layer.kind,
        ]
        cells += [f"{layer.seconds * 1000:.3f}" if layer.seconds is not None else ""] * timed
        table.add(*cells)
    return table


def _culprits(found: Diagnosis) -> Table:
    table = Table.of("layer", "kind", "at heads", "own", "what to do", right=["at heads", "own"], folds=["what to do"])
    for number in found.culprits[:_CULPRITS]:
        layer: LayerDiagnosis = found.layer(number)
        table.add(layer.where, layer.kind, _db(layer.at_heads), _db(layer.own), layer.advice)
    return table


def _heads(found: Diagnosis) -> Table:
    table = Table.of("head", "output", "error", "noise", "largest", right=["error", "noise", "largest"])
    for head in found.heads:
        table.add(head.where, head.name, f"{head.error * 100:.2f} %", _db(head.noise), f"{head.largest_error:.2g}")
    return table


def _found(found: Diagnosis) -> list[str]:
    """What comes and goes, and the images on which the most does."""
    lines = [f"\nof {found.boxes} {found.gone} are gone, {found.come} have come (confidence over {found.confidence:g})"]
    for change in found.changes[:_CULPRITS]:
        if change.gone or change.come:
            lines.append(f"  {change.path}: {change.gone} gone, {change.come} come")
    if found.metric is not None:
        metric = found.metric
        basis = "" if metric.labelled else ", measured on what float32 finds"
        lines.append(
            f"{metric.name}: {metric.engine * 100:.2f} %, {found.against.title} {metric.against * 100:.2f} %, "
            f"on {metric.images} images{basis}"
        )
    return lines


def _kept(found: Diagnosis) -> Table:
    table = Table.of("option", "points", "", right=["points"])
    for kept in found.keep:
        table.add(kept.option, f"{kept.points:+.2f}", "measured" if kept.measured else "estimated")
    return table
