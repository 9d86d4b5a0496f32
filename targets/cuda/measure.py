"""The process that measures on a GPU: `python -m dnc.targets.cuda.measure < requests.jsonl > replies.jsonl`.

A kernel that goes wrong takes all of a process's memory of the GPU with it. So kernels run in this process, and
`dnc.targets.cuda.tuning` starts another one where it has ended.

    do          more                        the reply
    device      number                      {"name", "capability", "driver": CUDA's version}, of the GPU from now on
    kernels     functions: {name:           {}: these functions of libraries, with arrays of their own
                [library, function,
                [[shape, dtype], ...]]}
    compare     weights: {name: file},      {"differs"}: how the numbers of the first of two functions are others than
                bound                       those of the second by more than a bound (`dnc.graph.verification.differs`),
                                            with weights of files of numpy's, by their places among the arguments
    networks    folders: {name: folder},    {}: engines that are opened, with inputs of a file of numpy's, and their
                inputs, outputs, graphs     outputs in NAME.npz of a folder
    run         name                        {"seconds"}: how long one run takes of what was opened last

See `dnc.targets.cuda.serving` for what is there besides. Kernels are timed by CUDA's events, around a graph of many
runs: what the host does to launch one would hide how long a short one takes. Networks are timed on the device too, as a
session runs them but without the copies: those would hide what kernels win.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dnc.errors import TargetError
from dnc.graph.verification import differs
from dnc.runtime.runners.cuda.cudart import Cudart, Stopwatch
from dnc.runtime.runners.cuda.kernels import GpuSession, identify, load_cuda
from dnc.runtime.runners.tvm.session import load_runtime, reason
from dnc.targets.cuda.serving import serve
from dnc.typing import Array

_WARM_UP = 2
_LEAST = 0.004
"""Seconds that one measurement takes at least: it is the mean of as many runs as that needs."""
_IN_GRAPH = 20
"""Runs that a graph has."""


class _Kernel:
    """A function that runs again and again."""

    def __init__(self, ffi: ModuleType, cuda: Cudart, function: Any, arguments: Sequence[Any], device: int) -> None:
        self._ffi, self._cuda, self._function, self.arguments = ffi, cuda, function, arguments
        self._device = ffi.device("cuda", device)
        self._watch = Stopwatch(cuda)
        self._stream = cuda.made("cudaStreamCreate")
        self._graph = ctypes.c_void_p()
        self._launches = 1

    def warm_up(self) -> None:
        """Allocates memory and loads code."""
        for _ in range(_WARM_UP):
            self._function(*self.arguments)
        self._cuda("cudaStreamSynchronize", None)

    def record(self) -> None:
        """Makes the graph. All others are warm by now: what they allocate may not be allocated anew."""
        with self._ffi.use_raw_stream(self._device, self._stream.value):
            self._cuda("cudaStreamBeginCapture", self._stream, 0)
            for _ in range(_IN_GRAPH):
                self._function(*self.arguments)
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
        self._kernels: dict[str, _Kernel] = {}
        self._device = 0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request; raises TargetError if something is refused, or goes wrong on the GPU."""
        answers = {"device": self._identify, "kernels": self._open, "compare": self._compare, "run": self._run}
        answers["networks"] = self._networks
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
        for kernel in self._kernels.values():
            kernel.close()
        self._kernels.clear()

    def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._forget()
        for name, (library, function, described) in request["functions"].items():
            arguments = [self._array(shape, dtype) for shape, dtype in described]
            loaded = self._ffi.load_module(library)[function]
            self._kernels[name] = _Kernel(self._ffi, self._cuda, loaded, arguments, self._device)
            self._runs[name] = self._kernels[name].seconds
        for kernel in self._kernels.values():
            kernel.warm_up()
        for kernel in self._kernels.values():
            kernel.record()
        return {}

    def _compare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        outputs, expected = (self._numbers(self._kernels[name], file) for name, file in request["weights"].items())
        return {"differs": differs(outputs, expected, request["bound"])}

    def _numbers(self, kernel: _Kernel, weights: str) -> list[Array]:
        """The arguments of a function that are none of its weights, its results among them, after a run. What is no
        result is the same for all."""
        copy = self._ffi.get_global_func("runtime.TVMTensorCopyFromTo")
        with np.load(weights) as file:
            given = {int(place): np.ascontiguousarray(array) for place, array in file.items()}
        for place, array in given.items():
            copy(self._ffi.from_dlpack(array), kernel.arguments[place])
        kernel.warm_up()
        arrays = []
        for there in (there for place, there in enumerate(kernel.arguments) if place not in given):
            array = np.empty(tuple(there.shape), str(there.dtype))
            copy(there, self._ffi.from_dlpack(array))
            arrays.append(array)
        self._cuda("cudaStreamSynchronize", None)
        return arrays

    def _array(self, shape: Sequence[int], dtype: str) -> Any:
        """Numbers for a parameter, of either sign: small, so that nothing overflows; any bits for words of them. What
        may be an index is 0."""
        generator = np.random.default_rng(0)
        kind = np.dtype(dtype)
        if kind.kind == "f":
            array = ((generator.random(shape, np.float32) - 0.5) * 0.2).astype(kind)
        elif kind == np.uint32:
            array = generator.integers(0, 1 << 32, shape, np.uint32)
        else:
            array = generator.integers(0, 100 if kind.itemsize == 1 and kind.kind in "iu" else 1, shape).astype(kind)
        array = np.ascontiguousarray(array)
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
            self._runs[name] = session.device_run(inputs)  # type: ignore[assignment]
        return {}

    def _run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": self._runs[request["name"]]()}


if __name__ == "__main__":
    serve(lambda _: _Measurer().answer)
