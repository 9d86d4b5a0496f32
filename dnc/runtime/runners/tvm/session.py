"""Runs model.so: needs numpy, tvm_ffi and libtvm_runtime.so, nothing of TVM's compiler and none of its Python.

TVM keeps one pool of workers for each thread that calls it, sizes it once, binds it to processors, and leaves it behind
in a process that forks. So a session never runs in the caller's thread: it has threads of its own, as many as have run
at the same time, each with its own pool of `threads` workers and its own virtual machine; they share the code and the
weights. A forked child starts new ones.

An engine for batches of any size has code for one image: in model.json, "N" is the first side of those inputs and
outputs of which each image has its own. The images of a batch run at the same time, each on a processor of its own, so
that no kernel waits for others. The last ones, when they are fewer than the processors, run one after the other on all
of them.

Inputs are read where they lie, if they lie as TVM wants it (one block, on a border of 64 bytes), else copied once;
outputs are memory of TVM's that the arrays keep, but for those that the graph takes over from elsewhere
(`emit.shared_outputs`), and those of a batch.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dnc.errors import TargetError
from dnc.files.reading import read_json
from dnc.runtime.processor import architecture, missing_extensions
from dnc.runtime.runners.base import Session, checked
from dnc.runtime.runners.tvm.instrument import measured
from dnc.runtime.timing import processors
from dnc.typing import Array

__all__ = [
    "MODEL_JSON",
    "MODEL",
    "RUNTIME",
    "SETTINGS",
    "TvmSession",
    "find_library",
    "load_runtime",
    "own_name",
    "reason",
    "runtime_library",
    "spelled",
]

MODEL, MODEL_JSON, RUNTIME = "model.so", "model.json", "libtvm_runtime.so"
_AGAIN = "build the engine again"
_ALIGNMENT = 64
"""Bytes; what LLVM was told of every array."""
_POOLED = 2
"""The allocator of TVM that keeps memory for the next run."""
_CPU = 1
"""DLPack's device type."""
_FREE = "N"
"""The first side of inputs and outputs of which each image has its own, where a run takes any number of images."""
SETTINGS = {
    # By default it binds the caller's thread to processors, for good, and half of all threads are thought to be
    # hyper-threads.
    "TVM_BIND_THREADS": "0",
    "TVM_NUM_THREADS": str(processors()),
    # How often an idle worker yields before it sleeps: enough for the time between two functions of a network. By
    # default it goes on for some milliseconds after a run, in the way of whatever runs then.
    "TVM_THREAD_POOL_SPIN_COUNT": "3000",
}
"""What TVM reads from the environment, unless the user has set it."""


def runtime_library() -> Path | None:
    """The libtvm_runtime.so of an installed TVM, found without importing it; None if there is none."""
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        library = Path(folder) / "lib" / RUNTIME
        if library.is_file():
            return library
    return None


def find_library(name: str, folder: Path, wanted: Mapping[str, str]) -> Path:
    """A library of TVM's runtime: an installed TVM's, if it has the engine's version; else the engine's own, or any.
    Raises TargetError if there is none."""
    runtime = runtime_library()
    installed = None if runtime is None else runtime.with_name(name)
    try:
        same = version("apache-tvm") == wanted.get("apache-tvm")
    except PackageNotFoundError:
        same = True
    libraries = [path for path in (installed if same else None, folder / name, installed) if path is not None]
    library = next((path for path in libraries if path.is_file()), None)
    if library is None:
        hint = "pip install apache-tvm, or build the engine with --option runtime=bundled"
        raise TargetError(f"there is no {name}", folder, hint)
    return library


_lock = threading.Lock()


def load_runtime(folder: Path, wanted: Mapping[str, str]) -> ModuleType:
    """tvm_ffi, with TVM's runtime in the process.

    One process can have one runtime. An installed TVM's comes first, where it is the engine's version: if the program
    imports tvm later, that finds its own.
    """
    try:
        ffi = importlib.import_module("tvm_ffi")
    except ImportError as error:
        hint = f"pip install apache-tvm-ffi=={wanted.get('apache-tvm-ffi', '')}".removesuffix("==")
        raise TargetError(f"tvm_ffi cannot be loaded: {error}", folder, hint) from error
    with _lock:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
            return ffi
        library = find_library(RUNTIME, folder, wanted)
        try:
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise TargetError(f"TVM's runtime cannot be loaded: {error}", library, _AGAIN) from error
    return ffi


_seen: dict[Path, list[tuple[int, int, int]]] = {}


