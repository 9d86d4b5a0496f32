"""What appears whole or not at all: a file or a folder that is written beside its place, and put there in one step.

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
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from dnc.errors import DncError
from dnc.files.places import as_text, temporary_dir

try:
    import fcntl
except ImportError:
    # Without locks nobody can know whether an owner lives, and nothing is removed for others.
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_places", "guarded_folder", "put_back", "scratch_folder", "sweep", "whole_file", "whole_folder"]

_LOG = logging.getLogger(__name__)
_LEFT = re.compile(r".+\.[0-9a-f]{8}\.dnc-part", re.DOTALL)
_LOCK, _NEW, _OLD = "lock", "new", "old"
_TRIES = 100
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""With EPERM, containers refuse calls of the system that they do not know."""
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_swept: set[Path] = set()


@contextmanager
def whole_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file to write into, which takes the place of `path` only when the block ends without an error.

    A link is followed, and what it points to is replaced. Whatever happens, nothing that was begun is left.

    Args:
        durable: as for `whole_folder`.

    Raises:
        DncError: the file cannot be written (the block does nothing but write), or a folder, a device or a file of an
            engine is in its place.
    """
    place = Path(os.path.realpath(path))
    try:
        if place.exists() and not place.is_file():
            raise DncError("something that is no file stands in the way", str(path), "choose another name")
        if _is_of_engine(place):
            raise DncError("a file of an engine stands in the way", str(path), "choose another name")
        with _owned(place.parent, f".{place.name}") as own:
            with (own / _NEW).open("xb") as file:
                yield file
            if durable:
                _sync(own / _NEW)
            (own / _NEW).replace(place)
            if durable:
                _sync(place.parent)
            _LOG.debug("wrote %s", path)
    except OSError as error:
        hint = "is the disk full, or the folder missing or read-only?"
        raise DncError(f"cannot write the file: {error.strerror or error}", str(path), hint) from error


def _is_of_engine(place: Path) -> bool:
    """Whether a file is one of those that the engine.json beside it lists."""
    if not place.exists():
        return False
    try:
        listed = json.loads(place.with_name("engine.json").read_bytes())["files"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
    return place.name == "engine.json" or (isinstance(listed, dict) and place.name in listed)


class _Enough(Exception):
    """Ends `check_places`."""


def check_places(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Raises DncError where `whole_file` could not write one of several, or where one would replace another. For before
    work that takes long: what stands there stays."""
    seen: set[str] = set()
    for path in paths:
        if (place := os.path.realpath(path)) in seen:
            raise DncError("two results would be written to one file", str(path), "give each a name of its own")
        seen.add(place)
        with suppress(_Enough), whole_file(path, durable=False):
            raise _Enough


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
        _LOG.debug("wrote %s", place)


@contextmanager
def guarded_folder(path: str | os.PathLike[str], refuse: Callable[[Path], None]) -> Iterator[Path]:
    """`whole_folder`, in place of a folder that may only be replaced if it is of the same kind. Folders above it are
    made where they are missing, and removed again where the block fails.

    Args:
        refuse: raises for a place that holds what has to stay. It is asked before the block and once more behind it,
            which may be hours later.

    Raises:
        OSError: it cannot be written.
    """
    # A link is followed, so that what it points to is replaced.
    place = Path(os.path.realpath(path))
    made: list[Path] = []
    try:
        put_back(place)
        refuse(place)
        for parent in [folder for folder in reversed(place.parents) if not folder.exists()]:
            parent.mkdir(exist_ok=True)
            made.append(parent)
        with whole_folder(place) as folder:
            yield folder
            refuse(place)
        made.clear()
    finally:
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def scratch_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder that is gone when the block ends.

    Args:
        name: what it is for; a part of its path.
        parent: where to make it; in the folder for temporary files, by a path that is text, if not given.

    Raises:
        DncError: it cannot be made; or, without `parent`, what the block writes has no room in it.
    """
    hint = "is the disk full, or the folder read-only? TMPDIR names another one for temporary files"
    with ExitStack() as stack:
        try:
            where = parent or as_text(temporary_dir())
            own = stack.enter_context(_owned(where, f".{name}" if parent else f"dnc-{name}"))
            (own / _NEW).mkdir()
        except OSError as error:
            raise DncError(f"cannot make a folder: {error.strerror or error}", parent, hint) from error
        try:
            yield own / _NEW
        except OSError as error:
            # Opening tells the file, writing does not; whatever else can go wrong is told apart where it does.
            named = isinstance(error.filename, str) and Path(error.filename).is_relative_to(own)
            if parent or not (named or (error.filename is None and error.errno in _NO_ROOM)):
                raise
            raise DncError(f"cannot write a temporary file: {error.strerror or error}", where, hint) from error
        except DncError as error:
            # What is written for the user is written here as well, and says that its own folder is full.
            cause = error.__cause__
            if parent or not (isinstance(cause, OSError) and cause.errno in _NO_ROOM and str(own) in str(error.where)):
                raise
            raise DncError(f"cannot write a temporary file: {cause.strerror}", where, hint) from cause


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
