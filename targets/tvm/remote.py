"""Machines that run what was compiled, and say how long it takes: this one, or a device behind TVM's RPC.

A device is named `HOST:PORT[,key=KEY][,threads=N]`. There listens either TVM's server on the device itself,

    python -m tvm.exec.rpc_server --host 0.0.0.0 --port 9090 --port-end 9091 [--key KEY]

or a tracker, which knows several devices by their keys and gives away one that is free. Which of both it is shows in
what it answers to a tracker's greeting. A server has one caller at a time, and does not answer meanwhile.

Libraries are sent there, and time is taken there (TVM's time evaluator), so the network between does not count. On the
device, runs have as many threads as TVM starts by default (the environment variable TVM_NUM_THREADS of the server),
unless it is told how many.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dnc.errors import TargetError
from dnc.runtime.runners.tvm.session import SETTINGS, reason
from dnc.runtime.timing import processors
from dnc.targets.tvm.compile import import_tvm
from dnc.typing import Array, Progress, silent

__all__ = ["Address", "Device", "Lost", "connect", "here"]

_FORM = "HOST:PORT[,key=KEY][,threads=N]"
_START = "start one there: python -m tvm.exec.rpc_server --host 0.0.0.0 --port PORT --port-end PORT+1"
_TRACKER = struct.pack("<i", 0x2F271)
"""How a tracker greets, and is greeted; a server hangs up on it."""
_PATIENCE = 5.0
"""Seconds to wait for an answer, and for a tracker's device to be given back by whoever had it last."""
_LEAST = 0.004
"""Seconds that one measurement takes at least: it is the mean of as many runs as that needs."""


class Lost(TargetError):
    """The device has gone."""


