"""One file to ship: an engine as a zip archive, NAME.dnc, which `dnc.load` opens as it opens a folder.

    engine.json     its digest is the engine's; it lists the size and sha256 of every other member
    ...             exactly the files that it lists, side by side

Members are stored, in the order of their names, without times: the same engine gives the same bytes everywhere,
whatever zlib is installed, and weights hardly shrink anyway (those of yolov3-tiny by 7 %). Each begins at a multiple of
64 bytes (`ALIGNMENT`, as zipalign does it: by an extra field that other tools skip), so that libraries can use it where
a package lies in memory. What other tools pack is read as well, deflated or in another order.

Libraries map weights of files into memory, where processes share them, or load a file as a library. So `open_package`
unpacks once, into the cache folder packages/ under the engine's digest: beside its place, checked, then
renamed, so that processes that do it at once find it whole. What is there is checked at every opening, as any engine
folder, and the package too: a damaged one is refused even where its contents are unpacked. Of these folders the 16 last
opened stay, and those opened within a day; after 30 days the rest goes.

A package that is in memory is read there (`read_package`), by libraries that can (ONNX Runtime, OpenVINO). For the
others, or when somebody asks for the engine's folder, it is unpacked into the same cache. So TVM's model.so is a file
there, not one in memory only: processes share its pages, and debuggers and profilers find it by its name.

A package may come from anywhere. Nothing of it is written before names, kinds and sizes are known to be what
engine.json lists; members are read no further than their size; what does not fit is refused:

    names with a folder, twice the same, not listed, or missing; links, folders, devices; encryption; compression other
    than deflate; more than 4 GiB in all, or packed to less than a 200th; a directory of more than 4 MiB

What such an engine does, nobody can check. For ONNX Runtime, OpenVINO and the Myriad X it is data. For TVM it is
machine code, which may do all that the process may: `dnc.load` runs it with trust=True alone.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dnc.errors import BundleError
from dnc.files.places import cache_dir
from dnc.files.reading import check_foreign
from dnc.files.writing import sweep, whole_file, whole_folder
from dnc.runtime.manifest import (
    IN_MEMORY,
    LABELS,
    MANIFEST,
    MANIFEST_LIMIT,
    Files,
    Manifest,
    parse_manifest,
    read_contents,
    read_engine,
    write_folder,
)

__all__ = ["SUFFIX", "open_package", "package", "read_package", "unpack"]

SUFFIX = ".dnc"
ALIGNMENT = 64
"""Bytes: what the widest vectors of CPUs take at once, and TVM wants of every array."""
_ALIGNING = 0xD935
"""The kind of an extra field by which zipalign moves a member to where it is to begin."""
LIMIT = 4 << 30
"""Bytes that a package holds; Darknet's largest networks have 250 MB of weights."""
RATIO = 200
"""How many times as long a member may be as what it is packed to. JSON and XML come to 20."""
_SLACK = 1 << 16
"""What is shorter may be packed to anything."""
_DIRECTORY = 4 << 20
"""Bytes of the archive's directory: about 50,000 members."""
_KEPT, _SECONDS_KEPT, _SECONDS_UNUSED = 16, 24 * 3600, 30 * 24 * 3600
_CHUNK = 1 << 20
_DAMAGED = "the package is damaged: ask for it again, or make it again with `dnc package`"
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What zipfile raises for archives that are none, encrypted, or of another version."""


def package(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Packs an engine folder into one file, and returns its path.

    Args:
        out: the file; if not given, the folder's name with .dnc for .engine, in the current folder.

    Raises:
        BundleError: the folder is no engine, is damaged, or was replaced meanwhile.
        DncError: the file cannot be written.
    """
    folder = Path(folder)
    check_foreign(folder, BundleError)
    if folder.is_file():
        with folder.open("rb") as file:
            if _starts_as_archive(file):
                raise BundleError("a package already", folder, "it is taken wherever an engine folder is")
    _, files = read_engine(folder)
    place = Path(out) if out is not None else Path(folder.resolve().name.removesuffix(".engine") + SUFFIX)
    with whole_file(place) as file:
        pack(folder, files, file)
    return place


