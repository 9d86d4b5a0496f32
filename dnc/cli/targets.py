"""dnc targets"""

from __future__ import annotations

import click


@click.command(epilog="Example: dnc targets --json")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def command(as_json: bool) -> None:
    """List the targets to compile for, and what each needs."""
    from dnc.cli import print_json
    from dnc.report import Column, Table
    from dnc.targets import targets

    found = [(name, plugin.summary, plugin().missing()) for name, plugin in targets.items()]
    if as_json:
        print_json([{"name": name, "summary": text, "missing": missing} for name, text, missing in found])
        return
    table = Table((Column("target"), Column("what it is", folds=True), Column("to install")))
    for name, text, missing in found:
        table.add(name, text, missing)
    table.show()
