"""dnc passes and dnc targets list what is registered."""

from __future__ import annotations

import json
from collections.abc import Callable

from dnc.passes import passes
from dnc.targets import targets
from tests.conftest import Result

Command = Callable[..., Result]


def test_passes(command: Command) -> None:
    result = command("passes")
    assert (result.code, result.err) == (0, "")
    assert " ".join(result.out.split("\n")[0].split()) == "pass tolerance what it does where it applies options"
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == list(passes)
    listed = {item["name"]: item for item in json.loads(command("passes", "--json").out)}
    assert list(listed) == list(passes)
    for name, plugin in passes.items():
        assert listed[name]["tolerance"] == plugin.tolerance
        assert listed[name]["summary"][-1] in ".:", name
        assert listed[name]["applies_to"] == plugin.applies_to != ""
    assert listed["eliminate-identity"] == {
        "name": "eliminate-identity",
        "tolerance": 0.0,
        "summary": "Removes what does nothing at inference.",
        "applies_to": "Identity, Dropout, Concat of one input, Reshape to the same shape",
        "options": [],
    }


def test_options_of_a_pass(command: Command) -> None:
    option = {"key": "width", "default": "32", "summary": "the channels of a block, or all"}
    assert json.loads(command("passes", "diagonalwise", "--json").out) == [option]
    listed = {item["name"]: item for item in json.loads(command("passes", "--json").out)}
    assert listed["diagonalwise"]["options"] == [option]
    assert command("passes", "diagonalwise").out.splitlines()[1].split()[:2] == ["width", "32"]
    result = command("passes", "diagonalwize")
    assert (result.code, result.err) == (
        1,
        "dnc: error: unknown pass 'diagonalwize'\n  hint: did you mean 'diagonalwise'?\n",
    )


def test_order_of_a_target(command: Command) -> None:
    """Each has its reason; a choice speaks for its first candidate."""
    steps = json.loads(command("passes", "--target", "onnx", "--json").out)
    assert [step["name"] for step in steps] == [step.name for step in targets["onnx"]().candidates()[0].pipeline()]
    assert all(step["why"] for step in steps)
    assert command("passes", "-t", "cpu").out == command("passes", "-t", "onnx").out
    assert command("passes", "-t", "onyx").code == 1
