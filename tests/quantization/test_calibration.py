"""The file of a calibration: what it holds comes back, and what is wrong with it is said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnc.darknet.network import Network
from dnc.errors import CalibrationError
from dnc.graph.quantization import Channels, Range
from dnc.quantization.calibration import Calibration

CHANNELS = Channels((-0.2, 0.0), (4.5, 0.1), (1.25, 0.05))
CALIBRATION = Calibration(
    digest="0" * 64,
    method="kl",
    symmetric=True,
    preprocessing={"width": 8, "mode": "resize"},
    images={"count": 2, "files": ["a.png", "b.png"], "seed": None},
    ranges={"input": Range.symmetric(1.0, 0.0, 0.9), "layer000": Range(-3.0, 4.0, -3.5, 4.5, CHANNELS)},
    histograms={"input": {"bins": 2048}, "layer000": {"bins": 1100}},
)


def test_a_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.calibration.json"
    CALIBRATION.write(path)
    assert Calibration.read(path) == CALIBRATION
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_of_before_there_were_means() -> None:
    values = CALIBRATION.to_json()
    del values["channels"]["layer000"]["mean"]
    channels = Calibration.from_json(values).ranges["layer000"].channels
    assert channels == Channels(CHANNELS.minimum, CHANNELS.maximum)


def test_the_range_of_a_tensor_without_negative_numbers_starts_at_0() -> None:
    assert CALIBRATION.ranges["input"].low == 0
    layer = Range.symmetric(3.1, -0.2, 4.5)
    assert (layer.low, layer.high) == (-layer.threshold, layer.threshold)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.clear(), "this is no calibration"),
        (lambda values: values.update(format=2), "its format is 2, not 1"),
        (lambda values: values.pop("digest"), "missing or unknown in the calibration: digest"),
        (lambda values: values.update(extra=1), "missing or unknown in the calibration: extra"),
        (lambda values: values.update(ranges=[]), "'ranges' of the calibration is no dict"),
        (lambda values: values["ranges"].update(input=1), "the range of 'input' is not low, high"),
        (lambda values: values["ranges"]["input"].update(low=None), "the range of 'input' is not low, high"),
        (lambda values: values["ranges"]["input"].update(high=float("nan")), "the range of 'input' is not low, high"),
        (lambda values: values["ranges"]["input"].update(low=0.5), "the range of 'input' is empty, or without 0"),
        (lambda values: values["ranges"]["input"].update(threshold=0), "the range of 'input' has another threshold"),
        (lambda values: values["channels"]["layer000"].update(minimum="1 2 3"), "the channels of 'layer000' are not"),
        (lambda values: values["channels"]["layer000"].update(mean="1"), "the channels of 'layer000' are not as many"),
        (lambda values: values["channels"]["layer000"].update(mean="1 nan"), "the channels of 'layer000' are not as"),
        (lambda values: values["channels"].update(layer000=[1]), "the channels of 'layer000' are not as many"),
    ],
)
def test_damaged_values(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    values = CALIBRATION.to_json()
    change(values)
    path = tmp_path / "x.calibration.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CalibrationError) as caught:
        Calibration.read(path)
    assert message in caught.value.message
    assert caught.value.where == path
    assert "dnc calibrate" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.calibration.json"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="cannot read the calibration"):
        Calibration.read(path)
    with pytest.raises(CalibrationError, match="No such file"):
        Calibration.read(tmp_path / "none")


def test_it_is_bound_to_its_network(write: Callable[..., Path]) -> None:
    cfg = write("tiny")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    size = {"width": 16, "height": 16}
    own = dataclasses.replace(CALIBRATION, digest=network.digest, preprocessing=size)
    own.check(network)
    with pytest.raises(CalibrationError, match="belongs to another network") as caught:
        CALIBRATION.check(network)
    assert caught.value.where == str(cfg)
    with pytest.raises(CalibrationError, match="belongs to another network"):
        own.check(network.with_random_weights(5))
