"""Tuning on a GPU: what is measured, what is kept, and what a kernel that goes wrong costs; on emulator/driver.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import DncError, TargetError
from dnc.targets.cuda.process import Child, Ended, cuda_runtime
from tests.targets.cuda.emulation import make_driver, make_nvcc
from tests.targets.tvm.tuned import plant

pytest.importorskip("tvm.relax", exc_type=ImportError)
from dnc.targets.cuda.tuning import Measurer
from dnc.targets.tvm import tuning

pytestmark = [
    pytest.mark.skipif(cuda_runtime() is None, reason="needs apache-tvm"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

Write = Callable[..., Path]
_NET = """[net]
width=6
height=6
channels=3
[convolutional]
filters=8
size=3
pad=1
activation=leaky
[convolutional]
filters=16
size=3
pad=1
activation=relu
"""


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU and its compiler, an empty cache, and short measurements."""
    folder = tmp_path / "gpu"
    folder.mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(make_driver(folder)))
    make_nvcc(folder, folder)
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_FINAL_SECONDS", 0.05)
    monkeypatch.setattr(tuning, "_NETWORK_SECONDS", 0.05)
    return folder


def _compiled(cfg: Path, gpu: Path, out: Path, **given: Any) -> dnc.Engine:
    options = {"backend": "tvm", "arch": "sm_75", "compiler": str(gpu / "nvcc"), **given.pop("options", {})}
    return dnc.compile(cfg, out=out, target="cuda", verify=False, options=options, **given)


def _trials(gpu: Path) -> list[dict[str, Any]]:
    text = "".join(path.read_text() for path in (gpu.parent / "cache" / "tvm").glob("*.jsonl"))
    return [item for item in map(json.loads, text.splitlines()) if "kernel" in item]


@pytest.mark.slow
def test_kept_and_reused(write: Write, tmp_path: Path, gpu: Path) -> None:
    """As many trials as were asked for, by layer, of what really ran; none the next time."""
    said: list[str] = []
    engine = _compiled(write("net", _NET), gpu, tmp_path / "e", tune=5, progress=said.append)
    trials = _trials(gpu)
    assert len(trials) == 5
    assert all(isinstance(item["way"], int) and item["ratio"] > 0 for item in trials)
    assert any(text.startswith("tuning layer 1, ") and "of 5 trials" in text for text in said)
    found = engine.manifest.tuning["kernels"]
    assert found["measured_at"] == "emulated"
    assert found["device"].startswith("emulated sm_75, CUDA 13.0, fp32 for sm_75 by nvcc 13.0, TVM ")
    assert "net.cfg:10 [convolutional] #1" in {place for kernel in found["kernels"] for place in kernel["layers"]}
    assert "kernels were timed on the emulated" in engine.manifest.report["device"]
    assert "tuning" in engine.manifest.report
    # Shares are measured anew each time; but 2 trials are fewer than those that the second layer already has.
    heavy = max((item["kernel"] for item in trials), key=[item["kernel"] for item in trials].count)
    _compiled(write("net", _NET), gpu, tmp_path / "e", tune=2)
    assert heavy not in {item["kernel"] for item in _trials(gpu)[len(trials) :]}


@pytest.mark.slow
def test_by_the_time_of_the_device(write: Write, tmp_path: Path, gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one form takes half of the others' time, a copy a hundred times as much, and the networks the same."""
    monkeypatch.setenv("EMULATED_TIMES", "launch=1,copy=9000,rank2_=50,=100")
    options = {"kernels": "measured", "graphs": "off"}
    engine = _compiled(write("net", _NET), gpu, tmp_path / "e", tune=4, options=options)
    assert {item["way"]: round(item["ratio"], 2) for item in _trials(gpu)} == {1: 1.0, 2: 0.5}
    found = engine.manifest.tuning["kernels"]
    assert {kernel["best"] for kernel in found["kernels"]} == {"tile 2"}
    assert all(kernel["microseconds"] == pytest.approx(100, abs=0.2) for kernel in found["kernels"])
    assert found["ratio"] == [1.0, 1.0, 1.0]
    assert found["dropped"] == "the network as a whole is not certainly faster"
    kernels = len(json.loads((engine.folder / "model.json").read_text())["kernels"])
    with Measurer(0, print) as measurer:
        feeds = {"input": np.zeros((1, 3, 6, 6), np.float32)}
        runs, outputs = measurer.networks({"rule": engine.folder}, feeds, "off")
        assert runs["rule"]() == pytest.approx(kernels * 101e-6)
        assert [output.shape for output in outputs["rule"]] == [(1, 16, 6, 6)]


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "network", "kept"), [(0.5, 0.9, True), (0.5, 1.1, False), (1.0, 0.9, False)])
def test_never_slower(
    write: Write,
    tmp_path: Path,
    gpu: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: float,
    network: float,
    kept: bool,
) -> None:
    """Forms that win are used if the network is faster with them, and give the same numbers: both were run."""
    plant(monkeypatch, kernel, network)
    # Without new kinds of kernels, which would win as well.
    options = {"kernels": "measured"}
    found = _compiled(write("net", _NET), gpu, tmp_path / "e", tune=3, options=options).manifest.tuning["kernels"]
    assert found["kept"] is kept
    best = {item["best"] for item in found["kernels"]}
    assert best == {"rule"} if kernel == 1.0 else "tile 1" in best
    # A network of them was built and run only where there are any.
    assert (found["ratio"] is None) is (kernel == 1.0)
    plain = tmp_path / "plain"
    _compiled(write("net", _NET), gpu, plain)
    assert ((tmp_path / "e" / "model.so").read_bytes() != (plain / "model.so").read_bytes()) is kept