def own_name(library: Path) -> str:
    """A spelling of a library's path that no other file has had in this process.

    The system's loader goes by names: while a library is loaded, it takes what has the same name for that library, even
    where another file has taken its place.
    """
    found = library.stat()
    with _lock:
        files = _seen.setdefault(library, [])
        file = (found.st_dev, found.st_ino, found.st_ctime_ns)
        if file not in files:
            files.append(file)
        number = files.index(file)
    return f"{library.parent}/{spelled(number)}{library.name}"


def spelled(number: int) -> str:
    """Nothing, as a part of a path, in a way of its own for each number."""
    return "".join("./" if digit == "1" else "/" for digit in f"{number:b}") if number else ""


class TvmSession(Session):
    """model.so on this machine's processors.

    Args:
        threads: how many workers one run has, at most as many as there are processors.

    Raises:
        TargetError: the engine is for another processor, or cannot be loaded.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        try:
            description = read_json(folder / MODEL_JSON)
            machine, needed = architecture(description["triple"]), list(description["extensions"])
            self._inputs = {entry["name"]: np.dtype(entry["dtype"]) for entry in description["inputs"]}
            self._of_each = [entry["shape"][:1] == [_FREE] for entry in description["inputs"]]
            self._given_of_each = [entry["shape"][:1] == [_FREE] for entry in description["outputs"]]
            self._shared = [entry["name"] in description["shared"] for entry in description["outputs"]]
            versions = dict(description["versions"])
            self._kernels = description.get("kernels", ())
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TargetError(f"cannot read {MODEL_JSON}: {error}", folder, _AGAIN) from error
        if machine != architecture():
            what = f"the engine is for {machine}, this machine is {architecture()}"
            raise TargetError(what, folder, "run it there, or compile it for this machine: --target tvm")
        missing = missing_extensions(needed, machine)
        if missing:
            what = f"the engine is for {description['mcpu']}: this processor lacks {', '.join(missing)}"
            any_one = "x86-64-v2" if machine == "x86_64" else "generic"
            raise TargetError(what, folder, f"{_AGAIN} with --option mcpu=host, here, or mcpu={any_one} for any")
        self._ffi = load_runtime(folder, versions)
        self._path = folder / MODEL
        self._threads = threads
        self._owner = os.getpid()
        self._free: dict[int | None, deque[_Worker]] = defaultdict(deque)
        # The first one shows whether the engine loads at all.
        first = _Worker(self._ffi, self._path, threads)
        self._free[threads].append(first)
        self._processors = first.threads
        self.device = f"CPU ({description['mcpu']}, TVM)"

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Runs on whichever of the session's threads are free."""
        arrays = checked("TVM", inputs, self._inputs)
        count = self._count(arrays)
        if count != 1:
            results = zip(*self._batch(arrays, count), strict=True)
            return [_joined(parts, each) for parts, each in zip(results, self._given_of_each, strict=True)]
        with self._worker(self._threads) as worker:
            outputs = worker.run(list(map(_aligned, arrays)))
        return [np.array(y) if shared else y for y, shared in zip(outputs, self._shared, strict=True)]

    def profile(self, inputs: Mapping[str, Array], runs: int) -> list[tuple[str, float]]:
        """Times each kernel, in a thread of its own: see `dnc.runtime.runners.tvm.instrument`. Of a batch the first
        image runs, on as many threads as most of its images do, and all are taken to be like it."""
        arrays = checked("TVM", inputs, self._inputs)
        count = self._count(arrays)
        spread = self._spread_of(count) > 0
        # It does not run fast any more afterwards, and is not used again.
        worker = self._opened(1 if spread else self._threads)
        timed = worker.profile(self._image(arrays, 0), runs, self._kernels)
        return [(nodes, seconds * count / (self._processors if spread else 1)) for nodes, seconds in timed]

    def _count(self, arrays: Sequence[Array]) -> int:
        """Of how many images the inputs are; 1 for an engine that takes one size alone. Raises TargetError if there is
        no image, or they are not of the same number."""
        counts = {array.shape[:1] for array, each in zip(arrays, self._of_each, strict=True) if each}
        count = int(max(counts, default=(1,))[0]) if () not in counts else 0
        if len(counts) > 1 or not count:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(self._inputs, arrays, strict=True))
            raise TargetError(f"TVM failed: the inputs are no images, or of different numbers of them: {shapes}")
        return count

    def _image(self, arrays: Sequence[Array], place: int) -> list[Array]:
        """The inputs for one image of a batch, as TVM can read them."""
        pairs = zip(arrays, self._of_each, strict=True)
        return [_aligned(array[place : place + 1] if each else array) for array, each in pairs]

    def _batch(self, arrays: Sequence[Array], count: int) -> list[list[Array]]:
        """The outputs of each image."""
        image, spread = partial(self._image, arrays), self._spread_of(count)
        found = self._images([1] * self._processors, range(spread), image)
        found |= self._images([self._threads], range(spread, count), image)
        return [found[place] for place in range(count)]

    def _spread_of(self, count: int) -> int:
        """How many of so many images run on one processor each."""
        return count - count % self._processors if self._processors > 1 and count > 1 else 0

    def _images(
        self, threads: Sequence[int | None], places: range, image: Callable[[int], list[Array]]
    ) -> dict[int, list[Array]]:
        """The outputs of images by their places: each runs on whichever is free of workers of so many threads."""
        if not places:
            return {}
        with ExitStack() as stack:
            workers = [stack.enter_context(self._worker(number)) for number in threads]
            left = iter(places)
            running = [worker.start(left, image) for worker in workers]
            # Whatever fails, nobody reads the inputs any more afterwards.
            wait(running)
            return {place: outputs for future in running for place, outputs in future.result().items()}

    @contextmanager
    def _worker(self, threads: int | None) -> Iterator[_Worker]:
        """A worker of so many threads that nobody else has meanwhile."""
        if self._owner != os.getpid():
            # In this order: another thread must not see the parent's workers as its own.
            self._free = defaultdict(deque)
            self._owner = os.getpid()
        try:
            worker = self._free[threads].pop()
        except IndexError:
            worker = self._opened(threads)
        yield worker
        # One that failed, or whose caller was interrupted, is not used again.
        self._free[threads].append(worker)

    def _opened(self, threads: int | None) -> _Worker:
        with self.opening():
            return _Worker(self._ffi, self._path, threads)


