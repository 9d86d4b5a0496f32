"""Runs OpenVINO's IR: model.xml and model.bin, on CPUs and on Intel's GPUs and NPUs.

    precision   weights in model.bin    arithmetic (INFERENCE_PRECISION_HINT)
    fp32        float32                 float32, also where OpenVINO would choose bfloat16 by itself
    fp16        float16                 float16 where the device has it, float32 elsewhere
    bf16        float32                 bfloat16 where the device has it, float32 elsewhere
    int8        int8, else float32      8 bits where the graph has FakeQuantize, elsewhere as with bf16
    mixed       int8, else float32      8 bits where the graph has FakeQuantize, float32 elsewhere

The last column holds for CPUs and GPUs. An NPU has neither float32 nor bfloat16, and chooses by itself.

A model with batches of any size is compiled a second time, for batches of 1: fixed shapes are faster. What OpenVINO
compiled is kept in the cache folder, by the engine's sha256; without the weights, which it reads from the engine. Of an
engine in memory nothing is kept; its weights are read where they lie.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from dnc.errors import DncError, TargetError
from dnc.files.places import as_text, cache_dir, prune
from dnc.runtime.arithmetic import Arithmetic, of_isa
from dnc.runtime.forking import at_work
from dnc.runtime.manifest import MANIFEST
from dnc.runtime.options import Option, one_of
from dnc.runtime.runners import Runner, Session, runners
from dnc.runtime.runners.base import checked
from dnc.runtime.timing import typical, warm_up
from dnc.typing import Array

__all__ = ["MODEL", "WEIGHTS", "OpenvinoRunner", "OpenvinoSession", "import_openvino", "openvino_core", "reason"]

MODEL, WEIGHTS = "model.xml", "model.bin"
_PLACES = ("Exception from", "Check '", "To facilitate the conversion")
"""How lines of its messages start that are about its sources and its documentation."""
_CACHING = ("CACHE_DIR", "CACHE_MODE", "WEIGHTS_PATH")
_DEVICES = ("CPU", "GPU", "NPU", "AUTO")


def import_openvino() -> ModuleType:
    """openvino, whose telemetry stays off unless `opt_in_out --opt_in` has turned it on.

    Raises TargetError where it is installed but its libraries do not load.
    """
    try:
        with nullcontext() if "openvino" in sys.modules else _without_telemetry():
            return importlib.import_module("openvino")
    except ImportError as error:
        raise TargetError(f"openvino cannot be loaded: {error}", hint="install it again") from error


def openvino_core() -> Any:
    """The openvino.Core of this process, which lives as long as it does.

    A Core with the CPU's plugin gives the thread another stack for signals, and takes it back as if the last one were
    always the first to go. Where two went in the order in which they came, the thread's next signal, an interrupt for
    one, would be handled in memory that is free. A forked child has its own: it lacks the threads of its parent's.
    """
    return _core(os.getpid())


@functools.cache
def _core(process: int) -> Any:
    core = import_openvino().Core()
    _end_idle_threads_at_forks()
    return core


@functools.cache
def _end_idle_threads_at_forks() -> None:
    at_work.at_rest(_end_idle_threads)


def _end_idle_threads() -> None:
    """Ends the pools of threads that OpenVINO keeps of models that were released, for the next one like them.

    All Cores of a process share them. In a forked child, where the pools have no threads any more, such a model would
    be compiled by one of them, and that waits for ever. When the CPU's plugin goes, it gives up those that are
    idle; this one comes and goes in one thread, so that signals find the stack that they had (`openvino_core`).
    """
    core = import_openvino().Core()
    # Where there is no such plugin, there are no such pools.
    with suppress(RuntimeError):
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keeps openvino_telemetry from being imported: openvino then takes a stand-in of its own that does nothing.

    With it, the import itself writes a client's id below HOME and tells a web service. Without a word of the user's
    it does so, hence only a yes counts.
    """
    name = "openvino_telemetry"
    try:
        agreed = Path(f"~/intel/{name}").expanduser().read_text(encoding="utf-8").strip() == "1"
    except (OSError, ValueError, RuntimeError):
        agreed = False
    if agreed:
        yield
        return
    kept = sys.modules.pop(name, None)
    # Importing a module that is None here raises ImportError.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        # Another thread may have been here meanwhile.
        sys.modules.pop(name, None)
        if kept is not None:
            sys.modules[name] = kept


def _device(text: str) -> str:
    """Parses a device of OpenVINO, as CPU, GPU.1 or AUTO:GPU,CPU."""
    name = text.upper()
    if name.partition(":")[0].partition(".")[0] not in _DEVICES:
        raise ValueError(f"one of {', '.join(_DEVICES)}; GPU.1 for a second one, AUTO:GPU,CPU for an order")
    return name


