"""The process that measures on a GPU: `python -m dnc.targets.cuda.measure < requests.jsonl > replies.jsonl`.

A kernel that goes wrong takes all of a process's memory of the GPU with it. So kernels run in this process, and
`dnc.targets.cuda.tuning` starts another one where it has ended.

    do          more                        the reply
    device      number                      {"name", "capability", "driver": CUDA's version}, of the GPU from now on
    kernels     library, functions:         {}: these functions of a library, with arrays of their own
                {name: [[shape, dtype], ...]}
    networks    folders: {name: folder},    {}: engines that are opened, with inputs of a file of numpy's, and their
                inputs, outputs, graphs     outputs in NAME.npz of a folder
    run         name                        {"seconds"}: how long one run takes of what was opened last

See `dnc.targets.cuda.serving` for what is there besides. Kernels are timed by CUDA's events, around a graph of many
runs: what the host does to launch one would hide how long a short one takes. Networks are timed from arrays to arrays,
as a session runs them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dnc.errors import TargetError
from dnc.runtime.runners.cuda.cudart import Cudart, Stopwatch
from dnc.runtime.runners.cuda.kernels import GpuSession, identify, load_cuda
from dnc.runtime.runners.tvm.session import load_runtime, reason
from dnc.targets.cuda.serving import serve

_WARM_UP = 2
_LEAST = 0.004
"""Seconds that one measurement takes at least: it is the mean of as many runs as that needs."""
_IN_GRAPH = 20
"""Runs that a graph has."""


class _Kernel:
    """A function that runs again and again."""

    def __init__(self, ffi: ModuleType, cuda: Cudart, function: Any, arguments: Sequence[Any], device: int) -> None:
        self._ffi, self._cuda, self._function, self._arguments = ffi, cuda, function, arguments
        self._device = ffi.device("cuda", device)
        self._watch = Stopwatch(cuda)
        self._stream = cuda.made("cudaStreamCreate")
        self._graph = ctypes.c_void_p()
        self._launches = 1

    def warm_up(self) -> None:
        """Allocates memory and loads code."""
        for _ in range(_WARM_UP):
            self._function(*self._arguments)
        self._cuda("cudaStreamSynchronize", None)

    def record(self) -> None:
        """Makes the graph. All others are warm by now: what they allocate may not be allocated anew."""
        with self._ffi.use_raw_stream(self._device, self._stream.value):
            self._cuda("cudaStreamBeginCapture", self._stream, 0)
            for _ in range(_IN_GRAPH):
                self._function(*self._arguments)
            recorded = ctypes.c_void_p()
            self._cuda("cudaStreamEndCapture", self._stream, ctypes.byref(recorded))
        self._graph = self._cuda.made("cudaGraphInstantiate", recorded, ctypes.c_ulonglong(0))
        self._cuda("cudaGraphDestroy", recorded)
        # The first launch of a graph takes longer.
        self.seconds()
        once = self.seconds()
        self._launches = max(1, round(_LEAST / max(once * _IN_GRAPH, 1e-7)))

    def seconds(self) -> float:
        """Seconds of one run."""
        return self._watch.seconds(self._launch) / (self._launches * _IN_GRAPH)

    def _launch(self) -> None:
        for _ in range(self._launches):
            self._cuda("cudaGraphLaunch", self._graph, None)

    def close(self) -> None:
        """Gives back what it had."""
        if self._graph:
            self._cuda("cudaGraphExecDestroy", self._graph)
        self._cuda("cudaStreamDestroy", self._stream)
        self._watch.close()


class _Measurer:
    """Answers the requests."""

    def __init__(self) -> None:
        self._runs: dict[str, Callable[[], float]] = {}
        self._kernels: list[_Kernel] = []
        self._device = 0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request; raises TargetError if something is refused, or goes wrong on the GPU."""
        answers = {"device": self._identify, "kernels": self._open, "networks": self._networks, "run": self._run}
        try:
            return answers[request["do"]](request)
        except TargetError:
            raise
        except Exception as error:
            # tvm_ffi raises the builtin class that TVM's message names.
            raise TargetError(f"TVM failed: {reason(error)}") from error

    def _identify(self, request: Mapping[str, Any]) -> dict[str, Any]:
        here = Path.cwd()
        self._device = request["number"]
        self._ffi = load_runtime(here, {})
        load_cuda(self._ffi, here, {})
        capability, name = identify(self._ffi, self._device, here)
        driver = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
        self._cuda = Cudart()
        self._cuda("cudaSetDevice", self._device)
        version = f"{driver.value // 1000}.{driver.value % 1000 // 10}"
        return {"name": name, "capability": capability, "driver": version}

    def _forget(self) -> None:
        self._runs.clear()
        for kernel in self._kernels:
            kernel.close()
        self._kernels.clear()

    def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._forget()
        library = self._ffi.load_module(request["library"])
        for name, described in request["functions"].items():
            arguments = [self._array(shape, dtype) for shape, dtype in described]
            self._kernels.append(_Kernel(self._ffi, self._cuda, library[name], arguments, self._device))
            self._runs[name] = self._kernels[-1].seconds
        for kernel in self._kernels:
            kernel.warm_up()
        for kernel in self._kernels:
            kernel.record()
        return {}

    def _array(self, shape: Sequence[int], dtype: str) -> Any:
        """Numbers for a parameter: small and positive, so that nothing overflows or becomes denormal."""
        drawn = np.random.default_rng(0).random(shape, np.float32) * 0.1
        kind = np.dtype(dtype)
        array = np.ascontiguousarray(drawn if kind.kind == "f" else np.zeros(shape)).astype(kind)
        allocate = self._ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        there = allocate(self._ffi.Shape(shape), self._ffi.dtype(dtype), self._ffi.device("cuda", self._device), None)
        self._ffi.get_global_func("runtime.TVMTensorCopyFromTo")(self._ffi.from_dlpack(array), there)
        return there

    def _networks(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._forget()
        with np.load(request["inputs"]) as file:
            inputs = dict(file)
        graphs = request["graphs"]
        for name, folder in request["folders"].items():
            session = GpuSession(Path(folder), self._device, graphs)
            # All in the same way.
            graphs = session.graphs
            np.savez(Path(request["outputs"]) / f"{name}.npz", *session.run(inputs))

            def run(session: GpuSession = session) -> float:
                start = time.perf_counter()
                session.run(inputs)
                return time.perf_counter() - start

            self._runs[name] = run
        return {}

    def _run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": self._runs[request["name"]]()}


if __name__ == "__main__":
    serve(lambda _: _Measurer().answer)
