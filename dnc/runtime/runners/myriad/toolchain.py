"""Toolchains: compilers that no package installs in a usable form, fetched from the package index into the cache.

    myriad    the last compiler for Intel's Myriad X that was published for Linux. OpenVINO dropped it after 2022.3, and
              its own wheels never had it; onnxruntime-openvino 1.12.0 carries that of OpenVINO 2022.1, beside a Python
              extension that is not needed. Its Myriad plugin wants libusb, from the wheel libusb-package.

A toolchain is a folder of $DNC_CACHE/toolchains (else ~/.cache/dnc/toolchains) with single files out of wheels, which
`pip download` gets from the index that the user's pip is set up for, whatever Python it is that the wheels are for; no
line of them is executed as Python. toolchains.json lists the wheels and the files, each with its sha256; one of the
files, under the name that the Myriad plugin looks for, is libusb. `dnc.targets.myriad.installing` puts it together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnc.errors import TargetError, close_match
from dnc.files.places import cache_dir
from dnc.files.reading import digest_of

__all__ = ["TOOLCHAINS", "File", "Toolchain", "check_files", "damage", "find", "folder", "missing"]


@dataclass(frozen=True)
class File:
    """A file of a toolchain."""

    name: str
    size: int
    sha256: str
    wheel: str = ""
    """The wheel that it comes from, as NAME==VERSION; "" where `text` is all of it."""
    member: str = ""
    text: str = ""


@dataclass(frozen=True)
class Toolchain:
    """The parts of a toolchain."""

    name: str
    title: str
    """What messages call it."""
    summary: str
    wheels: Mapping[str, str]
    """NAME==VERSION and the sha256 of the wheel."""
    pip_options: tuple[str, ...]
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes that it takes in the cache."""
        return sum(file.size for file in self.files)


def _read(item: dict[str, Any]) -> Toolchain:
    files = tuple(File(**fields) for fields in item["files"])
    return Toolchain(**{**item, "pip_options": tuple(item["pip_options"]), "files": files})


_LISTED = json.loads(Path(__file__).with_name("toolchains.json").read_text(encoding="utf-8"))
TOOLCHAINS: dict[str, Toolchain] = {item["name"]: _read(item) for item in _LISTED}


def find(name: str) -> Toolchain:
    """The toolchain of this name; raises TargetError if there is none."""
    if name not in TOOLCHAINS:
        hint = close_match(name, TOOLCHAINS) or f"there is {', '.join(TOOLCHAINS)}"
        raise TargetError(f"unknown toolchain '{name}'", hint=hint)
    return TOOLCHAINS[name]


def folder(name: str) -> Path:
    """Path of the toolchain, installed or not."""
    return cache_dir() / "toolchains" / name


def damage(name: str, *, thorough: bool = False) -> str | None:
    """Damage of an installed toolchain in words: "" if it is whole, None if it is not there at all.

    Args:
        thorough: compares the files' sha256, not only their sizes.
    """
    place = folder(name)
    return check_files(find(name), place, thorough) if place.is_dir() else None


def missing(name: str) -> str:
    """Names what has to be installed of a toolchain, as far as file sizes tell; empty if nothing."""
    damaged = damage(name)
    what = f"{find(name).title} toolchain"
    return f"the {what}" if damaged is None else damaged and f"the whole {what} ({damaged})"


def check_files(toolchain: Toolchain, place: Path, thorough: bool) -> str:
    """Damage of a toolchain's files in a folder, in words; empty if there is none."""
    for file in toolchain.files:
        path = place / file.name
        try:
            if path.stat().st_size != file.size or (thorough and digest_of(path) != file.sha256):
                return f"{file.name} in {place} is not what it was"
        except FileNotFoundError:
            return f"{file.name} in {place} is gone"
        except OSError as error:
            return f"{file.name} in {place} cannot be read: {error.strerror or error}"
    return ""
