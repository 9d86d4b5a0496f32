"""A page for each section of a .cfg, made from the layers: their formulas, and the keys that they read.

What a key does stands below `Keys:` in the docstring of the class that reads it: `key, key: text`; a line with a class
in backticks takes over its keys, all of them or `without` one. Defaults and limits are those that were recorded.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dnc.darknet.cfg import TRAINING_KEYS
from dnc.darknet.layers import activations, layers
from dnc.darknet.layers.activations import ACTIVATIONS
from dnc.darknet.network import Network
from docs._ext.reading import recorded
from docs._ext.text import code, definitions, prose, toctree

__all__ = ["EVERYWHERE", "documented", "kinds_of_sections", "pages"]

FOLDER = "reference/cfg"
EVERYWHERE = {
    "dontload": "1 leaves the weights out of the .weights file: an error where there are any.",
    "dontloadscales": "1: the .weights file has no scales, means and variances; [convolutional] and [connected] obey.",
}
"""Keys of every section, which `Network.build` reads."""
_ENTRY = re.compile(r"([A-Za-z_0-9]+(?:, [A-Za-z_0-9]+)*): (.+)")


def documented(kind: Callable[..., Any]) -> dict[str, str]:
    """The keys of a docstring and what each does, in its order."""
    found: dict[str, str] = {}
    block = inspect.cleandoc(kind.__doc__ or "").partition("\nKeys:\n")[2].partition("\n\n")[0]
    for entry in re.split(r"\n(?!     )", block) if block else []:
        text = " ".join(entry.split())
        if text.startswith("`"):
            other, _, without = text.partition(" without ")
            taken = documented(getattr(sys.modules[kind.__module__], other.strip("`")))
            found |= {key: said for key, said in taken.items() if key != without}
            continue
        match = _ENTRY.fullmatch(text)
        if match is None:
            raise ValueError(f"{kind.__qualname__}: '{text}' is no key with a text")
        found |= dict.fromkeys(match[1].split(", "), match[2])
    return found


def kinds_of_sections() -> dict[str, Callable[..., Any]]:
    """What reads each section, by its name."""
    return {"net": Network.build, **{kind.name: kind for kind in layers.values()}}


def pages() -> Mapping[str, str]:
    """The pages by their places, and the list of them."""
    kinds = kinds_of_sections()
    made = {f"{FOLDER}/{name}.md": "\n\n".join(_page(name, kind)) + "\n" for name, kind in kinds.items()}
    rows = [(f"[`[{name}]`]({name}.md)", _summary(name, kind)) for name, kind in kinds.items()]
    index = [
        "# Sections of a .cfg",
        "What stands in a cfg, section by section: what each computes, and every key that dnc reads. Keys that Darknet "
        "reads to train alone are passed over; a key that nothing reads is an error if it is nearly one of these, else "
        "a warning. Values are read as Darknet does: `groups = 40 # 32` is 40, the first of two equal keys wins.",
        definitions(rows),
        "## Keys of every section",
        definitions((code(key), text) for key, text in EVERYWHERE.items()),
        "## Keys for training",
        "dnc passes these over wherever they stand, unless the section's page says what it does with them:",
        ", ".join(map(code, sorted(TRAINING_KEYS, key=str.lower))) + ".",
        toctree(kinds, hidden=""),
    ]
    return {**made, f"{FOLDER}/index.md": "\n\n".join(index) + "\n"}


def _summary(name: str, kind: Callable[..., Any]) -> str:
    if name == "net":
        return "The first section: the size of the input."
    return prose(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " "))


def _page(name: str, kind: Callable[..., Any]) -> Iterator[str]:
    yield f"# \\[{name}]"
    yield _summary(name, kind)
    aliases = getattr(kind, "aliases", ())
    if aliases:
        yield f"Darknet also calls it {', '.join(code(f'[{alias}]') for alias in aliases)}."
    reads, training = recorded()
    said = documented(kind)
    yield "## Keys"
    asked = reads.get(name, {})
    rows = [
        (code(key), f"{_linked(_capital(text), name)} *{_capital(asked[key].text())}.*") for key, text in said.items()
    ]
    yield definitions(rows) if rows else "dnc reads none of this section."
    passed = sorted(training.get(name, ()))
    if passed:
        listed = ", ".join(map(code, passed))
        yield f"For training alone, and passed over, among [others](index.md#keys-for-training): {listed}."
    if name == "activation":
        yield "## The activations"
        yield ", ".join(map(code, ACTIVATIONS)) + "."
        yield prose(activations.__doc__ or "")
    if name != "net":
        yield "## What it computes"
        yield _linked(sys.modules[kind.__module__].__doc__ or "", name)


def _linked(text: str, own: str) -> str:
    """Prose in which the names of other sections lead to their pages."""
    others = "|".join(kind for kind in kinds_of_sections() if kind != own)
    lines = re.split(r"^(    .*\n?)", prose(text), flags=re.MULTILINE)
    return "".join(
        line if line.startswith("    ") else re.sub(rf"(?<!`)\[({others})\]", r"[`[\1]`](\1.md)", line)
        for line in lines
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
