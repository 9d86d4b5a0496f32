"""dnc info"""

from __future__ import annotations

import click

from dnc.cli import print_json, say_files
from dnc.cli._report import engine_json, engine_text, network_json, network_table, totals


@click.command(epilog="Example: dnc info yolov4.cfg --weights yolov4.weights")
@click.argument("what", metavar="CFG|ENGINE", type=click.Path())
@click.option("--weights", "-w", type=click.Path(), help="Check that this .weights file fits the cfg.")
@click.option("--cutoff", type=int, metavar="N", help="Take the first N layers, as darknet partial.")
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def command(what: str, weights: str | None, cutoff: int | None, lenient: bool, as_json: bool) -> None:
    """Show the layers of a network, or what an engine says.

    The layers are the table that Darknet prints.
    """
    from pathlib import Path

    from dnc.evaluation.datasets import is_folder

    if is_folder(what):
        from dnc.runtime.manifest import read_manifest

        if weights is not None or cutoff is not None or lenient:
            raise click.UsageError("an engine takes neither --weights nor --cutoff nor --lenient")
        manifest = read_manifest(what)
        if as_json:
            print_json(engine_json(manifest, Path(what)))
        else:
            click.echo(engine_text(manifest, Path(what)))
        return
    from dnc.darknet.cfg import find_cfg
    from dnc.darknet.network import Network

    network = Network.load(find_cfg(what), weights, lenient=lenient, cutoff=cutoff)
    say_files(network.file, network.weights)
    if as_json:
        print_json(network_json(network, weights))
        return
    network_table(network).show()
    click.echo(totals(network, weights))
