"""Standard streams: results that cannot be written are an error of their own, all else may be lost, and no stream is
missing."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dnc.errors import DncError

__all__ = ["open_streams", "results"]

_STDOUT = "stdout"


class _Stdout(io.TextIOWrapper):
    """Standard output whose errors say that they are its own: others are no files' errors either."""

    def write(self, text: str) -> int:
        with _naming():
            return super().write(text)

    def flush(self) -> None:
        with _naming():
            super().flush()


class _Stderr(io.TextIOWrapper):
    """Standard error that drops what there is no place for: nobody could be told, and the exit code stays right."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


@contextmanager
def _naming() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = _STDOUT
        raise


@contextmanager
def results() -> Iterator[None]:
    """A block that prints results; raises DncError where there is no place for them."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename != _STDOUT:
            raise
        # What Python flushes on its way out goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The reader of a pipe (head, less) has seen enough.
        if not isinstance(error, BrokenPipeError):
            hint = "is the disk full, or stdout closed?"
            raise DncError(f"cannot write the results: {error.strerror}", hint=hint) from error


def open_streams() -> None:
    """Standard streams that tell their errors, take any label, and are there."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        # The next file that is opened would take the number of one that the caller has closed, and with it whatever a
        # library prints. Writing to this 1 fails: results that are lost are an error.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    # A label that the terminal's encoding lacks must not end the program.
    errors = "backslashreplace"
    # Whoever runs commands in a process of his own, as tests do, has streams of his own.
    if sys.stdout is None or type(sys.stdout) is io.TextIOWrapper:
        encoding = sys.stdout.encoding if sys.stdout is not None else None
        sys.stdout = _Stdout(open(1, "wb", closefd=False), encoding, errors)  # noqa: SIM115
    if sys.stderr is None or type(sys.stderr) is io.TextIOWrapper:
        encoding = sys.stderr.encoding if sys.stderr is not None else None
        sys.stderr = _Stderr(open(2, "wb", closefd=False), encoding, errors, line_buffering=True)  # noqa: SIM115
