"""dnc passes"""

from __future__ import annotations

import click


@click.command(epilog="Example: dnc passes --json")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def command(as_json: bool) -> None:
    """List the optimization passes.

    `dnc compile --skip NAME` leaves one out. Exact is a pass that changes no number; for the others stands by how much
    outputs may differ, relative to the largest value of each.
    """
    from dnc.cli import print_json
    from dnc.cli._report import summary
    from dnc.passes import passes
    from dnc.tables import Column, Table

    found = [(name, plugin.tolerance, summary(plugin), plugin.applies_to) for name, plugin in passes.items()]
    if as_json:
        keys = ("name", "tolerance", "summary", "applies_to")
        print_json([dict(zip(keys, row, strict=True)) for row in found])
        return
    columns = (
        Column("pass"),
        Column("tolerance"),
        Column("what it does", folds=True),
        Column("where it applies", folds=True),
    )
    table = Table(columns)
    for name, tolerance, text, where in found:
        table.add(name, f"{tolerance:g}" if tolerance else "exact", text, where)
    table.show()
