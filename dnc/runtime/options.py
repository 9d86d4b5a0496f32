"""Options of targets and of what runs their engines: `--option NAME=VALUE`, and keywords of `dnc.load`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnc.errors import TargetError, close_match

__all__ = ["Option", "check_names", "one_of", "parse_options", "whole"]


@dataclass(frozen=True)
class Option:
    """Something that the user may tell a target, or what runs its engines."""

    name: str
    default: str
    """As the user would write it."""
    summary: str
    parse: Callable[[str], Any] = str
    """The value; raises ValueError, which says what is allowed."""
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
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return parse


def parse_options(target: str, known: Sequence[Option], given: Mapping[str, str]) -> dict[str, Any]:
    """The values of all known options: those given, else their defaults.

    Args:
        target: the name of the target, for messages.
        known: the options that there are.
        given: what the user wrote, by name; other names than the known ones are ignored.

    Raises:
        TargetError: a value is not allowed.
    """
    values: dict[str, Any] = {}
    for option in known:
        text = given.get(option.name, option.default)
        try:
            values[option.name] = option.parse(text)
        except ValueError as error:
            raise TargetError(f"option {option.name}={text} of target {target} is not {error}") from error
    return values


def check_names(target: str, known: Sequence[Option], given: Mapping[str, str]) -> None:
    """Raises TargetError for a name that is none of the known options'."""
    names = [option.name for option in known]
    for name in given:
        if name not in names:
            hint = close_match(name, names) or (f"it has {', '.join(names)}" if names else "it has none")
            raise TargetError(f"target {target} has no option '{name}'", hint=hint)
