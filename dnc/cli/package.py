"""dnc package"""

from __future__ import annotations

import click


@click.command(epilog="Example: dnc package yolov4-tiny.engine -o yolov4-tiny.dnc")
@click.argument("engine", type=click.Path())
@click.option(
    "--out", "-o", type=click.Path(), help="The file, or with --unpack the folder; else ENGINE's name, in this folder."
)
@click.option("--unpack", "unpacks", is_flag=True, help="The other way: ENGINE is a package, and becomes a folder.")
def command(engine: str, out: str | None, unpacks: bool) -> None:
    """Make one file of an engine, to ship it.

    dnc.load and the commands open it as they open the folder. Its bytes depend on the engine alone.
    """
    from dnc.runtime.package import package, unpack

    place = unpack(engine, out) if unpacks else package(engine, out)
    click.echo(str(place))
