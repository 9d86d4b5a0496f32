"""--width and --height of the commands: engines of another size than the cfg's, and what looks at them afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dnc.bench.prepare import BenchOptions, make_subjects, network_of
from dnc.compiler.compiling import compile as compile_network
from dnc.diagnosis.subjects import from_engine
from dnc.runtime.decoding import YoloHead
from dnc.typing import silent
from tests.conftest import Result

Command = Callable[..., Result]
SIZE = ("--width", 32, "--height", 8)


@pytest.fixture
def engine(folder: Path, command: Command) -> Path:
    """tiny.engine, of 32 x 8 pixels, beside its cfg of 16 x 16."""
    assert command("compile", "tiny.cfg", "-t", "onnx", *SIZE).code == 0
    return folder / "tiny.engine"


def test_what_an_engine_says(engine: Path, command: Command) -> None:
    """Its input, its preprocessing and its heads, whose anchors are the cfg's pixels."""
    manifest = json.loads((engine / "engine.json").read_text("utf-8"))
    assert manifest["input_shape"] == [3, 8, 32]
    assert (manifest["preprocessing"]["width"], manifest["preprocessing"]["height"]) == (32, 8)
    head = YoloHead(**{key: value for key, value in manifest["heads"][0].items() if key != "kind"})
    assert (tuple(head.input_size), head.anchors[0][1]) == ((32, 8), 14)
    assert manifest["output_shapes"] == [[14, 4, 16]]
    assert "32 x 8" in command("info", engine).out
    assert command("detect", engine, "a.png").code == 0


def test_a_network_and_its_passes(engine: Path, command: Command) -> None:
    del engine
    assert json.loads(command("info", "tiny.cfg", *SIZE, "--json").out)["input"] == [3, 8, 32]
    assert command("explain", "tiny.cfg", "-t", "onnx", "--width", 20).code == 0
    result = command("explain", "tiny.cfg", "-t", "onnx", "--width", 70000)
    assert (result.code, "dnc: error: --width 70000 must be" in result.err) == (1, True)


def test_compare_takes_the_size_of_the_engine(engine: Path, command: Command) -> None:
    assert command("compare", engine, "tiny.cfg").code == 0
    assert command("compare", "tiny.cfg", engine, "-t", "onnx", *SIZE).code == 0
    result = command("compare", engine, "tiny.cfg", "--width", 24)
    assert (result.code, "dnc: error: " in result.err) == (1, True)


def test_calibrations_of_any_size(command: Command, folder: Path) -> None:
    """Taken with a warning, which measuring at the engine's size ends."""
    eight = ("compile", "tiny.cfg", "-t", "onnx", "--precision", "int8", "--no-verify")
    assert command("calibrate", "tiny.cfg", "-o", "own.json").code == 0
    assert command("calibrate", "tiny.cfg", *SIZE, "-o", "other.json", "--export", "darknet", "other.cfg").code == 0
    result = command(*eight, "--calibration", "own.json", *SIZE)
    assert result.code == 0
    assert "warning: the calibration was measured at 16 x 16, and the network's input is 32 x 8" in result.err
    assert command(*eight, "--calibration", "other.json", *SIZE).err == ""
    # Darknet's copy of the cfg says the size that its ranges are of.
    assert "height = 8\nwidth = 32\n" in (folder / "other.cfg").read_text("utf-8")
    assert "that of tiny.cfg" in command("info", "other.json", "--cfg", "tiny.cfg").out


def test_bench_and_diagnose_find_the_network_of_an_engine(engine: Path, folder: Path) -> None:
    options = BenchOptions(threads=1, targets=["onnx"], width=24)
    compiled, opened = make_subjects(["tiny.cfg", str(engine)], options, folder)
    assert compiled.manifest.input_shape == (3, 16, 24)
    found = network_of(opened, [], options, folder)
    assert found is not None
    assert found[0].input_shape == (3, 8, 32)
    half = compile_network("tiny.cfg", target="onnx", precision="bf16", width=24, out="half.engine")
    assert from_engine(half, None, None, None, silent).source.network.input_shape == (3, 16, 24)
