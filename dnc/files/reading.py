"""Reading files that may come from anywhere: those of a disk alone (a cfg may come through a pipe as well), and no more
of them than a limit."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import select
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnc.errors import DncError

__all__ = ["check_foreign", "digest_of", "open_regular", "parse_json", "read_bounded", "read_json", "read_piped"]

_LOG = logging.getLogger(__name__)
_IMPORTED = {".onnx": "ONNX", **dict.fromkeys((".pt", ".pth", ".safetensors"), "PyTorch")}
_FOREIGN = {
    **{suffix: f"a file of {name}" for suffix, name in _IMPORTED.items()},
    **dict.fromkeys((".engine", ".plan", ".trt"), "a file of TensorRT"),
    **dict.fromkeys((".tflite", ".pb", ".h5", ".keras"), "a file of TensorFlow"),
    **dict.fromkeys((".caffemodel", ".prototxt"), "a file of Caffe"),
    ".xml": "a file of OpenVINO",
    ".param": "a file of ncnn",
    ".mlmodel": "a file of Core ML",
    ".rknn": "a file of RKNN",
    ".blob": "a blob",
}
"""Other tools' models, by their suffix."""


def check_foreign(path: str | os.PathLike[str], error: type[DncError]) -> None:
    """Raises `error` for a file of another tool, which says what dnc reads."""
    suffix = Path(path).suffix.lower()
    if suffix in _FOREIGN and os.path.isfile(path):  # noqa: PTH113 (Path's raises where the name is too long)
        hint = "dnc reads Darknet's .cfg and .weights, and runs what `dnc compile` makes of them"
        if suffix in _IMPORTED:
            hint += f"; `dnc import {Path(path).name} NET.cfg -o NET.weights` takes weights for a cfg that fits"
        raise error(f"this is {_FOREIGN[suffix]}, which dnc does not read", os.fspath(path), hint)


def open_regular(path: str | os.PathLike[str], folder: int | None = None) -> io.BufferedReader:
    """Opens a file to read its bytes, and never waits: a pipe or a device, whose end may never come, is refused.

    Args:
        folder: the descriptor of the folder that the path begins in; the current one if not given.

    Raises:
        OSError: it cannot be opened, or is no file; `strerror` says why, for the message of who reads it.
    """
    try:
        # Without O_NONBLOCK, a pipe that nobody writes to is waited for.
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0), dir_fd=folder
        )
    except ValueError as error:
        # A name with a zero byte.
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
    _LOG.debug("reading %s", os.fspath(path))
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
        raise _too_long(path, limit)
    return content


def _too_long(path: str | os.PathLike[str], limit: int) -> OSError:
    shown = f"{limit >> 20:,} MiB" if limit >= 1 << 20 else f"{limit >> 10:,} KiB"
    return OSError(errno.EFBIG, f"it has more than {shown}", os.fspath(path))


_PIPE_SECONDS = 10.0
"""For so long nothing may come through a pipe."""


def read_piped(path: str | os.PathLike[str], limit: int) -> bytes:
    """As `read_bounded`, and what comes through a pipe, as in `dnc compile <(sed … net.cfg)`.

    Raises:
        OSError: as `read_bounded`, or nobody writes into the pipe.
    """
    if not Path(path).is_fifo():
        return read_bounded(path, limit)
    # Neither opening nor reading waits: who would write may never come.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        content = bytearray()
        while len(content) <= limit:
            if not waiting.poll(1000 * _PIPE_SECONDS):
                raise OSError(errno.ETIMEDOUT, "nothing comes through the pipe", os.fspath(path))
            part = os.read(descriptor, 1 << 16)
            if not part:
                return bytes(content)
            content += part
        raise _too_long(path, limit)
    finally:
        os.close(descriptor)


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


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