def reason(error: Exception) -> str:
    """OpenVINO's message, without the place in its sources; raises MemoryError where that is what was missing."""
    if "bad_alloc" in str(error) or "bad allocation" in str(error):
        raise MemoryError(str(error)) from error
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_PLACES)]
    return " ".join(telling or lines)


class OpenvinoSession(Session):
    """Compiled models, and infer requests for each thread that runs at the same time."""

    def __init__(self, source: Path | tuple[memoryview, memoryview], device: str, config: Mapping[str, Any]) -> None:
        openvino = import_openvino()
        self._source = source
        """The file, or what is in model.xml and model.bin, which has to be there as long as what is compiled of it."""
        self._asked = device
        self._config = dict(config)
        self._lock = threading.Lock()
        try:
            self._core = openvino_core()
            self._check(device)
            model = self._read()
            # A port has several names where an output is an input unchanged; the node has ours.
            self._types = {port.node.friendly_name: np.dtype(port.element_type.to_dtype()) for port in model.inputs}
            self._alone = model if _fix_batch(model, openvino.PartialShape) else None
            first = self._compile(self._alone)
            running = first.get_property("EXECUTION_DEVICES")
        except RuntimeError as error:
            hint, where = "build the engine again", source if isinstance(source, Path) else None
            raise TargetError(f"OpenVINO refuses the model: {reason(error)}", where, hint) from error
        self._any: _Requests | None = None if self._alone is not None else _Requests(first)
        self._one: _Requests | None = None if self._alone is None else _Requests(first)
        self.device = ", ".join(running) if isinstance(running, list) else str(running)

    def _check(self, device: str) -> None:
        available = self._core.available_devices
        kinds = {name.partition(".")[0] for name in available}
        wanted = device.partition(":")[2] or device.partition(":")[0]
        for name in wanted.split(","):
            if name != "AUTO" and name not in available and name not in kinds:
                hint = f"there is {', '.join(available)}; a GPU or NPU needs its driver"
                raise TargetError(f"OpenVINO sees no device {name}", hint=hint)

    def _read(self) -> Any:
        """The model as it was written."""
        if isinstance(self._source, Path):
            return self._core.read_model(self._source)
        xml, weights = self._source
        return self._core.read_model(bytes(xml).decode(errors="replace"), _tensor_of(weights))

    def _compile(self, model: Any = None) -> Any:
        """A model; if not given the engine's, of its file, which starts faster from the cache."""
        if model is None:
            model = self._source if isinstance(self._source, Path) else self._read()
        return self._core.compile_model(model, self._asked, self._config)

    def _requests(self, count: int) -> _Requests:
        """Requests for batches of this size, compiled at the first use."""
        with self._lock:
            if self._alone is not None and count == 1:
                self._one = self._one or _Requests(self._compile(self._alone))
                return self._one
            if self._any is None:
                with self.opening():
                    self._any = _Requests(self._compile())
            return self._any

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Runs on whichever request is free. Inputs are read where they lie."""
        # For an input that is missing, a request would take what it was given the last time.
        checked("OpenVINO", inputs, self._types)
        count = next((len(array) for name, array in inputs.items() if name == "input" and array.ndim), 0)
        try:
            return self._requests(count).run(inputs)
        except RuntimeError as error:
            raise TargetError(f"OpenVINO failed: {reason(error)}") from error

    def profile(self, inputs: Mapping[str, Array], runs: int) -> list[tuple[str, float]]:
        """OpenVINO's performance counters, in whole microseconds."""
        openvino = import_openvino()
        # What is cached was compiled without counters.
        config = {name: value for name, value in self._config.items() if name not in _CACHING}
        try:
            with self.opening():
                model = self._read()
            model.reshape({name: openvino.PartialShape(array.shape) for name, array in inputs.items()})
            compiled = self._core.compile_model(model, self._asked, {**config, "PERF_COUNT": True})
            request = compiled.create_infer_request()
            table = []
            warm_up(lambda: request.infer(dict(inputs), share_inputs=True, share_outputs=True))
            for _ in range(runs):
                request.infer(dict(inputs), share_inputs=True, share_outputs=True)
                counters = request.profiling_info
                table.append([counter.real_time.total_seconds() for counter in counters])
        except RuntimeError as error:
            raise TargetError(f"OpenVINO failed: {reason(error)}") from error
        ran = openvino.ProfilingInfo.Status.EXECUTED
        pairs = zip(counters, typical(np.array(table)), strict=True)
        return [(counter.node_name, float(seconds)) for counter, seconds in pairs if counter.status == ran]


