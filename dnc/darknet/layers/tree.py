"""Class trees: the files that `tree=` and `map=` of [softmax] and [region] name (tree.c).

A tree file has one node a line, "name parent", parents before children, -1 for a root. Nodes that follow each other and
have one parent are a group; a softmax runs over each group by itself. A map file has one node number a line.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers.base import Array, Builder, Value
from dnc.files.reading import read_bounded

__all__ = ["emit_tree_softmax", "group_sizes", "parse_map", "parse_tree", "softmax", "tree_softmax"]

_LARGEST = 1 << 24
"""Bytes. YOLO9000's tree, of 9,418 nodes, has 128 kB."""
_NUMBER = re.compile(r"-?[0-9]{1,9}")


def parse_tree(section: Section, classes: int) -> tuple[int, ...]:
    """The parent of each node; () without `tree=`. A missing file is an error (under lenient: no tree)."""
    lines = _read(section, "tree")
    parents = []
    for number, line in enumerate(lines):
        fields = line.split()
        parent = int(fields[1]) if len(fields) > 1 and _NUMBER.fullmatch(fields[1]) else None
        if parent is None or not -1 <= parent < number:
            section.fail(f"line {number + 1} of the tree is not 'name parent', parents first", "tree", line[:60])
        parents.append(parent)
    if parents and len(parents) != classes:
        section.fail(f"the tree has {len(parents)} nodes, classes are {classes}", "tree", "is it another data set's?")
    return tuple(parents)


def parse_map(section: Section, nodes: int) -> tuple[int, ...]:
    """The tree's node of each class to report; () without `map=`."""
    lines = [line.strip() for line in _read(section, "map")]
    for number, line in enumerate(lines):
        if not _NUMBER.fullmatch(line) or not 0 <= int(line) < nodes:
            section.fail(f"line {number + 1} of the map is not the number of a class", "map", line[:60])
    return tuple(map(int, lines))


def _read(section: Section, key: str) -> list[str]:
    """The lines of the file that `key` names: as given, beside the cfg, or beside the cfg's folder as in Darknet's."""
    name = section.text(key)
    if name is None:
        return []
    cfg = Path(section.where.file)
    for base in (Path(), cfg.parent, cfg.parent.parent):
        path = base / name
        try:
            text = read_bounded(path, _LARGEST).decode()
            return [line for line in text.splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            continue
    section.guess(f"cannot read {key}={name}", key, f"copy the file to {cfg.parent / name}; --lenient does without it")
    return []


def group_sizes(parents: tuple[int, ...]) -> list[int]:
    """Sizes of the groups, in order."""
    return [len(list(group)) for _, group in groupby(parents)]


def softmax(x: Array, axis: int, temperature: float = 1.0) -> Array:
    """Softmax of x / temperature along an axis."""
    exponential = np.exp((x - x.max(axis=axis, keepdims=True)) / np.float32(temperature))
    result: Array = exponential / exponential.sum(axis=axis, keepdims=True)
    return result


def tree_softmax(x: Array, parents: tuple[int, ...], temperature: float = 1.0) -> Array:
    """Softmax per group along the last axis."""
    ends = np.cumsum(group_sizes(parents))
    return np.concatenate([softmax(part, -1, temperature) for part in np.split(x, ends[:-1], axis=-1)], axis=-1)


def emit_tree_softmax(b: Builder, x: Value, parents: tuple[int, ...], axis: int) -> Value:
    """Splits into the groups, and joins the Softmax of each."""
    sizes = group_sizes(parents)
    parts = b.ops("Split", x, b.constant(np.array(sizes, np.int64), "groups"), outputs=len(sizes), axis=axis)
    return b.op("Concat", *(b.op("Softmax", part, axis=axis) for part in parts), axis=axis)