@pytest.mark.slow
def test_a_kernel_that_breaks_the_gpu(write: Write, tmp_path: Path, gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded as failed, in a process that is another one afterwards; the others are measured."""
    monkeypatch.setenv("EMULATED_FAULT", "rank1_")
    engine = _compiled(write("net", _NET), gpu, tmp_path / "e", tune=5)
    trials = _trials(gpu)
    assert len(trials) == 5
    failed = [item for item in trials if item["ratio"] is None]
    assert {item["way"] for item in failed} == {1}
    assert all("700" in item["error"] or "CUDA" in item["error"] for item in failed)
    assert len(failed) < 5
    assert engine.manifest.tuning["kernels"]["trials"] == 5


@pytest.mark.slow
def test_a_form_that_nvcc_refuses(write: Write, tmp_path: Path, gpu: Path) -> None:
    """The others of its batch are built by themselves."""
    nvcc = gpu / "nvcc"
    refusal = 'case "$*" in *--version*) ;; *) for last; do :; done; grep -q rank2_ "$last" && exit 1;; esac\n'
    lines = nvcc.read_text().splitlines(keepends=True)
    nvcc.write_text("".join([lines[0], refusal, *lines[1:]]))
    _compiled(write("net", _NET), gpu, tmp_path / "e", tune=5)
    failed = {item["way"] for item in _trials(gpu) if item["ratio"] is None}
    assert failed == {2}
    assert len({item["way"] for item in _trials(gpu)}) > 2


def test_what_cannot_be_tuned(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU; for another one; over RPC; by the other back end."""
    cfg, options = write("net", _NET), {"backend": "tvm", "arch": "sm_75"}
    driver = tmp_path / "driver"
    driver.mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(make_driver(driver)))
    with pytest.raises(DncError, match="a GPU is tuned on the machine that has it"):
        dnc.compile(cfg, target="cuda", options=options, tune=4, remote="a:1", verify=False)
    with pytest.raises(TargetError, match="target cuda has no kernels to tune") as caught:
        dnc.compile(cfg, target="cuda", tune=4, verify=False)
    assert "--backend tvm" in caught.value.hint
    with pytest.raises(TargetError, match="nothing can be tuned for sm_87 here: the emulated is sm_75"):
        dnc.compile(cfg, target="cuda", options={**options, "arch": "sm_87"}, tune=4, verify=False)
    monkeypatch.setenv("EMULATED_GPUS", "0")
    with pytest.raises(TargetError, match="nothing can be tuned here: there is no GPU 0"):
        dnc.compile(cfg, target="cuda", options=options, tune=4, verify=False)


def test_a_process_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, or because it takes too long; its last words are told."""
    (tmp_path / "ending.py").write_text("import sys; input(); sys.exit('last words')\n")
    (tmp_path / "hanging.py").write_text("import signal; signal.pause()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("ending", "measuring", None, print) as child:
        with pytest.raises(Ended, match="measuring ended with status 1: last words"):
            child.ask({})
        with pytest.raises(Ended):
            child.ask({})
    with Child("hanging", "measuring", None, print) as child, pytest.raises(Ended, match="took more than 0 s"):
        child.ask({}, 0.2)


@pytest.mark.slow
def test_measurer(gpu: Path, tmp_path: Path) -> None:
    """It goes on after an error, with another process."""
    with Measurer(0, print) as measurer:
        assert (measurer.name, measurer.capability, measurer.driver) == ("emulated", "7.5", "13.0")
        with pytest.raises(TargetError):
            measurer.ask({"do": "kernels", "functions": {"none": [str(tmp_path / "none.so"), "none", []]}})
        assert measurer.ask({"do": "device", "number": 0})["name"] == "emulated"
