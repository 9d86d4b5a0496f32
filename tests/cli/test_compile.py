"""dnc compile: what is printed and where the engine goes. What is compiled is tested elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import pytest

import dnc
from dnc.cli.compile import command as compile_command
from dnc.cli.explain import command as explain_command
from dnc.compiler.compiling import find_target
from dnc.compiler.options import CompileOptions, split_passes
from dnc.darknet.lower import DECODE
from dnc.runtime.preprocessing import COLORS, INTERPOLATIONS, MODES
from dnc.targets import Selectable, targets
from dnc.zoo.recorded import write_recorded
from tests.conftest import Result
from tests.networks import TINY

Command = Callable[..., Result]
Write = Callable[..., Path]


def test_missing_weights_say_what_can_be_fetched(command: Command, engines: Path) -> None:
    result = command("compile", engines / "tiny.cfg", "--weights", "no.weights", "-t", "onnx")
    assert (result.code, "`dnc zoo fetch NAME`" in result.err) == (1, True)


def test_options_are_those_of_the_library() -> None:
    short = {"shaves", "mcpu", "backend", "arch", "allow_fallback"}
    options = {parameter.name for parameter in compile_command.params if parameter.expose_value} - {"as_json"} - short
    assert options == {"cfg", "weights", "out", *(field.name for field in fields(CompileOptions))}
    named = {parameter.name for parameter in explain_command.params if parameter.expose_value}
    assert options == (named | {"cfg", "out"}) - {
        "as_json",
        "what",
        "only",
        *short,
    }


def test_choices_are_those_of_the_library() -> None:
    """CompileOptions imports nothing, so it repeats them."""
    settings = CompileOptions.settings()
    assert set(settings["preprocess"].choices) == set(MODES)
    assert set(settings["color"].choices) == set(COLORS)
    assert set(settings["interpolation"].choices) == set(INTERPOLATIONS)
    assert settings["decode"].choices == DECODE


def test_a_pass_with_options(command: Command, write: Write, tmp_path: Path) -> None:
    """Text as it is written; what a pass does not have is refused; who asks for what cannot be done is told."""
    assert split_passes("a, b:x=1,y=2,c,d:z=3") == ["a", "b:x=1,y=2", "c", "d:z=3"]
    cfg = write("depthwise", TINY.replace("[yolo]", "[convolutional]\nfilters=14\ngroups=14\nsize=3\npad=1\n[yolo]"))
    arguments = ("compile", cfg, "-t", "onnx", "-o", tmp_path / "e", "--json", "--passes")
    result = command(*arguments, "fold-batchnorm,diagonalwise:width=7")
    assert result.code == 0, result.err
    assert [item["name"] for item in json.loads(result.out)["passes"]] == ["fold-batchnorm", "diagonalwise"]
    for text, words in (
        ("diagonalwise=4", "unknown pass 'diagonalwise=4'"),
        ("diagonalwise:wide=4", "has no option 'wide'"),
        ("diagonalwise:width=x", "option width=x of pass diagonalwise"),
        ("quantize", "pass quantize: "),
    ):
        result = command(*arguments, text)
        assert (result.code, words in result.err) == (1, True), result.err


def test_text(command: Command, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("compile", engines / "tiny.cfg", "-t", "onnx")
    assert (result.code, result.err) == (0, "")
    first, second = result.out.splitlines()[:2]
    assert first.startswith("tiny.engine: tiny for onnx, 3 layers, 0.00 M parameters, 0.000 BFLOPs, in ")
    assert second.startswith("  passes: ")
    assert "  classes: 2: cat, black dog\n" in result.out
    assert dnc.load(tmp_path / "tiny.engine").labels == ("cat", "black dog")


def test_json(command: Command, engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.engine"
    result = command("compile", engines / "tiny.cfg", "-t", "onnx", "-o", out, "--json", "--mean", "0.1,0.2,0.3")
    assert (result.code, result.err) == (0, "")
    fields = json.loads(result.out)
    assert fields["folder"] == str(out)
    assert fields["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert fields["outputs"] == ["layer002"]


def test_recorded_preprocessing_and_options(command: Command, engines: Path, tmp_path: Path) -> None:
    """Options win over the record; a number may be a fraction; a crop is for center-crop."""
    weights = tmp_path / "w.weights"
    weights.write_bytes((engines / "classifier.weights").read_bytes())
    write_recorded(weights, {"mean": [0.5], "std": [0.25], "crop": 0.875})
    arguments = ("compile", engines / "classifier.cfg", "-w", weights, "-t", "onnx", "-o", tmp_path / "e")
    fields = json.loads(command(*arguments, "--json").out)["preprocessing"]
    assert (fields["mode"], fields["mean"], fields["std"], fields["crop"]) == ("center-crop", [0.5], [0.25], 0.875)
    fields = json.loads(command(*arguments, "--json", "--mean", "127/255", "--crop", "0.75").out)["preprocessing"]
    assert (fields["mean"], fields["std"], fields["crop"]) == ([127 / 255], [0.25], 0.75)
    assert "center-crop of 0.75 to" in command("info", tmp_path / "e").out
    assert "interpolation" not in fields
    fields = json.loads(command(*arguments, "--json", "--interpolation", "bicubic").out)["preprocessing"]
    assert fields["interpolation"] == "bicubic"
    assert "bicubic center-crop of 0.875 to" in command("info", tmp_path / "e").out
    result = command(*arguments, "--preprocess", "resize", "--interpolation", "bicubic")
    assert (result.code, "bicubic interpolation is for center-crop, not for resize" in result.err) == (1, True)
    result = command(*arguments, "--preprocess", "resize", "--crop", "0.5")
    assert (result.code, "a crop of 0.5 is for center-crop, not for resize" in result.err) == (1, True)
    assert command(*arguments, "--mean", "1/0").code == 2


def test_short_names(command: Command, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach the target; one that it does not have is refused as if it were spelled out."""
    told: list[Mapping[str, str]] = []

    def remember(name: str, options: Mapping[str, str]) -> Selectable:
        told.append(options)
        return find_target(name)

    monkeypatch.setattr("dnc.compiler.compiling.find_target", remember)
    arguments = ["--mcpu", "znver4", "--backend", "tvm", "--arch", "sm_87", "--allow-fallback", "--shaves", "3"]
    assert command("compile", write("tiny"), "-t", "onnx", "-o", tmp_path / "e", *arguments).code == 0
    assert told[0] == {"mcpu": "znver4", "backend": "tvm", "arch": "sm_87", "fallback": "on", "shaves": "3"}
    monkeypatch.undo()
    refused = command("compile", tmp_path / "tiny.cfg", "-t", "onnx", "-o", tmp_path / "f", "--mcpu", "znver4")
    assert (refused.code, "has no option 'mcpu'" in refused.err) == (1, True)


def test_aarch64_is_tvm_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tvm = targets["tvm"]
    monkeypatch.setattr(tvm, "missing", lambda self: "")
    found = find_target("aarch64", {"mcpu": "cortex-a72"})
    assert (found.name, found.given) == ("tvm", {"triple": "aarch64", "mcpu": "cortex-a72"})
