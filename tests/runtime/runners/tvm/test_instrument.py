"""Times of kernels from what TVM's machine tells: a machine that tells what a test wants."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from dnc.errors import TargetError
from dnc.runtime.runners.tvm import instrument
from dnc.runtime.runners.tvm.instrument import measured

Call = tuple[str, float]


class Machine:
    """Calls functions that take so many seconds; what waits for a device takes one more."""

    def __init__(self, calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.now, self.waited = calls, 0.0, 0
        self._instrument: Callable[..., None] = lambda *_: None
        clock = types.SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(instrument, "time", clock)
        monkeypatch.setattr(instrument, "warm_up", lambda run: run())

    def __getitem__(self, name: str) -> Callable[[Any], None]:
        assert name == "set_instrument"
        return lambda function: setattr(self, "_instrument", function)

    def run(self) -> None:
        for name, seconds in self.calls:
            self._instrument(None, name, True, None, 1, 2)
            self.now += seconds
            self._instrument(None, name, False, None, 1, 2)
            self.now += 100

    def wait(self) -> None:
        self.waited += 1
        self.now += 1.0


FFI = types.SimpleNamespace(convert=lambda function: function)
KERNELS = [["reshape", "000_reorg/Reshape"], ["conv", "001_convolutional/Conv"], ["pool", "002_x"], ["conv", "3"]]


def test_calls_get_their_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order; views are never called, what TVM does itself is no kernel, and doing nothing takes no time."""
    calls = [
        ("vm.builtin.alloc_storage", 9.0), ("shape_func1", 9.0), ("conv", 5.0), ("vm.builtin.null_value", 2.0),
        ("pool", 4.0), ("conv", 1.0),
    ]  # fmt: skip
    machine = Machine(calls, monkeypatch)
    expected = [("001_convolutional/Conv", 3.0), ("002_x", 2.0), ("3", 0.0)]
    assert measured(FFI, machine, machine.run, 4, KERNELS) == expected  # type: ignore[arg-type]
    waiting = measured(FFI, machine, machine.run, 4, KERNELS, machine.wait)  # type: ignore[arg-type]
    assert (waiting, machine.waited) == (expected, 30)


def test_a_kernel_that_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for calls in ([("conv", 1.0)] * 3, [("other", 1.0)]):
        machine = Machine(calls, monkeypatch)
        with pytest.raises(TargetError, match=r"model\.json does not say what kernel (conv|other) computes"):
            measured(FFI, machine, machine.run, 2, KERNELS)  # type: ignore[arg-type]