@dataclass(frozen=True)
class Address:
    """Address of a device."""

    host: str
    port: int
    key: str = ""
    threads: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads `HOST:PORT[,key=KEY][,threads=N]`; raises TargetError if it is none."""
        place, *settings = text.split(",")
        host, _, port = place.rpartition(":")
        given = dict(item.partition("=")[::2] for item in settings)
        threads = given.get("threads")
        numbers = [port] if threads is None else [port, threads]
        known = given.keys() <= {"key", "threads"} and all(given.values())
        if not host or not known or not all(number.isascii() and number.isdigit() for number in numbers):
            raise TargetError(f"'{text}' names no device", hint=f"as {_FORM}")
        if not 0 < int(port) < 65536 or threads == "0":
            raise TargetError(f"'{text}' names no device: its numbers are out of range", hint=f"as {_FORM}")
        return cls(host.strip("[]"), int(port), given.get("key", ""), None if threads is None else int(threads))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" + (f" ({self.key})" if self.key else "")


class Device:
    """A machine that runs libraries: a context, as a device serves nobody else meanwhile. It is for one thread.

    Args:
        session: TVM's, to this machine or another.
        name: what it is called in messages; "" for this machine.
        threads: how many threads a run has; TVM's choice if not given.

    All methods raise TargetError where the connection is lost, or the device refuses.
    """

    def __init__(self, session: Any, name: str = "", threads: int | None = None) -> None:
        self.name = name
        self._session = session
        self._cpu = session.cpu()
        self._libraries = 0
        with self._asking("does not say how many threads it has"):
            if threads is not None:
                session.get_function("runtime.config_threadpool")(1, threads)
            self.threads = threads or int(session.get_function("runtime.NumThreads")())

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the connection: the device is free for others, whoever still holds something of it."""
        if self.name:
            with suppress(RuntimeError, OSError):
                self._session.get_function("CloseRPCConnection")()

    @contextmanager
    def _asking(self, what: str, hint: str = "") -> Iterator[None]:
        """Turns what TVM raises into a TargetError: the device `what`, or has gone."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            place = f"the device at {self.name}" if self.name else "this machine"
            text = str(error)
            # TVM raises InternalError where a socket fails, RPCError for what goes wrong on the device.
            if self.name and not _is_told(text):
                gone = "see what its server says; a processor that lacks an instruction ends it: check --option mcpu"
                raise Lost(f"the connection to {place} is lost: {reason(error)}", hint=gone) from error
            raise TargetError(f"{place} {what}: {_last(text)}", hint=hint) from error

    def load(self, path: Path, built_for: str) -> Any:
        """A library that was compiled for `built_for`, on the device."""
        self._libraries += 1
        name = f"{self._libraries}-{path.name}"
        hint = "name its processor with --option triple=… and mcpu=…"
        with self._asking(f"does not load code for {built_for}", hint):
            self._session.upload(str(path), name)
            module = self._session.load_module(name)
            # It stays loaded; a board may have little room.
            self._session.remove(name)
        return module

    def tensors(self, arrays: Sequence[Array]) -> list[Any]:
        """Copies on the device."""
        from tvm.runtime import tensor

        with self._asking("has no room for the arrays"):
            return [tensor(array, device=self._cpu) for array in arrays]

    def kernel(self, module: Any, name: str, tensors: Sequence[Any]) -> Callable[[], float]:
        """A function of a library as one that runs it several times, and gives the seconds of one run."""
        return self._evaluator(lambda number: module.time_evaluator(name, self._cpu, number=number), *tensors)

    def network(self, module: Any, inputs: Sequence[Array]) -> tuple[Callable[[], float], list[Any]]:
        """The same for a whole network, and its outputs for these inputs."""
        from tvm.relax import VirtualMachine

        tensors = self.tensors(inputs)
        with self._asking("does not run the network"):
            machine = VirtualMachine(module, self._cpu)
            machine.set_input("main", *tensors)
            machine.invoke_stateful("main")
            outputs = [output.numpy() for output in machine.get_outputs("main")]
        run = self._evaluator(
            lambda number: machine.time_evaluator("invoke_stateful", self._cpu, number=number), "main"
        )
        return run, outputs

    def _evaluator(self, timer: Callable[[int], Any], *arguments: Any) -> Callable[[], float]:
        with self._asking("does not run it"):
            once = timer(1)(*arguments).mean
        chosen = timer(max(1, round(_LEAST / max(once, 1e-7))))

        def run() -> float:
            with self._asking("does not run it"):
                return float(chosen(*arguments).mean)

        return run


def _is_told(text: str) -> bool:
    """Whether a message came from the other end, or says that the arguments are wrong, rather than that it is gone."""
    return "RPCError" in text and not any(word in text.lower() for word in ("socket", "closed", "shutdown", "reset"))


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip() and "RPCError" not in line]
    return lines[-1].strip() if lines else "no reason is given"


def _rpc() -> ModuleType:
    """tvm.rpc, which does not say what it does."""
    import_tvm()
    try:
        rpc = importlib.import_module("tvm.rpc")
    except ImportError as error:
        hint = "pip install psutil cloudpickle tornado"
        raise TargetError(f"TVM's RPC cannot be loaded: {error}", hint=hint) from error
    logging.getLogger("RPCServer").setLevel(logging.WARNING)
    return rpc


def here(scratch: Path, threads: int | None = None) -> Device:
    """Returns this machine as a device, with as many threads for a run as engines have that are opened here; what TVM
    writes is in `scratch`."""
    rpc = _rpc()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # It makes a folder of its own, which nobody removes when the process is killed.
    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        return Device(rpc.LocalSession(), "", threads or processors())
    finally:
        tempfile.tempdir = before


def connect(address: Address, progress: Progress = silent) -> Device:
    """A device, directly or from a tracker. Raises TargetError if nobody listens there, the device is busy, the key is
    another, or there is no TVM here."""
    rpc = _rpc()
    progress(f"connecting to {address}")
    answer = _greet(address)
    try:
        if answer == _TRACKER:
            session = _requested(rpc.connect_tracker(address.host, address.port), address)
        elif answer is None:
            hint = "wait for whoever uses it; a tracker gives away devices that are free"
            raise TargetError(f"the device at {address} does not answer: it is busy, or no TVM RPC server", hint=hint)
        else:
            session = rpc.connect(address.host, address.port, address.key)
    except (RuntimeError, OSError) as error:
        text = str(error)
        if "key" in text.lower() or "mismatch" in text.lower():
            given = f"'{address.key}'" if address.key else "none"
            hint = "give the key that its server was started with: HOST:PORT,key=KEY"
            raise TargetError(f"the device at {address.host}:{address.port} has another key than {given}",
                              hint=hint) from error  # fmt: skip
        raise TargetError(f"cannot connect to {address}: {_last(text)}", hint=_START) from error
    return Device(session, str(address), address.threads)


def _greet(address: Address) -> bytes | None:
    """Answer to a tracker's greeting: a tracker's own; b"" from a server, which hangs up; None if there is none."""
    try:
        with socket.create_connection((address.host, address.port), timeout=_PATIENCE) as connection:
            connection.sendall(_TRACKER)
            with suppress(ConnectionError):
                return connection.recv(4)
            return b""
    except TimeoutError:
        return None
    except OSError as error:
        raise TargetError(f"nobody listens at {address.host}:{address.port}: {error.strerror or error}",
                          hint=_START) from error  # fmt: skip


def _requested(tracker: Any, address: Address) -> Any:
    """A session with a device of a tracker that is free."""
    end = time.monotonic() + _PATIENCE
    while True:
        state = tracker.summary()
        keys = sorted({str(item["key"]).removeprefix("server:") for item in state["server_info"]})
        key = address.key or (keys[0] if len(keys) == 1 else "")
        if key not in keys:
            what = f"no device with key '{key}'" if key else "several devices" if keys else "no devices"
            hint = f"its keys: {', '.join(keys)}; name one as HOST:PORT,key=KEY" if keys else "start a server with "
            hint = hint if keys else f"{hint}--tracker {address.host}:{address.port} --key KEY"
            raise TargetError(f"the tracker at {address.host}:{address.port} has {what}", hint=hint)
        if state["queue_info"].get(key, {}).get("free", 0):
            return tracker.request(key, max_retry=1)
        if time.monotonic() > end:
            raise TargetError(f"all devices '{key}' of the tracker at {address.host}:{address.port} are busy",
                              hint="wait for whoever uses them")  # fmt: skip
        time.sleep(0.2)
