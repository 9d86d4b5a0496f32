"""Where files are kept for the user, and what appears whole or not at all: a file or a folder that is written beside
its place, and put there in one step.

A process may be killed, or the power fail, at any moment. So what is being written lies in a folder of its own, which
says by its name that dnc made it, and by a lock whether its owner lives:

    .NAME.TOKEN.dnc-part/       beside the place; dnc-NAME.TOKEN.dnc-part/ in the folder for temporary files
        lock                    locked (flock) by the owner for as long as it lives
        new                     what is being written; once it is in its place, what stood there
        old/NAME                what stood in the place, where two things cannot change places in one step

Whoever gets the lock without waiting knows that the owner is dead. The next process that writes something into the same
folder removes what it finds of that kind, of the same user; where something stepped aside and nothing took its place,
it is put back first. On Linux nothing ever steps aside: a folder and the one that it replaces change places by
renameat2. Elsewhere, and on file systems that cannot do so (NFS), two renames do it, between which a reader waits.

What is in its place is on the disk before what it replaces is removed: a file system may otherwise keep the renaming
but not the contents when the power fails. Only caches do without, whose contents are checked at every use.

Files that are read are those of a disk alone, and no more of them than a limit.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dnc.errors import DncError

try:
    import fcntl
except ImportError:
    # Without locks nobody can know whether an owner lives, and nothing is removed for others.
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "as_text",
    "cache_dir",
    "can_be_written",
    "check_foreign",
    "home",
    "open_regular",
    "parse_json",
    "prune",
    "put_back",
    "read_bounded",
    "read_json",
    "scratch_folder",
    "sweep",
    "whole_file",
    "whole_folder",
]

_LEFT = re.compile(r".+\.[0-9a-f]{8}\.dnc-part", re.DOTALL)
_LOCK, _NEW, _OLD = "lock", "new", "old"
_TRIES = 100
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""With EPERM, containers refuse calls of the system that they do not know."""
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_swept: set[Path] = set()


def packaged(name: str) -> Path:
    """A folder that stands beside dnc/ in a checkout, and inside it where dnc is installed: "cfg" or "embed"."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def home() -> Path | None:
    """The user's home; None where neither HOME nor the system's list of users has one, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def cache_dir(*, to_write: bool = False) -> Path:
    """The folder for what was fetched, and for what can be made again; it need not exist yet.

    It is $DNC_CACHE, else ~/.cache/dnc, else, for a user without a home, a folder of his own where temporary files are.

    Args:
        to_write: takes that one too where the home cannot be written to: for what is made again without a word.

    Raises:
        DncError: there is neither a home nor a place for temporary files.
    """
    chosen = os.environ.get("DNC_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))  # noqa: PTH111 (Path's raises where there is no home)
    own = home()
    if own is not None:
        place = own / ".cache" / "dnc"
        if not to_write or can_be_written(place):
            return place
    return _temporary_cache()


def can_be_written(folder: Path) -> bool:
    """Whether a folder, or the one that it would be made in, may be written to."""
    there = next((place for place in (folder, *folder.parents) if os.access(place, os.F_OK)), folder)
    return os.access(there, os.W_OK | os.X_OK)


def _temporary_cache() -> Path:
    hint = "set DNC_CACHE to a folder that can be written to"
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        place = Path(tempfile.gettempdir()) / f"dnc-{user}"
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
    except OSError as error:
        raise DncError(f"there is no place for a cache: {error.strerror or error}", hint=hint) from error
    # Everybody may make folders there, and what is kept in this one is run.
    if not stat.S_ISDIR(found.st_mode) or (os.name == "posix" and (found.st_uid != user or found.st_mode & 0o022)):
        raise DncError("the cache could be written to by somebody else", place, hint)
    return place


def as_text(folder: Path) -> Path:
    """The folder by a path that is text. To Unix a path is bytes, and libraries take UTF-8 alone: for others there is a
    link in the cache.

    Raises:
        DncError: the link cannot be made.
    """
    if _is_text(folder):
        return folder
    target = folder.resolve()
    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
    cache = cache_dir(to_write=True)
    link = (cache if _is_text(cache) else _temporary_cache()) / "links" / name
    try:
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(target)
    except OSError as error:
        hint = "rename it, or set DNC_CACHE to a folder that can be written to"
        raise DncError(
            f"the path is no UTF-8, and no link to it can be made: {error.strerror}", folder, hint
        ) from error
    return link


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


_IMPORTED = {".onnx": "ONNX", **dict.fromkeys((".pt", ".pth", ".safetensors"), "PyTorch")}
_FOREIGN = {
    **{suffix: f"a file of {name}" for suffix, name in _IMPORTED.items()},
    **dict.fromkeys((".engine", ".plan", ".trt"), "a file of TensorRT"),
    **dict.fromkeys((".tflite", ".pb", ".h5", ".keras"), "a file of TensorFlow"),
    **dict.fromkeys((".caffemodel", ".prototxt"), "a file of Caffe"),
    **{
        ".xml": "a file of OpenVINO",
        ".param": "a file of ncnn",
        ".mlmodel": "a file of Core ML",
        ".rknn": "a file of RKNN",
        ".blob": "a blob",
    },
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
def whole_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file to write into, which takes the place of `path` only when the block ends without an error.

    A link is followed, and what it points to is replaced. Whatever happens, nothing that was begun is left.

    Args:
        durable: as for `whole_folder`.

    Raises:
        DncError: the file cannot be written (the block does nothing but write), or a folder or device is in its place.
    """
    place = Path(os.path.realpath(path))
    try:
        if place.exists() and not place.is_file():
            raise DncError("something that is no file stands in the way", str(path), "choose another name")
        with _owned(place.parent, f".{place.name}") as own:
            with (own / _NEW).open("xb") as file:
                yield file
            if durable:
                _sync(own / _NEW)
            (own / _NEW).replace(place)
            if durable:
                _sync(place.parent)
    except OSError as error:
        hint = "is the disk full, or the folder missing or read-only?"
        raise DncError(f"cannot write the file: {error.strerror or error}", str(path), hint) from error


@contextmanager
def whole_folder(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `path` only when the block ends without an error; what
    stood there is removed. A link is followed, and what it points to is replaced.

    Args:
        durable: it is on the disk when it takes the place. Without, contents may be lost when the power fails.

    Raises:
        OSError: it cannot be written.
    """
    place = Path(os.path.realpath(path))
    with _owned(place.parent, f".{place.name}") as own:
        new = own / _NEW
        new.mkdir()
        yield new
        if durable:
            for path in (*new.rglob("*"), new):
                _sync(path)
        _put(new, place)
        if durable:
            _sync(place.parent)


@contextmanager
def scratch_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder that is gone when the block ends.

    Args:
        name: what it is for; a part of its path.
        parent: where to make it; in the folder for temporary files if not given.

    Raises:
        DncError: it cannot be made.
    """
    with ExitStack() as stack:
        try:
            where = parent or Path(tempfile.gettempdir())
            own = stack.enter_context(_owned(where, f".{name}" if parent else f"dnc-{name}"))
            (own / _NEW).mkdir()
        except OSError as error:
            hint = "is the disk full, or the folder read-only? TMPDIR names another one for temporary files"
            raise DncError(f"cannot make a folder: {error.strerror or error}", parent, hint) from error
        yield own / _NEW


def sweep(folder: Path) -> None:
    """Removes what processes left in a folder that were killed while they wrote into it. Whatever is written here does
    that first; who may find nothing to write calls it."""
    if folder not in _swept:
        # Once: a folder may have many files, and many may be written into it.
        _swept.add(folder)
        for left in _parts(folder):
            _reclaim(left)


def put_back(path: str | os.PathLike[str]) -> bool:
    """Whether to look again for a folder that was not there: it is being replaced, or its replacing ended between two
    renames and it stands in its place again."""
    place = Path(os.path.realpath(path))
    for own in _parts(place.parent):
        if os.path.lexists(own / _OLD / place.name):
            _reclaim(own)
            time.sleep(0.001)
            return True
    return place.exists()


@contextmanager
def _owned(parent: Path, name: str) -> Iterator[Path]:
    """A new folder that nobody else removes while this process lives."""
    sweep(parent)
    own, lock = _make(parent, name)
    try:
        yield own
    finally:
        _clear(own)
        if lock is not None:
            os.close(lock)
        if own.exists():
            _swept.discard(parent)


def _make(parent: Path, name: str) -> tuple[Path, int | None]:
    """A new folder and its lock, if the file system has locks."""
    for _ in range(_TRIES):
        own = parent / f"{name[:50]}.{secrets.token_hex(4)}.dnc-part"
        own.mkdir(0o700)
        try:
            return own, _take(own)
        except (BlockingIOError, FileNotFoundError):
            # Before it was locked, another process took it for a dead one's.
            continue
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return own, None
            shutil.rmtree(own, ignore_errors=True)
            raise
    raise OSError(errno.EBUSY, "other processes remove what is written", str(parent))


def _take(own: Path) -> int:
    """Locks a folder. Raises BlockingIOError if its owner lives, FileNotFoundError if it was removed meanwhile."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no locks")
    lock = os.open(own / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), (own / _LOCK).stat()):
            raise FileNotFoundError(errno.ENOENT, "another one", str(own))
    except BaseException:
        os.close(lock)
        raise
    return lock


