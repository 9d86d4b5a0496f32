"""dnc info: Darknet's table and totals, and what an engine says about itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

Command = Callable[..., Result]


def test_table(command: Command, engines: Path) -> None:
    result = command("info", engines / "tiny.cfg", "--weights", engines / "tiny.weights")
    assert (result.code, result.err) == (0, "")
    # 8 * (4 + 27) + 14 * (1 + 8) = 374 floats after a header of 20 bytes.
    assert result.out == (
        "layer  type           filters  size/stride                 input      output  BFLOPs\n"
        "    0  convolutional        8  3 x 3 / 2             16 x 16 x 3   8 x 8 x 8   0.000\n"
        "    1  convolutional       14  1 x 1 / 1               8 x 8 x 8  8 x 8 x 14   0.000\n"
        "    2  yolo                    2 anchors, 2 classes   8 x 8 x 14  8 x 8 x 14\n"
        "3 layers, 374 parameters, 0.000 BFLOPs, 1,516 bytes of weights\n"
    )
    assert (engines / "tiny.weights").stat().st_size == 1516
    assert command("info", engines / "tiny.cfg").out == result.out


def test_published_networks_go_by_name(command: Command) -> None:
    result = command("info", "yolov3-tiny")
    assert result.out.splitlines()[-1] == ("24 layers, 8,858,734 parameters, 5.571 BFLOPs, 35,434,956 bytes of weights")


def test_json(command: Command, engines: Path) -> None:
    result = command("info", engines / "tiny.cfg", "--json", "--cutoff", 2)
    info = json.loads(result.out)
    assert info["input"] == [3, 16, 16]
    assert (info["parameters"], info["outputs"], info["weights_bytes"]) == (374, [1], 1516)
    assert info["layers"][0] == {
        "index": 0,
        "type": "convolutional",
        "line": 6,
        "settings": "8  3 x 3 / 2",
        "sources": [-1],
        "output": [8, 8, 8],
        "parameters": 248,
        "bflops": 2 * 27 * 8 * 64 / 1e9,
        "bit_operations": 0,
    }
    assert info["bflops"] == pytest.approx(sum(layer["bflops"] for layer in info["layers"]))


def test_operations_on_bits_are_told_apart(command: Command, tmp_path: Path) -> None:
    """Darknet divides those of xnor=1 by 32 and adds them to the others."""
    path = tmp_path / "bits.cfg"
    path.write_text(
        "[net]\nwidth=100\nheight=100\nchannels=3\n"
        "[convolutional]\nfilters=64\nactivation=linear\n"
        "[convolutional]\nfilters=100\nsize=3\npad=1\nxnor=1\nactivation=linear\n"
    )
    lines = command("info", path).out.splitlines()
    assert lines[0].split()[-6:] == ["output", "BFLOPs", "bit", "ops", "/", "1e9"]
    assert lines[1].split()[-1] == "0.004"
    # 2 * 64 * 9 * 100 * 100^2 = 1.152e9 of one bit; 2 * 3 * 64 * 100^2 = 3.84e6 of floats.
    assert lines[2].split()[-2:] == ["0.036", "1.152"]
    assert "0.004 BFLOPs and 1.152 billion bit operations (for Darknet 0.040 BFLOPs)" in lines[-1]
    info = json.loads(command("info", path, "--json").out)
    assert info["bit_operations"] == 1.152e9
    assert [layer["bit_operations"] for layer in info["layers"]] == [0, 1.152e9]
    assert info["bflops"] == pytest.approx(0.00384 + 0.036)


def test_weights_are_checked(command: Command, engines: Path) -> None:
    result = command("info", engines / "features.cfg", "-w", engines / "vector.weights")
    assert (result.code, result.out) == (1, "")
    assert "the weights are 4.3 times too short: they end within layer 0" in result.err


def test_lenient(command: Command, tmp_path: Path) -> None:
    cfg = tmp_path / "x.cfg"
    cfg.write_text("[net]\nwidth=8\nheight=8\nchannels=3\n[convolutional]\nfilters=2\nactivation=qqq\n", "utf-8")
    assert command("info", cfg).code == 1
    result = command("info", cfg, "--lenient")
    assert result.code == 0
    assert result.err.startswith("dnc: warning: ")


def test_engine(command: Command, engines: Path) -> None:
    folder = engines / "tiny.engine"
    result = command("info", folder)
    assert (result.code, result.err) == (0, "")
    facts = dict(line.split("  ", 1) for line in result.out.splitlines() if not line.startswith(" "))
    facts = {key: value.strip() for key, value in facts.items()}
    assert facts["engine"].startswith(f"{folder}, 0.0 MB")
    assert facts["target"] == "onnx"
    assert facts["network"] == "tiny.cfg, 3 layers, 374 parameters, 0.000 BFLOPs"
    assert facts["input"] == "float32 (N, 3, 16, 16)"
    assert facts["preprocessing"] == "resize to 16 x 16, rgb, pixel / 255"
    assert facts["outputs"] == "layer002 (14, 8, 8)"
    assert facts["heads"].startswith("yolo: 2 classes, tiny.cfg:")
    assert facts["labels"] == "2: cat, black dog"
    assert "fold-batchnorm x1" in facts["passes"]
    assert facts["made with"].startswith("dnc ")
    info = json.loads(command("info", folder, "--json").out)
    assert info["labels"] == ["cat", "black dog"]
    assert info["target"] == "onnx"
    assert info["bytes"] == sum(path.stat().st_size for path in folder.iterdir())


def test_engine_on_vectors(command: Command, engines: Path) -> None:
    out = command("info", engines / "vector.engine").out
    assert "float32 (N, 7)" in out
    assert "none: the network takes no images" in out
    assert "classifier: 3 classes" in out


def test_what_is_neither(command: Command, engines: Path, tmp_path: Path) -> None:
    assert "cannot read the cfg" in command("info", tmp_path / "none").err
    assert "did you mean 'yolov4-tiny'?" in command("info", "yolov4-tinny.cfg").err
    assert "`dnc zoo networks`" in command("info", "none").err
    assert "hint: check the path\n" in command("info", tmp_path / "yolov4-tinny.cfg").err
    assert "the folder has no engine.json" in command("info", tmp_path).err
    assert "binary data" in command("info", engines / "tiny.weights").err
    result = command("info", engines / "tiny.engine", "--cutoff", "1")
    assert result.code == 2
    assert "an engine takes neither" in result.err
