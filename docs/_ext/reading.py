"""How sections of a .cfg are read: which keys `Layer.parse` asks for, as what, with which defaults and limits.

Recorded while networks are read: those of tests/networks.py, which together have every section, the small ones of cfg/,
and those of one feature each in tests/golden/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dnc.darknet.cfg import TRAINING_KEYS, Section, bundled_cfgs, parse_cfg
from dnc.darknet.layers import layers
from dnc.darknet.layers.activations import ACTIVATIONS
from dnc.darknet.network import Network
from dnc.errors import CfgError, listening
from docs._ext.text import code
from tests.networks import NETWORKS

__all__ = ["Read", "recorded"]

ROOT = Path(__file__).resolve().parents[2]
_TEXT = "text"
_LARGE = 30
"""Sections; what is larger takes long to build, and reads nothing else."""


@dataclass
class Read:
    """How a key is asked for: as what, and the defaults and limits that were seen."""

    kind: str
    defaults: set[Any] = field(default_factory=set)

    def text(self) -> str:
        """In words; no default where it depends on other keys."""
        if len(self.defaults) != 1:
            return self.kind
        (default,) = self.defaults
        if default in (None, -1):
            return self.kind
        return f"{self.kind}; {code(f'{default:g}' if isinstance(default, float) else str(default))} if not given"


Reads = dict[str, dict[str, Read]]


class _Recorder(Section):
    """A section that keeps what is asked of it: of questions that are made of others the first."""

    reads: Reads

    def _note(self, key: str, kind: str, default: Any) -> None:
        kinds = layers.get(self.name)
        known = self.reads.setdefault(kinds.name if kinds else "net", {})
        if key not in known or (known[key].kind == _TEXT != kind):
            known[key] = Read(kind)
        if known[key].kind == kind:
            known[key].defaults.add(default)

    def text(self, key: str, default: str | None = None) -> str | None:
        self._note(key, _TEXT, default)
        return super().text(key, default)

    def choice(self, key: str, default: str, known: Iterable[str], *rest: Any, **more: Any) -> str:
        known = list(known)
        words = "the name of an activation" if known == list(ACTIVATIONS) else f"one of {', '.join(map(code, known))}"
        self._note(key, words, default)
        return super().choice(key, default, known, *rest, **more)

    def integer(self, key: str, default: int, low: int | None = None, high: int | None = None) -> int:
        self._note(key, "a whole number" + ("" if low is None else f", at least {low}"), default)
        return super().integer(key, default, low, high)

    def boolean(self, key: str, default: bool = False) -> bool:
        self._note(key, "0 or 1", int(default))
        return super().boolean(key, default)

    def number(self, key: str, default: float) -> float:
        self._note(key, "a number", default)
        return super().number(key, default)

    def integers(self, key: str, whole: bool = False) -> tuple[int, ...] | None:
        self._note(key, "whole numbers, separated by commas", None)
        return super().integers(key, whole)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        self._note(key, "numbers, separated by commas", None)
        return super().numbers(key)


@cache
def recorded() -> tuple[Reads, Mapping[str, set[str]]]:
    """What is read of each section; and which keys for training alone stand in the sections of these networks."""
    reads: Reads = {}
    training: dict[str, set[str]] = {}
    for text, file in _networks():
        sections = []
        for section in parse_cfg(text, file, lenient=True):
            recorder = _Recorder(section.name, section.where, section.options, lenient=True)
            recorder.reads = reads
            sections.append(recorder)
        if len(sections) <= _LARGE:
            with suppress(CfgError), listening():
                Network.build(list(sections), file, lenient=True)
        for recorder in sections:
            kind = layers.get(recorder.name)
            name = kind.name if kind else "net"
            training.setdefault(name, set()).update(TRAINING_KEYS.intersection(recorder.options))
    return reads, {name: keys - reads.get(name, {}).keys() for name, keys in training.items()}


def _networks() -> Iterator[tuple[str, str]]:
    for name, text in NETWORKS.items():
        yield text, f"<{name}>"
    for path in bundled_cfgs().values():
        yield path.read_text("utf-8"), str(path)
    for path in sorted((ROOT / "tests/golden/micro").glob("*.npz")):
        with np.load(path) as stored:
            yield str(stored["cfg"]), str(path)
