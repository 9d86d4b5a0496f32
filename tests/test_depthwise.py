"""The table of depthwise convolutions: what is near enough to go by, and under which conditions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dnc import depthwise
from dnc.depthwise import TABLE, Measurements, find, read_table, write_table
from dnc.errors import DncError

DENSE = "diagonalwise 32"


def measured(kind: str = "depthwise 3x3/1, 96 to 96 channels, 56x56", best: str = DENSE, **conditions: Any) -> Any:
    usual = {"provider": "cuda", "precision": "fp16", "layout": "nchw", "batch": 1}
    layers = [{"kind": kind, "best": best, "microseconds": {"native": 2.0, DENSE: 1.0}}]
    return {"gpu": "Made Up", "date": "2026-01-01", **usual, **conditions, "layers": layers}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "table.json"
    monkeypatch.setattr(depthwise, "TABLE", path)
    depthwise._known.cache_clear()
    yield path
    depthwise._known.cache_clear()


def test_the_one_that_is_kept() -> None:
    """It holds what was measured, each with where it is from: nothing, until somebody did."""
    assert json.loads(TABLE.read_text())["schema"] == 1
    for sets in read_table().values():
        assert all({"driver", "engine", "command"} <= item.keys() for item in sets)


@pytest.mark.parametrize(
    ("kind", "near"),
    [
        ("depthwise 3x3/1, 96 to 96 channels, 56x56", True),
        ("depthwise 3x3/1, 192 to 192 channels, 56x56", True),
        ("depthwise 3x3/1, 48 to 48 channels, 56x56", True),
        ("depthwise 3x3/1, 96 to 96 channels, 56x112", True),
        ("depthwise 3x3/1, 193 to 193 channels, 56x56", False),
        ("depthwise 3x3/1, 192 to 192 channels, 60x56", False),
        ("depthwise 3x3/1, 96 to 96 channels, 28x28", False),
        ("depthwise 3x3/2, 96 to 96 channels, 56x56", False),
        ("depthwise 5x5/1, 96 to 96 channels, 56x56", False),
        ("depthwise 3x3/1, 96 to 192 channels, 56x56", False),
        ("4 groups 3x3/1, 96 to 96 channels, 56x56", False),
        ("depthwise 3/1, 96 to 96 channels, 56", False),
    ],
)
def test_near(kind: str, near: bool) -> None:
    """The same kernel, and up to a factor of two."""
    assert Measurements.from_json("sm_87", measured()).fastest(kind) == (DENSE if near else "")


def test_nearest() -> None:
    item = measured()
    item["layers"].append({"kind": "depthwise 3x3/1, 160 to 160 channels, 56x56", "best": "native"})
    known = Measurements.from_json("sm_87", item)
    assert known.fastest("depthwise 3x3/1, 112 to 112 channels, 56x56") == DENSE
    assert known.fastest("depthwise 3x3/1, 144 to 144 channels, 56x56") == "native"


def test_conditions(table: Path) -> None:
    sets = [measured(batch=1), measured(batch=16), measured(provider="tensorrt", best="native")]
    write_table(table, "sm_87", sets)

    def batch(*conditions: Any) -> int | None:
        found = find("sm_87", *conditions)
        return None if found is None else found.batch

    assert [batch(("cuda",), "fp16", "nchw", size) for size in (1, 3, 8, 64)] == [1, 1, 16, 16]
    assert batch(("cuda",), "fp16", "nchw", 65) is None
    assert batch(("cuda",), "fp32", "nchw", 1) is None
    assert batch(("cuda",), "fp16", "nhwc", 1) is None
    assert find("sm_90", ("cuda",), "fp16", "nchw", 1) is None
    first = find("sm_87", ("tensorrt", "cuda"), "fp16", "nchw", 1)
    assert first is not None
    assert first.provider == "tensorrt"
    assert str(first) == "the table of sm_87 (Made Up, 2026-01-01)"


def test_writing(table: Path) -> None:
    """What is measured again is replaced, all else stays."""
    for arch in ("sm_87", "sm_90"):
        write_table(table, arch, [measured(), measured(batch=16)])
    write_table(table, "sm_87", [{**measured(), "gpu": "Another"}])
    found = {arch: [(item["gpu"], item["batch"]) for item in sets] for arch, sets in read_table(table).items()}
    assert found == {"sm_87": [("Made Up", 16), ("Another", 1)], "sm_90": [("Made Up", 1), ("Made Up", 16)]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 2, "generations": {}}',
        '{"schema": 1}',
        '{"schema": 1, "generations": {"sm_87": [{}]}}',
        json.dumps({"schema": 1, "generations": {"sm_87": [measured(batch=0)]}}),
    ],
)
def test_damaged(text: str, table: Path) -> None:
    table.write_text(text)
    with pytest.raises(DncError, match=r"no table(.|\n)*measure it anew"):
        read_table()
    with pytest.raises(DncError, match="no table"):
        write_table(table, "sm_87", [])
    assert table.read_text() == text
