"""dnc compile: what is printed and where the engine goes. What is compiled is tested elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import pytest

import dnc
from dnc.cli.compile import command as compile_command
from tests.conftest import Result

Command = Callable[..., Result]


def test_options_are_those_of_the_library() -> None:
    from dnc.compiler import compile

    options = {parameter.name for parameter in compile_command.params} - {"as_json"}
    assert options == set(signature(compile).parameters) - {"progress"}


def test_text(command: Command, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("compile", engines / "tiny.cfg")
    assert (result.code, result.err) == (0, "")
    first, second = result.out.splitlines()[:2]
    assert first.startswith("tiny.engine: tiny for onnx, 3 layers, 0.00 M parameters, 0.000 BFLOPs, in ")
    assert second.startswith("  passes: ")
    assert dnc.load(tmp_path / "tiny.engine").labels == ("cat", "black dog")


def test_json(command: Command, engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.engine"
    result = command("compile", engines / "tiny.cfg", "-t", "onnx", "-o", out, "--json", "--mean", "0.1,0.2,0.3")
    assert (result.code, result.err) == (0, "")
    fields = json.loads(result.out)
    assert fields["folder"] == str(out)
    assert fields["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert fields["outputs"] == ["layer002"]
