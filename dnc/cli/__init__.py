"""The command line: one file per command, found by its name.

To add one: a file here with a click command called `command`, and a test beside the others in tests/cli/. Its module
imports what it needs inside the command, so that `dnc --help` stays instant. Files that start with _ are no commands.

Exit codes are those of `Exit`. Results go to stdout, everything else to stderr: remarks by `remark`, which -q silences.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from dnc import __version__
from dnc.cli import _progress, _project
from dnc.cli._logging import logging_to_stderr, remark
from dnc.cli._progress import progress_bar
from dnc.cli._shared import share, shared_options
from dnc.cli._streams import open_streams, results
from dnc.errors import DncError, DncWarning, close_match, how_to_report

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Exit", "cli", "main", "print_json", "progress", "progress_bar", "remark", "say_files"]


class Exit(IntEnum):
    """What the exit code of a command says; `dnc --help` has the list."""

    DONE = 0
    ERROR = 1
    """Something that the user can mend: a `DncError`, no memory."""
    USAGE = 2
    NO = 3
    """All went well, and the answer is the bad one: the layers differ, the new engine is slower."""
    BUG = 70
    """What is not the user's fault (sysexits.h: EX_SOFTWARE)."""
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


_ended: list[int] = []
"""Signals that were to end the command: a library may make something else of the KeyboardInterrupt that they raise."""


_COMPILER = ("onnx", "onnx_ir", "PIL", "rich")
"""What the extra `compiler` installs besides click."""


_MEANT = {
    **dict.fromkeys(("run", "infer", "predict", "demo", "test"), "detect"),
    **dict.fromkeys(("map", "val", "valid", "validate", "recall"), "eval"),
    **dict.fromkeys(("convert", "build"), "compile"),
    **dict.fromkeys(("download", "fetch"), "dnc zoo fetch"),
    "quantize": "calibrate",
    "train": "dnc does not train",
}
"""What other programs call a command."""


class _Commands(click.Group):
    """Finds commands among the modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = (module.name for module in pkgutil.iter_modules(__path__))
        return sorted(name for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        share(command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Help needs no project, and has to come where its file is damaged.
        if not ctx.resilient_parsing and not {"--no-config", "--help", "-h", "--version"} & set(args):
            ctx.default_map = _project.default_map(ctx, self)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        unknown = args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None
        if unknown and not ctx.resilient_parsing:
            hint = close_match(args[0], self.list_commands(ctx), meant=_MEANT)
            ctx.fail(f"no command '{args[0]}'" + (f": {hint}" if hint else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        # Here as well, because click ends with 1 where a pipe is closed.
        with results():
            return super().invoke(ctx)


_CODES = """Exit codes: 0 done, 1 an error that can be mended, 2 wrong usage, 3 the answer is no (`dnc compare`: layers
differ; `dnc bench --diff`: slower), 70 a bug of dnc, 130 Ctrl-C, 143 SIGTERM."""


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_CODES,
    params=shared_options(hidden=False),
)
@click.version_option(__version__, prog_name="dnc")
def cli() -> None:
    """Compiles Darknet networks (.cfg + .weights) to engines for CPUs, GPUs and VPUs.

    \b
    dnc compile yolov4-tiny.cfg -o yolov4-tiny.engine
    dnc detect yolov4-tiny.engine dog.jpg

    These options stand before or behind the command.
    """


def main() -> None:
    """Entry point: every error in one form, and an exit code that says whose fault it was."""
    open_streams()
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", DncWarning)
    # Whoever ends a container or a job gets what Ctrl-C gets: nothing unfinished is left.
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Not where it is ignored, as in the background.
        signal.signal(signal.SIGINT, _end)
    code: int = Exit.DONE
    try:
        with logging_to_stderr(), results():
            code = cli.main(standalone_mode=False, prog_name="dnc") or Exit.DONE
        if _ended:
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        code = _failure(error)
    sys.exit(code)


def _failure(error: BaseException) -> int:
    """Says what ended a command; returns its exit code."""
    if _ended or isinstance(error, click.Abort | KeyboardInterrupt):
        number = _ended[0] if _ended else signal.SIGINT
        return _say("error: interrupted; nothing unfinished is left behind", 128 + number)
    if isinstance(error, DncError):
        return _say(f"error: {error}", Exit.ERROR)
    if isinstance(error, click.ClickException):
        error.show()
        if isinstance(error, click.UsageError) and error.ctx is not None and (given := _project.given(error.ctx)):
            click.echo(f"{given}; --no-config does without", err=True)
        return error.exit_code
    if isinstance(error, MemoryError):
        return _say("error: there is not enough memory", Exit.ERROR)
    if isinstance(error, FileNotFoundError) and _stands_nowhere():
        return _say("error: the current folder is gone\n  hint: change to one that is there", Exit.ERROR)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing in _COMPILER:
        what = f'{missing} is not installed; the commands need: pip install "darknet-compiler[compiler]"'
        return _say(f"error: {what}", Exit.ERROR)
    import traceback

    traceback.print_exception(error)
    what = f"the lines above, dnc's version ({__version__}), and the files or how to get them"
    return _say(f"this is a bug of dnc; {how_to_report(what)}", Exit.BUG)


def _stands_nowhere() -> bool:
    """Whether the current folder was removed: no relative path means anything then."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _say(text: str, code: int) -> int:
    """Prints a line. Where stderr is full or closed, the code alone has to say it."""
    click.echo(f"dnc: {text}", err=True)
    return code


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _ended.append(number)
    raise KeyboardInterrupt


def _go_on(text: str) -> None:
    """Progress that nobody sees; ends a command that was to end before."""
    if _ended:
        raise KeyboardInterrupt


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, DncWarning):
        logging.getLogger("dnc").warning("%s", message)


def say_files(cfg: object, weights: object) -> None:
    """Says on stderr which files a command took: they may have been found by name."""
    remark(f"{cfg} " + (f"with {weights}" if weights else "without weights"))


def print_json(value: object) -> None:
    """Machine-readable output, in ASCII whatever the terminal's encoding is."""
    import json

    click.echo(json.dumps(value, indent=1))


@contextmanager
def progress(enabled: bool = True) -> Iterator[Callable[[str], None]]:
    """Shows what goes on in one line of a terminal; silent elsewhere, and where not `enabled`."""
    with _progress.progress(_go_on, enabled) as tell:
        yield tell
