"""dnc import: its options, and what it prints. The importer itself is tested in tests/importer/"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dnc.darknet.network import Network
from tests.conftest import Result
from tests.zoo.importer.checkpoints import zipped

Command = Callable[..., Result]

CFG = """[net]
width=8
height=8
channels=3
[convolutional]
batch_normalize=1
filters=2
size=3
stride=2
pad=1
activation=relu6
[avgpool]
[connected]
output=4
activation=linear
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """in/net.cfg and a checkpoint of it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "net.cfg").write_text(CFG, encoding="utf-8")
    state = {
        "stem.weight": np.ones((2, 3, 3, 3), np.float32),
        "norm.running_mean": np.zeros(2, np.float32),
        "norm.running_var": np.ones(2, np.float32),
        "fc.weight": np.ones((4, 2), np.float32),
        "fc.bias": np.ones(4, np.float32),
        "anchors": np.ones(4, np.float32),
    }
    return zipped(tmp_path / "in" / "net.pth", {"state_dict": state})


def test_table(command: Command, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.weights"
    result = command("import", source, source.with_suffix(".cfg"), "-o", out)
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "layer  type           shape    source  its shape  done\n"
        "    0  convolutional  2x3x3x3  stem    2x3x3x3    batch normalisation 'norm'\n"
        "    2  connected      4x2      fc      4x2\n"
        "left over: anchors\n"
        "note: the state_dict is 'state_dict' of the checkpoint\n"
        f"PyTorch: 2 layers, 1 left over; written: {out}\n"
    )
    assert Network.load(source.with_suffix(".cfg"), out).parameters() == 2 * 4 + 2 * 27 + 4 + 8


def test_json_and_everything_that_is_recorded(command: Command, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.weights"
    options = ["--padding", "same", "--epsilon", "1e-3", "--mean", "127/255", "--std", "0.5,0.25,128/255", "--json"]
    options += ["--crop", "0.875", "--interpolation", "bicubic", "--color", "bgr"]
    options += ["--map", "0=stem", "--map", "2=fc", "--cutoff", "3"]
    result = command("import", source, source.with_suffix(".cfg"), "-o", out, *options)
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    names = ["net.weights", "net.cfg", "net.preprocess.json"]
    assert sorted(report["written"]) == sorted(str(tmp_path / name) for name in names)
    assert report["cfg"] == str(tmp_path / "net.cfg")
    assert [layer["source"] for layer in report["layers"]] == ["stem", "fc"]
    assert json.loads((tmp_path / "net.preprocess.json").read_text()) == {
        "mean": [127 / 255],
        "std": [0.5, 0.25, 128 / 255],
        "crop": 0.875,
        "interpolation": "bicubic",
        "color": "bgr",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map", "stem"], "'stem' is not LAYER=NAME"),
        (["--map", "x=stem"], "'x=stem' is not LAYER=NAME"),
        (["--mean", "1/0"], "one number, or one per channel"),
        (["--mean", "a"], "one number, or one per channel"),
        (["--padding", "valid"], "'valid' is not"),
        ([], "Missing option '--out'"),
    ],
)
def test_usage(command: Command, source: Path, options: list[str], message: str) -> None:
    out = ["-o", source.with_suffix(".weights")] if options else []
    result = command("import", source, source.with_suffix(".cfg"), *out, *options)
    assert result.code == 2
    assert message in result.err


def test_errors(command: Command, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.weights"
    result = command("import", tmp_path / "missing.pth", source.with_suffix(".cfg"), "-o", out)
    assert (result.code, result.out) == (1, "")
    assert "cannot read the source: No such file or directory" in result.err
    result = command("import", source, source.with_suffix(".cfg"), "-o", out, "--map", "1=stem")
    assert result.code == 1
    assert "dnc: error: --map 1=stem: layer 1 has no weights of its own" in result.err
    evil = zipped(tmp_path / "evil.pth", b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00exittR.")
    result = command("import", evil, source.with_suffix(".cfg"), "-o", out)
    assert result.code == 1
    assert "holds more than tensors: 'os.system', which was not run" in result.err
    assert not out.exists()
