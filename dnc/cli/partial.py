"""dnc partial"""

from __future__ import annotations

import click

from dnc.cli import print_json, say_files


@click.command(epilog="Example: dnc partial net.cfg net.weights net.conv.15 15")
@click.argument("cfg", type=click.Path())
@click.argument("weights", type=click.Path())
@click.argument("out", type=click.Path())
@click.argument("n", type=int)
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def command(cfg: str, weights: str, out: str, n: int, lenient: bool, as_json: bool) -> None:
    """Write the weights of the first N layers, to train from.

    As `darknet partial`, it counts layers from 1, and images seen from 0 again.
    """
    from pathlib import Path

    from dnc.darknet.network import Network
    from dnc.darknet.weights import count, write_partial

    network = Network.load(cfg, lenient=lenient)
    write_partial(weights, network.layers, out, n, lenient=lenient)
    say_files(network.file, weights)
    floats = sum(count(layer) for layer in network.layers[:n])
    size = Path(out).stat().st_size
    if as_json:
        print_json(
            {"file": out, "cfg": str(network.file), "weights": weights, "layers": n, "floats": floats, "bytes": size}
        )
        return
    click.echo(f"{out}: {n} of {len(network.layers)} layers, {floats:,} floats, {size:,} bytes")
