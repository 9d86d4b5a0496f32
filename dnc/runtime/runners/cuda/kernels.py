"""Runs a model.so of kernels on an NVIDIA GPU: needs numpy, tvm_ffi, TVM's runtime with its part for CUDA, and NVIDIA's
CUDA runtime (libcudart), nothing of a compiler.

One virtual machine has the weights and the memory of the device, and one thread of its own, in which all runs take
turns: a GPU computes one after the other anyway. Arrays go through memory that is pinned, and lie at the same place of
the device in every run:

    copy the inputs into pinned memory; ask for: copies to the device, all kernels, copies of the outputs to pinned
    memory; wait for all of that once; copy the outputs

The library has the network twice (`dnc.targets.cuda.graphs`), as single kernels and as CUDA graphs:

    graphs=auto     what is faster, by some runs while the engine is opened; single kernels where CUDA refuses graphs,
                    and for images of any size
    graphs=on       graphs, or an error
    graphs=off      single kernels

While a graph is recorded, no other thread of the process may allocate or free memory of a GPU, or use its default
stream: `_gate` keeps all sessions apart then. What another library does at that moment makes CUDA refuse.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.errors import TargetError
from dnc.files.reading import read_json
from dnc.runtime.inputs import noise
from dnc.runtime.processor import architecture
from dnc.runtime.runners.base import Session, checked
from dnc.runtime.runners.cuda.cudart import CUDART, Cudart, Stopwatch
from dnc.runtime.runners.cuda.device import runs_on
from dnc.runtime.runners.tvm.instrument import measured
from dnc.runtime.runners.tvm.session import MODEL, MODEL_JSON, find_library, load_runtime, own_name, reason
from dnc.runtime.timing import interleave
from dnc.typing import Array

__all__ = ["CUDA_RUNTIME", "GRAPHS", "MAIN", "GpuSession", "identify", "load_cuda"]

CUDA_RUNTIME = "libtvm_runtime_cuda.so"
"""The part of TVM's runtime that is for NVIDIA's GPUs."""
MAIN, GRAPHS = "main", "main_graphs"
"""The functions of a library."""
_AGAIN = "build the engine again"
_CPU, _CUDA, _PINNED = 1, 2, 3
"""DLPack's device types."""
_POOLED = 2
"""The allocator of TVM that keeps memory for the next run."""
_EXISTS, _CAPABILITY, _NAME = 0, 4, 5
"""What TVM's runtime.GetDeviceAttr tells."""
_CUDA_VERSION, _DRIVER = 13, "580"
"""What that wants of the driver: CUDA's version, which drivers of this release are the first to have."""
_TOOLKITS = ("lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "targets/aarch64-linux/lib")
_KEPT = 4
"""Shapes of inputs, of networks that take images of any size, for which memory is kept."""
_TRIAL_SECONDS, _TRIAL_ROUNDS = 0.1, (7, 100)
_CONFIDENCE = 0.99

Arrays = Sequence[Array]


class _Gate:
    """A lock that users of a GPU share, and that the recording of a graph holds alone."""

    def __init__(self) -> None:
        # A finalizer may come through in the very thread that records.
        self._changed = threading.Condition(threading.RLock())
        self._inside = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)
            yield


_gate = _Gate()
_lost: list[Any] = []
"""What sessions had that a forked process inherited."""
_idle: deque[ThreadPoolExecutor] = deque()
"""Threads of sessions that are no more. One that ends gives back memory of TVM's kernels, which nothing could keep from
happening while a graph is recorded; so it waits for the next session, and the memory with it."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong in a run, as TargetError."""
    try:
        yield
    except TargetError:
        raise
    except Exception as error:
        # tvm_ffi raises the builtin class that TVM's message names.
        raise TargetError(f"TVM failed: {reason(error)}") from error


