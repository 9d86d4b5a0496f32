"""dnc weights"""

from __future__ import annotations

import click

from dnc.cli import print_json, say_files
from dnc.files.writing import whole_file
from dnc.tables import show_line


@click.group(epilog="Example: dnc weights inspect yolov4.cfg yolov4.weights")
def command() -> None:
    """Make random .weights files, and look into real ones."""


@command.command("random", epilog="Example: dnc weights random net.cfg -o net.weights --seed 7")
@click.argument("cfg", type=click.Path())
@click.option("--out", "-o", type=click.Path(), required=True, help="The .weights file; replaced if it is there.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Equal seeds, equal files.")
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def random(cfg: str, out: str, seed: int, lenient: bool, as_json: bool) -> None:
    """Write random weights that fit a cfg, to measure speed with or to test.

    They keep the activations of a deep network near 1. What it finds in images is nonsense.
    """
    from pathlib import Path

    from dnc.darknet.network import Network
    from dnc.darknet.weights import write_weights

    network = Network.load(cfg, lenient=lenient).with_random_weights(seed)
    say_files(network.file, "random weights")
    with whole_file(out) as file:
        write_weights(file, network.layers, network.arrays)
    size = Path(out).stat().st_size
    if as_json:
        print_json({"file": out, "cfg": network.file, "seed": seed, "floats": network.parameters(), "bytes": size})
    else:
        click.echo(f"{out}: {network.parameters():,} floats, {size:,} bytes")


@command.command("inspect", epilog="Example: dnc weights inspect yolov4.cfg yolov4.weights --json")
@click.argument("cfg", type=click.Path())
@click.argument("weights", type=click.Path())
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence in the cfg.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
def inspect(cfg: str, weights: str, lenient: bool, as_json: bool) -> None:
    """Show what a .weights file holds, array by array, as a cfg divides it.

    Of a file that is cut off or belongs to another network too: it says where the file ends.
    """
    from dnc.darknet.inspection import inspect_weights
    from dnc.darknet.network import Network

    network = Network.load(cfg, lenient=lenient)
    inspection = inspect_weights(weights, network.layers)
    say_files(network.file, weights)
    if as_json:
        print_json({"cfg": network.file, "weights": weights, **inspection.to_json()})
        return
    inspection.table().show()
    for line in inspection.summary:
        show_line(line)
