"""`dnc doctor`"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from dnc.cli import _doctor as doctor
from dnc.targets import targets
from tests.conftest import Result
from tests.patience import PATIENCE

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "targets", {"onnx": targets["onnx"], "cuda": targets["cuda"]})
    monkeypatch.setattr(targets["cuda"], "missing", lambda _: "what it needs")


def test_text(command: Command) -> None:
    result = command("doctor", "--seconds", PATIENCE)
    assert (result.code, result.err) == (0, "")
    lines = {line.split("  ")[0]: line for line in result.out.splitlines() if line}
    assert lines["onnx"].split()[:3] == ["onnx", "works", "CPU"]
    assert lines["cuda"].split()[1:] == ["missing", "what", "it", "needs"]
    # Commands stand in lines of their own.
    assert '  cuda         pip install "darknet-compiler[cuda]"' in result.out
    assert '  cuda by tvm  pip install "darknet-compiler[cuda-tvm]"' in result.out
    assert "\ncache " in result.out


def test_no_gpu(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is to be mended where there is no GPU: no library is taken away from target onnx."""
    monkeypatch.setattr(doctor, "targets", {"cuda": targets["cuda"]})
    monkeypatch.setattr(targets["cuda"], "missing", lambda _: "")
    monkeypatch.setattr(doctor, "gpus", tuple)
    found = json.loads(command("doctor", "--json").out)
    assert [(each["state"], each["remedy"]) for each in found["targets"]] == [("no GPU", "")] * 2


def test_json(command: Command) -> None:
    result = command("doctor", "--json", "--seconds", PATIENCE)
    assert result.code == 0
    found = json.loads(result.out)
    assert {each["target"]: each["state"] for each in found["targets"]} == {
        "onnx": "works",
        "cuda": "missing",
        "cuda by tvm": "missing",
    }


def test_time_limit(command: Command) -> None:
    result = command("doctor", "--seconds", "0.01")
    assert result.code == 0
    assert "no answer within 0 s" in result.out
    assert command("doctor", "--seconds", "0").code == 2