def pack(folder: Path, files: Files, out: IO[bytes]) -> None:
    """Writes the package of an engine folder into a file that is empty. Raises BundleError if the engine was replaced
    meanwhile, OSError if the file cannot be written."""
    with zipfile.ZipFile(out, "w") as archive, files.opening():
        archive.writestr(_member(MANIFEST, out.tell()), files.manifest)
        for name in sorted(files.listed):
            info = _member(name, out.tell())
            info.file_size = files.listed[name]["size"]
            with (folder / name).open("rb") as source, archive.open(info, "w") as member:
                shutil.copyfileobj(source, member, _CHUNK)


def unpack(file: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Unpacks a package into an engine folder, and returns its path.

    Args:
        file: the package.
        out: the folder; if not given, the file's name with .engine for .dnc, in the current folder.

    Raises:
        BundleError: the package is damaged, was made by a newer dnc, or the folder cannot be written.
    """
    file = Path(file)
    place = Path(out) if out is not None else Path(file.name.removesuffix(SUFFIX) + ".engine")
    with _opened(file) as (archive, fields), write_folder(place) as writer:
        _extract(archive, fields, file, writer.folder)
    return place


def open_package(file: Path | bytes) -> tuple[Path, Manifest, Files]:
    """The engine folder of a package in the cache, unpacked if it is not there, and what `read_engine` makes of it.

    Args:
        file: the package, or what is in it.

    Raises:
        BundleError: the package is damaged or was made by a newer dnc, or the cache cannot be written.
    """
    with _opened(file) as (archive, fields):
        place = cache_dir(to_write=True) / "packages" / fields["sha256"]
        sweep(place.parent)
        engine = _unpacked(place)
        if engine is not None:
            _extract(archive, fields, file, None)
        else:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                # Not waiting for the disk: what is lost with the power is unpacked again.
                with whole_folder(place, durable=False) as part:
                    _extract(archive, fields, file, part)
            except OSError as error:
                hint = "set DNC_CACHE to a folder that can be written to, or unpack it with `dnc package --unpack`"
                raise BundleError(f"cannot unpack the package: {error.strerror or error}", place, hint) from error
            engine = read_engine(place)
            _prune(place.parent)
    with suppress(OSError):
        os.utime(place)
    return place, *engine


def read_package(data: bytes) -> tuple[Manifest, dict[str, memoryview]]:
    """The engine of a package that is in memory, and what is in each of its files but engine.json, by their names, as
    parts of `data` where they are stored.

    Raises:
        BundleError: the package is damaged or was made by a newer dnc.
    """
    with _opened(data) as (archive, fields):
        _extract(archive, fields, data, None)
        files = {name: _content(archive, name, data) for name in fields["files"]}
        labels = bytes(files[LABELS]) if LABELS in files else None
        return read_contents(fields, labels, IN_MEMORY), files


def _content(archive: zipfile.ZipFile, name: str, data: bytes) -> memoryview:
    """What is in a member of an archive in memory, which was read once without an error."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        return memoryview(archive.read(name))
    lengths = struct.unpack_from("<HH", data, info.header_offset + 26)
    start = info.header_offset + 30 + sum(lengths)
    return memoryview(data)[start : start + info.file_size]


def _member(name: str, at: int) -> zipfile.ZipInfo:
    """A member whose header is at that byte of the archive."""
    info = zipfile.ZipInfo(name)
    padding = -(at + 36 + len(name.encode())) % ALIGNMENT
    info.extra = struct.pack("<HHH", _ALIGNING, 2 + padding, ALIGNMENT) + bytes(padding)
    info.create_system = 3
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


@contextmanager
def _opened(package: Path | bytes) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """The archive and its engine.json, after all that can be known without reading the members."""
    file = _place(package)
    if isinstance(package, Path) and package.exists() and not package.is_file():
        # Of a pipe nobody knows whether it will ever be written to.
        raise BundleError("not an engine: neither a folder nor a file", file, "make one with `dnc package`")
    try:
        with package.open("rb") if isinstance(package, Path) else io.BytesIO(package) as raw:
            _check_end(raw, file)
            try:
                archive = zipfile.ZipFile(raw)
                with archive:
                    yield archive, _listing(archive, file)
            except _UNREADABLE as error:
                raise BundleError(f"cannot read the package: {error}", file, _DAMAGED) from error
    except OSError as error:
        raise BundleError(f"cannot read the package: {error.strerror or error}", file, _DAMAGED) from error


def _place(package: Path | bytes) -> Path | str:
    return package if isinstance(package, Path) else IN_MEMORY


def _check_end(raw: IO[bytes], file: Path | str) -> None:
    """Refuses what is no archive, or has a directory that is too long to be read."""
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - (1 << 16) - 42))
    tail = raw.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        what = "the package is cut off" if _starts_as_archive(raw) else "not an engine: a file that is no package"
        raise BundleError(what, file, "an engine is what `dnc compile` and `dnc package` write")
    (directory,) = struct.unpack_from("<I", tail, at + 12)
    # With 4 GiB at most it needs no record of ZIP64, whose numbers zipfile would believe in place of these.
    if size > LIMIT + _DIRECTORY or directory > _DIRECTORY or tail[max(0, at - 20) :].startswith(b"PK\6\7"):
        raise BundleError("the package is too large to be an engine", file, _DAMAGED)
    raw.seek(0)


