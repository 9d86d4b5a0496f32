"""dnc compare: the table, the verdict and the exit code; what is computed is tested in tests/test_compare.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import numpy as np

from dnc.cli.compare import command as compare
from dnc.compiler.comparing import compare_files
from dnc.evaluation.comparison import TOLERANCE
from tests.conftest import Result

Command = Callable[..., Result]


def test_options_are_those_of_the_library() -> None:
    options = {parameter.name: parameter.default for parameter in compare.params if parameter.expose_value}
    del options["as_json"]
    assert options["tolerance"] == TOLERANCE
    assert set(options) == set(signature(compare_files).parameters) - {"progress"}


def test_agreement_is_code_0(command: Command, engines: Path) -> None:
    result = command("compare", engines / "tiny.cfg", "--target", "onnx")
    assert result.code == 0
    assert result.err == "dnc: tiny.cfg for onnx against tiny.cfg in the reference interpreter\n"
    head, *rows, verdict = result.out.splitlines()
    assert head.split() == ["output", "section", "shape", "max", "error", "relative"]
    assert [row.split()[0] for row in rows] == ["layer000", "layer001", "layer002"]
    assert "tiny.cfg:6 [convolutional] #0" in rows[0]
    assert "(14, 8, 8)" in rows[2]
    assert verdict.startswith("3 of 3 outputs agree within 0.0001: the largest relative error is ")


def test_a_difference_is_code_3_and_names_the_first_layer(command: Command, engines: Path, tmp_path: Path) -> None:
    weights = tmp_path / "other.weights"
    floats = np.frombuffer((engines / "tiny.weights").read_bytes()[20:], np.float32).copy()
    # Behind the first layer's 8 * 4 parameters of batch normalisation and 8 * 27 weights.
    floats[8 * 4 + 8 * 27] += 1
    weights.write_bytes((engines / "tiny.weights").read_bytes()[:20] + floats.tobytes())
    engine = tmp_path / "tiny.engine"
    arguments = ("--weights", engines / "tiny.weights", "-t", "onnx", "-o", engine, "--keep-layers")
    assert command("compile", engines / "tiny.cfg", *arguments).code == 0
    assert command("compare", engine, engines / "tiny.cfg").code == 0

    result = command("compare", engine, engines / "tiny.cfg", "-w", weights)
    assert result.code == 3
    assert "dnc: warning: the engine was made from another cfg or other weights" in result.err
    assert "dnc: error" not in result.err
    assert result.out.splitlines()[-1].startswith(
        "first difference: layer001, tiny.cfg:14 [convolutional] #1: relative error "
    )

    result = command("compare", engine, engines / "tiny.cfg", "-w", weights, "--json")
    assert result.code == 3
    report = json.loads(result.out)
    assert (report["agrees"], report["first"]["output"]) == (False, "layer001")
    assert [row["differs"] for row in report["outputs"]] == [False, True, True]
    assert command("compare", engine, engines / "tiny.cfg", "-w", weights, "--tolerance", 1e9).code == 0


def test_mistakes(command: Command, engines: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((engines / "tiny.engine",), "an engine does not hold what to compare it with"),
        ((engines / "tiny.cfg", "-t", "onxx"), "did you mean 'onnx'?"),
        ((engines / "tiny.cfg", "-t", "refrence"), "did you mean 'reference'?"),
        ((engines / "tiny.cfg", "-t", "reference"), "would be compared with itself"),
        ((engines / "tiny.cfg", "--skip", "fold-batchnrm"), "did you mean 'fold-batchnorm'?"),
        ((tmp_path / "none.cfg",), "cannot read the cfg"),
        ((tmp_path / "none.npz",), "cannot read the recording"),
    ):
        result = command("compare", *arguments)
        assert (result.code, result.out) == (1, ""), arguments
        assert said in result.err
