"""Where files are kept for the user, and a file that appears whole or not at all: written beside its place, then
renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dnc.errors import DncError

__all__ = ["cache_dir", "whole_file"]


def cache_dir() -> Path:
    """The folder for what was fetched, and for what can be made again; it need not exist yet."""
    chosen = os.environ.get("DNC_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dnc"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write into, which takes the place of `path` only when the block ends without an error.

    A link is followed, and what it points to is replaced. Whatever happens, nothing that was begun is left.

    Raises:
        DncError: the file cannot be written (the block does nothing but write), or a folder or device is in its place.
    """
    place = Path(os.path.realpath(path))
    part = place.with_name(f".{place.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        if place.exists() and not place.is_file():
            raise DncError("something that is no file stands in the way", str(path), "choose another name")
        with part.open("xb") as file:
            yield file
        part.replace(place)
    except OSError as error:
        hint = "is the disk full, or the folder missing or read-only?"
        raise DncError(f"cannot write the file: {error.strerror or error}", str(path), hint) from error
    finally:
        part.unlink(missing_ok=True)
