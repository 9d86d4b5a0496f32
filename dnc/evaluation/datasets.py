"""Images and what is known of them: Darknet's .data files, lists and labels, folders, and COCO's annotations.

    obj.data      key=value     classes, train, valid, difficult, names, labels, ...: read_data_cfg
    train.txt     a path a line, or `path index` for a classifier: get_paths
    x.txt         class center_x center_y width height, in fractions of the image: read_boxes
    x.names       a class name a line: get_labels
    instances_val2017.json      COCO's: images, annotations in pixels, categories

Darknet finds relative paths from the folder that it runs in. They are looked for there first, then from the folder of
the file that names them, then from that folder's parent, because obj.data usually is in data/ or cfg/ of the folder
that Darknet was run in.

What Darknet passes over in silence (a label line that does not parse ends the file, a missing one is no objects, a
class beyond the last one is written out of bounds) is an error here that names the line.
"""

from __future__ import annotations

import glob
import io
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dnc.errors import DatasetError, ImageError, Where, tolerate, warn
from dnc.files.reading import read_bounded, read_json

__all__ = [
    "ARRAYS",
    "SUFFIXES",
    "Annotations",
    "DataFile",
    "Dataset",
    "Entry",
    "Truth",
    "class_truth",
    "evenly",
    "find_images",
    "images",
    "is_data_file",
    "is_folder",
    "is_there",
    "label_path",
    "read_annotations",
    "read_data",
    "read_dataset",
    "read_labels",
    "read_names",
    "read_truth",
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
_LARGEST_ANNOTATIONS, _MOST_ANNOTATED = 1 << 30, 100_000_000
"""Bytes and values: COCO's train2017 has 450 MB, mostly polygons."""

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


@dataclass(frozen=True)
class Truth:
    """The objects of one image: T of them."""

    class_ids: npt.NDArray[np.intp]
    """(T,)"""
    boxes: npt.NDArray[np.float32]
    """(T, 4): center x, center y, width, height, as fractions of the image."""
    ignored: npt.NDArray[np.bool_]
    """(T,): difficult objects and COCO's crowds. They need not be found, and finding them is no mistake."""
    areas: npt.NDArray[np.float64]
    """(T,): COCO's area in pixels of the image; nan where only the box is known."""


@dataclass(frozen=True)
class Annotations:
    """A COCO file: the truth by the image's file name, and the class of each category."""

    path: Path
    names: tuple[str, ...]
    """Of the classes: the categories by ascending id."""
    truths: Mapping[str, Truth] = field(repr=False)


def is_data_file(path: str | PathLike[str]) -> bool:
    """Whether this is a .data file, by its name."""
    return Path(path).suffix.lower() == ".data"


def read_data(path: str | PathLike[str]) -> DataFile:
    """Reads a .data file: read_data_cfg, but blanks inside of a value stay. Raises DatasetError if it cannot be read,
    or a line is no option."""
    options: dict[str, str] = {}
    lines: dict[str, Where] = {}
    for where, text in _lines(Path(path)):
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
    for where, text in _lines(Path(path)):
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
        DatasetError: a list is missing, empty, or shorter than `limit`; an image that it names is missing.
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
        raise DatasetError(what, ", ".join(map(str, given)), f"ask for {len(entries)} at most")
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


_LABEL_FOLDERS = (
    ("/images/train2017/", "/labels/train2017/"),
    ("/images/val2017/", "/labels/val2017/"),
    ("/JPEGImages/", "/labels/"),
    ("\\images\\train2017\\", "\\labels\\train2017\\"),
    ("\\images\\val2017\\", "\\labels\\val2017\\"),
    ("\\images\\train2014\\", "\\labels\\train2014\\"),
    ("\\images\\val2014\\", "\\labels\\val2014\\"),
    ("/images/train2014/", "/labels/train2014/"),
    ("/images/val2014/", "/labels/val2014/"),
    ("\\JPEGImages\\", "\\labels\\"),
)
"""What Darknet replaces, once each, in this order."""
_LABEL_SUFFIXES = tuple(
    spelt for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tiff") for spelt in (suffix, suffix.upper())
)


def label_path(image: str | PathLike[str]) -> str:
    """Path at which Darknet looks for the labels of an image: replace_image_to_label.

    The folders of COCO's and VOC's images are replaced (/images/val2017/ by /labels/val2017/, /JPEGImages/ by
    /labels/, ...), and the suffix by .txt; other labels are beside their images.

    Raises:
        DatasetError: Darknet knows no such suffix.
    """
    path = os.fspath(image)
    for folder, labels in _LABEL_FOLDERS:
        path = path.replace(folder, labels, 1)
    stem, suffix = os.path.splitext(path.strip(" \t"))  # noqa: PTH122
    if suffix not in (*_LABEL_SUFFIXES, ".txt"):
        hint = f"Darknet knows {', '.join(_LABEL_SUFFIXES)}"
        raise DatasetError(f"there is no rule where the labels of a '{suffix}' file are", str(image), hint)
    return f"{stem}.txt"


def read_labels(path: str | PathLike[str], classes: int) -> Truth:
    """The objects of a label file: read_boxes. Raises DatasetError if it cannot be read, a line is no class and four
    fractions, or there is no such class."""
    rows: list[tuple[float, ...]] = []
    for where, text in _lines(Path(path)):
        parts = text.split()
        try:
            if len(parts) != 5:
                raise ValueError
            class_id, row = int(parts[0]), tuple(map(float, parts[1:]))
        except ValueError:
            hint = "polygons are no boxes" if len(parts) > 5 else ""
            raise DatasetError("a label is a class, center x, center y, width and height", where, hint) from None
        if not 0 <= class_id < classes:
            raise DatasetError(f"class {class_id} of {classes}, of which the first is 0", where)
        # Some tools round, and end a little outside.
        if not all(-1e-3 <= number <= 1 + 1e-3 for number in row):
            raise DatasetError("a box is given in fractions of the image, from 0 to 1", where)
        rows.append((class_id, *row))
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Truth(
        table[:, 0].astype(np.intp),
        table[:, 1:].astype(np.float32),
        np.zeros(len(table), np.bool_),
        np.full(len(table), np.nan),
    )


def read_annotations(path: str | PathLike[str]) -> Annotations:
    """Reads COCO's annotations of instances. Classes are the categories by ascending id, 80 of COCO's 90 ids.

    Raises:
        DatasetError: it cannot be read or is no such file; an annotation names an image or a category that is missing.
    """
    try:
        content = read_json(path, _LARGEST_ANNOTATIONS, _MOST_ANNOTATED)
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        pictures = {
            entry["id"]: (str(entry["file_name"]), entry["width"], entry["height"]) for entry in content["images"]
        }
        class_of = {number: index for index, number in enumerate(sorted(categories))}
        rows: dict[Any, list[tuple[float, ...]]] = {number: [] for number in pictures}
        for annotation in content["annotations"]:
            _, width, height = pictures[annotation["image_id"]]
            left, top, w, h = map(float, annotation["bbox"])
            box = ((left + w / 2) / width, (top + h / 2) / height, w / width, h / height)
            class_id, crowd = class_of[annotation["category_id"]], bool(annotation.get("iscrowd", 0))
            rows[annotation["image_id"]].append((class_id, *box, crowd, float(annotation.get("area", w * h))))
    except OSError as error:
        raise DatasetError(f"cannot read the annotations: {error.strerror or error}", path) from error
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"these are no COCO annotations: {type(error).__name__} {error}"
        hint = "an object with images, categories and annotations, like instances_val2017.json"
        raise DatasetError(what, path, hint) from error
    truths = {}
    for number, (name, _, _) in pictures.items():
        table = np.array(rows[number], np.float64).reshape(-1, 7)
        truths[Path(name).name] = Truth(
            table[:, 0].astype(np.intp), table[:, 1:5].astype(np.float32), table[:, 5] > 0, table[:, 6]
        )
    return Annotations(Path(path), tuple(categories[number] for number in sorted(categories)), truths)


def read_truth(
    listed: Sequence[Entry],
    classes: int,
    *,
    labels: str | PathLike[str] | None = None,
    annotations: str | PathLike[str] | None = None,
    allow_unlabelled: bool = False,
) -> list[Truth]:
    """The objects of each image.

    They are in `annotations`; or in NAME.txt in the folder `labels`; or where Darknet has them (`label_path`); or, as
    other programs have them, in a folder `labels` instead of the last one that is called `images`.

    Args:
        labels: a folder of label files.
        annotations: a COCO file.
        allow_unlabelled: an image without a label file has no objects, as in Darknet. (An empty file always says so.)

    Raises:
        DatasetError: an image has no labels, or they do not fit `classes`.
    """
    if annotations is not None:
        return _annotated(listed, classes, read_annotations(annotations), allow_unlabelled)
    if labels is not None and not is_folder(Path(labels)):
        raise DatasetError("there is no such folder of labels", labels)
    truths, missing = [], []
    for entry in listed:
        place = _label_file(entry.path, labels)
        if is_there(place):
            truth = read_labels(place, classes)
        else:
            missing.append((entry, place))
            truth = _NOTHING
        if entry.difficult is not None and is_there(difficult := Path(label_path(entry.difficult))):
            truth = _with_ignored(truth, read_labels(difficult, classes))
        truths.append(truth)
    if missing and (not allow_unlabelled or len(missing) == len(listed)):
        entry, place = missing[0]
        what = f"{len(missing)} of {len(listed)} images have no labels; the first is {entry.path}"
        hint = "images without objects have empty files, or are allowed by --allow-unlabelled"
        raise DatasetError(what, place, hint)
    return truths


def class_truth(
    listed: Sequence[Entry], classes: int, *, labels: Sequence[str] = (), names: Sequence[str] = ()
) -> list[int]:
    """The class of each image, by the first of these that says it for all:

    1. the number behind the path in a list;
    2. `labels`, as in Darknet: the first of them that occurs anywhere in the path;
    3. a file name like 0007_n01514668.jpg, which starts with the class;
    4. the folder, called like one of `names`, or by a number;
    5. the folder, if there are as many as classes: the classes are the folders in alphabetical order.

    Args:
        labels: what `labels` of a .data file lists.

    Raises:
        DatasetError: none does, or there is no such class.
    """
    classes_of = _classes_by(listed, classes, labels, names)
    for entry, class_id in zip(listed, classes_of, strict=True):
        if not 0 <= class_id < classes:
            where = entry.where or str(entry.path)
            raise DatasetError(f"class {class_id} of {classes}, of which the first is 0", where)
    return classes_of


def _classes_by(listed: Sequence[Entry], classes: int, labels: Sequence[str], names: Sequence[str]) -> list[int]:
    numbered = [entry.class_id for entry in listed if entry.class_id is not None]
    if len(numbered) == len(listed):
        return numbered
    if labels:
        return _classes_by_label(listed, labels)
    prefixes = [match for entry in listed if (match := re.match(r"(\d+)_n\d{8}\b", entry.path.name))]
    if len(prefixes) == len(listed):
        return [int(match[1]) for match in prefixes]
    folders = [entry.path.absolute().parent.name for entry in listed]
    index = {name: number for number, name in reversed(list(enumerate(names)))}
    if all(folder in index for folder in folders):
        return [index[folder] for folder in folders]
    if all(folder.isdecimal() for folder in folders):
        return list(map(int, folders))
    ordered = sorted(set(folders))
    if len(ordered) == classes:
        return [ordered.index(folder) for folder in folders]
    hint = "a list of `path index`, a folder per class, or the labels that occur in the paths"
    raise DatasetError("nothing says the class of this image", listed[0].where or str(listed[0].path), hint)


def _classes_by_label(listed: Sequence[Entry], labels: Sequence[str]) -> list[int]:
    """As Darknet, which finds phone in notphone.png too; where several labels occur in a path, a warning says so."""
    found, ambiguous = [], []
    for entry in listed:
        path = str(entry.path)
        occurring = [index for index, label in enumerate(labels) if label in path]
        if not occurring:
            raise DatasetError("none of the labels occurs in this path", entry.where or path)
        if len(occurring) > 1:
            ambiguous.append((entry, occurring))
        found.append(occurring[0])
    if ambiguous:
        entry, occurring = ambiguous[0]
        names = ", ".join(labels[index] for index in occurring)
        what = f"in {len(ambiguous)} of {len(listed)} paths several labels occur; in the first {names}"
        hint = f"it counts as {labels[occurring[0]]}, the first of the labels, as in Darknet; or list `path index`"
        warn(DatasetError(what, entry.where or str(entry.path), hint))
    return found


_NOTHING = Truth(np.zeros(0, np.intp), np.zeros((0, 4), np.float32), np.zeros(0, np.bool_), np.zeros(0))


def _with_ignored(truth: Truth, difficult: Truth) -> Truth:
    return Truth(
        np.concatenate([truth.class_ids, difficult.class_ids]),
        np.concatenate([truth.boxes, difficult.boxes]),
        np.concatenate([truth.ignored, ~difficult.ignored]),
        np.concatenate([truth.areas, difficult.areas]),
    )


def _annotated(listed: Sequence[Entry], classes: int, annotations: Annotations, allow_unlabelled: bool) -> list[Truth]:
    if len(annotations.names) != classes:
        what = f"{len(annotations.names)} categories for {classes} classes"
        raise DatasetError(what, annotations.path, "the annotations of another dataset?")
    missing = [entry for entry in listed if entry.path.name not in annotations.truths]
    if missing and (not allow_unlabelled or len(missing) == len(listed)):
        what = f"{len(missing)} of {len(listed)} images are not annotated; the first is {missing[0].path}"
        raise DatasetError(what, annotations.path, "images go by their file names")
    return [annotations.truths.get(entry.path.name, _NOTHING) for entry in listed]


def _label_file(image: Path, labels: str | PathLike[str] | None) -> Path:
    if labels is not None:
        return Path(labels) / f"{image.stem}.txt"
    place = Path(label_path(image)) if image.suffix in _LABEL_SUFFIXES else image.with_suffix(".txt")
    if is_there(place):
        return place
    parts = list(image.absolute().parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if not folders:
        return place
    parts[folders[-1]] = "labels"
    other = Path(*parts).with_suffix(".txt")
    return other if is_there(other) else place


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
    others = [Path(text) for _, text in _lines(difficult, _LARGEST_LIST)]
    if len(others) != len(entries):
        what = f"{len(others)} images, but {len(entries)} in {path}"
        raise DatasetError(what, difficult, "the n-th line has the difficult objects of the n-th image")
    return [Entry(entry.path, entry.where, entry.class_id, other) for entry, other in zip(entries, others, strict=True)]


def _listed(path: Path, bases: Sequence[Path], skip_bad: bool) -> list[Entry]:
    entries: list[Entry] = []
    missing: Where | None = None
    lacking = 0
    for where, text in _lines(path, _LARGEST_LIST):
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
    path, number, class_id = _first(text, bases), re.fullmatch(r"(.*\S)\s+(\d{1,9})", text), None
    if path is None and number:
        path, class_id = _first(number[1], bases), int(number[2])
    return None if path is None else Entry(path, where, class_id)


def _find(text: str, where: Where, bases: Sequence[Path]) -> Path:
    path = _first(text, bases) if text else None
    if path is None:
        hint = "looked for from this folder, from the file's and its parent"
        raise DatasetError("there is no such file", where, hint)
    return path


def _first(text: str, bases: Sequence[Path]) -> Path | None:
    path = Path(text)
    places = (path,) if path.is_absolute() else (path, *(base / path for base in bases))
    return next((place for place in places if is_there(place)), None)


def evenly(items: Sequence[_Item], most: int) -> tuple[_Item, ...]:
    """Up to so many of the items, in their order, from all over them."""
    count = min(most, len(items))
    return tuple(items[place * len(items) // count] for place in range(count))


def _lines(path: Path, limit: int = _LARGEST) -> Iterator[tuple[Where, str]]:
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
