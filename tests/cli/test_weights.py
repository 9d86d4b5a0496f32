"""dnc weights: what is written and printed. What inspection finds is tested in tests/test_inspection.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dnc.darknet.network import Network
from tests.conftest import Result

Command = Callable[..., Result]


def test_random_is_the_same_for_the_same_seed(command: Command, engines: Path, tmp_path: Path) -> None:
    cfg = engines / "tiny.cfg"
    first, second, other = (tmp_path / name for name in ("a.weights", "b.weights", "c.weights"))
    result = command("weights", "random", cfg, "-o", first)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{first}: 374 floats, 1,516 bytes\n"
    assert command("weights", "random", cfg, "--out", second, "--seed", 0).code == 0
    assert command("weights", "random", cfg, "-o", other, "--seed", 1).code == 0
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    assert Network.load(cfg, other).arrays
    assert command("weights", "random", cfg).code == 2


def test_inspect(command: Command, engines: Path) -> None:
    result = command("weights", "inspect", engines / "tiny.cfg", engines / "tiny.weights")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert " ".join(lines[0].split()) == "layer type array shape offset min max mean std zeros remarks"
    assert " ".join(lines[5].split()).startswith("0 convolutional weights 8 x 3 x 3 x 3 148 ")
    assert len(lines) == 1 + 7 + 3
    assert lines[-2].endswith("the file holds the 374 floats that the cfg wants")


def test_inspect_a_short_file(command: Command, engines: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.weights"
    short.write_bytes((engines / "tiny.weights").read_bytes()[:100])
    result = command("weights", "inspect", engines / "tiny.cfg", short)
    assert result.code == 0
    assert "the file ends at byte 100, within 'mean' of layer 0 [convolutional], after 4 of 8 floats" in result.out
    fields = json.loads(command("weights", "inspect", engines / "tiny.cfg", short, "--json").out)
    assert (fields["fits"], fields["floats"], fields["wanted"]) == (False, 20, 374)
    assert [item["stored"] for item in fields["arrays"]] == [8, 8, 4, 0, 0, 0, 0]
    assert fields["header"] == {
        "major": 0,
        "minor": 2,
        "revision": 5,
        "seen": 0,
        "bytes": 20,
        "transposed": False,
    }