class GpuSession(Session):
    """model.so on a GPU. `graphs` is "on" or "off", as it was chosen.

    Args:
        device: the number of the GPU.
        graphs: "auto", "on" or "off".

    Raises:
        TargetError: there is no driver, no such GPU, or one that the engine is not for; a library is missing; CUDA
            refuses the graphs that it is to use.
    """

    def __init__(self, folder: Path, device: int = 0, graphs: str = "auto") -> None:
        try:
            description = read_json(folder / MODEL_JSON)
            machine = architecture(description["triple"])
            archs, ptx = [str(arch) for arch in description["archs"]], str(description["ptx"])
            large = int(description.get("large", 0))
            self._inputs = {entry["name"]: np.dtype(entry["dtype"]) for entry in description["inputs"]}
            self._shapes = {entry["name"]: tuple(entry["shape"]) for entry in description["inputs"]}
            versions = dict(description["versions"])
            self._kernels = description.get("kernels", ())
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TargetError(f"cannot read {MODEL_JSON}: {error}", folder, _AGAIN) from error
        if machine != architecture():
            raise TargetError(f"the engine is for {machine}, this machine is {architecture()}", folder, _AGAIN)
        self._ffi = load_runtime(folder, versions)
        load_cuda(self._ffi, folder, versions)
        capability, name = identify(self._ffi, device, folder)
        if not runs_on(archs, ptx, capability, large):
            mine = f"sm_{capability.replace('.', '')}"
            what = f"the engine is for {', '.join(archs or [ptx])}, and this GPU, {name}, is {mine}"
            if runs_on(archs, ptx, capability):
                what += f", which has less than the {large} bytes of shared memory that it takes"
            raise TargetError(what, folder, f"{_AGAIN} with --option arch={mine}")
        self._folder, self._place = folder, device
        self._owner = os.getpid()
        try:
            self._thread = _idle.pop()
        except IndexError:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="dnc-cuda")
        self._buffers: dict[tuple[tuple[int, ...], ...], _Buffers] = {}
        self._thread.submit(self._open, folder / MODEL, graphs).result()
        self.graphs = "off" if self._main is self._plain else "on"
        self.device = f"{name} (CUDA{' graphs' * (self.graphs == 'on')}, TVM)"

    def _open(self, path: Path, graphs: str) -> None:
        try:
            with _gate.shared():
                # The machine does not keep the library.
                self._library = self._ffi.load_module(own_name(path))
                self._machine = self._library["vm_load_executable"]()
                self._machine["vm_initialization"](_CUDA, self._place, _POOLED, _CPU, 0, _POOLED)
                self._main = self._plain = self._machine[MAIN]
                recorded = self._machine[GRAPHS]
        except Exception as error:
            # tvm_ffi raises the builtin class that TVM's message names.
            raise TargetError(f"TVM refuses the engine: {reason(error)}", path, _AGAIN) from error
        if graphs != "off":
            self._record(recorded, path, graphs == "on")

    def _record(self, recorded: Any, path: Path, wanted: bool) -> None:
        """Records the graphs, and chooses them if they are to be used."""
        if any(None in shape for shape in self._shapes.values()):
            if wanted:
                what = "CUDA graphs need inputs of one size, and the network takes images of any"
                raise TargetError(what, path, "--option graphs=off")
            return
        generator = np.random.default_rng(0)
        arrays = [noise(self._shapes[name], dtype, generator) for name, dtype in self._inputs.items()]
        try:
            # What kernels allocate by themselves is there afterwards, and stays where it is.
            expected = self._run(arrays, self._plain)
            with _gate.alone():
                # The first run records.
                self._compute(arrays, recorded)
            outputs = self._run(arrays, recorded)
        except TargetError as error:
            if wanted:
                what = error.message.replace("TVM failed", "the network cannot be launched as CUDA graphs")
                raise TargetError(what, path, "--option graphs=off") from error
            return
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(outputs, expected, strict=True)):
            if wanted:
                raise TargetError("the network computes something else as CUDA graphs", path, "--option graphs=off")
            return
        if not wanted:
            runs = {MAIN: partial(self._run, arrays, self._plain), GRAPHS: partial(self._run, arrays, recorded)}
            timings = interleave(runs, seconds=_TRIAL_SECONDS, rounds=_TRIAL_ROUNDS)
            if timings.ratio(GRAPHS, MAIN, _CONFIDENCE).high >= 1:
                return
        self._main = recorded
        with _gate.shared():
            # Graphs have memory of their own; that of the single kernels goes back.
            self._ffi.get_global_func("vm.builtin.memory_manager.clear")()

    def __del__(self) -> None:
        """Memory of the device goes back when nothing is being recorded."""
        if "_buffers" not in self.__dict__:
            return
        if self._owner != os.getpid():
            # CUDA has nothing to give back there, and would end the process.
            _lost.append(dict(self.__dict__))
            return
        with _gate.shared():
            self._main = self._plain = self._machine = self._library = None
            self._buffers.clear()
            self._ffi.get_global_func("vm.builtin.memory_manager.clear")()
        _idle.append(self._thread)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Copies to the device, runs there, and copies back."""
        return self._thread.submit(self._run, self._arrays(inputs), self._main).result()

    def device_seconds(self, inputs: Mapping[str, Array], runs: int) -> float:
        """By CUDA's events, around runs on inputs that are on the device, and whose outputs stay there."""
        return self._thread.submit(self._time, self._arrays(inputs), self._main, runs).result()

    def profile(self, inputs: Mapping[str, Array], runs: int) -> list[tuple[str, float]]:
        """Times each kernel from its launch until the device has nothing left to do, in a session of its own."""
        with self.opening():
            own = GpuSession(self._folder, self._place, "off")
        run = partial(own._run, own._arrays(inputs), own._main)
        task = partial(measured, self._ffi, own._machine, run, runs, self._kernels, own._wait)
        return own._thread.submit(task).result()

    def _arrays(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The inputs in the model's order."""
        arrays = checked("TVM", inputs, self._inputs, self._shapes)
        if self._owner != os.getpid():
            raise TargetError(
                "CUDA cannot be used in a process that forked after the engine was opened", hint="open it there"
            )
        return arrays

    def _run(self, arrays: Arrays, function: Any) -> list[Array]:
        with _gate.shared():
            return self._compute(arrays, function)

    def _compute(self, arrays: Arrays, function: Any) -> list[Array]:
        copy = self._ffi.get_global_func("runtime.TVMTensorCopyFromTo")
        with _told():
            buffers = self._buffers_for(arrays)
            for array, (pinned, view), there in zip(arrays, buffers.inputs, buffers.device, strict=True):
                np.copyto(view, array)
                copy(pinned, there)
            outputs = list(function(*buffers.device))
            views = buffers.views_for(outputs)
            for output, (pinned, _) in zip(outputs, views, strict=True):
                copy(output, pinned)
            self._wait()
            return [np.array(view) for _, view in views]

    def _time(self, arrays: Arrays, function: Any, runs: int) -> float:
        """Seconds that the device takes for one run of `main`, or of what was recorded of it."""
        # Copies the inputs.
        self._run(arrays, function)
        with _gate.shared(), _told():
            cuda = Cudart()
            cuda("cudaSetDevice", self._place)
            there = self._buffers_for(arrays).device
            watch = Stopwatch(cuda)

            def launch() -> None:
                for _ in range(runs):
                    function(*there)

            try:
                return watch.seconds(launch) / runs
            finally:
                watch.close()

    def _wait(self) -> None:
        self._ffi.get_global_func("runtime.Device_StreamSync")(self._ffi.device("cuda", self._place), 0)

    def _buffers_for(self, arrays: Arrays) -> _Buffers:
        shapes = tuple(array.shape for array in arrays)
        if shapes not in self._buffers:
            while len(self._buffers) >= _KEPT:
                del self._buffers[next(iter(self._buffers))]
            self._buffers[shapes] = _Buffers(self._ffi, self._place, arrays)
        return self._buffers[shapes]


class _Buffers:
    """Memory for inputs of some shapes and for the outputs that they give."""

    def __init__(self, ffi: ModuleType, place: int, arrays: Arrays) -> None:
        self._ffi = ffi
        self.inputs = [self._pinned(array.shape, array.dtype) for array in arrays]
        device = ffi.device("cuda", place)
        self.device = [self._empty(array.shape, array.dtype, device) for array in arrays]
        self._outputs: list[tuple[Any, Array]] | None = None

    def views_for(self, outputs: Sequence[Any]) -> list[tuple[Any, Array]]:
        """Memory for tensors of the device, and arrays that are the same memory: pinned, but for outputs that are as
        many as there are detections, and so of another shape each time."""
        kinds = [(tuple(output.shape), np.dtype(str(output.dtype))) for output in outputs]
        if self._outputs is None:
            self._outputs = [self._pinned(*kind) for kind in kinds]
        if [(view.shape, view.dtype) for _, view in self._outputs] == kinds:
            return self._outputs
        arrays = [np.empty(*kind) for kind in kinds]
        return [(self._ffi.from_dlpack(array), array) for array in arrays]

    def _pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> tuple[Any, Array]:
        tensor = self._empty(shape, dtype, self._ffi.device(_PINNED, 0))
        kind = np.dtype(dtype)
        count = int(np.prod(shape))
        # Through the address: older numpy hands out what it did not allocate for reading alone.
        memory = (ctypes.c_char * (count * kind.itemsize)).from_address(tensor.data_ptr())
        return tensor, np.ndarray(tuple(shape), kind, memoryview(memory))

    def _empty(self, shape: Sequence[int], dtype: npt.DTypeLike, device: Any) -> Any:
        allocate = self._ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        return allocate(self._ffi.Shape(shape), self._ffi.dtype(str(np.dtype(dtype))), device, None)


def identify(ffi: ModuleType, device: int, folder: Path) -> tuple[str, str]:
    """Compute capability, as 8.7, and name of a GPU; raises TargetError if there is none of that number."""
    ask = ffi.get_global_func("runtime.GetDeviceAttr")
    if not ask(_CUDA, device, _EXISTS):
        version = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
        if 0 < version.value < 1000 * _CUDA_VERSION:
            told = f"{version.value // 1000}.{version.value % 1000 // 10}"
            what = f"NVIDIA's driver is for CUDA {told}, and TVM's runtime is for CUDA {_CUDA_VERSION}"
            raise TargetError(what, folder, f"install a driver of release {_DRIVER} or newer, or --backend onnxruntime")
        raise TargetError(f"there is no GPU {device} that CUDA can use", folder, "nvidia-smi lists the GPUs")
    return str(ask(_CUDA, device, _CAPABILITY)), str(ask(_CUDA, device, _NAME))


def load_cuda(ffi: ModuleType, folder: Path, versions: Mapping[str, str]) -> None:
    """Loads TVM's runtime for CUDA into the process; raises TargetError where something of it is missing."""
    if ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    library = find_library(CUDA_RUNTIME, folder, versions)
    try:
        try:
            ctypes.CDLL(CUDART, ctypes.RTLD_GLOBAL)
        except OSError:
            for place in _cudart()[:1]:
                ctypes.CDLL(str(place), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library), ctypes.RTLD_LOCAL)
    except OSError as error:
        if "libcuda.so" in str(error):
            hint = "install NVIDIA's driver; containers need --gpus all, or --runtime nvidia"
            raise TargetError("there is no NVIDIA driver: libcuda.so.1 cannot be loaded", folder, hint) from error
        hint = 'pip install "darknet-compiler[runtime-cuda-tvm]"' if "libcudart" in str(error) else _AGAIN
        raise TargetError(f"TVM's runtime for CUDA cannot be loaded: {error}", library, hint) from error


def _cudart() -> list[Path]:
    """libcudart where the loader does not look: of PyPI's nvidia-cuda-runtime, and of a CUDA toolkit."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    wheels = [path for place in places for path in sorted(Path(place).glob(f"*/lib/{CUDART}"))]
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return wheels + [path for home in homes for part in _TOOLKITS if (path := home / part / CUDART).is_file()]
