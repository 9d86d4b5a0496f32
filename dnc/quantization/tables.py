"""Calibrations in the forms of other programs.

Darknet (AlexeyAB's yolo2_light, which prints it, and forks that quantize): a line of [net], or alone in
input_calibration.txt,

    input_calibration = 15.7342, 4.48522, …, 16

with 127 / threshold of the input of each [convolutional], in order, and a 16 behind them that stands for nothing.
Numbers have as many digits as the scale, threshold / 127, needs to come back as the same float32; Darknet prints 6.

TensorRT's calibration cache, which 8, 9 and 10 read, and 11 no longer does:

    TRT-8601-EntropyCalibration2
    layer000: 3c010a14

with the scale, threshold / 127, of each value as the 8 hexadecimal digits of a float32, the largest byte first: here
0.0078759. A name may hold ": "; it ends at the last one. The version is that of the TensorRT that is to read it, which
calibrates anew where it is another one's.

Neither says what the smallest value was: a range that comes from a table reaches from -threshold to threshold.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dnc.darknet.cfg import read_cfg
from dnc.darknet.layers.base import layer_value
from dnc.darknet.layers.convolutional import Convolutional
from dnc.darknet.network import Network
from dnc.errors import CalibrationError, CfgError, Where, tolerate
from dnc.files.reading import open_regular, read_bounded
from dnc.files.writing import whole_file
from dnc.graph.quantization import LEVELS, Range, as_threshold
from dnc.quantization.calibration import Calibration

__all__ = ["TENSORRT", "darknet_line", "is_table", "read_table", "tensorrt_cache", "write_darknet", "write_tensorrt"]

TENSORRT = "8.6.1"
_KEY = "input_calibration"
_BEHIND = "16"
_HEADER = re.compile(r"TRT-\d+-\w+")
_HEAD = 64
"""Bytes that tell a table."""
_LARGEST = 1 << 24
"""The largest file, in bytes: a table has some 30 a layer."""


def darknet_line(calibration: Calibration, network: Network) -> str:
    """`input_calibration = …`; raises CalibrationError if the range of a convolution's input is missing."""
    numbers = []
    for layer, name in _inputs(network):
        if name not in calibration.ranges:
            raise CalibrationError(f"the calibration has no range for '{name}', which this layer reads", layer.where)
        numbers.append(_multiplier(calibration.ranges[name].threshold))
    return f"{_KEY} = {', '.join([*numbers, _BEHIND])}"


def write_darknet(calibration: Calibration, network: Network, path: str | os.PathLike[str]) -> None:
    """Writes a copy of the network's cfg with the line in its [net], if the file is to be a .cfg; else the line alone.

    Raises:
        CalibrationError: the calibration belongs to another network, or lacks a convolution's input; the file is the
            network's own cfg.
        DncError: the file cannot be written.
    """
    calibration.check(network)
    line = darknet_line(calibration, network)
    if os.path.realpath(path) == os.path.realpath(network.file):
        # The calibration would no longer be the cfg's, whose digest changes.
        raise CalibrationError("the copy would replace the cfg itself", path, "give it another name")
    if Path(path).suffix.lower() != ".cfg":
        text = f"{line}\n".encode()
    else:
        text = network.cfg_with({_KEY: line.partition("=")[2].strip()})
    with whole_file(path) as file:
        file.write(text)


def tensorrt_cache(calibration: Calibration, version: str = TENSORRT) -> str:
    """The text of a cache; raises CalibrationError for a version of TensorRT that reads none."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", version)
    if not match:
        raise CalibrationError(f"'{version}' is no version of TensorRT", hint=f"three numbers, for instance {TENSORRT}")
    major, minor, patch = map(int, match.groups())
    if major > 10:
        hint = "give it an ONNX model with QuantizeLinear: `dnc compile --target onnx --precision int8`"
        raise CalibrationError(f"TensorRT {major} reads no calibration caches; 10 was the last", hint=hint)
    # NV_TENSORRT_VERSION, which got more digits with 10.
    number = major * (10000 if major >= 10 else 1000) + minor * 100 + patch
    lines = [f"TRT-{number}-EntropyCalibration2"]
    for name, entry in calibration.ranges.items():
        lines.append(f"{name}: {struct.pack('>f', entry.threshold / LEVELS).hex()}")
    return "\n".join(lines) + "\n"


def write_tensorrt(calibration: Calibration, path: str | os.PathLike[str], version: str = TENSORRT) -> None:
    """Writes a cache; raises CalibrationError as `tensorrt_cache`, and DncError if the file cannot be written."""
    text = tensorrt_cache(calibration, version)
    with whole_file(path) as file:
        file.write(text.encode())


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as what `read_table` reads; a .cfg, with a line of ranges or without, does not."""
    # A pipe can be read but once.
    if not os.path.isfile(path):  # noqa: PTH113 (Path's raises where a name is too long)
        return False
    try:
        with open_regular(path) as file:
            start = file.read(_HEAD).decode("utf-8", errors="replace")
    except OSError:
        return False
    return start.lstrip().startswith(("{", _KEY)) or _HEADER.match(start) is not None