def _tensor_of(content: memoryview) -> Any:
    """Bytes for OpenVINO, where they lie. It writes into no weights, but takes no array that is only to be read."""
    array = np.frombuffer(content, np.uint8)
    if array.size:
        array = np.ctypeslib.as_array((ctypes.c_uint8 * array.size).from_address(array.ctypes.data))
    return import_openvino().Tensor(array, shared_memory=array.size > 0)


def _fix_batch(model: Any, shape_of: Any) -> bool:
    """Fixes the batch of a model at 1, if that is all that is free in its inputs."""
    fixed = {}
    free = False
    for port in model.inputs:
        first, *rest = port.partial_shape
        if any(side.is_dynamic for side in rest):
            return False
        free = free or first.is_dynamic
        fixed[port.any_name] = shape_of([1 if first.is_dynamic else first, *rest])
    if free:
        model.reshape(fixed)
    return free


class _Requests:
    """Infer requests of one compiled model: as many as have run at the same time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._free: deque[Any] = deque()

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs, copied out of the request."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        outputs = [np.array(request.get_output_tensor(place).data) for place in range(len(self._compiled.outputs))]
        # A request that failed is not used again.
        self._free.append(request)
        return outputs


@runners.register
class OpenvinoRunner(Runner):
    """OpenVINO."""

    name: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    known_options: ClassVar[Sequence[Option]] = (
        Option(
            "precision",
            "fp32",
            "fp16: half the file; bf16: faster on new CPUs; int8, mixed: 8 bits, all over or where they cost little",
            one_of("fp32", "fp16", "bf16", "int8", "mixed"),
        ),
        Option("device", "CPU", "CPU, GPU, NPU, AUTO; GPU.1 for a second one", _device, at_load=True),
        Option("hint", "latency", "latency, or throughput", one_of("latency", "throughput"), at_load=True),
        Option("cache", "on", "off: the model is compiled at every start", one_of("on", "off"), at_load=True),
    )

    @property
    def arithmetic(self) -> Arithmetic | None:
        """OpenVINO chooses its kernels by the CPU that it finds; its GPUs and NPUs add up 8-bit numbers exactly."""
        return None if self.options["device"].startswith(("GPU", "NPU")) else of_isa()

    def missing(self) -> str:
        return "" if importlib.util.find_spec("openvino") else "openvino"

    def open(self, folder: Path, threads: int | None = None) -> Session:
        device, config = self._config(threads)
        cache = _cache(folder) if self.options["cache"] == "on" else None
        if cache is not None:
            config |= {"CACHE_DIR": str(cache), "CACHE_MODE": "OPTIMIZE_SIZE", "WEIGHTS_PATH": str(folder / WEIGHTS)}
        return OpenvinoSession(folder / MODEL, device, config)

    def open_memory(self, files: Mapping[str, memoryview], threads: int | None = None) -> Session:
        xml, weights = (files.get(name, memoryview(b"")) for name in (MODEL, WEIGHTS))
        return OpenvinoSession((xml, weights), *self._config(threads))

    def _config(self, threads: int | None) -> tuple[str, dict[str, Any]]:
        """The device, and what OpenVINO is told."""
        device = self.options["device"]
        config: dict[str, Any] = {"PERFORMANCE_HINT": self.options["hint"].upper()}
        if not device.startswith("NPU"):
            config["INFERENCE_PRECISION_HINT"] = self._arithmetic(device)
        if threads is not None and device.startswith(("CPU", "AUTO")):
            config["INFERENCE_NUM_THREADS"] = threads
        return device, config

    def _arithmetic(self, device: str) -> str:
        precision: str = self.options["precision"]
        if precision != "fp16":
            # What is left beside 8 bits gains as much from bfloat16, and its rounding is lost in theirs.
            return "bf16" if precision in ("bf16", "int8") else "f32"
        # Asked for float16 that a CPU has not, OpenVINO takes bfloat16, which has 3 bits less.
        able = openvino_core().get_property(device.partition(":")[0], "OPTIMIZATION_CAPABILITIES")
        return "f16" if "FP16" in able else "f32"


_CACHE_LIMIT = 2 << 30
"""Bytes of all that OpenVINO compiled and keeps."""


def _cache(folder: Path) -> Path | None:
    """Folder for what OpenVINO compiled of an engine; None for a folder that is no finished engine."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        digests = "".join(files[name]["sha256"] for name in (MODEL, WEIGHTS))
        place = cache_dir(to_write=True) / "openvino" / hashlib.sha256(digests.encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)
        prune(place.parent, _CACHE_LIMIT, [place])
    except (DncError, OSError, ValueError, LookupError, TypeError):
        return None
    return as_text(place) if os.access(place, os.W_OK) else None
