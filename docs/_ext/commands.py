"""A page for each command, made from click: what `dnc NAME --help` says, with anchors that pages can lead to."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import click

from dnc.cli import Exit, cli
from docs._ext.text import attribute_texts, code, definitions, fenced, prose, toctree

__all__ = ["pages"]

FOLDER = "reference/commands"


def pages() -> Mapping[str, str]:
    """The pages by their places, and the list of them."""
    context = click.Context(cli, info_name="dnc", **cli.context_settings)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    commands = {name: command for name, command in found.items() if command is not None and not command.hidden}
    made = {f"{FOLDER}/{name}.md": _page(name, command, context) for name, command in commands.items()}
    return {**made, f"{FOLDER}/index.md": _index(commands)}


def _index(commands: Mapping[str, click.Command]) -> str:
    rows = [(f"[`dnc {name}`]({name}.md)", prose(each.get_short_help_str(200))) for name, each in commands.items()]
    texts = {"done": "Done.", "usage": "Wrong usage.", "bug": "A bug of dnc.", "error": "An error that can be mended."}
    texts |= {"interrupted": "Ended by Ctrl-C.", "terminated": "Ended by SIGTERM."}
    said = attribute_texts(Exit)
    codes = [(code(str(int(each))), prose(said.get(each.name, texts.get(each.name.lower(), "")))) for each in Exit]
    parts = [
        "# Commands",
        "Results go to stdout, all else to stderr. `-h` and `--help` show what a command can be told.",
        definitions(rows),
        "## Exit codes",
        definitions(codes),
        toctree(commands, hidden=""),
    ]
    return "\n\n".join(parts) + "\n"


def _page(name: str, command: click.Command, parent: click.Context) -> str:
    return "\n\n".join(_parts(command, click.Context(command, info_name=name, parent=parent), 1)) + "\n"


def _parts(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """The title, the text, the options and, of a group, its commands."""
    yield f"{'#' * level} {context.command_path}"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield fenced(usage)
    yield _help(command.help or "")
    if command.epilog:
        before, colon, example = command.epilog.partition("Example: ")
        yield fenced(example, "sh") if colon and not before else prose(command.epilog)
    options = [
        each
        for each in command.get_params(context)
        if isinstance(each, click.Option) and not each.hidden and each.name != "help"
    ]
    if options and not isinstance(command, click.Group):
        yield f"{'#' * (level + 1)} Options" if level == 1 else "**Options**"
        yield "```{program} " + context.command_path + "\n```"
        yield from (_option(each, context) for each in options)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _parts(inner, click.Context(inner, info_name=name, parent=context), level + 1)


def _help(text: str) -> str:
    """The docstring; paragraphs after a line with \\b alone are as they are written."""
    paragraphs = inspect.cleandoc(text).split("\n\n") if text else []
    made = [
        fenced(each.partition("\n")[2]) if each.startswith("\b") else prose(each) for each in paragraphs if each.strip()
    ]
    return "\n\n".join(made)


def _option(option: click.Option, context: click.Context) -> str:
    value = "" if option.is_flag or option.count else f" {option.make_metavar(context).replace(' RANGE', '')}"
    names = ", ".join(f"{name}{value}" for name in [*option.opts, *option.secondary_opts])
    extra: dict[str, Any] = dict(option.get_help_extra(context))
    said = [prose(option.help or "")]
    said += [f"{key.capitalize()}: {code(str(extra[key]))}." for key in ("default", "range") if extra.get(key)]
    said += ["Required."] * bool(extra.get("required"))
    said += ["May be repeated."] * (option.multiple and "repeated" not in (option.help or ""))
    return f":::{{option}} {names}\n\n{' '.join(said)}\n:::"
