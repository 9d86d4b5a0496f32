"""The command line: one file per command, found by its name.

To add one: a file here with a click command called `command`, and a test beside the others in tests/cli/. Its module
imports what it needs inside the command, so that `dnc --help` stays instant. Files that start with _ are no commands.

Exit codes: 0; 1 what the user can mend (`DncError`, Ctrl-C), or `dnc compare` found a difference; 2 usage; 70 a bug.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from dnc import __version__
from dnc.errors import DncError, DncWarning, close_match

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cli", "main", "print_json", "progress", "progress_bar"]

_BUG = 70
"""Exit code for what is not the user's fault (sysexits.h: EX_SOFTWARE)."""


_COMPILER = ("onnx", "onnx_ir", "PIL", "rich")
"""What the extra `compiler` installs besides click."""


class _Commands(click.Group):
    """Finds commands among the modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = (module.name for module in pkgutil.iter_modules(__path__))
        return sorted(name for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = close_match(args[0], self.list_commands(ctx))
            ctx.fail(f"no command '{args[0]}'" + (f": {hint}" if hint else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of a pipe (head, less) has seen enough; what Python flushes on its way out goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dnc")
def cli() -> None:
    """Compiles Darknet networks (.cfg + .weights) to engines for CPUs, GPUs and VPUs.

    \b
    dnc compile yolov4-tiny.cfg -o yolov4-tiny.engine
    dnc detect yolov4-tiny.engine dog.jpg
    """


def main() -> None:
    """Entry point: every error in one form, and an exit code that says whose fault it was."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", DncWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A label that the terminal's encoding lacks must not end the program.
            stream.reconfigure(errors="backslashreplace")
    # Whoever ends a container or a job gets what Ctrl-C gets: nothing unfinished is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(cli.main(standalone_mode=False, prog_name="dnc") or 0)
    except DncError as error:
        click.echo(f"dnc: error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("dnc: error: interrupted; nothing unfinished is left behind", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MemoryError:
        click.echo("dnc: error: there is not enough memory", err=True)
        sys.exit(1)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing in _COMPILER:
            what = f'{missing} is not installed; the commands need: pip install "darknet-compiler[compiler]"'
            click.echo(f"dnc: error: {what}", err=True)
            sys.exit(1)
        import traceback

        traceback.print_exc()
        click.echo("dnc: this is a bug of dnc; please report it with the lines above", err=True)
        sys.exit(_BUG)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, DncWarning):
        # To where sys.stderr points now: `progress` puts it above its line.
        print(f"dnc: warning: {message}", file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Machine-readable output, in ASCII whatever the terminal's encoding is."""
    import json

    click.echo(json.dumps(value, indent=1))


@contextmanager
def progress(enabled: bool = True) -> Iterator[Callable[[str], None]]:
    """Shows what goes on in one line of a terminal; silent elsewhere, and where not `enabled`."""
    if not enabled or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots", Text("starting"))
    # Results may be printed meanwhile: rich would redirect them to the console, which is stderr.
    with Live(spinner, console=Console(stderr=True), transient=True, redirect_stdout=False):
        yield lambda text: spinner.update(text=Text(text))


@contextmanager
def progress_bar(title: str, total: int, *, bytes_: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar on a terminal, for a callback that is given how much of `total` is done; silent elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = (DownloadColumn(), TransferSpeedColumn()) if bytes_ else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bars:
        task = bars.add_task(title, total=total)
        yield lambda done, of: bars.update(task, completed=done)
