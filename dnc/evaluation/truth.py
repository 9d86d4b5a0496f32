"""What is known of images: objects by Darknet's labels or COCO's annotations, classes by lists, names and folders.

    x.txt                       class center_x center_y width height, in fractions of the image: read_boxes
    instances_val2017.json      COCO's: images, annotations in pixels, categories

What Darknet passes over in silence (a label line that does not parse ends the file, a missing one is no objects, a
class beyond the last one is written out of bounds) is an error here that names the line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.errors import DatasetError, warn
from dnc.evaluation.datasets import Entry, is_folder, is_there, lines_of
from dnc.files.reading import read_json

__all__ = ["Annotations", "Truth", "class_truth", "label_path", "read_annotations", "read_labels", "read_truth"]

_LARGEST_ANNOTATIONS, _MOST_ANNOTATED = 1 << 30, 100_000_000
"""Bytes and values: COCO's train2017 has 450 MB, mostly polygons."""


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
    for where, text in lines_of(Path(path)):
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
        if allow_unlabelled:
            hint = "nothing can be measured without any"
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
