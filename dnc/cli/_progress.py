"""Progress: one line of a terminal for whoever waits, with the time that is left where it is known how much there is to
do. Elsewhere, and under -q, there is none; under -v each step is said as well."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dnc.cli._logging import shows_progress, step

__all__ = ["Remaining", "progress", "progress_bar"]

_PART = re.compile(r"\b(\d+)(?: of |/)(\d+)\b")
_SOON = 2.0
"""Seconds before there is an estimate."""


class Remaining:
    """How long something goes on, from lines that say how far it is: "image 3 of 100", "3/100".

    Args:
        clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._what = ""
        self._start = (0, 0.0)

    def __call__(self, text: str) -> str:
        """The line with the time that is left, if that can be said."""
        part = _PART.search(text)
        if part is None:
            return text
        done, total, now = int(part[1]), int(part[2]), self._clock()
        # The same work, whatever else is counted in the line.
        what = re.sub(r"\d+", "", text[: part.start()]) + part[2]
        if what != self._what or done < self._start[0]:
            self._what, self._start = what, (done, now)
        first, start = self._start
        if done <= first or now - start < _SOON:
            return text
        minutes, seconds = divmod(round((now - start) / (done - first) * max(total - done, 0)), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{text[: part.end()]} (about {left} left){text[part.end() :]}"


@contextmanager
def progress(listen: Callable[[str], None], enabled: bool = True) -> Iterator[Callable[[str], None]]:
    """Shows what goes on in one line of a terminal; silent elsewhere, and where not `enabled`.

    Args:
        listen: is called with each line, seen or not.
    """

    def note(text: str) -> None:
        listen(text)
        step(text)

    if not enabled or not shows_progress() or not sys.stderr.isatty():
        yield note
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner, remaining = Spinner("dots", Text("starting")), Remaining()
    # Results may be printed meanwhile: rich would redirect them to the console, which is stderr.
    with Live(spinner, console=Console(stderr=True), transient=True, redirect_stdout=False):

        def tell(text: str) -> None:
            note(text)
            spinner.update(text=Text(remaining(text)))

        yield tell


@contextmanager
def progress_bar(title: str, total: int, *, bytes_: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar on a terminal, for a callback that is given how much of `total` is done; silent elsewhere."""
    step(title)
    if not shows_progress() or not sys.stderr.isatty():
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