def _joined(parts: Sequence[Array], of_each: bool) -> Array:
    """An output for a batch, of what its images gave: detections, which are not of each image, are one list of rows,
    best first, that begin with the image's number and have the score in their third column."""
    joined = np.concatenate(parts)
    if of_each:
        return joined
    joined[:, 0] = np.repeat(np.arange(len(parts)), [len(rows) for rows in parts])
    return joined[np.argsort(-joined[:, 2], kind="stable")]


def _aligned(array: Array) -> Array:
    """The array, or a copy that TVM can read."""
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % _ALIGNMENT == 0:
        return array
    room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class _Worker:
    """A thread with a virtual machine and a pool of TVM's; it ends with the object."""

    def __init__(self, ffi: ModuleType, path: Path, threads: int | None) -> None:
        self._ffi = ffi
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dnc-tvm")
        self._main = self._thread.submit(self._open, path, threads).result()

    threads: int
    """How many its pool has."""

    def _open(self, path: Path, threads: int | None) -> Any:
        try:
            if threads == 1:
                # A list of one processor, which nothing is bound to, keeps TVM from starting threads for others.
                self._ffi.get_global_func("runtime.config_threadpool")(1, 1, ["0"])
            elif threads is not None:
                self._ffi.get_global_func("runtime.config_threadpool")(1, threads)
            self.threads = int(self._ffi.get_global_func("runtime.NumThreads")())
            machine = self._ffi.load_module(own_name(path), keep_module_alive=False)["vm_load_executable"]()
            machine["vm_initialization"](_CPU, 0, _POOLED)
            # The function alone does not keep the machine.
            self._machine = machine
            return machine["main"]
        except Exception as error:
            # tvm_ffi raises the builtin class that TVM's message names.
            raise TargetError(f"TVM refuses the engine: {reason(error)}", path, _AGAIN) from error

    def run(self, arrays: list[Array]) -> list[Array]:
        """The outputs, which are memory of their own."""
        return self._thread.submit(self._run, arrays).result()

    def start(self, left: Iterator[int], image: Callable[[int], list[Array]]) -> Future[dict[int, list[Array]]]:
        """Runs images by their places as long as some are left, which other workers take as well."""
        return self._thread.submit(lambda: {place: self._run(image(place)) for place in left})

    def profile(self, arrays: list[Array], runs: int, kernels: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
        """See `dnc.runtime.runners.tvm.instrument`; it does not run fast any more afterwards."""
        task = partial(measured, self._ffi, self._machine, partial(self._run, arrays), runs, kernels)
        return self._thread.submit(task).result()

    def _run(self, arrays: list[Array]) -> list[Array]:
        try:
            outputs = self._main(*(self._ffi.from_dlpack(array) for array in arrays))
        except Exception as error:
            raise TargetError(f"TVM failed: {reason(error)}") from error
        return [np.from_dlpack(output) for output in outputs]


def reason(error: Exception) -> str:
    """The first line of what TVM says; the others are its stack."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
