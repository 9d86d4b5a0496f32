"""What measuring found, kept by digest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dnc.quantization.remembered import Remembered, digest_of


def test_what_was_put_is_there(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path)
    assert remembered.get("a") is None
    remembered.put("a", {"x": 0.1})
    assert Remembered(tmp_path).get("a") == {"x": 0.1}
    assert Remembered(None).get("a") is None


def test_what_was_used_longest_ago_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered = Remembered(tmp_path)
    monkeypatch.setattr("dnc.quantization.remembered._LIMIT", 20)
    for age, key in ((30, "a"), (20, "b")):
        remembered.put(key, "12345678")
        os.utime(tmp_path / "sensitivity" / key, (age, age))
    # It is asked for, and so b is the oldest.
    assert remembered.get("a")
    remembered.put("c", "12345678")
    assert sorted(path.name for path in (tmp_path / "sensitivity").iterdir()) == ["a", "c"]


def test_a_digest_tells_parts_apart() -> None:
    assert len({digest_of(parts) for parts in (["ab", "c"], ["a", "bc"], [b"abc"], ["abc", ""], [])}) == 5
    assert digest_of(["a"]) == digest_of([b"a"])
