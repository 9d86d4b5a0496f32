"""dnc toolchain"""

from __future__ import annotations

import click

from dnc.cli import print_json, progress
from dnc.tables import Table


@click.group(epilog="Example: dnc toolchain install myriad")
def command() -> None:
    """Install, list and remove compilers that targets need."""


@command.command("list", epilog="Example: dnc toolchain list --json")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def list_(as_json: bool) -> None:
    """List the toolchains, and whether they are installed and whole."""
    from dnc.runtime.runners.myriad import toolchain

    rows = []
    for name, chain in toolchain.TOOLCHAINS.items():
        damage = toolchain.damage(name, thorough=True)
        state = "no" if damage is None else f"damaged: {damage}" if damage else "yes"
        rows.append((name, chain, state))
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "installed": state == "yes",
                    "state": state,
                    "size": chain.size,
                    "wheels": dict(chain.wheels),
                    "folder": str(toolchain.folder(name)),
                    "summary": chain.summary,
                }
                for name, chain, state in rows
            ]
        )
        return
    table = Table.of("name", "MB", "here", "what it is", right=["MB"], folds=["here", "what it is"])
    for name, chain, state in rows:
        table.add(name, f"{chain.size / 1e6:.0f}", state, chain.summary)
    table.show()


@command.command("install", epilog="Example: dnc toolchain install myriad")
@click.argument("name")
@click.option("--force", is_flag=True, help="Fetch again what is here already.")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def install(name: str, force: bool, as_json: bool) -> None:
    """Fetch a toolchain with pip, verify it, try it, and print its folder. A damaged one is replaced."""
    from dnc.targets.myriad import installing

    with progress() as report:
        place = installing.install(name, force=force, progress=report)
    if as_json:
        print_json({"name": name, "folder": str(place)})
    else:
        click.echo(str(place))


@command.command("remove", epilog="Example: dnc toolchain remove myriad")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def remove_(name: str, as_json: bool) -> None:
    """Remove a toolchain from the cache."""
    from dnc.runtime.runners.myriad import toolchain
    from dnc.targets.myriad.installing import remove

    place = toolchain.folder(name)
    removed = remove(name)
    if as_json:
        print_json({"name": name, "folder": str(place), "removed": removed})
    else:
        click.echo(f"removed {place}" if removed else f"{place} was not there")
