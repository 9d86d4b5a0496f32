"""benchmarks/cpu.md says what benchmarks/cpu/measured.jsonl does; what a CPU cannot do is left out, with the reason."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from dnc.errors import BundleError
from dnc.targets import targets
from tests.networks import TINY, write_network

# Benchmarks are no part of what types are checked of.
page = import_module("benchmarks.cpu.page")
cpu = import_module("benchmarks.cpu.__main__")
ARGUMENTS = cpu.parse(["net.cfg", "--threads", "1", "--seconds", "0.01"])


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "ROUNDS", (1, 1))


def test_page_is_what_was_measured() -> None:
    """Whoever changes one of them runs `python -m benchmarks.cpu --page benchmarks/cpu/measured.jsonl`."""
    tables = page.tables(page.read(page.MEASURED))
    assert tables.count("\n## ") + tables.startswith("## ") >= 1
    assert tables in page.PAGE.read_text(encoding="utf-8")


def test_nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page stays where there is nothing to write into it."""
    kept = page.PAGE.read_bytes()
    for name in ("PAGE", "MEASURED"):
        (tmp_path / name).write_bytes(getattr(page, name).read_bytes())
        monkeypatch.setattr(page, name, tmp_path / name)
    with pytest.raises(SystemExit, match="nothing that was measured"):
        page.write(tmp_path / "missing.jsonl")
    assert page.PAGE.read_bytes() == kept


def test_a_cpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows that it cannot run are missing, and it is said why; OpenVINO would have computed something else unasked."""
    if targets["openvino"]().missing():
        pytest.skip("needs OpenVINO")
    monkeypatch.setenv("DNC_ISA", "avx2")
    monkeypatch.setattr(cpu, "_openvino_has_bf16", lambda: False)
    monkeypatch.setattr(cpu, "ENGINES", (("openvino", "fp32"), ("openvino", "bf16"), ("tvm", "bf16")))
    row = cpu.measure(write_network(tmp_path, "tiny", TINY), ARGUMENTS, tmp_path)
    assert {name for name in row["seconds"] if name.startswith("dnc")} == {"dnc openvino"}
    assert {note.partition(":")[0] for note in row["notes"]} >= {"dnc openvino bf16", "dnc tvm bf16"}
    if not targets["tvm"]().missing():
        assert any("x86-64-v3 does not compute with it" in note for note in row["notes"])


def test_what_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whichever error it is, and wherever: images, a compile, a first run, a peer that is not installed."""
    real = cpu.dnc.compile

    def compile(cfg: Path, weights: Path, target: str, *rest: Any, **options: Any) -> Any:
        if target == "openvino":
            raise BundleError("it cannot be opened here")
        return real(cfg, weights, target, *rest, **options)

    def absent(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    def broken(*_: object) -> None:
        raise RuntimeError("no such\n instruction")

    monkeypatch.setattr(cpu.dnc, "compile", compile)
    monkeypatch.setattr(cpu, "ENGINES", (("onnx", "fp32"), ("openvino", "fp32")))
    monkeypatch.setattr(cpu.peers, "openvino", absent)
    monkeypatch.setattr(cpu.peers, "onnx_runtime", lambda *_: broken)
    monkeypatch.setattr(cpu.targets["openvino"], "missing", lambda self: "")
    arguments = argparse.Namespace(**{**vars(ARGUMENTS), "images": str(tmp_path)})
    row = cpu.measure(write_network(tmp_path, "tiny", TINY), arguments, tmp_path)
    assert list(row["seconds"]) == ["dnc onnx"]
    assert row["to"] == "dnc onnx"
    assert row["notes"] == [
        "dnc int8: no images in the folder",
        "dnc openvino: it cannot be opened here",
        "plain ONNX Runtime: no such instruction",
        "plain OpenVINO: openvino is not installed",
    ]


def test_a_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is among the results is not measured again; another instruction set is."""
    monkeypatch.setenv("DNC_ISA", "avx2")
    monkeypatch.setattr(cpu, "measure", lambda cfg, *_: {"notes": [], "versions": {}})
    arguments = cpu.parse(["a.cfg", "b.cfg", "--results", str(tmp_path / "results.jsonl")])
    for row in cpu.rows(arguments):
        page.append(arguments.results, {"machine": cpu.machine(arguments)}, row)
        break
    assert [row["network"] for row in cpu.rows(arguments)] == ["b"]
    monkeypatch.setenv("DNC_ISA", "avx512")
    assert [row["network"] for row in cpu.rows(arguments)] == ["a", "b"]


def test_tables() -> None:
    """What is behind is said; ratios that are missing are not counted; a reason stands once."""
    machine = {
        "cpu": "a CPU",
        "threads": 2,
        "date": "2026-01-01",
        "versions": {"TVM": "1"},
        "isa": "avx2",
        "held": "avx2",
    }
    row = {"isa": "avx2", "kind": "networks", "to": "plain OpenVINO", "notes": ["dnc tvm bf16: cannot"], "versions": {}}
    seconds = {"dnc tvm": 0.002, "dnc tvm int8": 0.001, "plain OpenVINO": 0.004}
    ratios = {"dnc tvm": [0.5], "dnc tvm int8": [0.25], "plain OpenVINO": [1.0]}
    first = {**row, "network": "first", "seconds": seconds, "ratios": ratios}
    fewer = {"dnc tvm": [1.25], "plain OpenVINO": [1.0]}
    second = {**row, "network": "second", "seconds": {"dnc tvm": 0.005, "plain OpenVINO": 0.004}, "ratios": fewer}
    text = page.tables([{"machine": machine}, first, second])
    assert "a CPU, held down to AVX2, 2 threads for all" in text
    assert "| first | OpenVINO 4.00 | 0.50 | 0.25 | 1.00 |" in text
    assert "| second | OpenVINO 4.00 | 1.25 |  | 1.00 |" in text
    assert "| speed, geometric mean | 1 | 1.26 | 4.00 (of 1) | 1.00 |" in text
    assert "behind with second 1.25" in text
    assert text.count("- dnc tvm bf16: cannot\n") == 1
    layer = {
        **{"isa": "avx2", "kind": "xnor", "network": "layer", "notes": [], "versions": {}},
        "seconds": {"dnc tvm xnor": 0.001, "dnc tvm float32": 0.008, "Darknet xnor": 0.004},
        "ratios": {"dnc tvm xnor": [0.125], "dnc tvm float32": [1.0], "Darknet xnor": [0.5]},
    }
    batch = {
        **{"isa": "avx2", "kind": "batches", "network": "net", "notes": [], "versions": {}},
        "seconds": {"dnc tvm, 1": 0.001, "dnc tvm, 16": 0.008, "plain OpenVINO": 0.016},
        "ratios": {"dnc tvm, 1": [0.06], "dnc tvm, 16": [0.5], "plain OpenVINO": [1.0]},
    }
    text = page.tables([{"machine": machine}, layer, batch])
    assert "| layer | dnc tvm | 1.00 | 8.00 | 0.12 | 8.0 |" in text
    assert "| layer | Darknet | 4.00 |  |  |  |" in text
    assert "| net | dnc tvm | 1.00 | 0.50 | 0.50 |" in text
