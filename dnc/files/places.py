"""Where files are kept for the user, and what came with dnc lies."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from dnc.errors import DncError

__all__ = ["as_text", "cache_dir", "can_be_written", "home", "packaged", "prune", "temporary_dir"]


def packaged(name: str) -> Path:
    """A folder that stands beside dnc/ in a checkout, and inside it where dnc is installed: "cfg" or "embed"."""
    package = Path(__file__).parents[1]
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


def temporary_dir() -> Path:
    """The folder for temporary files, as `tempfile` chooses it; that tries folders by writing a file, which it leaves
    there if it is killed. Raises FileNotFoundError if there is none."""
    chosen = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    for folder in (*chosen, "/tmp") if tempfile.tempdir is None and os.name == "posix" else ():
        if folder and os.access(folder, os.W_OK | os.X_OK) and Path(folder).is_dir():
            return Path(folder).absolute()
    return Path(tempfile.gettempdir())


def _temporary_cache() -> Path:
    hint = "set DNC_CACHE to a folder that can be written to"
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        place = temporary_dir() / f"dnc-{user}"
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
