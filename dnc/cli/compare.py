"""dnc compare"""

from __future__ import annotations

from typing import Any

import click

from dnc.cli import Exit, print_json, progress, remark, say_files
from dnc.cli._completion import complete_networks
from dnc.cli._lists import Number, exif_option
from dnc.cli._options import size_options
from dnc.cli._report import comparison_json, comparison_table, verdict
from dnc.tables import show_line


@click.command(epilog="Example: dnc compare yolov4-tiny.cfg --target cpu --image dog.jpg")
@click.argument("a", type=click.Path(), shell_complete=complete_networks)
@click.argument("b", type=click.Path(), required=False)
@click.option("--golden", type=click.Path(), metavar="X.npz", help="Compare with layers that Darknet computed.")
@click.option("--weights", "-w", type=click.Path(), help="The .weights of the cfg; else as for dnc compile.")
@click.option("--random-weights", is_flag=True, help="Give the cfg random weights.")
@click.option(
    "--target", "-t", metavar="NAME", help="What A is compiled for, else cpu; `reference` is the interpreter."
)
@click.option("--image", type=click.Path(), help="The input as an image; else random numbers.")
@click.option("--input", type=click.Path(), metavar="X.npy", help="The input as an array, channels first.")
@exif_option
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Seed of random numbers.")
@click.option(
    "--tolerance",
    type=Number(min=0),
    metavar="X",
    default=1e-4,
    show_default=True,
    help="The largest error allowed, relative to the largest value of an output.",
)
@click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated.")
@size_options
@click.option("--cutoff", type=int, metavar="N", help="Take the first N layers, as darknet partial.")
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@click.pass_context
def command(context: click.Context, /, a: str, b: str | None, as_json: bool, **options: Any) -> None:
    """Compare a network's layers, and name the first that differs.

    \b
    NET.cfg                  an engine of it against the reference interpreter
    NET.cfg --golden X.npz   against what Darknet computed
    X.npz                    the same, for a recording that carries its network
    ENGINE NET.cfg           this engine against the reference interpreter
    ENGINE ENGINE            two engines

    An engine of `dnc compile --keep-layers` has all layers to compare, others have their heads. Exits with 3 where an
    output differs.
    """
    from dnc.compiler.comparing import compare_files

    with progress() as report:
        comparison = compare_files(a, b, progress=report, **options)
    for files in comparison.files:
        say_files(files["cfg"], files["weights"])
    if as_json:
        print_json(comparison_json(comparison))
    else:
        remark(f"{comparison.actual} against {comparison.expected}")
        comparison_table(comparison).show()
        show_line(verdict(comparison))
    if comparison.first is not None:
        context.exit(Exit.NO)