def _parts(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            return [Path(entry.path) for entry in entries if _LEFT.fullmatch(entry.name)]
    except OSError:
        return []


def _reclaim(left: Path) -> None:
    """Removes what a process left that is dead; what it had put aside goes back to its place."""
    try:
        found = left.lstat()
        # In a folder for everybody, others could have it point to what is not theirs.
        if fcntl is None or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return
        lock = _take(left)
    except OSError:
        return
    try:
        _clear(left)
    finally:
        os.close(lock)


def _clear(own: Path) -> None:
    """Removes a folder; first, what stepped aside goes back if nothing took its place."""
    try:
        with suppress(FileNotFoundError):
            for old in (own / _OLD).iterdir():
                if not os.path.lexists(own.parent / old.name):
                    old.rename(own.parent / old.name)
    except OSError:
        # It is all that there is of it.
        return
    shutil.rmtree(own, ignore_errors=True)


def _put(new: Path, place: Path) -> None:
    """Puts a folder into its place; what stood there is beside it afterwards (see `_clear`)."""
    old = new.with_name(_OLD) / place.name
    for _ in range(_TRIES):
        try:
            new.rename(place)
            return
        except OSError as error:
            # What is no empty folder. Another process that writes to the same place may be faster, and is replaced in
            # turn.
            if error.errno not in _IN_THE_WAY:
                raise
        try:
            _exchange(new, place)
            return
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
        shutil.rmtree(old.parent, ignore_errors=True)
        old.parent.mkdir()
        with suppress(FileNotFoundError):
            place.rename(old)
    raise OSError(errno.EBUSY, "other processes write it too", str(place))


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _exchange(one: Path, other: Path) -> None:
    """Two files or folders change places, in one step. Raises OSError, with ENOSYS where there is no such thing."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        raise OSError(errno.ENOSYS, "no renameat2", str(other)) from None
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def _sync(path: Path) -> None:
    """Waits until a file's contents, or a folder's names, are on the disk."""
    if os.name != "posix":
        # Elsewhere folders cannot be opened.
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        # Not every file system can do it for folders.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(file)
