"""What preprocessing weights were trained with, recorded beside them: NET.weights has NET.preprocess.json.

    mean, std      lists of one number, or of one for each channel: the input is (pixel / 255 - mean) / std
    crop           the share of the short side that center-crop keeps
    interpolation  "bilinear" or "bicubic": how center-crop resizes
    color          "rgb", "bgr" or "gray"
    mode           how an image is brought to the network's size (see `dnc.runtime.preprocessing`)

Only what is known stands there. `dnc compile` takes it where nobody says otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dnc.errors import DncError, close_match
from dnc.files.reading import read_json
from dnc.files.writing import whole_file
from dnc.runtime.preprocessing import COLORS, INTERPOLATIONS, MIN_CROP, MODES
from dnc.typing import is_number

__all__ = ["read_recorded", "recorded_path", "write_recorded"]


def recorded_path(weights: str | os.PathLike[str]) -> Path:
    """Path of the record of a .weights file, which need not exist."""
    return Path(weights).with_suffix(".preprocess.json")


def write_recorded(weights: str | os.PathLike[str], fields: Mapping[str, Any]) -> Path:
    """Records `fields` beside the weights, in place of an older record; returns the path.

    Raises DncError if a field is unknown or nonsense, or the file cannot be written.
    """
    path = recorded_path(weights)
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
    _check(values, path)
    with whole_file(path) as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())
    return path


def read_recorded(weights: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields recorded beside the weights; none if there is no record.

    Raises DncError, naming the file and the key, if the record is damaged.
    """
    path = recorded_path(weights)
    try:
        values = read_json(path, _LARGEST)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DncError(f"cannot read the recorded preprocessing: {reason}", path, _HINT) from error
    if not isinstance(values, dict):
        raise DncError("the recorded preprocessing is no JSON object", path, _HINT)
    _check(values, path)
    return values


_LARGEST = 1 << 16
_HINT = "delete the file to do without it, or write it again with `dnc import`"


def _check(values: Mapping[str, Any], path: Path) -> None:
    for key, value in values.items():
        if key not in _FIELDS:
            hint = close_match(key, _FIELDS) or f"known: {', '.join(_FIELDS)}"
            raise DncError(f"unknown key '{key}' in the recorded preprocessing", path, hint)
        wanted, fits = _FIELDS[key]
        if not fits(value):
            raise DncError(f"recorded preprocessing: '{key}' must be {wanted}, not {json.dumps(value)}", path, _HINT)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_number, value))


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mean": ("a list of numbers", _are_numbers),
    "std": ("a list of positive numbers", lambda value: _are_numbers(value) and min(value) > 0),
    "crop": (f"from {MIN_CROP} to 1", lambda value: is_number(value) and MIN_CROP <= value <= 1),
    "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", lambda value: value in INTERPOLATIONS),
    "color": (f"one of {', '.join(COLORS)}", lambda value: value in COLORS),
    "mode": (f"one of {', '.join(MODES)}", lambda value: value in MODES),
}
