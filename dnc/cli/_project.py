"""dnc.toml: options of a project, so that nobody has to repeat them.

    [compile]
    target = "openvino"
    skip = ["share-convs"]
    verify = false

    [compile.option]
    device = "GPU"

    [zoo.fetch]
    force = true

A table for each command, with its options as the command line calls them; before the tables, those of `dnc` itself, as
`log-level`. The file of the current folder is taken, else that of the nearest folder above it. Paths are relative to
it. What the command line has, wins; `--no-config` does without the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dnc.errors import DncError, Where, close_match
from dnc.files.reading import read_bounded

__all__ = ["NAME", "default_map", "find", "given"]

NAME = "dnc.toml"
_LIMIT = 1 << 20
"""Bytes."""
_FILE = "dnc.project"
"""The key of a context's `meta`: the file that was read."""
_RUNS = ("peer", "cc")
"""Options that name a program to run: whose folder it is should not decide that."""


def find(folder: Path | None = None) -> Path | None:
    """The file of a folder, or of the nearest above it; None if there is none."""
    try:
        here = Path.cwd() if folder is None else folder
    except FileNotFoundError:
        # The current folder is gone: commands that are given whole paths go on.
        return None
    return next((place / NAME for place in (here, *here.parents) if (place / NAME).is_file()), None)


def default_map(context: click.Context, group: click.Group) -> dict[str, Any] | None:
    """What the project's file gives, as click takes it: by command, then by the parameters' own names.

    Raises:
        DncError: the file cannot be read, has a command or an option that there is none of, or a value that is not
            allowed; it says the line.
    """
    path = find()
    if path is None:
        return None
    context.meta[_FILE] = path
    try:
        text = read_bounded(path, _LIMIT).decode("utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DncError(f"cannot read the file: {error}", path, "--no-config does without it") from error
    except RecursionError as error:
        raise DncError("no TOML: it nests too deep", path) from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise DncError(f"no TOML: {error}", Where(str(path), int(line[1]) if line else 0)) from error
    return _File(path, tuple(text.splitlines())).group(group, tables, ())


def given(context: click.Context) -> str:
    """A sentence on what the file gives to the command of this context; empty where it gives nothing."""
    values: Mapping[str, Any] = context.default_map or {}
    taken = [
        f"{max(option.opts, key=len)}={_shown(values[option.name or ''])}"
        for option in context.command.params
        if context.get_parameter_source(option.name or "") is ParameterSource.DEFAULT_MAP
    ]
    return f"{context.meta[_FILE]} gives {', '.join(taken)}" if taken else ""


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()


@dataclass(frozen=True)
class _File:
    path: Path
    lines: tuple[str, ...]

    def group(self, group: click.Group, table: Mapping[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
        context = click.Context(group)
        found: dict[str, Any] = {}
        commands = group.list_commands(context)
        for key, value in table.items():
            if key not in commands:
                found |= self.option(group, key, value, place, commands)
                continue
            if not isinstance(value, dict):
                hint = f"its options stand below [{'.'.join((*place, key))}]"
                raise DncError(f"'{key}' is a command", self.where(place, key), hint)
            command, inner = group.get_command(context, key), (*place, key)
            if isinstance(command, click.Group):
                found[key] = self.group(command, value, inner)
            elif command is not None:
                found[key] = {}
                for name, own in value.items():
                    found[key] |= self.option(command, name, own, inner)
        return found

    def option(
        self, command: click.Command, key: str, value: Any, place: tuple[str, ...], commands: list[str] | None = None
    ) -> dict[str, Any]:
        where = self.where(place, key)
        options = {
            flag[2:]: option
            for option in command.params
            if isinstance(option, click.Option) and not option.is_eager
            for flag in (*option.opts, *option.secondary_opts)
            if flag.startswith("--")
        }
        if key not in options:
            title = " ".join(("dnc", *place))
            hint = close_match(key, {*options, *(commands or ())})
            raise DncError(f"{title} has no option '{key}'", where, hint or f"`{title} --help` lists them")
        option = options[key]
        if key in _RUNS or (option.is_flag and not option.is_bool_flag):
            raise DncError(f"'{key}' is for the command line alone", where, "leave it out here")
        if option.is_bool_flag:
            if not isinstance(value, bool):
                raise DncError(f"'{key}' is true or false, not {value!r}", where)
            return {option.name or "": value if f"--{key}" in option.opts else not value}
        chosen = self.values(option, key, value, where)
        try:
            # As it will be, when the command runs: here it is known where it stands.
            context = click.Context(command)
            parsed = option.type_cast_value(context, chosen)
            if option.callback is not None and option.expose_value:
                option.callback(context, option, parsed)
        except click.UsageError as error:
            raise DncError(f"'{key}': {error.message}", where) from error
        return {option.name or "": chosen}

    def values(self, option: click.Option, key: str, value: Any, where: Where) -> Any:
        """Words, as the command line would have them."""
        several = option.multiple or option.nargs > 1
        table = isinstance(value, dict) and option.multiple
        items = list(value.values()) if table else value if isinstance(value, list) else [value]
        if any(isinstance(item, bool | dict | list) for item in items):
            raise DncError(f"'{key}' is text or a number, or a list of them, not {value!r}", where)
        words = [self.word(option, item) for item in items]
        if table:
            words = [f"{name}={word}" for name, word in zip(value, words, strict=True)]
        return words if several else ",".join(words)

    def word(self, option: click.Option, item: object) -> str:
        # A number is no path: of some options it says how many.
        if isinstance(option.type, click.Path) and isinstance(item, str) and self.path.parent != Path.cwd():
            return str(self.path.parent / item)
        return str(item)

    def where(self, place: tuple[str, ...], key: str) -> Where:
        """The line of a key, else of its table."""
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.lines, 1):
            words = re.match(r"\s*(\[?)([\w\-.\"' ]+?)\s*([\]=])", line)
            if words is None:
                continue
            names = tuple(name.strip(" \"'") for name in words[2].split("."))
            if words[1]:
                table = names
            if (table if words[1] else (*table, *names))[: len(place) + 1] == (*place, key):
                return Where(str(self.path), number, text=line.strip())
        return Where(str(self.path))
