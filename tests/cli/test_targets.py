"""dnc targets lists what is registered, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from dnc.targets import targets
from tests.conftest import Result

Command = Callable[..., Result]


def test_targets(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets["onnx"], "missing", lambda self: "a-package")
    result = command("targets")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == list(targets)
    listed = {item["name"]: item for item in json.loads(command("targets", "--json").out)}
    assert listed["onnx"] == {"name": "onnx", "summary": targets["onnx"].summary, "missing": "a-package"}
