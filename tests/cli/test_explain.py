"""dnc explain: what each pass did, where, and why not elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
    assert result.err == "there are no weights: random ones stand in\n"


def test_unknown_pass(command: Command, write: Write) -> None:
    result = command("explain", write("tiny"), "--target", "onnx", "--passes", "fold-batchnrom")
    assert (result.code, result.out) == (1, "")
    assert result.err == "dnc: error: unknown pass 'fold-batchnrom'\n  hint: did you mean 'fold-batchnorm'?\n"
