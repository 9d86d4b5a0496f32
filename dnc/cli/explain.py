"""dnc explain"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from dnc.cli import print_json, progress, remark, say_files
from dnc.cli._completion import complete_networks
from dnc.cli._options import compile_options, compile_options_of, refuse
from dnc.tables import Table


@click.command(epilog="Example: dnc explain yolov4-tiny.cfg --pass fold-batchnorm")
@click.argument("what", metavar="CFG|ENGINE", type=click.Path(), shell_complete=complete_networks)
@click.option("--weights", "-w", type=click.Path(), help="The .weights; else as for dnc compile; else random ones.")
@click.option("--pass", "only", multiple=True, metavar="PASS", help="Show this pass alone; may be repeated.")
@compile_options
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one for each pass.")
@click.pass_context
def command(
    context: click.Context, /, what: str, weights: str | None, only: tuple[str, ...], as_json: bool, **fields: object
) -> None:
    """Show what each pass does to a network, or did to an engine's.

    Each line says where in the cfg, and why where a pass missed something of its kind. Numbers are those of Darknet's
    layers.
    """
    from dnc.compiler.explaining import explain, explain_engine
    from dnc.compiler.source import is_engine

    if is_engine(what):
        refuse(context, ("weights", *fields), "is for a cfg: an engine is compiled already")
        explanation = explain_engine(what)
    else:
        options = compile_options_of(**fields)  # type: ignore[arg-type]
        with progress(not as_json) as tell:
            explanation = explain(what, weights, options, progress=tell)
    if explanation.cfg:
        say_files(explanation.cfg, explanation.weights)
    shown = [item for item in explanation.passes if not only or item["name"] in only]
    if as_json:
        print_json(shown)
        return
    if not explanation.real:
        remark("there are no weights: random ones stand in")
    _show(shown)
    if explanation.training:
        click.echo(f"\nact in training only: {explanation.training}")


def _show(passes: Sequence[Mapping[str, Any]]) -> None:
    table = Table.of("pass", "", "times", "what", "where", right=["times"], folds=["what", "where"])
    for item in passes:
        if not item["applied"] and not item["missed"]:
            table.add(item["name"], "", "0", "applies nowhere", "")
        for verdict, remarks in (("applied", item["applied"]), ("missed", item["missed"])):
            places: dict[str, list[str]] = {}
            for one in remarks:
                places.setdefault(one["text"], []).append(one["where"])
            for text, found in places.items():
                table.add(item["name"], verdict, str(len(found)), text, _layers(found))
        if item.get("error") is not None:
            text = f"{item['error']:.1e} of the largest output, declared {item['tolerance']:.1e}"
            table.add(item["name"], "error", "", text, "")
    table.show()


def _layers(places: list[str]) -> str:
    """The layers' numbers, where the places are sections of one cfg; else the places."""
    numbers = [place.rpartition("#")[2] if "#" in place else place for place in places]
    return ", ".join(dict.fromkeys(numbers))
