"""Runs a model.so of kernels on an NVIDIA GPU: needs numpy, tvm_ffi, TVM's runtime with its part for CUDA, and NVIDIA's
CUDA runtime (libcudart), nothing of a compiler.

One virtual machine has the weights and the memory of the device, and one thread of its own, which asks the device for
all runs: a GPU computes one after the other anyway. A run is

    in the caller's thread      inputs are copied into pinned memory, unless they lie there or on the device already
    in the session's thread     asks for copies to the device, all kernels, copies of the outputs to pinned memory
    in the caller's thread      waits for that; outputs that the caller keeps are copied

A run that is alone has all of that on one stream, CUDA's legacy default stream. While others are under way its copies
go over two streams of the session's, so that they take place beside the kernels of the runs before and after it:

    copies in       each run in flight (`_Slot`) has memory of the device of its own for its inputs
    legacy          waits for the copies in; a copy on the device to where graphs were recorded; kernels
    copies out      wait for the kernels

What is not to be given back before the device has done with it is kept by `_Flight` until then, whoever gave up on its
result meanwhile.

The library has the network twice (`dnc.targets.cuda.graphs`), as single kernels and as CUDA graphs:

    graphs=auto     what is faster, by some runs while the engine is opened; single kernels where CUDA refuses graphs,
                    and for images of any size
    graphs=on       graphs, or an error
    graphs=off      single kernels

Images of any size are made the network's input by a function of their own before, `prepare`, so that nothing of the
network depends on their size. Detections are as many rows as there can be, so that they are copied in one piece: behind
the last one is a row that begins with the number that model.json has as "end".

While a graph is recorded, no other thread of the process may allocate or free memory of a GPU, or use its default
stream: `gate` keeps all sessions apart then. What another library does at that moment makes CUDA refuse.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dnc.errors import TargetError
from dnc.files.installed import to_install
from dnc.files.reading import read_json
from dnc.runtime.devices import DeviceArray, Lent, borrow, is_on_device
from dnc.runtime.inputs import noise
from dnc.runtime.processor import architecture
from dnc.runtime.runners.base import Pending, Session, checked
from dnc.runtime.runners.cuda.buffers import gate, is_pinned, pinned
from dnc.runtime.runners.cuda.cudart import CUDART, ON_DEVICE, TO_DEVICE, TO_HOST, Cudart, Stopwatch
from dnc.runtime.runners.cuda.device import runs_on
from dnc.runtime.runners.tvm.instrument import measured
from dnc.runtime.runners.tvm.session import MODEL, MODEL_JSON, find_library, load_runtime, own_name, reason
from dnc.runtime.timing import interleave
from dnc.typing import Array

__all__ = ["CUDA_RUNTIME", "GRAPHS", "MAIN", "GpuSession", "identify", "load_cuda"]

CUDA_RUNTIME = "libtvm_runtime_cuda.so"
"""The part of TVM's runtime that is for NVIDIA's GPUs."""
MAIN, GRAPHS, PREPARE = "main", "main_graphs", "prepare"
"""The functions of a library."""
_AGAIN = "build the engine again"
_CPU, _CUDA = 1, 2
"""DLPack's device types."""
_POOLED = 2
"""The allocator of TVM that keeps memory for the next run."""
_EXISTS, _CAPABILITY, _NAME = 0, 4, 5
"""What TVM's runtime.GetDeviceAttr tells."""
_CUDA_VERSION, _DRIVER = 13, "580"
"""What that wants of the driver: CUDA's version, which drivers of this release are the first to have."""
_TOOLKITS = ("lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "targets/aarch64-linux/lib")
_ALIGNMENT = 256
"""Bytes, on a border of which CUDA's memory begins."""
_IN_FLIGHT = 8
"""Runs that the device is asked for before the first of them is done, at most."""
_TRIAL_SECONDS, _TRIAL_ROUNDS, _TRIAL_RUNS = 0.1, (7, 100), 3
_CONFIDENCE = 0.99
_SIDE = 64
"""Of the images that graphs are recorded and timed with: nothing of the network depends on it."""

Arrays = Sequence[Any]


_lost: list[Any] = []
"""What sessions had that a forked process inherited."""
_idle: deque[ThreadPoolExecutor] = deque()
"""Threads of sessions that are no more. One that ends gives back memory of TVM's kernels, which nothing could keep from
happening while a graph is recorded; so it waits for the next session, and the memory with it."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


class GpuSession(Session):
    """model.so on a GPU. `graphs` is "on" or "off", as it was chosen.

    Args:
        device: the number of the GPU.
        graphs: "auto", "on" or "off".

    Raises:
        TargetError: there is no driver, no such GPU, or one that the engine is not for; a library is missing; CUDA
            refuses the graphs that it is to use.
    """

    apart: ClassVar[bool] = True

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
            self._prepared = description.get("prepare")
            self._pixels = -1 if self._prepared is None else list(self._inputs).index(self._prepared["input"])
            self._ends = [entry.get("end") for entry in description["outputs"]]
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
        self._slots: list[_Slot] = []
        self._flights: deque[_Flight] = deque()
        self._fixed: list[Any] = []
        self._thread.submit(self._open, folder / MODEL, graphs).result()
        self.graphs = "off" if self._main is self._plain else "on"
        self.device = f"{name} (CUDA{' graphs' * (self.graphs == 'on')}, TVM)"

    def _open(self, path: Path, graphs: str) -> None:
        try:
            with gate.shared():
                self._cuda = Cudart()
                self._cuda("cudaSetDevice", self._place)
                self._in, self._out = self._cuda.stream(), self._cuda.stream()
                # The machine does not keep the library.
                self._library = self._ffi.load_module(own_name(path))
                self._machine = self._library["vm_load_executable"]()
                self._machine["vm_initialization"](_CUDA, self._place, _POOLED, _CPU, 0, _POOLED)
                self._main = self._plain = self._machine[MAIN]
                recorded = self._machine[GRAPHS]
                self._prepare = None if self._prepared is None else self._machine[PREPARE]
        except Exception as error:
            raise self._failure(error, "TVM refuses the engine", path, _AGAIN) from error
        if graphs != "off":
            self._record(recorded, path, graphs == "on")

    def _record(self, recorded: Any, path: Path, wanted: bool) -> None:
        """Records the graphs, and chooses them if they are to be used."""
        if self._prepare is None and any(None in shape for shape in self._shapes.values()):
            if wanted:
                what = "CUDA graphs need inputs of one size, and an older dnc made the engine for images of any"
                raise TargetError(what, path, f"{_AGAIN}, or --option graphs=off")
            return
        generator = np.random.default_rng(0)
        shapes = [[_SIDE if side is None else side for side in self._shapes[name]] for name in self._inputs]
        arrays = [noise(shape, dtype, generator) for shape, dtype in zip(shapes, self._inputs.values(), strict=True)]
        # What kernels allocate by themselves is there afterwards, and stays where it is.
        expected = self._run(arrays, self._plain)
        try:
            with gate.shared(), self._failing():
                kinds = [(array.shape, array.dtype) for array in arrays]
                if self._prepared is not None:
                    kinds[self._pixels] = self._prepared["shape"], np.dtype(self._prepared["dtype"])
                self._fixed = [self._empty(*kind) for kind in kinds]
            with gate.alone():
                # The first run records.
                self._run(arrays, recorded)
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
            # By the time of the device: that of copies is the same for both, and would hide the difference.
            functions = {MAIN: self._plain, GRAPHS: recorded}
            runs = {name: partial(self._time, arrays, one, _TRIAL_RUNS) for name, one in functions.items()}
            timings = interleave(runs, seconds=_TRIAL_SECONDS, rounds=_TRIAL_ROUNDS)
            if timings.ratio(GRAPHS, MAIN, _CONFIDENCE).high >= 1:
                return
        self._main = recorded
        with gate.shared(), self._failing():
            self._retire()
            # Graphs have memory of their own; that of the single kernels goes back.
            self._ffi.get_global_func("vm.builtin.memory_manager.clear")()

    def __del__(self) -> None:
        """Memory of the device goes back when nothing is being recorded."""
        if "_flights" not in self.__dict__:
            return
        if self._owner != os.getpid():
            # CUDA has nothing to give back there, and would end the process.
            _lost.append(dict(self.__dict__))
            return
        with gate.shared(urgent=True):
            self._give_back()
            self._main = self._plain = self._prepare = self._machine = self._library = None
            self._ffi.get_global_func("vm.builtin.memory_manager.clear")()
        _idle.append(self._thread)

    def _give_back(self) -> None:
        """What runs had, when they are done."""
        for flight in self._flights:
            flight.land()
        for slot in (*self._slots, *(flight.slot for flight in self._flights)):
            slot.close()
        for stream in (self.__dict__.pop(name, None) for name in ("_in", "_out")):
            if stream is not None:
                self._cuda("cudaStreamDestroy", stream)
        for each in (self._flights, self._slots, self._fixed):
            each.clear()

    def run(self, inputs: Mapping[str, Any]) -> list[Array]:
        """Copies to the device, runs there, and copies back."""
        return self.submit(inputs).result()

    def submit(
        self, inputs: Mapping[str, Any], wanted: Container[int] | None = None, *, on_device: bool = False
    ) -> Pending:
        """Copies the inputs into pinned memory, where they are not, and goes on while the device runs."""
        arrays = self._arrays(inputs)
        return _Asked(self, self._thread.submit(self._ask, arrays, self._main, wanted, on_device))

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Pinned memory."""
        return pinned.array(shape, dtype, lambda size: self._thread.submit(self._grow, size).result())

    def device_seconds(self, inputs: Mapping[str, Any], runs: int) -> float:
        """By CUDA's events, around runs on inputs that are on the device, and whose outputs stay there."""
        return self._thread.submit(self._time, self._arrays(inputs), self._main, runs).result()

    def profile(self, inputs: Mapping[str, Array], runs: int) -> list[tuple[str, float]]:
        """Times each kernel from its launch until the device has nothing left to do, in a session of its own."""
        with self.opening():
            own = GpuSession(self._folder, self._place, "off")
        run = partial(own._run, own._arrays(inputs), own._main)
        task = partial(measured, self._ffi, own._machine, run, runs, self._kernels, own._wait)
        return own._thread.submit(task).result()

    def _arrays(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The inputs in the model's order, in memory from which the device copies by itself."""
        if self._owner != os.getpid():
            raise TargetError(
                "CUDA cannot be used in a process that forked after the engine was opened", hint="open it there"
            )
        arrays = checked(
            "TVM", {name: self._borrowed(name, array) for name, array in inputs.items()}, self._inputs, self._shapes
        )
        return [array if isinstance(array, Lent) or is_pinned(array) else self._pinned(array) for array in arrays]

    def _pinned(self, array: Array) -> Array:
        copy = self.empty(array.shape, array.dtype)
        np.copyto(copy, array)
        return copy

    def _borrowed(self, name: str, array: Any) -> Any:
        """An input; of one that is on the device, where it lies."""
        if isinstance(array, np.ndarray) or not is_on_device(array):
            return array
        with gate.shared(), self._cuda.on(self._place):
            lent = borrow(array, partial(self._cuda.wait, None))
        if lent.device not in (None, self._place):
            what = f"input {name} is in the memory of GPU {lent.device}, and the engine runs on GPU {self._place}"
            raise TargetError(what, hint=f"--option device={lent.device}, or dnc.load(…, device='{lent.device}')")
        return lent

    def _failure(self, error: Exception, what: str, where: Path | None = None, hint: str = "") -> TargetError:
        """What went wrong, in words; of memory, how much there is."""
        if "out of memory" not in str(error):
            # tvm_ffi raises the builtin class that TVM's message names.
            return TargetError(f"{what}: {reason(error)}", where, hint)
        free, every = self._cuda.memory()
        weights = (self._folder / MODEL).stat().st_size
        said = f"GPU {self._place} has not enough memory: {free >> 20} of its {every >> 20} MB are free"
        said += f", and the network's code and weights alone take {weights / 2**20:.1f} MB"
        another = (
            "compile it with a smaller --batch, end what else uses the GPU, or take another one: --option device=N"
        )
        return TargetError(said, where or self._folder, another)

    def _landed(self, flight: _Flight, keep: bool) -> list[Any]:
        """The outputs of a run, when they are there."""
        if any(isinstance(output, DeviceArray) for output in flight.outputs):
            # Whoever reads them has their own stream wait.
            return flight.outputs
        try:
            with gate.shared():
                here = self._cuda.device() == self._place
                if here:
                    flight.land()
            if not here:
                # Asked here, CUDA would occupy memory of the GPU that this thread has chosen.
                self._thread.submit(flight.land).result()
        except TargetError as error:
            raise self._failure(error, "TVM failed") from error
        found = [_rows(output, end) for output, end in zip(flight.outputs, self._ends, strict=True)]
        return [np.array(output) if keep else output for output in found]

    # What follows runs in the session's thread.

    def _grow(self, size: int) -> bool:
        with gate.shared(), self._failing():
            return pinned.grow(size, self._cuda.pin, self._cuda.unpin)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Calls to CUDA and TVM; what goes wrong is a TargetError, and nothing is under way then."""
        try:
            self._cuda("cudaSetDevice", self._place)
            yield
        except Exception as error:
            failure = self._failure(error, "TVM failed")
            for stream in (self._in, None, self._out):
                with suppress(TargetError):
                    self._cuda("cudaStreamSynchronize", stream)
            raise failure from error

    def _run(self, arrays: Arrays, function: Any) -> list[Array]:
        """A run to its end."""
        return _Asked(self, self._ask(arrays, function)).result()

    def _ask(
        self, arrays: Arrays, function: Any, wanted: Container[int] | None = None, on_device: bool = False
    ) -> _Flight:
        """Asks for a run."""
        with gate.shared(), self._failing():
            self._retire()
            slot = self._slots.pop() if self._slots else _Slot(self._ffi, self._cuda, self._place, len(arrays))
            try:
                flight = self._asked(slot, arrays, function, wanted, on_device)
            except BaseException:
                self._slots.append(slot)
                raise
            self._flights.append(flight)
            return flight

    def _asked(
        self, slot: _Slot, arrays: Arrays, function: Any, wanted: Container[int] | None, on_device: bool
    ) -> _Flight:
        alone = not self._flights
        given, kept = self._given(slot, arrays, function is not self._plain, None if alone else self._in)
        outputs = list(function(*given))
        event, out = (slot.done, None) if alone else (slot.done_beside, self._out)
        found: list[Any] = []
        if on_device:
            found = [self._left(output) for output in outputs]
            event, out = slot.done, None
        elif not alone:
            self._cuda.wait(out, None)
        for place, output in enumerate(outputs if not on_device else ()):
            shape, dtype = tuple(output.shape), np.dtype(str(output.dtype))
            if wanted is not None and place not in wanted:
                found.append(np.empty(0, dtype))
                continue
            found.append(pinned.array(shape, dtype, self._grow))
            self._cuda.copy(found[-1].ctypes.data, output.data_ptr(), found[-1].nbytes, TO_HOST, out)
        self._cuda("cudaEventRecord", event, out)
        return _Flight(self._cuda, slot, event, found, given, (arrays, kept, outputs))

    def _given(
        self, slot: _Slot, arrays: Arrays, recorded: bool, stream: ctypes.c_void_p | None
    ) -> tuple[list[Any], list[Any]]:
        """Tensors of the device with the inputs, which are there for the legacy stream; if they are for graphs, where
        those read them; and what is kept until then. Arrays of the host are copied on a stream."""
        # Of a run that is alone the copies go there at once.
        direct = recorded and stream is None
        given = []
        for place, array in enumerate(arrays):
            if isinstance(array, Lent):
                given.append(self._taken(slot, place, array))
                continue
            there = (
                self._fixed[place] if direct and place != self._pixels else slot.room(place, array.shape, array.dtype)
            )
            self._cuda.copy(there.data_ptr(), array.ctypes.data, array.nbytes, TO_DEVICE, stream)
            given.append(there)
        if stream is not None:
            self._cuda.wait(None, stream)
        sizes = [array.nbytes for array in arrays]
        if self._prepare is not None:
            given[self._pixels] = made = self._prepare(given[self._pixels])
            sizes[self._pixels] = int(np.prod(made.shape)) * np.dtype(str(made.dtype)).itemsize
        if not recorded:
            return given, given
        for tensor, fixed, size in zip(given, self._fixed, sizes, strict=True):
            if tensor is not fixed:
                self._cuda.copy(fixed.data_ptr(), tensor.data_ptr(), size, ON_DEVICE, None)
        return self._fixed, given

    def _taken(self, slot: _Slot, place: int, lent: Lent) -> Any:
        """Somebody's array on the device; a copy where TVM cannot take it as it lies."""
        if lent.capsule and lent.address % _ALIGNMENT == 0:
            return self._ffi.from_dlpack(lent.owner)
        there = slot.room(place, lent.shape, lent.dtype)
        self._cuda.copy(there.data_ptr(), lent.address, lent.nbytes, ON_DEVICE, None)
        return there

    def _left(self, output: Any) -> DeviceArray:
        shape, dtype = tuple(output.shape), np.dtype(str(output.dtype))

        def wait(stream: int) -> None:
            with gate.shared(), self._cuda.on(self._place):
                self._cuda.wait(stream, None)

        def fetch() -> Array:
            array = np.empty(shape, dtype)
            with gate.shared(), self._cuda.on(self._place):
                # To memory that is not pinned, it returns when it is done.
                self._cuda.copy(array.ctypes.data, output.data_ptr(), array.nbytes, TO_HOST, None)
            return array

        return DeviceArray(output, output.data_ptr(), shape, dtype, self._place, wait, fetch)

    def _retire(self) -> None:
        """Takes back what runs had that are done; waits for the oldest one where too many are under way."""
        while self._flights and (len(self._flights) >= _IN_FLIGHT or self._flights[0].is_done()):
            flight = self._flights.popleft()
            flight.land()
            self._slots.append(flight.slot)

    def _time(self, arrays: Arrays, function: Any, runs: int) -> float:
        """Seconds that the device takes for one run of `main`, or of what was recorded of it."""
        flight = self._ask(arrays, function)
        self._landed(flight, False)
        with gate.shared(), self._failing():
            watch = Stopwatch(self._cuda)

            def launch() -> None:
                for _ in range(runs):
                    function(*flight.given)

            try:
                return watch.seconds(launch) / runs
            finally:
                watch.close()

    def _wait(self) -> None:
        self._ffi.get_global_func("runtime.Device_StreamSync")(self._ffi.device("cuda", self._place), 0)

    def _empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        return _empty(self._ffi, self._place, shape, dtype)


class _Slot:
    """What a run in flight has for itself."""

    def __init__(self, ffi: ModuleType, cuda: Cudart, place: int, inputs: int) -> None:
        self._ffi, self._cuda, self._place = ffi, cuda, place
        self.done, self.done_beside = cuda.event(), cuda.event(blocks=True)
        self._rooms: list[Any] = [None] * inputs
        self._sizes = [0] * inputs

    def room(self, place: int, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """Memory of the device for an input: as much as the largest one took so far."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._rooms[place] is None or size > self._sizes[place]:
            self._rooms[place] = None
            self._rooms[place] = _empty(self._ffi, self._place, [size], np.uint8)
            self._sizes[place] = size
        view = self._ffi.get_global_func("runtime.TVMTensorCreateView")
        return view(self._rooms[place], self._ffi.Shape(shape), self._ffi.dtype(str(np.dtype(dtype))), 0)

    def close(self) -> None:
        """Gives back the events."""
        for event in (self.done, self.done_beside):
            self._cuda("cudaEventDestroy", event)


class _Flight:
    """A run that the device was asked for: it reads `given` and what is `kept`, and writes `outputs`."""

    def __init__(
        self, cuda: Cudart, slot: _Slot, event: ctypes.c_void_p, outputs: list[Any], given: list[Any], kept: Any
    ) -> None:
        self.slot, self.outputs, self.given = slot, outputs, given
        self._cuda, self._event, self._kept = cuda, event, kept
        self._landed = False

    def is_done(self) -> bool:
        """Whether the device has done with it."""
        return self._landed or self._cuda.is_done(self._event)

    def land(self) -> None:
        """Waits until the device has done with it."""
        if not self._landed:
            self._cuda("cudaEventSynchronize", self._event)
            self._landed = True


class _Asked(Pending):
    """A run of a GPU, or one that the session's thread will ask it for."""

    def __init__(self, session: GpuSession, flight: Future[_Flight] | _Flight) -> None:
        self._session, self._flight = session, flight

    def result(self, *, keep: bool = True) -> list[Any]:
        flight = self._flight if isinstance(self._flight, _Flight) else self._flight.result()
        return self._session._landed(flight, keep)


def _rows(array: Array, end: float | None) -> Array:
    """The rows before the first one that begins with a number, if there is such a number and such a row."""
    if end is None or not array.size:
        return array
    ends = np.flatnonzero(array[:, 0] == end)
    return array[: ends[0]] if len(ends) else array


def _empty(ffi: ModuleType, place: int, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
    """A tensor of the device."""
    allocate = ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    return allocate(ffi.Shape(shape), ffi.dtype(str(np.dtype(dtype))), ffi.device("cuda", place), None)


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
        hint = to_install("cuda-tvm") if "libcudart" in str(error) else _AGAIN
        raise TargetError(f"TVM's runtime for CUDA cannot be loaded: {error}", library, hint) from error


def _cudart() -> list[Path]:
    """libcudart where the loader does not look: of PyPI's nvidia-cuda-runtime, and of a CUDA toolkit."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    wheels = [path for place in places for path in sorted(Path(place).glob(f"*/lib/{CUDART}"))]
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return wheels + [path for home in homes for part in _TOOLKITS if (path := home / part / CUDART).is_file()]
