"""Images: Darknet's .data files and lists, folders and globs. `truth` has what is known of them.

    obj.data      key=value     classes, train, valid, difficult, names, labels, ...: read_data_cfg
    train.txt     a path a line, or `path index` for a classifier: get_paths
    x.names       a class name a line: get_labels

Darknet finds relative paths from the folder that it runs in. They are looked for there first, then from the folder of
the file that names them, then from that folder's parent, because obj.data usually is in data/ or cfg/ of the folder
that Darknet was run in.
"""

from __future__ import annotations

import glob
import io
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeVar

from dnc.errors import DatasetError, ImageError, Where, tolerate, warn
from dnc.files.reading import read_bounded

__all__ = [
    "ARRAYS",
    "SUFFIXES",
    "DataFile",
    "Dataset",
    "Entry",
    "evenly",
    "find_images",
    "images",
    "is_data_file",
    "is_folder",
    "is_there",
    "lines_of",
    "read_data",
    "read_dataset",
    "read_names",
]

_Item = TypeVar("_Item")

ARRAYS = frozenset([".npy"])
"""Pixels (H, W, C) of numpy.save: what counts as an image in a folder without pictures."""
_PICTURES = frozenset(
    [".bmp", ".gif", ".hdr", ".jpeg", ".jpg", ".pgm", ".pic", ".png", ".pnm", ".ppm", ".psd", ".tga", ".tif", ".tiff"]
) | {".webp"}
SUFFIXES = _PICTURES | ARRAYS
"""What is an image by its name."""

_LARGEST = 1 << 22
"""Bytes of a .data file, of names or of labels."""
_LARGEST_LIST, _MOST_LINES = 1 << 27, 2_000_000
"""Bytes and lines of a list: ImageNet has 1.3 million images."""
_MOST_MISSING = 10_000
"""Lines of a list that name nothing, until nothing more is looked for."""

Source = str | PathLike[str] | Sequence[str | PathLike[str]]
"""A .data file, a list, a folder, a glob or an image; or several of them."""


def is_folder(path: str | PathLike[str]) -> bool:
    """Path.is_dir, which raises OSError where a name is too long."""
    return os.path.isdir(path)  # noqa: PTH112


def is_there(path: str | PathLike[str]) -> bool:
    """Path.exists, which raises OSError where a name is too long."""
    return os.path.exists(path)  # noqa: PTH110


@dataclass(frozen=True)
class DataFile:
    """The options of a .data file; the first of several of one name counts, as in Darknet."""

    path: Path
    options: Mapping[str, str]
    lines: Mapping[str, Where]
    """Where each option is set."""

    def find(self, key: str) -> Path | None:
        """The file that an option names; None without the option. Raises DatasetError if there is none."""
        if key not in self.options:
            return None
        return _find(self.options[key], self.lines[key], (self.path.parent, self.path.parent.parent))

    @property
    def classes(self) -> int | None:
        """`classes`, if it is there; raises DatasetError if it is no number."""
        text = self.options.get("classes")
        if text is None:
            return None
        if not re.fullmatch("[0-9]{1,9}", text):
            raise DatasetError(f"classes is a number, not '{text}'", self.lines["classes"])
        return int(text)


@dataclass(frozen=True)
class Entry:
    """An image of a dataset."""

    path: Path
    where: Where | None = None
    """The line of the list that names it."""
    class_id: int | None = None
    """The index that the list has behind it."""
    difficult: Path | None = None
    """The image whose labels are this one's difficult objects, as `difficult` of a .data file lists them."""


@dataclass(frozen=True)
class Dataset:
    """Images, and the .data file that they come from, if they do."""

    entries: tuple[Entry, ...]
    data: DataFile | None = None

    def __str__(self) -> str:
        first = self.entries[0]
        source = first.where.file if first.where else first.path.parent
        return f"{len(self.entries)} images of {source}, the first of which is {first.path}"


def is_data_file(path: str | PathLike[str]) -> bool:
    """Whether this is a .data file, by its name."""
    return Path(path).suffix.lower() == ".data"


def read_data(path: str | PathLike[str]) -> DataFile:
    """Reads a .data file: read_data_cfg, but blanks inside of a value stay. Raises DatasetError if it cannot be read,
    or a line is no option."""
    options: dict[str, str] = {}
    lines: dict[str, Where] = {}
    for where, text in lines_of(Path(path)):
        if text.startswith(("#", ";")):
            continue
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise DatasetError("this line is no option", where, "a .data file has lines like `valid = data/valid.txt`")
        options.setdefault(key, value)
        lines.setdefault(key, where)
    return DataFile(Path(path), options, lines)


