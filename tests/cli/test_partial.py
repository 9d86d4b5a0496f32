"""dnc partial: what is written and printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dnc.darknet.weights import Header
from tests.conftest import Result

Command = Callable[..., Result]


def test_first_layer(command: Command, engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.conv.1"
    result = command("partial", engines / "tiny.cfg", engines / "tiny.weights", out, 1)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{out}: 1 of 3 layers, 248 floats, 1,012 bytes\n"
    assert out.read_bytes() == Header().pack() + (engines / "tiny.weights").read_bytes()[20 : 20 + 4 * 248]
    assert list(tmp_path.iterdir()) == [out]
    shown = json.loads(command("partial", engines / "tiny.cfg", engines / "tiny.weights", out, 1, "--json").out)
    assert (shown["file"], shown["layers"], shown["floats"], shown["bytes"]) == (str(out), 1, 248, 1012)


def test_more_layers_than_there_are(command: Command, engines: Path, tmp_path: Path) -> None:
    result = command("partial", engines / "tiny.cfg", engines / "tiny.weights", tmp_path / "x", 4)
    assert (result.code, result.out) == (1, "")
    assert "the first 4 layers: the cfg has 3" in result.err
    assert list(tmp_path.iterdir()) == []
