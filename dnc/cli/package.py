"""dnc package"""

from __future__ import annotations

import click

from dnc.cli import print_json
from dnc.errors import DncError


@click.command(epilog="Example: dnc package yolov4-tiny.engine -o yolov4-tiny.dnc")
@click.argument("engine", type=click.Path())
@click.option(
    "--out", "-o", type=click.Path(), help="The file, or with --unpack the folder; else ENGINE's name, in this folder."
)
@click.option("--unpack", "what", flag_value="unpack", help="The other way: ENGINE is a package, and becomes a folder.")
@click.option("--as-c", "what", flag_value="c", help="C source, NAME.c and NAME.h, to make it part of a program.")
@click.option(
    "--as-object",
    "what",
    flag_value="object",
    help="An object file (ELF), NAME.o and NAME.h: large engines build fast.",
)
@click.option("--cc", help="The C compiler for --as-object, as aarch64-linux-gnu-gcc; cc if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def command(engine: str, out: str | None, what: str | None, cc: str | None, as_json: bool) -> None:
    """Make one file of an engine, to ship it.

    dnc.load and the commands open it as they open the folder; a program that it is part of opens it by dnc_open_memory.
    Its bytes depend on the engine alone.
    """
    from dnc.runtime.embedding import as_c, as_object
    from dnc.runtime.package import package, unpack

    if cc is not None and what != "object":
        raise DncError("--cc is for --as-object", hint="leave it out")
    if what in ("c", "object"):
        made = as_c(engine, out) if what == "c" else as_object(engine, out, cc or "cc")
        files, more = [made.source, made.header], {"symbol": made.symbol, "bytes": made.size}
    else:
        files, more = [unpack(engine, out) if what == "unpack" else package(engine, out)], {}
    if as_json:
        print_json({"files": [str(file) for file in files], **more})
    else:
        click.echo("\n".join(map(str, files)))
