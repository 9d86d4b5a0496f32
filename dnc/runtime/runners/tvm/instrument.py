"""How long each kernel of a model.so takes: TVM's virtual machine tells before and after every call that it makes.

model.json has the kernels in the order in which they are called, `[[function, nodes], ...]`:
`dnc.targets.tvm.provenance` writes it. Kernels that only give memory another shape are listed, and not called. What a
call takes that does nothing is subtracted from each, so that only the kernels' own time is left; what the machine
itself does between them, to find memory for instance, belongs to none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dnc.errors import TargetError
from dnc.runtime.timing import typical, warm_up

__all__ = ["measured"]

_OWN = ("vm.builtin.", "shape_func")
"""What TVM's machine calls for itself: sizes that are not fixed are computed by functions of this name."""
_NOTHING = "vm.builtin.null_value"


def measured(
    ffi: ModuleType,
    machine: Any,
    run: Callable[[], object],
    runs: int,
    kernels: Sequence[Sequence[str]],
    wait: Callable[[], object] = lambda: None,
) -> list[tuple[str, float]]:
    """Nodes and seconds of each kernel, in the order of their calls: what `Session.profile` returns.

    Args:
        machine: TVM's virtual machine, which tells from now on.
        run: runs it once, in this thread.
        kernels: what model.json says of them.
        wait: waits for a device that computes by itself.

    Raises:
        TargetError: the machine calls a kernel that is not listed.
    """
    calls: list[tuple[str, float]] = []
    start = 0.0

    def instrument(function: Any, name: str, before: bool, result: Any, *arguments: Any) -> None:
        nonlocal start
        if before:
            start = time.perf_counter()
        else:
            wait()
            calls.append((name, time.perf_counter() - start))

    machine["set_instrument"](ffi.convert(instrument))

    def once() -> list[tuple[str, float]]:
        calls.clear()
        run()
        return list(calls)

    warm_up(once)
    every = [once() for _ in range(runs)]
    names = [str(name) for name, _ in every[-1]]
    table = np.array([[seconds for _, seconds in calls] for calls in every])
    idle = [seconds for name, seconds in zip(names, np.median(table, axis=0), strict=True) if name == _NOTHING]
    listed = iter(kernels)
    timed = []
    for name, seconds in zip(names, typical(table), strict=True):
        if name.startswith(_OWN):
            continue
        nodes = next((nodes for kernel, nodes in listed if kernel == name), None)
        if nodes is None:
            raise TargetError(f"model.json does not say what kernel {name} computes", hint="build the engine again")
        timed.append((nodes, max(0.0, float(seconds) - min(idle, default=0.0))))
    return timed
