"""Devices behind TVM's RPC: a real server and a real tracker, on loopback; and all that goes wrong."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import TargetError
from dnc.runtime.runners.tvm.session import MODEL
from dnc.targets.tvm.remote import Address, connect, here
from tests.patience import until
from tests.targets.tvm.rpc_servers import free_port, running, stop

pytest.importorskip("tvm.rpc", exc_type=ImportError)
for package in ("tornado", "psutil", "cloudpickle"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="model.so is linked with g++")

Write = Callable[..., Path]
CFG = "[net]\nwidth=16\nheight=16\nchannels=3\n[convolutional]\nfilters=16\nsize=3\npad=1\nactivation=leaky\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with key `board`."""
    with running("rpc_server", tmp_path_factory.mktemp("rpc") / "log", "--key", "board") as (port, _):
        yield port


@pytest.fixture
def engine(write: Write, tmp_path: Path) -> dnc.Engine:
    return dnc.compile(write("n", CFG), target="tvm", out=tmp_path / "e", verify=False)


def numbers(engine: dnc.Engine) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    return x, engine.forward(x)[0]


def test_address() -> None:
    assert Address.parse("pi:9090") == Address("pi", 9090)
    assert Address.parse("[::1]:9090,key=pi4,threads=4") == Address("::1", 9090, "pi4", 4)


@pytest.mark.parametrize("text", [
    "pi", "pi:", ":9090", "pi:x", "pi:99999", "pi:0", "pi:9090,key", "pi:9090,key=", "pi:9090,name=a",
    "pi:9090,threads=many", "pi:9090,threads=0",
])  # fmt: skip
def test_no_address(text: str) -> None:
    with pytest.raises(TargetError, match="names no device"):
        Address.parse(text)


def test_nobody_listens() -> None:
    with pytest.raises(TargetError, match="nobody listens") as caught:
        connect(Address("127.0.0.1", free_port()))
    assert "rpc_server" in caught.value.hint


def test_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that serves somebody else accepts connections, and says nothing."""
    monkeypatch.setattr("dnc.targets.tvm.remote._PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TargetError, match="busy"):
        connect(Address("127.0.0.1", listener.getsockname()[1]))


def test_another_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(TargetError, match="cannot connect"):
            connect(Address("127.0.0.1", listener.getsockname()[1]))


def test_this_machine(engine: dnc.Engine, tmp_path: Path) -> None:
    """The same numbers as the session's, and seconds; what TVM writes is where it is told to."""
    x, expected = numbers(engine)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    device = here(scratch, 1)
    assert len(list(scratch.iterdir())) == device.threads == 1
    run, outputs = device.network(device.load(engine.folder / MODEL, "this"), [x])
    np.testing.assert_array_equal(outputs[0], expected)
    assert 0 < run() < 1


@pytest.mark.slow
def test_server(server: int, engine: dnc.Engine) -> None:
    x, expected = numbers(engine)
    with connect(Address("127.0.0.1", server, "board", 2)) as device:
        assert device.threads == 2
        run, outputs = device.network(device.load(engine.folder / MODEL, "this"), [x])
        np.testing.assert_array_equal(outputs[0], expected)
        assert 0 < run() < 1


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "other"])
def test_wrong_key(server: int, key: str) -> None:
    with pytest.raises(TargetError, match=f"another key than {repr(key) if key else 'none'}"):
        connect(Address("127.0.0.1", server, key))


@pytest.mark.slow
def test_wrong_architecture(server: int, engine: dnc.Engine, tmp_path: Path) -> None:
    """An ELF file for ARM is refused, and the connection goes on."""
    header = bytearray((engine.folder / MODEL).read_bytes())
    header[18:20] = (183).to_bytes(2, "little")
    other = tmp_path / "arm.so"
    other.write_bytes(header)
    refusal = r"127.0.0.1:\d+ \(board\) does not load code for aarch64 generic"
    with connect(Address("127.0.0.1", server, "board")) as device:
        with pytest.raises(TargetError, match=refusal) as caught:
            device.load(other, "aarch64 generic")
        assert "mcpu" in caught.value.hint
        device.load(engine.folder / MODEL, "this")


