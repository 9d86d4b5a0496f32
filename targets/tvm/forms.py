"""What there is of a kernel to choose from: the forms of its rule, each once; and the key by which it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["Forms", "key_of"]

_FORMS = 60
"""Places of tiles that are looked at."""


class Forms:
    """The forms that a rule has for a kernel, those that its formula likes best first, each once.

    Args:
        write: gives the tirx.PrimFunc of a place; None if no rule matches.
        tried: places that do not count any more.
    """

    def __init__(self, write: Callable[[int], Any], tried: Iterable[int]) -> None:
        self._write = write
        known = list(tried)
        self._seen = {_hash(write(place)) for place in (0, *known)}
        self._next = max(known, default=0) + 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        """Place and function of the next one."""
        while self._next < _FORMS:
            place = self._next
            self._next += 1
            function = self._write(place)
            mark = _hash(function)
            if mark not in self._seen:
                self._seen.add(mark)
                return place, function
        raise StopIteration


def _hash(function: Any) -> int | None:
    from tvm_ffi import structural_hash

    return None if function is None else int(structural_hash(function))


def key_of(loops: Any) -> str:
    """Key of a kernel in the database, by its loops before any schedule."""
    from tvm_ffi import structural_hash

    return f"{structural_hash(loops) % (1 << 64):016x}"
