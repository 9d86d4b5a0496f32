"""Tuning: what is kept, who goes on from where, and that the result is never slower."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import DncError, TargetError
from dnc.runtime.runners.tvm.session import MODEL
from dnc.targets.tvm.compile import machine_for
from tests.patience import until
from tests.targets.tvm.rpc_servers import running
from tests.targets.tvm.tuned import plant

pytest.importorskip("tvm.relax", exc_type=ImportError)
for package in ("psutil", "cloudpickle"):
    pytest.importorskip(package)

tuning = pytest.importorskip("dnc.targets.tvm.tuning")
records = pytest.importorskip("dnc.targets.tvm.trials")
cpu_tuning = pytest.importorskip("dnc.targets.tvm.cpu_tuning")
Database, Kernel, device_name = records.Database, tuning.Kernel, cpu_tuning.device_name

needs_linker = pytest.mark.skipif(shutil.which("g++") is None, reason="model.so is linked with g++")

Write = Callable[..., Path]
CONV = "[convolutional]\nfilters={}\nsize={}\npad=1\nactivation={}\n"
NET = "[net]\nwidth=12\nheight=12\nchannels=3\n"
FIRST = NET + CONV.format(32, 3, "leaky") + CONV.format(48, 3, "relu")
SECOND = FIRST + CONV.format(24, 1, "linear")
BOUND = 1e-5
"""Of the largest value: the sums of two layers in float32, in another order."""


def lines(cache: Path) -> list[dict[str, Any]]:
    """All trials that are kept."""
    text = "".join(path.read_text() for path in (cache / "tvm").glob("*.jsonl"))
    return [item for item in map(json.loads, text.splitlines()) if "kernel" in item]


def test_database(tmp_path: Path) -> None:
    database = Database(tmp_path, "this one")
    database.put("a", 3, 0.5)
    database.put("a", [["x"], [1]], None, "it failed")
    database.put("b", 1, 1.5)
    again = Database(tmp_path, "this one")
    assert again.trials("a") == [(3, 0.5), ([["x"], [1]], None)]
    assert again.trials("b") == [(1, 1.5)]
    assert again.trials("c") == []
    assert again.path == database.path


def test_database_of_another_device(tmp_path: Path) -> None:
    """By its name, and if somebody renames the file."""
    Database(tmp_path, "this one").put("a", 3, 0.5)
    other = Database(tmp_path, "another")
    assert not other.trials("a")
    first = Database(tmp_path, "this one").path
    assert first is not None
    assert other.path is not None
    first.rename(other.path)
    assert not Database(tmp_path, "another").trials("a")
    renewed = Database(tmp_path, "another")
    renewed.put("b", 2, 0.7)
    assert Database(tmp_path, "another").trials("b") == [(2, 0.7)]
    assert not Database(tmp_path, "another").trials("a")


@pytest.mark.parametrize("end", [b'{"kernel": "b", "wa', b'{"kernel": 5, "way": 1}\n', b"[]\n", b"\n\n", b'{"way": 1'])
def test_torn_line(tmp_path: Path, end: bytes) -> None:
    """What was being written when the process was killed is left out, and nothing after it is lost."""
    database = Database(tmp_path, "this one")
    database.put("a", 3, 0.5)
    assert database.path is not None
    with database.path.open("ab") as file:
        file.write(end)
    again = Database(tmp_path, "this one")
    assert again.trials("a") == [(3, 0.5)]
    again.put("b", 1, 0.9)
    again.put("b", 2, 0.8)
    assert Database(tmp_path, "this one").trials("b") == [(1, 0.9), (2, 0.8)]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}\n", b"[[[[", b'{"schema": 2, "device": "this one"}\n'])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    path = Database(tmp_path, "this one").path
    assert path is not None
    path.parent.mkdir()
    path.write_bytes(content)
    damaged = Database(tmp_path, "this one")
    damaged.put("a", 1, 0.9)
    assert Database(tmp_path, "this one").trials("a") == [(1, 0.9)]


def test_database_without_a_folder(tmp_path: Path) -> None:
    """None, and one that cannot be made: trials count while the process runs."""
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file"):
        database = Database(folder, "this one")
        database.put("a", 1, 0.9)
        assert database.trials("a") == [(1, 0.9)]


def test_device_name() -> None:
    """By processor, by extensions, by threads."""
    names = {
        device_name(machine_for("x86_64-linux-gnu", mcpu), threads)
        for mcpu in ("x86-64-v2", "x86-64-v3", "znver4")
        for threads in (1, 2)
    }
    assert len(names) == 6
    assert all("TVM" in name for name in names)


def test_share_out() -> None:
    def kernel(share: float, rule: str) -> Any:
        return Kernel(rule, "", (), rule, 1, share, share)

    kernels = [kernel(0.5, "spatial"), kernel(0.2, "pointwise"), kernel(0.1, "depthwise")]
    tuning._share_out(kernels, 10)
    assert [each.trials for each in kernels] == [7, 2, 1]
    tuning._share_out(kernels, 1)
    assert [each.trials for each in kernels] == [1, 0, 0]


def test_title() -> None:
    places = ("a.cfg:9 [convolutional] #36", "a.cfg:20 [convolutional] #40")
    assert Kernel("f", "", places, "spatial", 2, 1.0).title == "layer 36"
    assert Kernel("f", "", (), "spatial", 2, 1.0).title == "f"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; and what is measured is measured shortly."""
    monkeypatch.setenv("DNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_FINAL_SECONDS", 0.05)
    monkeypatch.setattr(tuning, "_NETWORK_SECONDS", 0.05)
    return tmp_path / "cache"


