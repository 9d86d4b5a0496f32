"""Tables of Darknet and TensorRT: numbers that are known, round trips to the bit, and what is wrong with a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.network import Network
from dnc.errors import CalibrationError, CfgError, DncError
from dnc.graph.quantization import Range
from dnc.quantization.calibration import Calibration
from dnc.quantization.tables import darknet_line, read_table, tensorrt_cache, write_darknet, write_tensorrt

Write = Callable[..., Path]

CFG = """[net]
# first
width=16
height=16
channels=3

[convolutional]
filters=4
size=3
pad=1
[maxpool]
size=2
[convolutional]
filters=4
[route]
layers=-2
[convolutional]
filters=4
"""
INPUTS = ["input", "layer001", "layer001"]
"""What its convolutions read; layer003 is layer001 again, but has a name of its own."""


@pytest.fixture
def network(write: Write) -> Network:
    cfg = write("net", CFG)
    return Network.load(cfg, cfg.with_suffix(".weights"))


def _calibration(network: Network, **thresholds: float) -> Calibration:
    ranges = {name: Range.symmetric(value, -1.0, 1.0) for name, value in thresholds.items()}
    return Calibration(network.digest, "kl", True, {}, {"count": 1}, ranges)


def _thresholds(calibration: Calibration) -> dict[str, float]:
    return {name: entry.threshold for name, entry in calibration.ranges.items()}


def test_darknet_line(network: Network) -> None:
    calibration = _calibration(network, input=1.0, layer001=127 / 15.7342, layer003=127 / 40)
    assert darknet_line(calibration, network) == "input_calibration = 127, 15.7342, 40, 16"


def test_tensorrt_line(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_text("TRT-7103-EntropyCalibration2\nlayer000: 3c010a14\n", encoding="utf-8")
    calibration = read_table(path, network)
    entry = calibration.ranges["layer000"]
    # Printed with 5 digits.
    assert entry.threshold / 127 == pytest.approx(0.0078759, rel=1e-5)
    assert entry.threshold == pytest.approx(1.0002, rel=1e-4)
    assert (entry.low, entry.high) == (-entry.threshold, entry.threshold)
    assert tensorrt_cache(calibration, "7.1.3") == path.read_text(encoding="utf-8")
    assert (calibration.digest, calibration.method, calibration.symmetric) == (network.digest, "tensorrt", True)


# What Darknet's own range check lets through, and more.
numbers = st.floats(1e-6, 1e6)


@settings(max_examples=50)
@given(st.tuples(numbers, numbers, numbers))
def test_round_trips_are_exact(network: Network, tmp_path: Path, values: tuple[float, float, float]) -> None:
    calibration = _calibration(network, **dict(zip(("input", "layer001", "layer003"), values, strict=True)))
    write_tensorrt(calibration, tmp_path / "cache", "10.3.0")
    write_darknet(calibration, network, tmp_path / "input_calibration.txt")
    for file in ("cache", "input_calibration.txt"):
        assert _thresholds(read_table(tmp_path / file, network)) == _thresholds(calibration)


@settings(max_examples=50)
@given(st.lists(numbers, min_size=3, max_size=3))
def test_darknets_own_line_comes_back(network: Network, tmp_path: Path, values: list[float]) -> None:
    """With the 6 digits that Darknet prints."""
    line = "input_calibration = " + "".join(f"{value:g}, " for value in values) + "16"
    path = tmp_path / "input_calibration.txt"
    path.write_text(line, encoding="utf-8")
    again = darknet_line(read_table(path, network), network)
    assert [float(item) for item in again.partition("=")[2].split(",")] == [
        *(float(f"{value:g}") for value in values),
        16,
    ]


def test_a_calibration_reads_itself(network: Network, tmp_path: Path) -> None:
    calibration = _calibration(network, input=1.0)
    calibration.write(tmp_path / "x.json")
    assert read_table(tmp_path / "x.json", network) == calibration
    dataclasses.replace(calibration, digest="0").write(tmp_path / "x.json")
    with pytest.raises(CalibrationError, match="belongs to another network"):
        read_table(tmp_path / "x.json", network)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_copy_of_the_cfg(end: str, tmp_path: Path) -> None:
    """It has the line once, in [net], and is otherwise the same; its own calibration is the one that was written."""
    cfg = tmp_path / "net.cfg"
    rows = [*CFG.replace("channels", "input_calibration = 1, 2\nchannels").splitlines(), "# \xe9"]
    cfg.write_bytes((end.join(rows) + end).encode("latin-1"))
    network = Network.load(cfg)
    calibration = _calibration(network, input=1.0, layer001=2.0, layer003=4.0)
    copy = tmp_path / "copy.cfg"
    write_darknet(calibration, network, copy)
    rows.remove("input_calibration = 1, 2")
    rows.insert(1, "input_calibration = 127, 63.5, 31.75, 16")
    assert copy.read_bytes() == (end.join(rows) + end).encode("latin-1")
    again = Network.load(copy)
    found = read_table(copy, again)
    assert _thresholds(found) == _thresholds(calibration)
    found.check(again)
    assert _thresholds(read_table(copy, network)) == _thresholds(calibration)
    with pytest.raises(CalibrationError, match="would replace the cfg itself"):
        write_darknet(calibration, network, cfg)


def test_missing_ranges(network: Network) -> None:
    with pytest.raises(CalibrationError, match="no range for 'layer001'") as caught:
        darknet_line(_calibration(network, input=1.0), network)
    assert "[convolutional] #2" in str(caught.value)
    with pytest.raises(CalibrationError, match="another network"):
        write_darknet(dataclasses.replace(_calibration(network), digest="x"), network, "never.txt")


@pytest.mark.parametrize(
    ("version", "header"),
    [("7.1.3", "TRT-7103"), ("8.6.1", "TRT-8601"), ("8.2.0", "TRT-8200"), ("10.14.1", "TRT-101401")],
)
def test_versions_of_tensorrt(network: Network, version: str, header: str) -> None:
    calibration = _calibration(network, input=1.0)
    scale = np.float32(1 / 127).view(np.uint32)
    assert tensorrt_cache(calibration, version) == f"{header}-EntropyCalibration2\ninput: {scale:08x}\n"


@pytest.mark.parametrize(("version", "message"), [("11.0.0", "TensorRT 11 reads no"), ("8.6", "no version")])
def test_versions_that_are_none(network: Network, version: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        tensorrt_cache(_calibration(network), version)


def test_a_cache_of_tensorrt(network: Network, tmp_path: Path) -> None:
    """Names with blanks and colons, leading zeros that TensorRT drops, values without a range."""
    path = tmp_path / "cache"
    lines = ["TRT-8205-EntropyCalibration2", "(Unnamed Layer* 2: x) [Constant]_output: 3f800000", "layer001: 0"]
    lines += ["layer000: 7ffff", "", "input: 3c010a14"]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = read_table(path, network)
    assert set(found.ranges) == {"input", "layer000"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no table of ranges"),
        (b"\x00\xff", "no table of ranges"),
        (b"{", "cannot read the calibration"),
        (b"input_calibration = 1, x, 2, 16", "'x' is no number"),
        (b"input_calibration = 1, 0, 2, 16", "a multiplier of 0 is none"),
        (b"input_calibration = 1, nan, 2, 16", "a multiplier of nan is none"),
        (b"input_calibration = 1, 16", "2 multipliers for 3"),
        (b"input_calibration = 1, 2, 3, 4, 16", "5 multipliers for 3"),
        (b"TRT-8601-EntropyCalibration2\nlayer000 3c010a14", "no `name: scale`"),
        (b"TRT-8601-EntropyCalibration2\nlayer000: zz", "no `name: scale`"),
        (b"TRT-8601-EntropyCalibration2\nlayer000: 3c010a14ff", "no `name: scale`"),
        (b"TRT-8601-EntropyCalibration2\nlayer000: 7fc00000", "no `name: scale`"),
        (b"TRT-8601-EntropyCalibration2\nlayer000: 7f800000", "no `name: scale`"),
        (b"TRT-8601-EntropyCalibration2\nlayer000: bc010a14", "no `name: scale`"),
        (b"TRT-8601-EntropyCalibration2\nother: 3c010a14", "none of the cache's names"),
    ],
)
def test_damaged_tables(network: Network, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "table"
    path.write_bytes(content)
    with pytest.raises(DncError) as caught:
        read_table(path, network)
    assert isinstance(caught.value, CalibrationError | CfgError)
    assert message in caught.value.message
    assert str(path) in str(caught.value.where)


def test_files_that_are_no_tables(network: Network, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read the table"):
        read_table(tmp_path, network)
    with pytest.raises(CalibrationError, match="has no input_calibration"):
        read_table(network.file, network)
