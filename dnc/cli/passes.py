"""dnc passes"""

from __future__ import annotations

import click

from dnc.cli import print_json
from dnc.cli._completion import complete_plugins
from dnc.cli._report import options_json, show_options, summary
from dnc.tables import Table


@click.command(epilog="Example: dnc passes --json")
@click.argument("name", required=False, shell_complete=complete_plugins("passes"))
@click.option("--target", "-t", metavar="TARGET", help="Those of a target in their order, and why they stand so.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def command(name: str | None, target: str | None, as_json: bool) -> None:
    """List the optimization passes, or the options of NAME.

    `dnc compile --skip NAME` leaves one out. Exact is a pass that changes no number; for the others stands by how much
    outputs may differ, relative to the largest value of each.
    """
    from dnc.passes import find, passes

    if name is not None:
        show_options(find(name).known_options, as_json)
        return
    if target is not None:
        _show_pipeline(target, as_json)
        return
    if as_json:
        print_json(
            [
                {
                    "name": key,
                    "tolerance": plugin.tolerance,
                    "summary": summary(plugin),
                    "applies_to": plugin.applies_to,
                    "options": options_json(plugin.known_options),
                }
                for key, plugin in passes.items()
            ]
        )
        return
    texts = ("what it does", "where it applies")
    table = Table.of("pass", "tolerance", *texts, "options", folds=(*texts, "options"), spare=["options"])
    for key, plugin in passes.items():
        tolerance = f"{plugin.tolerance:g}" if plugin.tolerance else "exact"
        options = " ".join(f"{option.name}={option.default}" for option in plugin.known_options)
        table.add(key, tolerance, summary(plugin), plugin.applies_to, options)
    table.show()


def _show_pipeline(target: str, as_json: bool) -> None:
    """Those of a choice's first candidate."""
    from dnc.targets import find

    steps = [(step.name, step.why) for step in find(target)().candidates()[0].pipeline()]
    if as_json:
        print_json([{"name": name, "why": why} for name, why in steps])
        return
    table = Table.of("pass", "why it stands here", folds=["why it stands here"])
    for name, why in steps:
        table.add(name, why)
    table.show()