def compiled(cfg: Path, out: Path, **given: Any) -> dnc.Engine:
    return dnc.compile(cfg, out=out, target="tvm", verify=False, **given)


def same(engine: dnc.Engine, other: dnc.Engine) -> None:
    x = np.random.default_rng(0).random((1, 3, 12, 12), np.float32)
    for found, expected in zip(engine.forward(x), other.forward(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND * np.abs(expected).max())


def test_only_where_it_helps(write: Write) -> None:
    with pytest.raises(TargetError, match="target onnx has no kernels to tune"):
        dnc.compile(write("n", FIRST), target="onnx", tune=4)
    with pytest.raises(DncError, match="remote says where to tune"):
        dnc.compile(write("n", FIRST), target="tvm", remote="pi:9090")
    other = "riscv64" if os.uname().machine != "riscv64" else "aarch64"
    with pytest.raises(TargetError, match="nothing can be tuned for"):
        dnc.compile(write("n", FIRST), target="tvm", tune=4, options={"triple": other, "cc": sys.executable})


@pytest.mark.slow
@needs_linker
def test_kept_and_reused(write: Write, tmp_path: Path, cache: Path) -> None:
    """As many trials as were asked for, by layer; none the next time; and a network has those of what it shares."""
    said: list[str] = []
    engine = compiled(write("first", FIRST), tmp_path / "e", tune=6, progress=said.append)
    trials = lines(cache)
    assert len(trials) == 6
    assert {type(item["way"]) for item in trials} == {int, list}
    assert any(text.startswith("tuning layer 1, 0 of 6 trials") for text in said)
    assert any("of 6 trials, best " in text and text.endswith(" of the untuned") for text in said)
    found = engine.manifest.tuning["kernels"]
    assert sum(kernel["trials"] for kernel in found["kernels"]) == found["trials"] == 6
    places = [place for kernel in found["kernels"] for place in kernel["layers"]]
    assert "first.cfg:10 [convolutional] #1" in places
    assert "kernels" in engine.manifest.report
    same(engine, compiled(write("first", FIRST), tmp_path / "plain"))

    # Shares are measured anew each time; but 4 trials are fewer than those that the second layer already has.
    heavy = max((item["kernel"] for item in trials), key=[item["kernel"] for item in trials].count)
    for name, text in (("first", FIRST), ("second", SECOND)):
        said.clear()
        compiled(write(name, text), tmp_path / name, tune=4, progress=said.append)
        assert not any(text.startswith("tuning layer 1,") for text in said)
        assert heavy not in {item["kernel"] for item in lines(cache)[len(trials) :]}


@pytest.mark.slow
@needs_linker
def test_killed(write: Write, tmp_path: Path, cache: Path) -> None:
    """With SIGKILL, after two trials: the next one makes those that are missing, of 5."""
    one = NET + CONV.format(32, 3, "leaky")
    cfg = write("one", one)
    command = [sys.executable, "-m", "dnc", "compile", str(cfg), "--target", "tvm", "--no-verify", "--tune", "500"]
    process = subprocess.Popen([*command, "-o", str(tmp_path / "e")], start_new_session=True)
    until(lambda: (cache / "tvm").is_dir() and len(lines(cache)) >= 2, lambda: process.poll() is None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "e").exists()
    kept = len(lines(cache))
    said: list[str] = []
    compiled(cfg, tmp_path / "e", tune=kept + 3, progress=said.append)
    assert len(lines(cache)) == kept + 3
    assert sum(text.startswith("tuning layer 0") for text in said) == 3
    assert any(f"{kept} of {kept + 3} trials" in text for text in said)


@pytest.fixture(params=["tiles", "MetaSchedule"])
def winner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Only these are tried."""
    if request.param == "MetaSchedule":
        monkeypatch.setattr("dnc.targets.tvm.forms._FORMS", 0)
    else:
        monkeypatch.setattr(cpu_tuning._Search, "next", lambda self: None)
    return str(request.param)


@pytest.mark.slow
@needs_linker
@pytest.mark.parametrize(("kernel", "network", "kept"), [(0.5, 0.9, True), (0.5, 1.1, False), (1.0, 0.9, False)])
def test_never_slower(
    write: Write,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    winner: str,
    kernel: float,
    network: float,
    kept: bool,
) -> None:
    """Kernels that win are used if the network is faster with them, and then give the same numbers."""
    plant(monkeypatch, kernel, network)
    cfg = write("first", FIRST)
    plain = compiled(cfg, tmp_path / "plain")
    engine = compiled(cfg, tmp_path / "e", tune=2)
    found = engine.manifest.tuning["kernels"]
    assert found["kept"] is kept
    assert (found["ratio"] is None) == (kernel == 1.0)
    best = {item["best"] for item in found["kernels"]}
    if kernel == 1.0:
        assert best == {"rule"}
        assert found["dropped"] == "no kernel is faster than the rule's"
    else:
        # Which tile comes first, the formula says, and whether the next one makes other loops.
        assert any(one.startswith("tile " if winner == "tiles" else "MetaSchedule") for one in best)
    functions = engine.manifest.report["functions"]
    assert ("MetaSchedule" in functions) == (kept and winner == "MetaSchedule")
    assert ((engine.folder / MODEL).read_bytes() != (plain.folder / MODEL).read_bytes()) is kept
    same(engine, plain)


@pytest.mark.slow
@needs_linker
def test_other_numbers_are_refused(write: Write, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuned network that computes something else is not used, however fast it is."""
    plant(monkeypatch, 0.5, 0.5)
    network = cpu_tuning.Device.network
    count = iter(range(2))

    def wrong(*arguments: Any) -> Any:
        run, outputs = network(*arguments)
        return run, [output + next(count) * 0.01 * np.abs(output).max() for output in outputs]

    monkeypatch.setattr(cpu_tuning.Device, "network", wrong)
    found = compiled(write("first", FIRST), tmp_path / "e", tune=2).manifest.tuning["kernels"]
    assert not found["kept"]
    assert found["dropped"].startswith("its outputs differ: output 0 is off by 0.01 ")


@pytest.mark.slow
@needs_linker
def test_remote(write: Write, tmp_path: Path, cache: Path, command: Callable[..., Any]) -> None:
    """The same on a device behind a server."""
    pytest.importorskip("tornado")
    with running("rpc_server", tmp_path / "log", "--key", "board") as (port, _):
        cfg, place = write("first", FIRST), f"127.0.0.1:{port},key=board,threads=1"
        options = ("--target", "tvm", "--no-verify", "--tune", 3, "--remote", place, "--json")
        result = command("compile", cfg, *options, "-o", tmp_path / "e")
        assert result.code == 0, result.err
        found = json.loads(result.out)["tuning"]["kernels"]
        assert found["measured_at"] == f"127.0.0.1:{port} (board)"
        assert "1 threads" in found["device"]
        assert len(lines(cache)) == 3
    same(dnc.load(tmp_path / "e"), compiled(cfg, tmp_path / "plain"))


@pytest.mark.slow
@needs_linker
def test_device_that_goes(write: Write, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that was running then is not tried again: it may be what ended the server."""

    def lose(*_: Any) -> Any:
        raise tuning.Lost("the connection is lost")

    monkeypatch.setattr(tuning.Tuner, "_timed", lose)
    for count in (1, 2):
        with pytest.raises(TargetError, match="the connection is lost"):
            compiled(write("first", FIRST), tmp_path / "e", tune=6)
        assert len(lines(cache)) == count
    assert not (tmp_path / "e").exists()
