"""Calibration: the range of every tensor of a network, measured on images, as a JSON file.

    {"format": 1, "digest": "…", "method": "norm", "symmetric": true, "preprocessing": {…}, "images": {…},
     "ranges": {"input": {"low": 0.0, "high": 1.0, "minimum": 0.0, "maximum": 1.0, "threshold": 1.0}, "layer000": {…}},
     "histograms": {"input": {"bins": 2048, "width": 0.00048828125, "values": 30720000, …}, "layer000": {…}},
     "channels": {"layer000": {"minimum": "-0.25 -1.5 …", "maximum": "3.5 0.75 …", "mean": "1.25 -0.5 …"}}}

It says what was measured and nothing of what is done with it: which layers are quantized, and to what, is decided by
the pass that reads it. It holds for one network, cfg and weights, by their digest, at any size, and for one
preprocessing.

A scale is a float32 in every engine and every table. A threshold is therefore 127 times one (`as_threshold`), so that
no table loses a bit of it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from dnc.errors import CalibrationError, tolerate, warn
from dnc.files.reading import read_json
from dnc.files.writing import whole_file
from dnc.graph.quantization import Channels, Range
from dnc.typing import is_number

if TYPE_CHECKING:
    from dnc.darknet.network import Network

__all__ = ["FORMAT", "Calibration"]

FORMAT = 1

_LARGEST = 1 << 26
"""Bytes. Channels and histograms take some 10,000 a layer."""
_HINT = "measure it again with `dnc calibrate`"
_RANGE = ("low", "high", "minimum", "maximum", "threshold")
"""The threshold follows from low and high."""


@dataclass(frozen=True)
class Calibration:
    """The ranges of a network's tensors."""

    digest: str
    """The network's: `Network.digest`."""
    method: str
    """How ranges were chosen: one of `histograms.METHODS`, or the format of the table that they are from."""
    symmetric: bool
    preprocessing: Mapping[str, Any]
    """`Preprocessing.to_json`; empty where a table does not say."""
    images: Mapping[str, Any]
    """`count` images of `source`, `files` in order, the `sha256` of their names and contents, the `seed` that drew them
    or None for the first ones, and those `skipped`; empty where a table does not say."""
    ranges: Mapping[str, Range]
    """Ranges by the name of the value: "input", and `layer_value` of each layer."""
    histograms: Mapping[str, Any] = field(default_factory=dict)
    """The summary of each tensor's histogram (`Histogram.summary`), by the same names."""

    @property
    def sources(self) -> list[str]:
        """Where the images were read from: what `read_dataset` takes; none where that is not known."""
        return [item for item in str(self.images.get("source", "")).split(", ") if item]

    def to_json(self) -> dict[str, Any]:
        """JSON values; the inverse of `from_json`."""
        ranges = {name: {key: getattr(known, key) for key in _RANGE} for name, known in self.ranges.items()}
        measured = {name: known.channels for name, known in self.ranges.items()}
        # Six digits of each number, in one text: lists would be a number a line.
        channels = {
            name: {key: " ".join(f"{number:.6g}" for number in numbers) for key, numbers in vars(known).items()}
            for name, known in measured.items()
            if known is not None
        }
        return {"format": FORMAT, **vars(self), "ranges": ranges, "channels": channels}

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
        channels = {name: _channels(name, item) for name, item in given.pop("channels").items()}
        given["ranges"] = {name: _range(name, item, channels.get(name)) for name, item in given["ranges"].items()}
        return cls(**given)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a file; raises CalibrationError if it cannot be read, or is no calibration."""
        try:
            values = read_json(path, _LARGEST)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CalibrationError(f"cannot read the calibration: {reason}", path, _HINT) from error
        try:
            return cls.from_json(values)
        except CalibrationError as error:
            raise CalibrationError(error.message, path, error.hint) from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file as a whole or not at all; raises DncError if it cannot be written."""
        with whole_file(path) as file:
            file.write((json.dumps(self.to_json(), indent=1) + "\n").encode())

    def check(self, network: Network, lenient: bool = False) -> None:
        """Raises CalibrationError if this was measured on another network, or warns if `lenient`.

        Warns, too, where that network had another size: ranges of the same weights hardly depend on it.
        """
        if self.digest != network.digest:
            message = f"the calibration belongs to another network ({self.digest[:12]}…, not {network.digest[:12]}…)"
            hint = "cfg and weights must be the same files; " + _HINT
            tolerate(CalibrationError(message, network.file, hint), lenient)
        measured = [self.preprocessing.get(key) for key in ("width", "height")]
        size = list(network.input_shape[:0:-1])
        if self.preprocessing and measured != size:
            there, here = (" x ".join(map(str, sides)) for sides in (measured, size))
            message = f"the calibration was measured at {there}, and the network's input is {here}"
            hint = "ranges hardly change with the size; `dnc calibrate --width W --height H` measures those of this one"
            warn(CalibrationError(message, network.file, hint))


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


def _range(name: str, item: object, channels: Channels | None) -> Range:
    if not isinstance(item, dict) or set(item) != set(_RANGE) or not all(map(is_number, item.values())):
        raise CalibrationError(f"the range of '{name}' is not {', '.join(_RANGE)}, finite numbers", hint=_HINT)
    low, high, minimum, maximum, threshold = (float(item[key]) for key in _RANGE)
    found = Range(low, high, minimum, maximum, channels)
    if not (found.low <= 0 <= found.high and found.low < found.high):
        raise CalibrationError(f"the range of '{name}' is empty, or without 0", hint=_HINT)
    if not math.isclose(threshold, found.threshold, rel_tol=1e-6):
        raise CalibrationError(f"the range of '{name}' has another threshold than {found.threshold:g}", hint=_HINT)
    return found


def _channels(name: str, item: object) -> Channels:
    message = f"the channels of '{name}' are not as many lowest as highest numbers and means"
    try:
        found = Channels(**{key: tuple(map(float, text.split())) for key, text in dict(item).items()})  # type: ignore[call-overload]
    except (AttributeError, TypeError, ValueError) as error:
        raise CalibrationError(message, hint=_HINT) from error
    # Calibrations of before there were means have none.
    sizes = {len(found.minimum), len(found.maximum), len(found.mean or found.minimum)}
    if len(sizes) > 1 or not all(map(math.isfinite, found.minimum + found.maximum + found.mean)):
        raise CalibrationError(message, hint=_HINT)
    return found
