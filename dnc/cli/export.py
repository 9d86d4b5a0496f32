"""dnc export"""

from __future__ import annotations

import dataclasses

import click
from click.core import ParameterSource

from dnc.cli import print_json, progress, say_files
from dnc.cli._completion import complete_networks, complete_plugins
from dnc.cli._lists import SHARE
from dnc.cli._options import compile_options, compile_options_of, refuse
from dnc.tables import Table


def _list(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Shows the destinations, each with its options."""
    if not value or context.resilient_parsing:
        return
    from dnc.destinations import destinations

    table = Table.of("name", "what reads it, and what is written", folds=["what reads it, and what is written"])
    for name, kind in destinations.items():
        table.add(name, kind.summary)
        for option in kind.known_options:
            table.add("", f"--option {option.name}={option.default or '…'}: {option.summary}")
    table.show()
    context.exit()


@click.command(epilog="Example: dnc export yolov4-tiny.cfg --for ultralytics -o yolov4-tiny.onnx")
@click.argument("what", metavar="ENGINE|CFG", type=click.Path(), shell_complete=complete_networks)
@click.option(
    "--for",
    "name",
    metavar="NAME",
    required=True,
    help="The program; --list shows them.",
    shell_complete=complete_plugins("destinations"),
)
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the programs.")
@click.option("--out", "-o", type=click.Path(), help="The folder, or of some the file; else WHAT's name with .NAME.")
@click.option("--weights", "-w", type=click.Path(), help="The .weights; else as for dnc compile.")
@click.option(
    "--confidence", "-c", type=SHARE, metavar="X", default=0.25, show_default=True, help="Report boxes from here on."
)
@click.option(
    "--iou", type=SHARE, metavar="X", default=0.45, show_default=True, help="Suppress boxes that overlap by more."
)
@compile_options
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@click.pass_context
def command(
    context: click.Context,
    /,
    what: str,
    name: str,
    out: str | None,
    weights: str | None,
    confidence: float,
    iou: float,
    as_json: bool,
    **fields: object,
) -> None:
    """Write a network in the form that another program reads.

    \b
    NET.cfg    compiled as by dnc compile, with the same options
    ENGINE     an engine folder or package; what it is compiled for must be what the program takes

    A folder with the model, its configuration and labels, and a README.md that says how it is run; of some programs one
    file. Options of the program are given as --option KEY=VALUE; those that it does not know are the target's.
    """
    from dnc.compiler.source import find_weights, is_engine
    from dnc.darknet.cfg import find_cfg
    from dnc.destinations import find
    from dnc.destinations.exporting import Wanted, export_cfg, export_engine, split_options

    kind = find(name)
    own, rest = split_options(name, fields["options"])  # type: ignore[arg-type]
    wanted = Wanted(name, out, confidence, iou, own, fields["calibration"])  # type: ignore[arg-type]
    if is_engine(what):
        mine = {"options", *(["calibration"] if kind.calibrated else [])}
        refuse(context, {"weights", *fields} - mine, "is for a cfg: an engine is compiled already")
        kind(dict(own) | rest)
        with progress(not as_json) as tell:
            made = export_engine(what, wanted, tell)
    else:
        options = compile_options_of(**{**fields, "options": rest})  # type: ignore[arg-type]
        if context.get_parameter_source("target") is ParameterSource.DEFAULT:
            options = dataclasses.replace(options, target=kind.target)
        with progress(not as_json) as tell:
            made = export_cfg(what, weights, wanted, options, tell)
        place = find_cfg(what)
        say_files(place, find_weights(place, weights))
    if as_json:
        print_json({**made._asdict(), "path": str(made.path)})
        return
    click.echo(f"{made.path}: {made.network} for {made.destination}")
    for file, size in made.files.items():
        click.echo(f"  {size / 1e6:9.3f} MB  {file}")