def read_names(path: str | PathLike[str], lenient: bool = False) -> tuple[str, ...]:
    """Reads class names, one a line, without blank lines. Raises DatasetError if there are none to read, or no text; of
    a name in another encoding than UTF-8, only warns if `lenient`."""
    names = []
    for where, text in lines_of(Path(path)):
        try:
            text.encode()
        except UnicodeEncodeError:
            tolerate(DatasetError("this name is not in UTF-8", where, "one class name a line"), lenient)
            text = os.fsencode(text).decode("utf-8", "replace")
        names.append(text)
    if not names:
        raise DatasetError("there is no name in this file", path, "one class name a line")
    return tuple(names)


def images(
    source: Source, *, key: str = "valid", limit: int | None = None, seed: int | None = None, skip_bad: bool = False
) -> list[Path]:
    """The paths of the images of `read_dataset`, which see."""
    return [entry.path for entry in read_dataset(source, key=key, limit=limit, seed=seed, skip_bad=skip_bad).entries]


def read_dataset(
    source: Source, *, key: str = "valid", limit: int | None = None, seed: int | None = None, skip_bad: bool = False
) -> Dataset:
    """The images of a dataset, in the order of its lists; those of folders and globs are sorted.

    Args:
        source: a .data file, a list (any other file that is no image by its name), a folder (with those inside it if it
            has no images itself), a glob, an image; or several of them.
        key: the list of a .data file: "valid" or "train".
        limit: as many of them: the first, or with `seed` a sample that is the same on every run, in the order of the
            list.
        skip_bad: an image that a list names and that is missing is a warning.

    Raises:
        DatasetError: a list is missing or empty; an image that it names is missing.
        ImageError: a folder or a glob has no images, or an image given by itself is missing.
    """
    given = [source] if isinstance(source, str | PathLike) else list(source)
    entries: list[Entry] = []
    data = None
    for item in given:
        path = Path(item)
        if is_folder(path) or path.suffix.lower() in SUFFIXES or (not is_there(path) and glob.has_magic(str(item))):
            entries += map(Entry, find_images([os.fspath(item)], skip_bad, nested=True))
        elif is_data_file(path):
            data = read_data(path)
            entries += _listed_in_data(data, key, skip_bad)
        else:
            entries += _listed(path, (path.parent, path.parent.parent), skip_bad)
    if not entries:
        raise DatasetError("there are no images", hint="name a .data file, a list, a folder or images")
    if limit is None:
        return Dataset(tuple(entries), data)
    if limit < 1:
        raise DatasetError(f"{limit} images are wanted", hint="1 at least")
    if limit > len(entries):
        what = f"{limit} images are wanted, but there are {len(entries)}"
        warn(DatasetError(what, ", ".join(map(str, given)), "all of them are taken"))
        limit = len(entries)
    if seed is None:
        return Dataset(tuple(entries[:limit]), data)
    chosen = sorted(random.Random(seed).sample(range(len(entries)), limit))
    return Dataset(tuple(entries[index] for index in chosen), data)


def find_images(arguments: Sequence[str], skip_bad: bool = False, *, nested: bool = False) -> list[Path]:
    """The images that files, folders and globs name, in the order given; those of a folder or a glob are sorted.

    Raises:
        ImageError: there is no such file (it is left to who reads it if `skip_bad`), a folder cannot be read, or there
            is nothing in it (nor, with `nested`, in the folders in it) or behind the glob.
    """
    images: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if is_folder(path):
            try:
                inside = _images_among(path.iterdir())
                if not inside and nested:
                    inside = _images_among(path.rglob("*"))
            except OSError as error:
                raise ImageError(f"cannot read the folder: {error.strerror or error}", path) from error
            if not inside:
                raise ImageError("no images in the folder", path, f"files with {', '.join(sorted(SUFFIXES))} count")
            images += inside
        elif not is_there(path) and glob.has_magic(argument):
            # Path.glob takes no absolute pattern.
            names = glob.glob(argument, recursive=True)  # noqa: PTH207
            matches = sorted(match for match in map(Path, names) if match.is_file())
            if not matches:
                raise ImageError("nothing matches this pattern", argument)
            images += matches
        elif is_there(path) or skip_bad:
            images.append(path)
        else:
            raise ImageError("there is no such image", path)
    return images


