"""The times of layers that `dnc bench --layers --json` measured."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from dnc.errors import DncError
from dnc.files.reading import read_json
from dnc.typing import is_number

__all__ = ["read_times"]

_HINT = "`dnc bench ENGINE --layers --json` writes one"


def read_times(path: str | PathLike[str], what: str | PathLike[str] = "") -> Mapping[str, float]:
    """Seconds of each layer by its place in the cfg, and of the network as a whole under "".

    Args:
        path: a recording.
        what: the engine or cfg that is diagnosed: of several engines, the one that has its name is taken.

    Raises:
        DncError: it cannot be read, has no times of layers, or those of several engines of which none has the name.
    """
    try:
        recording = read_json(path)
        tables = recording["layers"]
        found = {str(table["engine"]): _times(table) for table in tables}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DncError(f"no recording of layers' times: {error}", path, _HINT) from error
    if not found:
        raise DncError("the recording has no times of layers", path, _HINT)
    if len(found) == 1:
        return next(iter(found.values()))
    named = [name for name in found if name in (str(what), Path(what).name, Path(what).stem)]
    if len(named) != 1:
        raise DncError(f"the recording has several engines: {', '.join(found)}", path, "measure this one alone")
    return found[named[0]]


def _times(table: Mapping[str, object]) -> dict[str, float]:
    rows = table["rows"]
    if not isinstance(rows, list):
        raise TypeError("rows are no list")
    times = {str(row["where"]): row["seconds"] for row in rows}
    times[""] = table["seconds"]
    if not all(map(is_number, times.values())):
        raise ValueError("a time is no number")
    return {where: float(seconds) for where, seconds in times.items()}
