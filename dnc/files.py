"""Where files are kept for the user, a file that appears whole or not at all (written beside its place, then renamed),
and files that are read: those of a disk alone, and no more of them than a limit."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dnc.errors import DncError

__all__ = ["cache_dir", "open_regular", "parse_json", "prune", "read_bounded", "read_json", "whole_file"]


def packaged(name: str) -> Path:
    """A folder that stands beside dnc/ in a checkout, and inside it where dnc is installed: "cfg" or "embed"."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def cache_dir() -> Path:
    """The folder for what was fetched, and for what can be made again; it need not exist yet."""
    chosen = os.environ.get("DNC_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dnc"


def prune(root: Path, limit: int, keep: Collection[Path]) -> None:
    """Removes the folders in `root` that were used longest ago, as long as all together have more bytes than the limit.

    Args:
        root: a folder of folders with files; the time of a folder says when it was used.
        limit: bytes.
        keep: folders that stay.
    """
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    total = sum(sizes.values())
    for folder in folders:
        if total > limit and folder not in keep:
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a file to read its bytes, and never waits: a pipe or a device, whose end may never come, is refused.

    Raises:
        OSError: it cannot be opened, or is no file; `strerror` says why, for the message of who reads it.
    """
    try:
        # Without O_NONBLOCK, a pipe that nobody writes to is waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        # A name with a zero byte.
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a file that is read as a whole; `limit` is the most that one of its kind has.

    Raises:
        OSError: as `open_regular`, or it has more than `limit` bytes.
    """
    with open_regular(path) as file:
        # Not by its size alone, which is 0 for the files of /proc.
        long = os.fstat(file.fileno()).st_size > limit
        content = b"" if long else file.read(limit + 1)
    if long or len(content) > limit:
        shown = f"{limit >> 20:,} MiB" if limit >= 1 << 20 else f"{limit >> 10:,} KiB"
        raise OSError(errno.EFBIG, f"it has more than {shown}", os.fspath(path))
    return content


JSON_DEPTH, JSON_VALUES, JSON_DIGITS = 64, 1 << 20, 512
"""How deep values may nest, how many there may be, and how long a number may be: as in json.cpp."""


def parse_json(content: bytes, values: int = JSON_VALUES) -> Any:
    """The value of a JSON file, which may come from anywhere. Raises ValueError if it is no JSON in UTF-8, has more
    `values`, nests deeper or has longer numbers than any file has that is meant, or a name twice in an object."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) != len(pairs):
            raise ValueError("a name stands twice in an object")
        return unique

    def number(kind: type[int] | type[float]) -> Callable[[str], int | float]:
        def parse(text: str) -> int | float:
            if len(text) > JSON_DIGITS:
                raise ValueError("a number is too long")
            return kind(text)

        return parse

    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=members, parse_int=number(int), parse_float=number(float)
        )
    except RecursionError:
        raise ValueError("it nests too deep") from None
    level, count = [value], 0
    for _ in range(JSON_DEPTH + 1):
        count += len(level)
        if count > values:
            raise ValueError("it has too many values")
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise ValueError("it nests too deep")
    return value


def read_json(path: str | os.PathLike[str], limit: int = 1 << 24, values: int = JSON_VALUES) -> Any:
    """The value of a JSON file of up to `limit` bytes; raises as `read_bounded` and `parse_json`."""
    return parse_json(read_bounded(path, limit), values)


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
