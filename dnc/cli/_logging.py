"""What the commands say besides their results: Python's logging, set up here and nowhere else.

    error      why a command ended; nothing silences it
    warning    what Darknet ignores or guesses (`DncWarning`)
    info       remarks: the files that were taken, what a dnc.toml gives; progress on a terminal. This is the default
    debug      each step and each file that was written, with the seconds since the start

Loggers are called like their modules, below "dnc": an application that uses dnc as a library sets levels and handlers
of its own, and finds the same there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource

from dnc.errors import printable

__all__ = ["level_options", "logging_to_stderr", "remark", "shows_progress", "step"]

_ROOT = logging.getLogger("dnc")
_LEVELS = ("error", "warning", "info", "debug")
_TOLD = "dnc.level"
"""The key of a context's `meta`: the command line has a level, which a dnc.toml does not change."""


class _ToStderr(logging.Handler):
    """Writes to where sys.stderr points now: `progress` puts it above its line."""

    def emit(self, record: logging.LogRecord) -> None:
        head = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        if record.levelno <= logging.DEBUG:
            head = f"{record.relativeCreated / 1e3:7.3f} s  "
        print(f"dnc: {head}{printable(record.getMessage())}", file=sys.stderr, flush=True)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """A block in which what dnc logs goes to stderr, from remarks on."""
    level, propagate, handler = _ROOT.level, _ROOT.propagate, _ToStderr()
    _ROOT.addHandler(handler)
    _ROOT.setLevel(logging.INFO)
    # A library that sets up logging for itself would print it once more.
    _ROOT.propagate = False
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        _ROOT.propagate = propagate
        _ROOT.setLevel(level)


def remark(text: str) -> None:
    """Says on stderr what is no result."""
    _ROOT.info("%s", text)


def step(text: str) -> None:
    """Says what is done now, to those who want to know everything."""
    _ROOT.debug("%s", text)


def shows_progress() -> bool:
    """Whether progress is wanted, where there is a terminal for it."""
    return _ROOT.isEnabledFor(logging.INFO)


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    name = {"verbose": "debug", "quiet": "warning"}.get(parameter.name or "", value) if value else None
    if name is None or context.resilient_parsing:
        return
    if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
        context.meta[_TOLD] = True
    elif _TOLD in context.meta:
        return
    _ROOT.setLevel(name.upper())


def level_options(*, hidden: bool) -> list[click.Option]:
    """-v, -q and --log-level, for `dnc` itself and, hidden, for each command, so that they stand where one likes."""
    rest: dict[str, Any] = {"expose_value": False, "callback": _set, "hidden": hidden}
    return [
        click.Option(["-v", "--verbose"], is_flag=True, help="Say each step and its time, and files written.", **rest),
        click.Option(["-q", "--quiet"], is_flag=True, help="Say no remarks, and show no progress.", **rest),
        click.Option(["--log-level"], type=click.Choice(_LEVELS), help="The same by name; else info.", **rest),
    ]
