"""The errors that dnc raises, and the one form in which they are shown.

Whatever is wrong with what a user gives (a cfg, weights, an image, a machine) ends in one `DncError` that says
what is wrong, where, and what to do about it. Anything else that escapes is a bug of dnc.
"""

from __future__ import annotations

import difflib
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache


@dataclass(frozen=True)
class Where:
    """A place in a .cfg file: the section that starts at `line`, or one of its lines."""

    file: str
    line: int = 0
    section: str = ""
    index: int | None = None
    """Darknet's layer number: [net] is not counted, the first layer is 0."""
    text: str = ""
    """The source line itself, shown below the place."""

    @property
    def short(self) -> str:
        """The place without the file's folder: the same on every machine, for what is written into engines."""
        place = str(replace(self, file=self.file.replace("\\", "/").rpartition("/")[2]))
        # A file's name may hold bytes that are no UTF-8, which neither ONNX nor a terminal takes.
        return place.encode("utf-8", "replace").decode()

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        if self.section:
            place += f" [{self.section}]"
        if self.index is not None:
            place += f" #{self.index}"
        return place


_LONGEST = 1000
"""Characters of a line of an error: what a hostile file says of itself may be long."""


class DncError(Exception):
    """Something that the user can mend: `message` in one line, `where` it is, and a `hint` on what to do."""

    def __init__(self, message: str, where: object | None = None, hint: str = "") -> None:
        # Libraries put objects into their messages, whose addresses tell nobody anything.
        message = re.sub(r"<(?:\w+\.)*(\w+) object at 0x[0-9A-Fa-f]+>", r"\1", message)
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.where is not None:
            lines.append(f"  at {self._place()}")
            if isinstance(self.where, Where) and self.where.text:
                lines.append(f"  {self.where.line:>5} | {self.where.text}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(line[:_LONGEST] for line in printable("\n".join(lines)).split("\n"))

    def _place(self) -> str:
        where = self.where
        # Whatever a caller may give in place of a file: data, or an object with nothing to say of itself.
        if isinstance(where, bytes | bytearray | memoryview):
            return f"{len(where)} bytes of data"
        return f"an object of {type(where).__name__}" if type(where).__str__ is object.__str__ else str(where)


def printable(text: str) -> str:
    """Text without what a terminal would obey; names in files and answers of servers may hold anything.

    What stands for bytes of a path that are no UTF-8 stays, so that the path can be copied.
    """
    return text if text.isprintable() else "".join(c if _is_shown(c) else "\ufffd" for c in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character == "\n" or "\udc80" <= character <= "\udcff"


class CfgError(DncError):
    """A .cfg file that Darknet would refuse, or misread without a word."""


class WeightsError(DncError):
    """A .weights file that does not fit the network."""


class ImageError(DncError):
    """An image that cannot be read."""


class PassError(DncError):
    """An optimization pass that would leave an invalid or a different graph."""


class TargetError(DncError):
    """A target whose libraries are missing, or that cannot run the network."""


class DatasetError(DncError):
    """A list, labels or annotations of images that are missing, or that make no sense."""


class CalibrationError(DncError):
    """Images that give no ranges, or a table of ranges that does not fit the network."""


class BundleError(DncError):
    """An engine folder that is damaged, made by a newer dnc, or cannot be written."""


class DestinationError(DncError):
    """A program that an engine is exported for cannot take it, or what is written for it cannot be written."""


class ZooError(DncError):
    """Weights that could not be fetched from any of their sources."""


class DncWarning(UserWarning):
    """Something that Darknet ignores or guesses, and that a user may want to know of."""


def how_to_report(what: str) -> str:
    """What to do about a bug of dnc: where to say it, and with what.

    Args:
        what: what they need to see besides the version.
    """
    return f"please report it {_address()}, with {what}"


def _address() -> str:
    """Where this installation's bugs are told: the address that its metadata has (`Issues` of pyproject.toml's
    `[project.urls]`), else where pip fetched it from. None is made up."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    for name in ("darknet-compiler", "darknet-runtime"):
        with suppress(PackageNotFoundError, KeyError, ValueError, TypeError):
            found = distribution(name)
            for each in found.metadata.get_all("Project-URL") or ():
                label, _, address = each.partition(",")
                if plain(label) == "issues":
                    return f"at {address.strip()}"
            origin = json.loads(found.read_text("direct_url.json") or "{}")["url"]
            if not origin.startswith("file:"):
                return f"to whoever publishes {origin}, which dnc was installed from"
    return "to whoever you have dnc from (this copy names no address)"


def close_match(word: str, known: Iterable[str], cutoff: float = 0.6, meant: Mapping[str, str] | None = None) -> str:
    """The hint "did you mean 'x'?" for the nearest known word, or an empty string.

    Args:
        word: what was given.
        known: what there is.
        cutoff: how near it must be, from 0 to 1.
        meant: what other tools call something, with one of the known words for it, or with a text that says what there
            is instead; in lower case and without what parts words. A word that looks alike may be something else.
    """
    words = frozenset(known)
    told = (meant or {}).get(plain(word))
    if told is not None:
        return f"did you mean '{told}'?" if told in words else told
    return _close_match(word, words, cutoff)


def plain(word: str) -> str:
    """A word without case and without what parts words: SiLU and leaky_relu are silu and leakyrelu."""
    return re.sub(r"[-_ .]", "", word.lower())


@lru_cache(maxsize=1024)
def _close_match(word: str, known: frozenset[str], cutoff: float) -> str:
    # The same mistake may stand in every section.
    near = [name for name in known if not _is_another_version(word, name)]
    word = word.lower()
    # Of a short word, two letters in the wrong order are a large part: szie.
    swapped = {word[:place] + word[place + 1] + word[place] + word[place + 2 :] for place in range(len(word) - 1)}
    matches = [name for name in near if name in swapped] or difflib.get_close_matches(word, near, n=1, cutoff=cutoff)
    return f"did you mean '{matches[0]}'?" if matches else ""


def _is_another_version(word: str, name: str) -> bool:
    """Whether a known word differs in its number, and not by a slip: yolov8 is no yolov3, but znver44 may be znver4,
    and aarch46 is aarch64."""
    one, other = (re.sub(r"\D", "", text) for text in (word, name))
    slip = sorted(one) == sorted(other) or one.startswith(other) or other.startswith(one)
    return not slip


_said: set[str] = set()
_listening = threading.local()

Heard = list[tuple[DncError, str]]
"""Warnings and what each is said once for: the arguments of `warn`."""


def warn(error: DncError, once: str = "") -> None:
    """Issues the error as a `DncWarning`, for what is tolerated.

    Args:
        once: what the warning is about, if one in a process is enough.
    """
    heard: Heard | None = getattr(_listening, "heard", None)
    if heard is not None:
        heard.append((error, once))
    elif once not in _said:
        _said.update({once} - {""})
        warnings.warn(DncWarning(str(error)), stacklevel=3)


@contextmanager
def listening() -> Iterator[Heard]:
    """Keeps the warnings that this thread issues in the block, all of them, for whoever issues them in their turn:
    images are read ahead, or on another machine."""
    before, heard = getattr(_listening, "heard", None), Heard()
    _listening.heard = heard
    try:
        yield heard
    finally:
        _listening.heard = before


def tolerate(problem: DncError, lenient: bool) -> None:
    """Raises the problem, or only warns under `lenient`."""
    if not lenient:
        raise problem
    warn(problem)
