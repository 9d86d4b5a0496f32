"""dnc targets"""

from __future__ import annotations

import click

from dnc.cli import print_json, remark
from dnc.cli._completion import complete_plugins
from dnc.cli._report import show_options
from dnc.tables import Table


@click.command(epilog="Example: dnc targets myriad")
@click.argument("name", required=False, shell_complete=complete_plugins("targets"))
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def command(name: str | None, as_json: bool) -> None:
    """List the targets and what each needs, or the options of NAME.

    The options are for `dnc compile --option KEY=VALUE`.
    """
    from dnc.compiler.compiling import SHORT_NAMES
    from dnc.targets import find, targets

    if name is not None:
        known, given = SHORT_NAMES.get(name, (name, {}))
        if given:
            remark(f"{name} stands for {known}, {', '.join(f'{key}={value}' for key, value in given.items())}")
        show_options(find(known).known_options, as_json)
        return
    rows = [(key, plugin.summary, plugin().missing()) for key, plugin in targets.items()]
    if as_json:
        print_json([{"name": key, "summary": text, "missing": missing} for key, text, missing in rows])
        return
    table = Table.of("target", "what it is", "to install", folds=["what it is"])
    for key, text, missing in rows:
        table.add(key, text, missing)
    table.show()
