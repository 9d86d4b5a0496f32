"""dnc explain: what each pass did, where, and why not elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnc
from tests.conftest import Result

Command = Callable[..., Result]
Write = Callable[..., Path]


def test_table(command: Command, write: Write) -> None:
    result = command("explain", write("tiny"), "--target", "onnx")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["pass", "times", "what", "where"]
    folded = next(line for line in lines if line[0] == "fold-batchnorm")
    assert folded[1:3] == ["applied", "1"]
    assert folded[-1] == "0"
    error = next(line for line in lines if line[:2] == ["fold-batchnorm", "error"])
    assert float(error[2]) <= 1e-5


def test_json_and_choice(command: Command, write: Write) -> None:
    cfg = write("tiny")
    result = command("explain", cfg, "--target", "onnx", "--pass", "fold-batchnorm", "--json")
    (item,) = json.loads(result.out)
    assert item["name"] == "fold-batchnorm"
    (remark,) = item["applied"]
    assert remark["where"].endswith("[convolutional] #0")
    assert item["missed"] == []
    assert item["error"] <= item["tolerance"]
    result = command(
        "explain",
        cfg,
        "-t",
        "onnx",
        "--passes",
        "eliminate-identity,fold-batchnorm",
        "--skip",
        "fold-batchnorm",
        "--no-verify",
        "--json",
    )
    (item,) = json.loads(result.out)
    assert (item["name"], item["error"]) == ("eliminate-identity", None)


def test_without_weights(command: Command, write: Write) -> None:
    cfg = write("tiny")
    cfg.with_suffix(".weights").unlink()
    result = command("explain", cfg, "--target", "onnx")
    assert result.code == 0
    assert result.err == "dnc: there are no weights: random ones stand in\n"


def test_unknown_pass(command: Command, write: Write) -> None:
    result = command("explain", write("tiny"), "--target", "onnx", "--passes", "fold-batchnrom")
    assert (result.code, result.out) == (1, "")
    assert result.err == "dnc: error: unknown pass 'fold-batchnrom'\n  hint: did you mean 'fold-batchnorm'?\n"


def test_an_engine(command: Command, write: Write, tmp_path: Path) -> None:
    """The same remarks as of the cfg, but for what was measured; nothing else can be asked of an engine."""
    cfg, out = write("yolo"), tmp_path / "e"
    options = ("--target", "onnx", "--precision", "fp16", "--passes", "eliminate-identity,fold-batchnorm")
    assert command("compile", cfg, *options, "-o", out).code == 0
    passes = json.loads(command("explain", out, "--json").out)
    again = json.loads(command("explain", cfg, *options, "--json").out)
    assert [item["name"] for item in passes][-2:] == ["to-float16", "eliminate-dead-code"]
    assert passes == [{key: value for key, value in item.items() if key != "error"} for item in again]
    assert any(item["applied"] for item in passes)
    assert any(item["missed"] for item in passes)
    assert command("package", out, "-o", tmp_path / "e.dnc").code == 0
    assert command("explain", tmp_path / "e.dnc").out == command("explain", out).out
    result = command("explain", out, "--target", "onnx")
    assert (result.code, "--target is for a cfg" in result.err) == (2, True)


def test_an_engine_without_remarks(command: Command, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "e"
    dnc.compile(write("tiny"), out=out, target="onnx")
    fields = json.loads((out / "engine.json").read_text())
    for key in ("remarks", "runner", "sha256"):
        del fields[key]
    fields["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    (out / "engine.json").write_text(json.dumps(fields))
    assert dnc.load(out).forward(np.zeros((3, 16, 16)))
    result = command("explain", out)
    assert (result.code, "an older dnc made the engine, and kept no remarks" in result.err) == (1, True)


@pytest.mark.parametrize(
    "item", [{}, {"applied": 1}, {"missed": [1]}, {"missed": [{"where": 1, "text": ""}]}, {"error": 1}]
)
def test_remarks_that_are_none(item: dict[str, object], command: Command, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "e"
    dnc.compile(write("tiny"), out=out, target="onnx", verify=False)
    fields = json.loads((out / "engine.json").read_text())
    fields["remarks"] = [{"name": "x", "tolerance": 0.0, "applied": [], "missed": [], **item} if item else {}]
    del fields["sha256"]
    fields["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    (out / "engine.json").write_text(json.dumps(fields))
    result = command("explain", out)
    assert (result.code, "the engine's remarks are not what dnc writes" in result.err) == (1, True)


def test_eight_bits(command: Command, folder: Path) -> None:
    """What target and precision add is explained as well."""
    calibrated = command("calibrate", "obj.data", "tiny.cfg", "tiny.weights", "-input_calibration", 2)
    assert calibrated.code == 0, calibrated.err
    options = ("--target", "onnx", "--precision", "int8", "--calibration", "tiny.calibration.json", "--json")
    result = command("explain", "tiny.cfg", *options, "--option", "isa=avx512vnni")
    passes = {item["name"]: item for item in json.loads(result.out)}
    assert {"equalize", "quantize"} <= set(passes)
    assert passes["quantize"]["applied"][0]["text"] == "8 bits"
    result = command("explain", "tiny.cfg", *options, "--option", "isa=avx2")
    passes = {item["name"]: item for item in json.loads(result.out)}
    assert "so that its pairs fit" in passes["quantize"]["applied"][0]["text"]
    result = command("explain", "tiny.cfg", *options, "--passes", "fold-batchnorm,quantize:keep=Add")
    names = [item["name"] for item in json.loads(result.out)]
    assert names == ["fold-batchnorm", "equalize", "quantize", "correct-bias", "eliminate-dead-code"]
