"""dnc doctor"""

from __future__ import annotations

import click

from dnc.cli import print_json, progress
from dnc.cli._lists import POSITIVE
from dnc.tables import Table


@click.command(epilog="Example: dnc doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@click.option("--seconds", type=POSITIVE, metavar="X", help="How long each target may take. [default: 120]")
def command(as_json: bool, seconds: float | None) -> None:
    """Say what is installed, and which targets work.

    Each target that is installed compiles a tiny network and runs it, in a process of its own. For what does not work,
    the command that mends it is printed.
    """
    from dnc.bench.machine import describe
    from dnc.cli import _doctor as doctor

    with progress(not as_json) as report:
        facts = doctor.examine(seconds or doctor.SECONDS, report)
    if as_json:
        print_json(facts)
        return
    click.echo(f"dnc {facts['dnc']} in {facts['folder']}")
    for line in describe(facts["machine"]):
        click.echo(line)
    click.echo(", ".join(f"{name} {number}" for name, number in facts["packages"].items()))
    click.echo()
    table = Table.of("target", "state", "what it says", "to mend", folds=["what it says", "to mend"])
    for target in facts["targets"]:
        said = "; ".join(filter(None, (target["device"], target["reason"])))
        table.add(target["target"], target["state"], said, target["remedy"])
    for chain in facts["toolchains"]:
        table.add(f"toolchain {chain['name']}", chain["state"], chain["reason"], chain["remedy"])
    table.show()
    cache = facts["cache"]
    held = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in cache["bytes"].items()) or "empty"
    click.echo(f"\ncache {cache['folder']}: {held}" + (f"; not writable: {cache['remedy']}" if cache["remedy"] else ""))
    for name, path in facts["tools"].items():
        click.echo(f"{name} {path}")
    for warning in facts["warnings"]:
        click.echo(f"warning: {warning}", err=True)
