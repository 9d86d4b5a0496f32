"""dnc doctor"""

from __future__ import annotations

import logging

import click

from dnc.cli import print_json, progress
from dnc.cli._lists import POSITIVE
from dnc.tables import Table, show_line


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
    # The packages have a line of their own.
    said = describe({**facts["machine"], "libraries": {}})
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    for line in (f"dnc {facts['dnc']} in {facts['folder']}", *said, packages):
        show_line(line)
    click.echo()
    table = Table.of("target", "state", "what it says", folds=["what it says"])
    remedies = {}
    for target in facts["targets"]:
        table.add(target["target"], target["state"], "; ".join(filter(None, (target["device"], target["reason"]))))
        remedies[target["target"]] = target["remedy"]
    for chain in facts["toolchains"]:
        # A target says itself that its toolchain is missing.
        if chain["state"] == "damaged":
            table.add(f"toolchain {chain['name']}", chain["state"], chain["reason"])
            remedies[f"toolchain {chain['name']}"] = chain["remedy"]
    table.show()
    remedies = {name: remedy for name, remedy in remedies.items() if remedy}
    if remedies:
        longest = max(map(len, remedies))
        click.echo("\nto mend what does not work:")
        for name, remedy in remedies.items():
            show_line(remedy, head=f"  {name:<{longest}}  ")
    cache = facts["cache"]
    held = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in cache["bytes"].items()) or "empty"
    click.echo()
    show_line(f"cache {cache['folder']}: {held}" + (f"; not writable: {cache['remedy']}" if cache["remedy"] else ""))
    if facts["project"]:
        show_line(f"options from {facts['project']}")
    for name, path in facts["tools"].items():
        click.echo(f"{name} {path}")
    for warning in facts["warnings"]:
        logging.getLogger("dnc").warning("%s", warning)