def _images_among(files: Iterable[Path]) -> list[Path]:
    """The pictures, sorted; arrays where there is none."""
    found = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    return [file for file in found if file.suffix.lower() in _PICTURES] or found


def _listed_in_data(data: DataFile, key: str, skip_bad: bool) -> list[Entry]:
    path = data.find(key)
    if path is None:
        raise DatasetError(f"it has no `{key}`", data.path, f"a line like `{key} = data/{key}.txt`")
    bases = (path.parent, data.path.parent, data.path.parent.parent)
    if is_folder(path):
        return list(map(Entry, find_images([str(path)], nested=True)))
    entries = _listed(path, bases, skip_bad)
    difficult = data.find("difficult") if key == "valid" else None
    if difficult is None:
        return entries
    # Only their labels are read: these images need not exist.
    others = [Path(text) for _, text in lines_of(difficult, _LARGEST_LIST)]
    if len(others) != len(entries):
        what = f"{len(others)} images, but {len(entries)} in {path}"
        raise DatasetError(what, difficult, "the n-th line has the difficult objects of the n-th image")
    return [Entry(entry.path, entry.where, entry.class_id, other) for entry, other in zip(entries, others, strict=True)]


def _listed(path: Path, bases: Sequence[Path], skip_bad: bool) -> list[Entry]:
    entries: list[Entry] = []
    missing: Where | None = None
    lacking = 0
    for where, text in lines_of(path, _LARGEST_LIST):
        entry = _entry(text, where, bases)
        if entry is not None:
            entries.append(entry)
        else:
            missing = missing or where
            lacking += 1
            if lacking == _MOST_MISSING and not skip_bad:
                break
    if missing:
        count = f"; nor are {lacking - 1} others of this list" if lacking > 1 else ""
        hint = "looked for from this folder, from the list's and from its parent"
        error = DatasetError(f"there is no such image{count}", missing, hint)
        if not skip_bad:
            raise error
        warn(error)
    if not entries:
        what = "none of the images of this list exists" if missing else "there are no images in this list"
        raise DatasetError(what, path, "one path a line")
    return entries


def _entry(text: str, where: Where, bases: Sequence[Path]) -> Entry | None:
    """The image that a line names; a number behind it is its class, unless it belongs to the name."""
    path, number, class_id = _first(text, bases, _is_file), re.fullmatch(r"(.*\S)\s+(\d{1,9})", text), None
    if path is None and number:
        path, class_id = _first(number[1], bases, _is_file), int(number[2])
    return None if path is None else Entry(path, where, class_id)


def _find(text: str, where: Where, bases: Sequence[Path]) -> Path:
    path = _first(text, bases) if text else None
    if path is None:
        hint = "looked for from this folder, from the file's and its parent"
        raise DatasetError("there is no such file", where, hint)
    return path


def _first(text: str, bases: Sequence[Path], there: Callable[[Path], bool] = is_there) -> Path | None:
    path = Path(text)
    places = (path,) if path.is_absolute() else (path, *(base / path for base in bases))
    return next((place for place in places if there(place)), None)


def _is_file(path: Path) -> bool:
    """Whether there is something that is no folder."""
    return is_there(path) and not is_folder(path)


def evenly(items: Sequence[_Item], most: int) -> tuple[_Item, ...]:
    """Up to so many of the items, in their order, from all over them."""
    count = min(most, len(items))
    return tuple(items[place * len(items) // count] for place in range(count))


def lines_of(path: Path, limit: int = _LARGEST) -> Iterator[tuple[Where, str]]:
    """The lines of a file that are not blank, without blanks around them, and their places."""
    try:
        content = read_bounded(path, limit)
    except OSError as error:
        raise DatasetError(f"cannot read the file: {error.strerror or error}", path) from error
    if b"\0" in content:
        raise DatasetError("this is no text file", path)
    # Names of files may be in any encoding.
    for number, line in enumerate(io.BytesIO(content.removeprefix(b"\xef\xbb\xbf")), 1):
        if number > _MOST_LINES:
            raise DatasetError(f"this file has more than {_MOST_LINES:,} lines", path, "is it a list of images?")
        text = os.fsdecode(line).strip()
        if text:
            yield Where(str(path), number, text=text[:200]), text
