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


def test_options_of_a_target(command: Command) -> None:
    listed = json.loads(command("targets", "myriad", "--json").out)
    assert {"key": "shaves", "default": "6"}.items() <= listed[0].items()
    text = command("targets", "myriad").out.splitlines()
    assert text[0].split() == ["key", "default", "what", "it", "is"]
    assert text[1].split()[:2] == ["shaves", "6"]
    result = command("targets", "aarch64")
    assert (result.code, result.err) == (0, "dnc: aarch64 stands for tvm, triple=aarch64\n")
    assert result.out == command("targets", "tvm").out
    result = command("targets", "myriat")
    assert (result.code, "did you mean 'myriad'?" in result.err) == (1, True)
