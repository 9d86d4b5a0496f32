"""Every file that is read, in place of which something else stands: one DncError, at once and in little memory.

What each format itself may say that is hostile is tested where it is read.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc.bench.measure import read_recording
from dnc.compiler.comparing import _read_input
from dnc.darknet.cfg import read_cfg
from dnc.darknet.network import Network
from dnc.darknet.weights import read_weights
from dnc.errors import DncError, DncWarning, Where
from dnc.evaluation import datasets
from dnc.evaluation.comparison import _read_npz
from dnc.evaluation.datasets import read_data, read_dataset, read_names
from dnc.evaluation.truth import read_annotations, read_labels
from dnc.files.reading import parse_json, read_json
from dnc.quantization.calibration import Calibration
from dnc.quantization.tables import read_table
from dnc.runtime.manifest import read_manifest
from dnc.runtime.package import open_package
from dnc.zoo.importer.checkpoint import open_checkpoint
from dnc.zoo.recorded import read_recorded, recorded_path
from tests.networks import TINY

NETWORK = Network.parse(TINY)


def _recorded(path: Path) -> object:
    record = recorded_path(path.with_suffix(".weights"))
    if record != path:
        record.symlink_to(path)
    return read_recorded(path.with_suffix(".weights"))


def _manifest(path: Path) -> object:
    (path.parent / "engine").mkdir()
    (path.parent / "engine" / "engine.json").symlink_to(path)
    return read_manifest(path.parent / "engine")


def _checkpoint(path: Path) -> None:
    with open_checkpoint(path):
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "cfg": read_cfg,
    "weights": lambda path: read_weights(path, NETWORK.layers),
    "names": read_names,
    "data": read_data,
    "list": read_dataset,
    "labels": lambda path: read_labels(path, 3),
    "annotations": read_annotations,
    "calibration": Calibration.read,
    "table": lambda path: read_table(path, NETWORK),
    "recorded preprocessing": _recorded,
    "recording of bench": read_recording,
    "recording of layers": _read_npz,
    "input": lambda path: _read_input(path, (3, 16, 16)),
    "manifest": _manifest,
    "package": open_package,
    "checkpoint": _checkpoint,
}


@pytest.fixture
def strange(tmp_path: Path) -> Callable[[str], Path]:
    """Makes what a name says."""

    def make(kind: str) -> Path:
        path = tmp_path / "strange"
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "folder":
                path.mkdir()
            case "terabyte":
                with path.open("wb") as file:
                    file.truncate(1 << 40)
            case "deep":
                path.write_bytes(b'{"a":' * 100_000)
            case "digits":
                path.write_bytes(b'{"format": ' + b"9" * 5000 + b"}")
            case "empty":
                path.write_bytes(b"")
        return path

    return make


KINDS = ["pipe", "device", "folder", "terabyte", "deep", "digits", "empty", "none"]
FINE = [
    ("data", "empty"),
    ("labels", "empty"),
    ("names", "deep"),
    ("names", "digits"),
    ("recorded preprocessing", "none"),
]
"""No options, no objects, one name, and nothing recorded."""


@pytest.mark.parametrize(("reader", "kind"), [pair for pair in product(READERS, KINDS) if pair not in FINE])
def test_readers(reader: str, kind: str, strange: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnc.files.reading._PIPE_SECONDS", 0)
    path = strange(kind)
    with pytest.raises(DncError) as caught:
        READERS[reader](path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 66 + b"]" * 66,
        b"[" * 100_000,
        b"1" * 513,
        b"-1." + b"1" * 511,
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b"[" + b"0," * (1 << 20) + b"0]",
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b"",
        b"{} x",
    ],
)
def test_json_that_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(content)


def test_json() -> None:
    deep = json.dumps([1, 2.5, "é", None, True, {"a": {}}]).encode()
    assert parse_json(deep) == json.loads(deep)
    assert parse_json(b"[" * 65 + b"]" * 65) == json.loads("[" * 65 + "]" * 65)
    assert parse_json(b"1" * 512) == int("1" * 512)


def test_a_calibration_of_huge_numbers(tmp_path: Path) -> None:
    network = NETWORK.with_random_weights()
    item = {"low": -1, "high": 10**400, "minimum": 0, "maximum": 1, "threshold": 1}
    fields: dict[str, Any] = {"format": 1, "digest": network.digest, "method": "kl", "symmetric": True}
    fields |= {"preprocessing": {}, "images": {}, "ranges": {"input": item}, "histograms": {}, "channels": {}}
    (tmp_path / "a").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(DncError, match="finite numbers"):
        read_table(tmp_path / "a", network)


def test_lists_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"nothing\n" * 20_000)
    with pytest.raises(DncError, match="nor are 9999 others"):
        read_dataset(path)
    monkeypatch.setattr(datasets, "_MOST_LINES", 30_000)
    path.write_bytes(b"x 1\n" * 30_000)
    with pytest.raises(DncError, match="none of the images"), pytest.warns(DncWarning, match="nor are 29999 others"):
        read_dataset(path, skip_bad=True)
    path.write_bytes(b"x 1\n" * 30_001)
    with pytest.raises(DncError, match="more than 30,000 lines"):
        read_dataset(path, skip_bad=True)
    path.write_bytes(b"a" * (1 << 20))
    with pytest.raises(DncError) as caught:
        read_dataset(path)
    assert isinstance(caught.value.where, Where)
    assert len(str(caught.value)) < 1000
    path.write_bytes(b"x.jpg " + b"9" * 5000)
    with pytest.raises(DncError, match="no such image"):
        read_dataset(path)
    (tmp_path / "x.data").write_bytes(b"classes = " + b"9" * 5000)
    with pytest.raises(DncError, match="classes is a number"):
        _ = read_data(tmp_path / "x.data").classes


def test_files_that_name_themselves(tmp_path: Path) -> None:
    path = tmp_path / "x.data"
    path.write_text("valid = x.data\nnames = x.data\n", encoding="utf-8")
    with pytest.raises(DncError, match="no such image"):
        read_dataset(path)
    (tmp_path / "list").write_text("list\n", encoding="utf-8")
    assert [entry.path.name for entry in read_dataset(tmp_path / "list").entries] == ["list"]


def test_messages_hold_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"\x1b[31mred\x9b.jpg\n")
    with pytest.raises(DncError) as caught:
        read_dataset(path)
    assert "\x1b" not in str(caught.value)
    assert str(DncError("\x1b]0;title\x07", "a\x1b", "\r")) == "\ufffd]0;title\ufffd\n  at a\ufffd\n  hint: \ufffd"
    # A path's own bytes can be copied.
    assert "\udcff" in str(DncError("no file", "a\udcff"))


def test_a_bomb_of_numpy(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 3, 16, 16), }".ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DncError):
        _read_input(tmp_path / "x.npy", (3, 16, 16))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(DncError):
        _read_npz(tmp_path / "x.npz")
    np.save(tmp_path / "good.npy", np.ones((2, 3, 16, 16), np.uint8))
    assert _read_input(tmp_path / "good.npy", (3, 16, 16)).shape == (2, 3, 16, 16)


TABLES = {
    "a word": ("input_calibration = x, 2, 16\n", {"layer000": 63.5}, "'x' is no number"),
    "an endless number": ("input_calibration = 1, inf, 16\n", {"input": 127.0}, "a multiplier of inf is none"),
    "one too few": ("input_calibration = 1\n", {}, "1 multipliers for 2"),
    "two too many": ("input_calibration = 1, 2, 3, 16\n", {"input": 127.0, "layer000": 63.5}, "4 multipliers for 2"),
    "a line of a cache": (
        "TRT-8601-EntropyCalibration2\nrubbish\ninput: 3c010204\n",
        {"input": 1.0},
        "this line is no `name: scale`",
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_lenient_reaches_tables(kind: str, tmp_path: Path) -> None:
    text, thresholds, message = TABLES[kind]
    (tmp_path / "table").write_text(text, encoding="utf-8")
    with pytest.raises(DncError, match=message):
        read_table(tmp_path / "table", NETWORK)
    with pytest.warns(DncWarning, match=message):
        found = read_table(tmp_path / "table", NETWORK, lenient=True)
    assert {name: pytest.approx(entry.threshold, rel=1e-3) for name, entry in found.ranges.items()} == thresholds


def test_lenient_reaches_calibrations_and_names(tmp_path: Path) -> None:
    other = NETWORK.with_random_weights()
    (tmp_path / "table").write_text("input_calibration = 1, 2, 16\n", encoding="utf-8")
    made = read_table(tmp_path / "table", NETWORK)
    made.write(tmp_path / "made.json")
    stranger = Network.parse(TINY.replace("filters=8", "filters=4"))
    assert stranger.digest != other.digest
    with pytest.raises(DncError, match="belongs to another network"):
        read_table(tmp_path / "made.json", stranger)
    with pytest.warns(DncWarning, match="belongs to another network"):
        found = read_table(tmp_path / "made.json", stranger, lenient=True)
    assert (found.digest, found.ranges) == (stranger.digest, made.ranges)
    (tmp_path / "names").write_bytes(b"cat\nd\xf6g\n")
    with pytest.raises(DncError, match="not in UTF-8"):
        read_names(tmp_path / "names")
    with pytest.warns(DncWarning, match="not in UTF-8"):
        assert read_names(tmp_path / "names", lenient=True) == ("cat", "d\ufffdg")
    assert read_json(tmp_path / "made.json")["digest"] == made.digest
