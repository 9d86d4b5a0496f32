"""Calibration: the range of every tensor of a network, measured on images, as a JSON file.

    {"format": 1, "digest": "…", "method": "kl", "symmetric": true, "preprocessing": {…}, "images": {…},
     "ranges": {"input": {"low": 0.0, "high": 1.0, "minimum": 0.0, "maximum": 1.0, "threshold": 1.0}, "layer000": {…}},
     "histograms": {"input": {"bins": 2048, "width": 0.00048828125, "values": 30720000, …}, "layer000": {…}},
     "channels": {"layer000": {"minimum": "-0.25 -1.5 …", "maximum": "3.5 0.75 …"}}}

It says what was measured and nothing of what is done with it: which layers are quantized, and to what, is decided by
the pass that reads it. It holds for one network, cfg and weights, by their digest, and for one preprocessing.

A scale is a float32 in every engine and every table. A threshold is therefore 127 times one (`as_threshold`), so that
no table loses a bit of it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dnc.errors import CalibrationError
from dnc.files import whole_file

if TYPE_CHECKING:
    from dnc.darknet.network import Network

__all__ = ["FORMAT", "LEVELS", "Calibration", "Channels", "Range", "as_threshold"]

FORMAT = 1
LEVELS = 127
"""The largest signed 8-bit number, and minus the smallest that engines use: scales are thresholds / 127."""

_HINT = "measure it again with `dnc calibrate`"


def as_threshold(value: float) -> float:
    """The nearest threshold whose scale is a float32, and not 0: 127 times the scale."""
    smallest = float(np.finfo(np.float32).tiny)
    return LEVELS * max(float(np.float32(value / LEVELS)), smallest)


@dataclass(frozen=True)
class Range:
    """Of one tensor, over all images: real values."""

    low: float
    high: float
    """What the method chose: from -threshold to threshold in a symmetric calibration, or from 0 to it where the tensor
    has nothing below."""
    minimum: float
    maximum: float
    """What was seen."""
    threshold: float
    """Of the symmetric range: its scale is threshold / 127."""

    @classmethod
    def symmetric(cls, threshold: float, minimum: float, maximum: float) -> Self:
        """From -threshold, or 0 where `minimum` is not below it, to the threshold."""
        threshold = as_threshold(threshold)
        return cls(-threshold if minimum < 0 else 0.0, threshold, minimum, maximum, threshold)


@dataclass(frozen=True)
class Channels:
    """Of one tensor, what was seen in each channel."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    def to_json(self) -> dict[str, str]:
        """Six digits of each number, in one text: lists would be a number a line."""
        return {key: " ".join(f"{number:.6g}" for number in numbers) for key, numbers in vars(self).items()}

    @classmethod
    def from_json(cls, name: str, item: object) -> Self:
        """The inverse of `to_json`; raises CalibrationError if `item` is nothing of the kind."""
        message = f"the channels of '{name}' are not as many lowest as highest numbers"
        try:
            found = cls(**{key: tuple(map(float, text.split())) for key, text in dict(item).items()})  # type: ignore[call-overload]
        except (AttributeError, TypeError, ValueError) as error:
            raise CalibrationError(message, hint=_HINT) from error
        if len(found.minimum) != len(found.maximum) or not all(map(math.isfinite, found.minimum + found.maximum)):
            raise CalibrationError(message, hint=_HINT)
        return found


@dataclass(frozen=True)
class Calibration:
    """The ranges of a network's tensors."""

    digest: str
    """Of the network: `Network.digest`."""
    method: str
    """How ranges were chosen: one of `dnc.quantization.histograms.METHODS`, or the format of the table they are from."""
    symmetric: bool
    preprocessing: Mapping[str, Any]
    """`Preprocessing.to_json`; empty where a table does not say."""
    images: Mapping[str, Any]
    """`count` images of `source`, `files` in order, the `sha256` of their names and contents, the `seed` that drew them
    or None for the first ones, and those `skipped`; empty where a table does not say."""
    ranges: Mapping[str, Range]
    """By the name of the value: "input", and `layer_value` of each layer."""
    histograms: Mapping[str, Any] = field(default_factory=dict)
    """Of each tensor its histogram's summary (`Histogram.summary`)."""
    channels: Mapping[str, Channels] = field(default_factory=dict)
    """Of each output of a layer that is a map; empty where a table does not say."""

    def to_json(self) -> dict[str, Any]:
        """JSON values; the inverse of `from_json`."""
        channels = {name: item.to_json() for name, item in self.channels.items()}
        return {"format": FORMAT, **asdict(self), "channels": channels}

    @classmethod
    def from_json(cls, values: object) -> Self:
        """The inverse of `to_json`; raises CalibrationError for values that are missing, unknown or nonsense."""
        if not isinstance(values, dict) or "format" not in values:
            raise CalibrationError("this is no calibration", hint=_HINT)
        if values["format"] != FORMAT:
            raise CalibrationError(f"its format is {values['format']!r}, not {FORMAT}", hint="update dnc, or " + _HINT)
        given = {key: value for key, value in values.items() if key != "format"}
        wrong = given.keys() ^ _KINDS.keys()
        if wrong:
            raise CalibrationError(f"missing or unknown in the calibration: {', '.join(sorted(wrong))}", hint=_HINT)
        for key, kind in _KINDS.items():
            if not isinstance(given[key], kind):
                raise CalibrationError(f"'{key}' of the calibration is no {kind.__name__}", hint=_HINT)
        given["ranges"] = {name: _range(name, item) for name, item in given["ranges"].items()}
        given["channels"] = {name: Channels.from_json(name, item) for name, item in given["channels"].items()}
        return cls(**given)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a file; raises CalibrationError if it cannot be read, or is no calibration."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CalibrationError(f"cannot read the calibration: {reason}", path, _HINT) from error
        try:
            return cls.from_json(values)
        except CalibrationError as error:
            raise CalibrationError(error.message, path, error.hint) from error

    @staticmethod
    def from_cfg(network: Network) -> Calibration:
        """What `input_calibration` of the network's own cfg says: see `dnc.quantization.tables`."""
        from dnc.quantization.tables import from_cfg

        return from_cfg(network)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file as a whole or not at all; raises DncError if it cannot be written."""
        with whole_file(path) as file:
            file.write((json.dumps(self.to_json(), indent=1) + "\n").encode())

    def check(self, network: Network) -> None:
        """Raises CalibrationError if this was measured on another network."""
        if self.digest != network.digest:
            message = f"the calibration belongs to another network ({self.digest[:12]}…, not {network.digest[:12]}…)"
            raise CalibrationError(message, network.file, "cfg and weights must be the same files; " + _HINT)


_KINDS: dict[str, type] = {
    "digest": str,
    "method": str,
    "symmetric": bool,
    "preprocessing": dict,
    "images": dict,
    "ranges": dict,
    "histograms": dict,
    "channels": dict,
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range(name: str, item: object) -> Range:
    names = [entry.name for entry in fields(Range)]
    if not isinstance(item, dict) or set(item) != set(names) or not all(map(_is_number, item.values())):
        raise CalibrationError(f"the range of '{name}' is not {', '.join(names)}, finite numbers", hint=_HINT)
    found = Range(**{key: float(value) for key, value in item.items()})
    if not (found.low <= 0 <= found.high and found.low < found.high and found.threshold > 0):
        raise CalibrationError(f"the range of '{name}' is empty, or without 0", hint=_HINT)
    return found
