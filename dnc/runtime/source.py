"""What an engine is opened of: its folder, a package that is unpacked into one, or a package in memory."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from dnc.errors import BundleError, DncError
from dnc.files.reading import check_foreign
from dnc.runtime.manifest import IN_MEMORY, Files, Manifest, read_engine

__all__ = ["Bytes", "Source", "closed", "find_source"]

Bytes: TypeAlias = bytes | bytearray | memoryview


def find_source(given: str | PathLike[str] | Bytes) -> Source:
    """Reads and checks an engine: a folder or a package by its path, or what is in a package.

    Raises:
        BundleError: it is no engine, is damaged, or was made by a newer dnc.
    """
    if isinstance(given, Bytes):
        from dnc.runtime.package import read_package

        # Of bytes that is the same object, which nobody can change.
        package = bytes(given)
        manifest, contents = read_package(package)
        return Source(manifest, package=package, contents=contents)
    path = Path(given)
    check_foreign(path, BundleError)
    if not path.exists() or path.is_dir():
        manifest, files = read_engine(path)
        return Source(manifest, path, files)
    from dnc.runtime.package import open_package

    place, manifest, files = open_package(path)
    return Source(manifest, place, files, path)


def closed(where: Path | str) -> DncError:
    """The error of who uses an engine that is closed."""
    return DncError("the engine is closed", where, "load it again, or close it later")


class Source:
    """Where the files of an engine are: in a folder, in memory, or in both."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path | None = None,
        files: Files | None = None,
        package: Path | bytes | None = None,
        contents: Mapping[str, memoryview] | None = None,
    ) -> None:
        self.manifest = manifest
        self.package = package
        """The package, or what is in it; of that nothing is left when it was released."""
        self.contents = contents
        """What is in each file, of a package in memory."""
        self._folder, self._files = folder, files

    @property
    def where(self) -> Path | str:
        """For messages."""
        return IN_MEMORY if self._folder is None or isinstance(self.package, bytes) else self._folder

    @property
    def folder(self) -> Path:
        """The folder with its files. A package is unpacked if it is not there: it was in memory, or is opened so late
        that it was pruned. Raises BundleError if it cannot be, DncError if it was released."""
        if self.package is not None and (self._folder is None or not self._folder.exists()):
            from dnc.runtime.package import open_package

            self._check()
            self._folder, _, self._files = open_package(self.package)
        assert self._folder is not None
        return self._folder

    @property
    def files(self) -> Files:
        """Those in the folder; raises as `folder`."""
        _ = self.folder
        assert self._files is not None
        return self._files

    @property
    def again(self) -> Path | bytes:
        """What makes the same engine in another process. Raises DncError if it was released."""
        if isinstance(self.package, bytes):
            self._check()
            return self.package
        return (self.package or self.folder).absolute()

    def release(self) -> None:
        """Lets go of what is in memory."""
        if isinstance(self.package, bytes):
            self.contents, self.package = None, b""

    def _check(self) -> None:
        if self.package == b"":
            raise closed(self.where)
