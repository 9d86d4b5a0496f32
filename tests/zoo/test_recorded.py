"""What is recorded beside weights comes back; what is damaged is refused with the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dnc.errors import DncError
from dnc.zoo.recorded import read_recorded, write_recorded

FIELDS = {"mean": [0.485, 0.456, 0.406], "std": [0.229], "crop": 0.875, "color": "bgr", "mode": "center-crop"}
FIELDS["interpolation"] = "bicubic"


def test_round_trip(tmp_path: Path) -> None:
    weights = tmp_path / "net.v2.weights"
    assert read_recorded(weights) == {}
    path = write_recorded(weights, {**FIELDS, "mean": (0.485, 0.456, 0.406)})
    assert path == tmp_path / "net.v2.preprocess.json"
    assert read_recorded(weights) == FIELDS
    write_recorded(weights, {"color": "gray"})
    assert read_recorded(weights) == {"color": "gray"}
    assert list(tmp_path.iterdir()) == [path]


NONSENSE: dict[str, list[Any]] = {
    "mean": [0.5, [], ["0.5"], [True], [float("nan")], None],
    "std": [[0.0], [-1.0], [float("inf")], {}],
    "crop": [0, 1.01, "0.9", [0.9], True, 1e-300],
    "color": ["hsv", None, []],
    "interpolation": ["cubic", None, ["bicubic"]],
    "mode": ["stretch", 1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NONSENSE.items() for value in values])
def test_nonsense_names_file_and_key(key: str, value: Any, tmp_path: Path) -> None:
    weights, path = tmp_path / "net.weights", tmp_path / "net.preprocess.json"
    with pytest.raises(DncError, match=f"'{key}' must be"):
        write_recorded(weights, {**FIELDS, key: value})
    assert not path.exists()
    path.write_text(json.dumps({**FIELDS, key: value}))
    with pytest.raises(DncError, match=f"'{key}' must be") as caught:
        read_recorded(weights)
    assert caught.value.where == path


def test_unknown_keys(tmp_path: Path) -> None:
    with pytest.raises(DncError, match="unknown key 'means'") as caught:
        write_recorded(tmp_path / "net.weights", {"means": [0.5]})
    assert caught.value.hint == "did you mean 'mean'?"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.preprocess.json"
    path.write_bytes(content)
    with pytest.raises(DncError, match="recorded preprocessing") as caught:
        read_recorded(tmp_path / "net.weights")
    assert caught.value.where == path