@pytest.mark.slow
def test_lost_connection(engine: dnc.Engine, tmp_path: Path) -> None:
    x, _ = numbers(engine)
    with running("rpc_server", tmp_path / "log") as (port, process):
        device = connect(Address("127.0.0.1", port))
        run, _ = device.network(device.load(engine.folder / MODEL, "this"), [x])
        stop(process)
        for attempt in (run, lambda: device.load(engine.folder / MODEL, "this")):
            with pytest.raises(TargetError, match=r"connection to the device .* is lost"):
                attempt()


@pytest.mark.slow
def test_tracker(engine: dnc.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, expected = numbers(engine)
    with running("rpc_tracker", tmp_path / "tracker") as (tracker, _):
        with pytest.raises(TargetError, match="has no devices") as caught:
            connect(Address("127.0.0.1", tracker))
        assert f"--tracker 127.0.0.1:{tracker}" in caught.value.hint
        join = ("--tracker", f"127.0.0.1:{tracker}", "--custom-addr", "127.0.0.1", "--key")
        with running("rpc_server", tmp_path / "log", *join, "pi4"):
            joined: list[Any] = []

            def joins() -> bool:
                # The server listens before the tracker knows of it.
                with suppress(TargetError):
                    joined.append(connect(Address("127.0.0.1", tracker, "pi4")))
                return bool(joined)

            until(joins)
            (device,) = joined
            _, outputs = device.network(device.load(engine.folder / MODEL, "this"), [x])
            np.testing.assert_array_equal(outputs[0], expected)
            with pytest.raises(TargetError, match="no device with key 'pi5'") as caught:
                connect(Address("127.0.0.1", tracker, "pi5"))
            assert "pi4" in caught.value.hint
            monkeypatch.setattr("dnc.targets.tvm.remote._PATIENCE", 0.5)
            with pytest.raises(TargetError, match=r"all devices 'pi4' .* are busy"):
                connect(Address("127.0.0.1", tracker, "pi4"))


@pytest.mark.slow
def test_bench(server: int, engine: dnc.Engine, command: Callable[..., Any], tmp_path: Path) -> None:
    """Two equal engines on the device: a ratio with an interval; nothing is said of what was not measured."""
    other = shutil.copytree(engine.folder, tmp_path / "f")
    place = f"127.0.0.1:{server},key=board"
    result = command("bench", engine.folder, other, "--remote", place, "--batch", "2", "--seconds", "1", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["machine"]["remote"] == f"127.0.0.1:{server} (board)"
    first, second = found["engines"]
    assert first["ratio"] is None
    # They are the same: a machine that is busy may take longer for either, but not twice as long in the median.
    assert 0.5 < second["ratio"]["value"] < 2
    assert second["startup"] is None
    assert second["device"] == f"127.0.0.1:{server} (board)"
    recording = tmp_path / "r.json"
    recording.write_text(result.out)
    refused = command("bench", "--diff", recording, recording)
    assert refused.code == 1
    assert "no yardstick of that device" in refused.err


@pytest.mark.slow
def test_bench_refuses(server: int, write: Write, command: Callable[..., Any], tmp_path: Path) -> None:
    place = f"127.0.0.1:{server},key=board"
    dnc.compile(write("n", CFG), target="onnx", out=tmp_path / "o", verify=False)
    assert "this is one of target onnx" in command("bench", tmp_path / "o", "--remote", place).err
    assert command("bench", tmp_path / "o", "--remote", place, "--layers").code == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs g++-aarch64-linux-gnu")
def test_cross_compiled(server: int, write: Write, command: Callable[..., Any], tmp_path: Path) -> None:
    """Code for ARM that is sent to x86, or the other way round, is refused by the device."""
    option = "triple=" + ("x86_64-linux-gnu" if "aarch64" in subprocess.check_output(["uname", "-m"], text=True)
                          else "aarch64")  # fmt: skip
    result = command("compile", write("n", CFG), "--target", "tvm", "--option", option, "--no-verify", "-o",
                     tmp_path / "e", "--tune", "2", "--remote", f"127.0.0.1:{server},key=board")  # fmt: skip
    assert result.code == 1
    assert "does not load code for" in result.err
    assert not (tmp_path / "e").exists()
