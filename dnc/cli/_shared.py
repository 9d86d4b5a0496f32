"""What all commands have in common: the options of `dnc` itself, completion of values, and a remark on what a dnc.toml
gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from dnc.cli._completion import Complete, complete_value
from dnc.cli._logging import level_options, remark
from dnc.cli._project import given

__all__ = ["share", "shared_options"]


def shared_options(*, hidden: bool) -> list[click.Option]:
    """Those that stand before a command or behind it."""
    help = "Take no options from a dnc.toml."
    no_config = click.Option(["--no-config"], is_flag=True, expose_value=False, hidden=hidden, help=help)
    return [*level_options(hidden=hidden), no_config]


def share(command: click.Command) -> None:
    """Gives a command, once, what all have."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            share(each)
    if any(option.name == "log_level" for option in command.params):
        return
    for option in command.params:
        if isinstance(option, click.Argument) or isinstance(option.type, click.Path):
            option.type_cast_value = _filled(option)  # type: ignore[assignment,method-assign]
        if isinstance(option, click.Option) and (complete := complete_value(option.name or "")) is not None:
            option.shell_complete = _bound(complete, option)  # type: ignore[assignment,method-assign]
    command.params += shared_options(hidden=True)
    if command.callback is not None:
        command.callback = _remarking(command.callback)


def _bound(complete: Complete, option: click.Option) -> Callable[[click.Context, str], list[CompletionItem]]:
    return lambda context, incomplete: complete(context, option, incomplete)


def _filled(parameter: click.Parameter) -> Callable[[click.Context, Any], Any]:
    cast = parameter.type_cast_value

    def checked(context: click.Context, value: Any) -> Any:
        # As a path it would be the current folder, which nobody means who has a variable that is not set.
        if "" in (value if isinstance(value, list | tuple) else (value,)):
            raise click.BadParameter("it is empty; is a variable not set?", context, parameter)
        return cast(context, value)

    return checked


def _remarking(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def remarked(*args: Any, **named: Any) -> Any:
        if text := given(click.get_current_context()):
            remark(text)
        return callback(*args, **named)

    return remarked
