"""Options of targets, of what runs their engines, of destinations and of passes: `--option NAME=VALUE`, `--passes
PASS:NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dnc.errors import DncError, TargetError, close_match

__all__ = ["CALIBRATED", "Configured", "Option", "check_names", "one_of", "parse_options", "whole"]

CALIBRATED = ("int8", "mixed")
"""Precisions with 8-bit numbers, whose ranges are measured before."""


@dataclass(frozen=True)
class Option:
    """Something that the user may tell a target, what runs its engines, or a pass."""

    name: str
    default: str
    """As the user would write it."""
    summary: str
    parse: Callable[[str], Any] = str
    """The value; raises ValueError(what is allowed, *the words that are), of which there may be none."""
    at_load: bool = False
    """Whether it may be given anew when an engine is loaded: it changes nothing that `build` writes."""


def whole(low: int, high: int) -> Callable[[str], int]:
    """For `Option.parse`: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    """For `Option.parse`: one of some words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}", *words)
        return text

    return parse


def parse_options(
    owner: str, known: Sequence[Option], given: Mapping[str, str], failure: type[DncError] = TargetError
) -> dict[str, Any]:
    """The values of all known options: those given, else their defaults.

    Args:
        owner: whose options they are, for messages: "target onnx".
        known: the options that there are.
        given: what the user wrote, by name; other names than the known ones are ignored.
        failure: what is raised if a value is not allowed.
    """
    values: dict[str, Any] = {}
    for option in known:
        text = str(given.get(option.name, option.default))
        try:
            values[option.name] = option.parse(text)
        except ValueError as error:
            allowed, *words = error.args
            hint = close_match(text, words)
            raise failure(f"option {option.name}={text} of {owner} is not {allowed}", hint=hint) from error
    return values


def check_names(
    owner: str, known: Sequence[Option], given: Mapping[str, Any], failure: type[DncError] = TargetError
) -> None:
    """Raises `failure` for a name that is none of the known options'."""
    names = [option.name for option in known]
    for name in given:
        if name not in names:
            hint = close_match(name, names) or (f"it has {', '.join(names)}" if names else "it has none")
            raise failure(f"{owner} has no option '{name}'", hint=hint)


class Configured:
    """What a user may tell something by options: a target, a destination.

    Args:
        given: options by name, as text; those that are not given have their defaults.

    Raises:
        DncError: of the class `failure`: an option is unknown, or has a value that is not allowed.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    """What it is, for messages."""
    failure: ClassVar[type[DncError]]
    known_options: ClassVar[Sequence[Option]] = ()

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self.given: dict[str, str] = dict(given or {})
        """What was given, as text."""
        owner = f"{self.kind} {self.name}"
        check_names(owner, self.known_options, self.given, self.failure)
        self.options: dict[str, Any] = parse_options(owner, self.known_options, self.given, self.failure)