def _starts_as_archive(raw: IO[bytes]) -> bool:
    raw.seek(0)
    return raw.read(4) == b"PK\3\4"


def _listing(archive: zipfile.ZipFile, file: Path | str) -> dict[str, Any]:
    """engine.json; raises BundleError if the members are not exactly what it lists."""

    def refuse(what: str) -> BundleError:
        return BundleError(f"this is no package of dnc's: {what}", file, _DAMAGED)

    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.orig_filename
        if name in members:
            raise refuse(f"{name} is there twice")
        members[name] = info
        # Not every tool says what kind of file it packed; those that do not, packed an ordinary one.
        if info.is_dir() or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise refuse(f"{name} is a folder, a link or a device")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(f"{name} is encrypted, or packed by another method than deflate")
        if info.file_size > _SLACK and info.file_size > RATIO * info.compress_size:
            raise refuse(f"{name} is packed to less than a {RATIO}th")
    if MANIFEST not in members:
        raise refuse("it has no engine.json")
    if members[MANIFEST].file_size > MANIFEST_LIMIT or sum(info.file_size for info in members.values()) > LIMIT:
        raise refuse(f"it holds more than {LIMIT >> 30} GiB")
    with archive.open(members[MANIFEST]) as member:
        fields = parse_manifest(member.read(MANIFEST_LIMIT + 1), file)
    files = fields["files"]
    for name in (*files, *members):
        if name not in members:
            raise refuse(f"{name} is missing")
        if name != MANIFEST and name not in files:
            raise refuse(f"{name} is not listed in engine.json")
        if name != MANIFEST and members[name].file_size != files[name]["size"]:
            raise refuse(f"{name} has {members[name].file_size} bytes, not {files[name]['size']}")
    return fields


def _extract(archive: zipfile.ZipFile, fields: Mapping[str, Any], package: Path | bytes, folder: Path | None) -> None:
    """Reads and checks every member, and writes it into the folder if there is one."""
    for name in (MANIFEST, *fields["files"]):
        digest = hashlib.sha256()
        left = archive.getinfo(name).file_size
        with archive.open(name) as member, (folder / name if folder else Path(os.devnull)).open("wb") as copy:
            while left > 0 and (chunk := member.read(min(left, _CHUNK))):
                left -= len(chunk)
                digest.update(chunk)
                copy.write(chunk)
            # Beyond its size there is nothing, and this is what makes zipfile compare its own checksum.
            left = left or -len(member.read(1))
        if left or (name != MANIFEST and digest.hexdigest() != fields["files"][name]["sha256"]):
            raise BundleError(f"the contents of {name} have changed", _place(package), _DAMAGED)


def _unpacked(place: Path) -> tuple[Manifest, Files] | None:
    """The engine that is unpacked already, if it is whole."""
    try:
        return read_engine(place)
    except BundleError:
        return None


def _prune(folder: Path) -> None:
    """Removes what was not opened for long, and what older releases left that were killed."""
    now = time.time()
    ages: list[tuple[float, Path]] = []
    for path in folder.iterdir():
        with suppress(OSError):
            ages.append((now - path.stat().st_mtime, path))
    for rank, (age, path) in enumerate(sorted(ages)):
        left = path.name.startswith(".") or rank >= _KEPT
        if age > _SECONDS_UNUSED or (left and age > _SECONDS_KEPT):
            shutil.rmtree(path, ignore_errors=True)
