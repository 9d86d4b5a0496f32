"""dnc info"""

from __future__ import annotations

from typing import Any

import click

from dnc.cli import print_json, say_files
from dnc.cli._completion import complete_networks
from dnc.cli._options import refuse, size_options
from dnc.cli._report import (
    calibration_json,
    calibration_table,
    calibration_text,
    engine_json,
    engine_text,
    network_json,
    network_table,
    totals,
)
from dnc.tables import show_line


@click.command(epilog="Example: dnc info yolov4.cfg --weights yolov4.weights")
@click.argument("what", metavar="CFG|ENGINE|CALIBRATION", type=click.Path(), shell_complete=complete_networks)
@click.option("--weights", "-w", type=click.Path(), help="Check that this .weights file fits the cfg.")
@click.option("--cfg", type=click.Path(), metavar="CFG", help="Of a calibration, the network that it may belong to.")
@size_options
@click.option("--cutoff", type=int, metavar="N", help="Take the first N layers, as darknet partial.")
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@click.pass_context
def command(
    context: click.Context, /, what: str, weights: str | None, cfg: str | None, as_json: bool, **reading: Any
) -> None:
    """Show a network's layers, what an engine says, or a calibration.

    The layers are the table that Darknet prints. A calibration is dnc's own, Darknet's line input_calibration in a file
    of its own, or TensorRT's cache: with --cfg, it says whether it belongs to that network, and of which layer each
    range is.
    """
    from pathlib import Path

    from dnc.compiler.source import is_engine
    from dnc.quantization.tables import is_table

    if is_table(what):
        if cfg is None:
            refuse(context, ("weights", "width", "height", "cutoff"), "is for a calibration's --cfg")
        _show_calibration(what, cfg, weights, as_json, **reading)
        return
    if cfg is not None:
        raise click.UsageError("--cfg is for calibrations; name the cfg alone")
    if is_engine(what):
        from dnc.runtime.manifest import read_manifest
        from dnc.runtime.source import find_source

        refuse(context, ("weights", *reading), "is for a cfg: an engine is compiled already")
        manifest = find_source(what).manifest if Path(what).is_file() else read_manifest(what)
        if as_json:
            print_json(engine_json(manifest, Path(what)))
        else:
            click.echo(engine_text(manifest, Path(what)))
        return
    from dnc.darknet.cfg import find_cfg
    from dnc.darknet.network import Network

    network = Network.load(find_cfg(what), weights, **reading)
    say_files(network.file, network.weights)
    if as_json:
        print_json(network_json(network, weights))
        return
    network_table(network).show()
    show_line(totals(network, weights))


def _show_calibration(
    what: str, cfg: str | None, weights: str | None, as_json: bool, *, lenient: bool, **reading: Any
) -> None:
    from dnc.compiler.source import find_weights
    from dnc.darknet.cfg import find_cfg
    from dnc.darknet.network import Network
    from dnc.quantization.tables import read_table

    network = None
    if cfg is not None:
        path = find_cfg(cfg)
        network = Network.load(path, find_weights(path, weights), lenient=lenient, **reading)
        say_files(network.file, network.weights)
    calibration = read_table(what, None, lenient=lenient)
    if network is not None and not calibration.digest:
        # The names of a table are those of a network.
        calibration = read_table(what, network, lenient=lenient)
    if as_json:
        print_json(calibration_json(calibration, what, network))
        return
    click.echo(calibration_text(calibration, what, network))
    calibration_table(calibration, network).show()
