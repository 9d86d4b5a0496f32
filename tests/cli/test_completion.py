"""What a shell completes; that bash asks for it is in test_terminal.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from dnc import zoo
from dnc.cli import cli
from dnc.cli._completion import plugins
from dnc.destinations import destinations
from dnc.passes import passes
from dnc.targets import targets


def completed(line: str) -> list[str]:
    *words, last = line.split(" ")
    shell = BashComplete(cli, {}, "dnc", "_DNC_COMPLETE")
    return [f"{item.type}:" if item.type != "plain" else item.value for item in shell.get_completions(words, last)]


def test_names_of_plugins_need_no_import() -> None:
    """A module beside them that is none belongs into _HELPERS."""
    for package, registry in (("targets", targets), ("passes", passes), ("destinations", destinations)):
        assert plugins(package) == list(registry), package


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("comp", ["compare", "compile"]),
        ("zoo f", ["fetch"]),
        ("compile --target op", ["openvino"]),
        ("compile -t aar", ["aarch64"]),
        ("compile --skip merge", ["merge-pools"]),
        ("compile --passes fold-scale,merge", ["fold-scale,merge-pools"]),
        ("explain --pass trim", ["trim-kernels"]),
        ("bench --target onnx,op", ["onnx,openvino"]),
        ("bench --against nc", ["ncnn"]),
        ("compile --target openvino --option hi", ["hint="]),
        ("compile -t onnx --precision fp", ["fp32", "fp16"]),
        ("export --for tri", ["triton"]),
        ("export --for triton --option max", ["max_batch="]),
        ("targets my", ["myriad"]),
        ("passes merge", ["merge-pools"]),
        ("passes --target tv", ["tvm"]),
        ("zoo fetch yolov4", [entry.name for entry in zoo.entries() if entry.name.startswith("yolov4")]),
        ("-q compile --pre", ["--preprocess", "--precision"]),
        ("qqqq --tar", []),
    ],
)
def test_values(line: str, words: list[str]) -> None:
    assert completed(line) == words


def test_networks_where_no_file_begins_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("compile", "info", "explain", "compare", "bench", "export"):
        assert completed(f"{command} pelee") == ["peleenet"], command
    (tmp_path / "pelee.cfg").touch()
    assert completed("compile pelee") == ["file:"]
    assert completed("compile ") == ["file:"]


def test_a_damaged_project_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dnc.toml").write_text("[")
    assert completed("compile --target op") == ["openvino"]
