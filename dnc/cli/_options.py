"""The compiler's options on the command line: made of `CompileOptions`, so that there is nothing to keep in step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import click
from click.core import ParameterSource

from dnc.cli._lists import Number, names, numbers
from dnc.compiler.options import CompileOptions, Setting, split_passes

__all__ = ["compile_options", "compile_options_of", "preprocessing_options", "refuse", "size_options"]

_PREPROCESSING = ("preprocess", "color", "mean", "std", "crop", "interpolation")
_SHORT = (
    click.option("--shaves", type=int, help="For myriad, --option shaves=N: the vector processors to use, 1 to 16."),
    click.option("--mcpu", help="For tvm, --option mcpu=CPU: the processor, as LLVM names it."),
    click.option("--backend", help="For cuda, --option backend=NAME: onnxruntime or tvm."),
    click.option("--arch", help="For cuda, --option arch=sm_87,…: generations of GPUs."),
    click.option(
        "--allow-fallback", is_flag=True, help="For cuda, --option fallback=on: run on the CPU without a GPU."
    ),
)
"""Options of targets that have an option of their own."""

Command = Callable[..., Any]


def _passes(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else split_passes(value)


def _pairs(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    if any("=" not in item or item.startswith("=") for item in value):
        raise click.BadParameter("KEY=VALUE")
    return {key: text for key, _, text in (item.partition("=") for item in value)}


def _click_option(name: str, setting: Setting, default: Any) -> Callable[[Command], Command]:
    flags = setting.flags or (f"--{name.replace('_', '-')}",)
    rest: dict[str, Any] = {"help": setting.help, "metavar": setting.metavar}
    if setting.choices:
        rest["type"] = click.Choice(setting.choices)
    elif setting.form in ("path", "paths"):
        rest |= {"type": click.Path(), "multiple": setting.form == "paths"}
    elif setting.form == "whole":
        rest["type"] = int if setting.low is None else click.IntRange(min=int(setting.low))
    elif setting.form == "number":
        rest["type"] = Number(setting.low)
    elif setting.form in ("several", "pairs"):
        rest["multiple"] = True
    elif setting.form == "flag":
        rest["is_flag"] = True
    callbacks = {"names": names, "numbers": numbers, "passes": _passes, "pairs": _pairs}
    if setting.form in callbacks:
        rest["callback"] = callbacks[setting.form]
    if isinstance(default, str | bool):
        rest |= {"default": default, "show_default": default is not False}
    return click.option(*flags, name, **rest)


def _with_fields(command: Command, fields: Collection[str]) -> Command:
    defaults = {name: getattr(CompileOptions, name) for name in fields}
    for name, setting in reversed(CompileOptions.settings().items()):
        if name in fields:
            command = _click_option(name, setting, defaults[name])(command)
    return command


def preprocessing_options(command: Command) -> Command:
    """Gives a command the options that say how images become the input, with the names of `CompileOptions`' fields."""
    return _with_fields(command, _PREPROCESSING)


def size_options(command: Command) -> Command:
    """Gives a command --width and --height, in place of the cfg's."""
    return _with_fields(command, ("width", "height"))


def compile_options(command: Command) -> Command:
    """Gives a command all of `CompileOptions`; it passes its keyword arguments to `compile_options_of`."""
    for option in reversed(_SHORT):
        command = option(command)
    return _with_fields(command, CompileOptions.settings())


def refuse(context: click.Context, names: Collection[str], why: str) -> None:
    """Raises UsageError for the first of these parameters that the command line has: `why` follows its option."""
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{max(option.opts, key=len)} {why}")


def compile_options_of(
    *, allow_fallback: bool = False, options: dict[str, str], keep: list[str] | None, **fields: Any
) -> CompileOptions:
    """The options that a command with `compile_options` was given."""
    short = {name: fields.pop(name, None) for name in ("shaves", "mcpu", "backend", "arch")}
    short["fallback"] = "on" if allow_fallback else None
    told = {**options, **{name: str(value) for name, value in short.items() if value is not None}}
    return CompileOptions(options=told, keep=keep or (), **fields)
