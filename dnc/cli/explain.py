"""dnc explain"""

from __future__ import annotations

import click

from dnc.cli._lists import names


@click.command(epilog="Example: dnc explain yolov4-tiny.cfg --pass fold-batchnorm")
@click.argument("cfg", type=click.Path())
@click.option("--weights", "-w", type=click.Path(), help="The .weights; else as for dnc compile; else random ones.")
@click.option("--target", "-t", default="cpu", show_default=True, help="Whose passes; `dnc targets` lists them.")
@click.option("--pass", "only", multiple=True, metavar="PASS", help="Show this pass alone; may be repeated.")
@click.option("--passes", callback=names, metavar="PASS,…", help="Run these, in order, in place of the target's own.")
@click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Measure by how much the outputs change.")
@click.option("--cutoff", type=int, metavar="N", help="Take the first N layers, as darknet partial.")
@click.option("--lenient", is_flag=True, help="Warn about what Darknet takes in silence, instead of failing.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one for each pass.")
def command(
    cfg: str,
    weights: str | None,
    target: str,
    only: tuple[str, ...],
    passes: list[str] | None,
    skip: tuple[str, ...],
    as_json: bool,
    **options: bool,
) -> None:
    """Show what each pass did to a network, and where; what it missed, and why.

    Numbers are those of Darknet's layers.
    """
    from dnc.cli import print_json, progress
    from dnc.compiler.compiling import explain
    from dnc.tables import Column, Table

    with progress(not as_json) as tell:
        applied, real = explain(cfg, weights, target, passes=passes, skip=skip, progress=tell, **options)
    shown = [item for item in applied if not only or item.name in only]
    if as_json:
        print_json([item.to_json() for item in shown])
        return
    if not real:
        click.echo("there are no weights: random ones stand in", err=True)
    table = Table(
        (
            Column("pass"),
            Column(""),
            Column("times", right=True),
            Column("what", folds=True),
            Column("where", folds=True),
        )
    )
    for item in shown:
        if not item.remarks.applied and not item.remarks.missed:
            table.add(item.name, "", "0", "applies nowhere", "")
        for verdict, remarks in (("applied", item.remarks.applied), ("missed", item.remarks.missed)):
            places: dict[str, list[str]] = {}
            for remark in remarks:
                places.setdefault(remark.text, []).append(remark.where)
            for text, found in places.items():
                table.add(item.name, verdict, str(len(found)), text, _layers(found))
        if item.error is not None:
            table.add(
                item.name, "error", "", f"{item.error:.1e} of the largest output, declared {item.tolerance:.1e}", ""
            )
    table.show()


def _layers(places: list[str]) -> str:
    """The layers' numbers, where the places are sections of one cfg; else the places."""
    numbers = [place.rpartition("#")[2] if "#" in place else place for place in places]
    return ", ".join(dict.fromkeys(numbers))