def read_table(path: str | os.PathLike[str], network: Network | None, *, lenient: bool = False) -> Calibration:
    """Reads a calibration of dnc, a cfg or input_calibration.txt of Darknet, or a cache of TensorRT, told apart by
    their contents.

    Args:
        path: the file.
        network: what the ranges are for. Without it a calibration is not held against any, a cache keeps its names, and
            the inputs of [convolutional] layers are called "convolution N"; a table's `digest` is empty then.
        lenient: warn about a calibration of another network, another number of multipliers, and lines or numbers that
            make no sense; what is left without a range stays in float.

    Raises:
        CalibrationError, CfgError: it cannot be read, is none of them, or does not fit the network.
    """
    try:
        text = read_bounded(path, _LARGEST).decode("utf-8", errors="surrogateescape")
    except OSError as error:
        raise CalibrationError(f"cannot read the table: {error.strerror or error}", path) from error
    if text.lstrip().startswith("{"):
        calibration = Calibration.read(path)
        if network is None:
            return calibration
        calibration.check(network, lenient)
        return replace(calibration, digest=network.digest)
    if _HEADER.match(text):
        return _table("tensorrt", network, _read_tensorrt(Path(path), text, network, lenient))
    if text.lstrip().startswith(_KEY):
        items = text.partition("=")[2].rstrip(", \r\n").split(",")
        multipliers = [_number(item, Where(str(path), 1), lenient) for item in items]
        return _table("darknet", network, _by_input(multipliers, network, path, lenient))
    if Path(path).suffix.lower() == ".cfg":
        return _from_section(Path(path), network, lenient)
    hint = "a calibration of dnc, a line `input_calibration = …`, a .cfg with one, or a calibration cache of TensorRT"
    raise CalibrationError("this is no table of ranges", path, hint)


def _from_section(path: Path, network: Network | None, lenient: bool) -> Calibration:
    net = read_cfg(path, lenient=True)[0][0]
    numbers = net.numbers(_KEY)
    if numbers is None:
        raise CalibrationError(f"its [net] has no {_KEY}", path, "`dnc calibrate` measures one")
    multipliers = [_number(str(item), net.at(_KEY), lenient) for item in numbers]
    return _table("darknet", network, _by_input(multipliers, network, path, lenient))


def _inputs(network: Network) -> Iterator[tuple[Convolutional, str]]:
    """Each [convolutional] and the name of what it reads."""
    for layer in network.layers:
        if isinstance(layer, Convolutional):
            # Always the layer before it: no two read the same value.
            (source,) = layer.sources
            yield layer, "input" if source < 0 else layer_value(source)


def _multiplier(threshold: float) -> str:
    scale = np.float32(threshold / LEVELS)
    for digits in range(6, 17):
        text = f"{LEVELS / threshold:.{digits}g}"
        if np.float32(1 / float(text)) == scale:
            return text
    return repr(LEVELS / threshold)


def _number(text: str, where: Where, lenient: bool) -> float | None:
    """A multiplier; None for what is none, if `lenient`."""
    try:
        number = float(text)
    except ValueError:
        problem = CfgError(f"'{text.strip()[:40]}' is no number", where, "multipliers, separated by commas")
    else:
        if 1e-30 < number < 1e30:
            return number
        problem = CfgError(f"a multiplier of {number:g} is none", where, "127 / threshold, positive")
    tolerate(problem, lenient)
    return None


def _by_input(
    multipliers: list[float | None], network: Network | None, path: str | os.PathLike[str], lenient: bool
) -> dict[str, float]:
    """Thresholds by the name of the value."""
    if network is None:
        last = len(multipliers) - (multipliers[-1] == float(_BEHIND))
        numbered = enumerate(multipliers[:last])
        return {f"convolution {place}": LEVELS / number for place, number in numbered if number is not None}
    inputs = [name for _, name in _inputs(network)]
    if len(multipliers) not in (len(inputs), len(inputs) + 1):
        message = f"{len(multipliers)} multipliers for {len(inputs)} [convolutional] layers"
        hint = "one for each in order, and a 16 behind them; is it another network's?"
        tolerate(CalibrationError(message, path, hint), lenient)
        if len(multipliers) < len(inputs):
            # The last one is of no input.
            multipliers = multipliers[:-1]
    return {name: LEVELS / number for name, number in zip(inputs, multipliers, strict=False) if number is not None}


def _read_tensorrt(path: Path, text: str, network: Network | None, lenient: bool) -> dict[str, float]:
    names = None if network is None else {"input", *(layer_value(layer.index) for layer in network.layers)}
    thresholds = {}
    for number, line in enumerate(text.splitlines()[1:], 2):
        if not line.strip():
            continue
        name, colon, digits = line.rpartition(": ")
        try:
            # TensorRT drops leading zeros.
            scale = struct.unpack(">f", int(digits, 16).to_bytes(4, "big"))[0]
        except (ValueError, OverflowError):
            scale = math.nan
        if not colon or not scale >= 0 or math.isinf(scale):
            where = Where(str(path), number, text=line[:80])
            tolerate(CalibrationError("this line is no `name: scale` in hexadecimal digits", where), lenient)
            continue
        # 0 is of a tensor that has no range.
        if (names is None or name in names) and scale:
            thresholds[name] = LEVELS * scale
    if not thresholds:
        hint = "names are those of `dnc compile --target onnx --keep-layers`: input, layer000, …"
        what = "none of the cache's names is a value of this network" if names else "there is no scale in this cache"
        raise CalibrationError(what, path, hint)
    return thresholds


def _table(method: str, network: Network | None, thresholds: Mapping[str, float]) -> Calibration:
    ranges = {}
    for name, threshold in thresholds.items():
        exact = as_threshold(threshold)
        ranges[name] = Range.symmetric(exact, -exact, exact)
    return Calibration("" if network is None else network.digest, method, True, {}, {}, ranges)
