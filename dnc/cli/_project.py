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

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dnc.errors import DncError, Where, close_match, warn
from dnc.files.reading import read_bounded

__all__ = ["NAME", "default_map", "find", "given"]

NAME = "dnc.toml"
_LIMIT = 1 << 20
"""Bytes."""
_DEEPEST = 4
_FILE = "dnc.project"
"""The key of a context's `meta`: the file that was read."""
_ALONE = ("interpreters", "cc", "against", "scheduler", "remote", "no_config")
"""Parameters whose options stand on the command line alone: they start a program, load machine code or trust another
machine, which is not for whoever has made the current folder; and a file cannot say that it is not to be read."""
_CODE = ("cc", "compiler", "runtime")
"""Of `--option`, what does so."""


def find(folder: Path | None = None) -> Path | None:
    """The file of a folder, or of the nearest above it; None if there is none."""
    try:
        here = Path.cwd() if folder is None else folder
    except FileNotFoundError:
        # The current folder is gone: commands that are given whole paths go on.
        return None
    for place in (here, *here.parents):
        path = place / NAME
        # Also what is no file: whoever called it so wants to be told.
        if not os.path.lexists(path):
            continue
        if place == here or not _foreign(path, here):
            return path
        warn(DncError("the file is not taken: it is another user's", path, "copy it into your folder"), str(path))
    return None


def _foreign(path: Path, folder: Path) -> bool:
    """Whether a file that is found on the way up is that of somebody who has no say here: anybody has files in /tmp."""
    own = {0, folder.stat().st_uid, os.getuid()} if hasattr(os, "getuid") else set()
    return bool(own) and path.lstat().st_uid not in own


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
        text = read_bounded(path, _LIMIT).decode("utf-8-sig")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise DncError(f"cannot read the file: {what}", path, "--no-config does without it") from error
    except RecursionError as error:
        raise DncError("no TOML: it nests too deep", path) from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise DncError(f"no TOML: {error}", Where(str(path), int(line[1]) if line else 0)) from error
    except ValueError as error:
        raise DncError("no TOML: a number has too many digits", path) from error
    return _File(path, tuple(text.split("\n"))).table(group, tables, ())


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

    def table(self, command: click.Command, table: Mapping[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
        """What the table of a command, or of a group of them, gives."""
        context = click.Context(command)
        found: dict[str, Any] = {}
        commands = command.list_commands(context) if isinstance(command, click.Group) else []
        for key, value in table.items():
            inner = command.get_command(context, key) if isinstance(command, click.Group) else None
            if inner is None:
                name, taken = self.option(command, key, value, place, commands)
                if name in found:
                    raise DncError(f"'{key}' says again what another key says", self.where(place, key), "keep one")
                found[name] = taken
            elif isinstance(value, dict):
                found[key] = self.table(inner, value, (*place, key))
            else:
                hint = f"its options stand below [{'.'.join((*place, key))}]"
                raise DncError(f"'{key}' is a command", self.where(place, key), hint)
        return found

    def option(
        self, command: click.Command, key: str, value: Any, place: tuple[str, ...], commands: list[str]
    ) -> tuple[str, Any]:
        """The name of the parameter that a key stands for, and what it is given."""
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
            hint = close_match(key, {*options, *commands})
            raise DncError(f"{title} has no option '{key}'", where, hint or f"`{title} --help` lists them")
        option, name = options[key], options[key].name or ""
        try:
            shown = repr(value)
        except ValueError as error:
            raise DncError(f"'{key}' has a number with too many digits", where) from error
        if name in _ALONE or option.nargs > 1 or (option.is_flag and not option.is_bool_flag):
            raise DncError(f"'{key}' is for the command line alone", where, "leave it out here")
        if option.is_bool_flag:
            if not isinstance(value, bool):
                raise DncError(f"'{key}' is true or false, not {shown}", where)
            return name, value if f"--{key}" in option.opts else not value
        chosen = self.values(option, value)
        if chosen is None:
            raise DncError(f"'{key}' is text or a number, or a list of them, not {shown}", where)
        if isinstance(option.type, click.Path) and "://" in shown:
            raise DncError(f"an address for '{key}' is for the command line alone", where, "leave it out here")
        if name == "options" and (code := {word.partition("=")[0] for word in chosen} & {*_CODE}):
            what = f"'{min(code)}' of --option is for the command line alone"
            raise DncError(what, where, "leave it out here: it names what is run")
        try:
            # As it will be, when the command runs: here it is known where it stands.
            context = click.Context(command)
            parsed = option.type_cast_value(context, chosen)
            if option.callback is not None and option.expose_value:
                option.callback(context, option, parsed)
        except click.UsageError as error:
            raise DncError(f"'{key}': {error.message}", where) from error
        return name, chosen

    def values(self, option: click.Option, value: Any) -> Any:
        """Words, as the command line would have them; None if that cannot be."""
        table = isinstance(value, dict) and option.multiple
        items = list(value.values()) if table else value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
            return None
        words = [self.word(option, item) for item in items]
        if table:
            words = [f"{name}={word}" for name, word in zip(value, words, strict=True)]
        if any("\0" in word for word in words):
            return None
        return words if option.multiple else ",".join(words)

    def word(self, option: click.Option, item: object) -> str:
        # A number is no path: of some options it says how many. Nor is nothing, which is refused.
        path = isinstance(option.type, click.Path) and isinstance(item, str) and item
        return str(self.path.parent / str(item)) if path and self.path.parent != Path.cwd() else str(item)

    def where(self, place: tuple[str, ...], key: str) -> Where:
        """The line of a key, else of its table."""
        whole = (*place, key)
        for length in range(len(whole), 0, -1):
            number = self.places.get(whole[:length])
            if number is not None:
                return Where(str(self.path), number, text=self.lines[number - 1].strip())
        return Where(str(self.path))

    @cached_property
    def places(self) -> dict[tuple[str, ...], int]:
        """The first line of each key and table, as far as a look at the line tells."""
        found: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.lines, 1):
            head, text = line.lstrip().startswith("["), line.strip().lstrip("[")
            words, parted, _ = text.partition("]" if head else "=")
            if not parted or text.startswith("#"):
                continue
            # No option is deeper: dnc zoo fetch's are at the third place, with --option's own names behind.
            names = tuple(name.strip(" \t\"'") for name in words.split(".", _DEEPEST)[:_DEEPEST])
            if head:
                table = names
            full = names if head else (*table, *names)
            for length in range(1, len(full) + 1):
                found.setdefault(full[:length], number)
        return found
