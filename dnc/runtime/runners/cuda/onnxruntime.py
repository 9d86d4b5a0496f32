"""ONNX Runtime on an NVIDIA GPU: its TensorRT provider and its CUDA provider.

Which provider runs an engine is decided where it is opened:

    option provider    what is tried
    auto               TensorRT where it is installed, else CUDA; in float32 see below
    tensorrt           TensorRT; what it does not take of a network is CUDA's
    cuda               CUDA

ONNX Runtime itself says of a provider that does not load nothing but a line in its log, and runs on the CPU. Here that
is an error, with that line: it is read from a process of its own, in which the same is tried once more. Only with
option fallback=on it is a warning, and the CPU runs the engine.

Float32 is real float32. The CUDA provider has an option for that (use_tf32); TensorRT's has none, and multiplies in
TF32, with 10 bits, unless NVIDIA_TF32_OVERRIDE=0 is in the environment before the first of its engines is built. So
auto takes it for float32 only where that is set, and tensorrt refuses without it; precision tf32 asks for TF32.

Arrays are bound to memory of the device that is kept for as many shapes as were run lately, so that a run allocates
nothing. With graphs=on, the kernels of a run are recorded by the first one and launched as one CUDA graph afterwards,
always on the same memory, one run after the other.

What TensorRT builds, in minutes, is kept in the cache folder tensorrt/, by the engine's digest; what it learned of
kernels' times is kept beside, for all engines. Of the former, those that were used last stay, up to 8 GiB.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dnc.errors import DncError, TargetError, warn
from dnc.files.places import cache_dir, prune
from dnc.runtime.devices import is_on_device
from dnc.runtime.manifest import MANIFEST
from dnc.runtime.options import CALIBRATED
from dnc.runtime.runners.base import Pending, Session, checked
from dnc.runtime.runners.onnx import MODEL, OnnxSession, import_onnxruntime
from dnc.typing import Array

__all__ = ["CudaSession", "open_engine", "provider_options", "providers_for", "tensorrt_is_installed"]

CPU = "CPUExecutionProvider"
PROVIDERS = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""What ONNX Runtime calls them."""
TITLES = {"tensorrt": "TensorRT", "cuda": "CUDA"}

_REAL_FLOAT32 = "NVIDIA_TF32_OVERRIDE"
_FALLBACK = "--option fallback=on, or dnc.load(…, fallback='on'), runs it on the CPU"
_GPU_BUILD = 'pip uninstall onnxruntime; pip install "onnxruntime-gpu[cuda,cudnn]"'
_REMEDIES = (
    (r"libcuda\.so|driver|no CUDA-capable|CUDA failure", "nvidia-smi tells of the driver; docker needs --gpus all"),
    (r"nvinfer|nvonnxparser|TensorRT", "pip install 'tensorrt-cu{cuda}=={tensorrt}.*', or --option provider=cuda"),
    (r"lib(cu|nv)\w+\.so", 'pip install "onnxruntime-gpu[cuda,cudnn]", which brings NVIDIA\'s libraries'),
    (r"[Dd]evice ID", "nvidia-smi -L numbers the GPUs: --option device=N"),
)
"""What mends what onnxruntime's log says."""
_OF_THE_MODEL = ("InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile", "NotImplemented")
"""onnxruntime's exceptions for models that no provider would take."""
_KEPT_SHAPES = 8
_CACHE_LIMIT = 8 << 30
"""Bytes of TensorRT's engines."""
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_ASK = """
import json, sys, onnxruntime
if hasattr(onnxruntime, "preload_dlls"): onnxruntime.preload_dlls()
onnxruntime.InferenceSession(sys.argv[1], providers=[tuple(json.loads(sys.argv[2]))], enable_fallback=0)
"""

Arrays = Mapping[str, Array]
Settings = Mapping[str, Mapping[str, str]]
"""Options of providers, by ONNX Runtime's names of these."""


def tensorrt_is_installed() -> bool:
    """Whether there is a TensorRT, as a Python package or as a library of the system."""
    if importlib.util.find_spec("tensorrt_libs") is not None:
        return True
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return ctypes.util.find_library("nvinfer") is not None or any(
        next(Path(folder).glob("libnvinfer.so*"), None) is not None for folder in folders if folder
    )


def providers_for(options: Mapping[str, Any]) -> list[str]:
    """Providers to try, in order: "tensorrt", "cuda". Raises TargetError if TensorRT is wanted for float32, and would
    compute in TF32."""
    wanted, precision = options["provider"], options["precision"]
    rounds = precision == "fp32" and os.environ.get(_REAL_FLOAT32) != "0"
    if precision in CALIBRATED:
        return ["tensorrt"]
    if wanted == "tensorrt" and rounds:
        hint = f"export {_REAL_FLOAT32}=0 before the program starts, or --precision tf32, or --option provider=cuda"
        raise TargetError(f"TensorRT multiplies float32 numbers in TF32 unless {_REAL_FLOAT32}=0 is set", hint=hint)
    if wanted != "auto":
        return [wanted]
    return ["cuda"] if rounds or not tensorrt_is_installed() else ["tensorrt", "cuda"]


def provider_options(name: str, options: Mapping[str, Any], cache: tuple[Path, Path] | None) -> dict[str, str]:
    """ONNX Runtime's options of a provider: TensorRT's say True or False, CUDA's 1 or 0.

    Args:
        name: "tensorrt" or "cuda".
        cache: folders for TensorRT's engines and for its times; None for none.
    """
    precision = options["precision"]
    graphs = options["graphs"] == "on"
    if name == "cuda":
        return {
            "device_id": str(options["device"]),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": str(int(precision == "tf32")),
            "prefer_nhwc": str(int(options["layout"] == "nhwc")),
            "enable_cuda_graph": str(int(graphs)),
        }
    settings = {
        "device_id": str(options["device"]),
        "trt_fp16_enable": str(precision == "fp16"),
        "trt_int8_enable": str(precision in CALIBRATED),
        "trt_cuda_graph_enable": str(graphs),
        "trt_engine_cache_enable": str(cache is not None),
        "trt_timing_cache_enable": str(cache is not None),
    }
    if cache is not None:
        settings |= {"trt_engine_cache_path": str(cache[0]), "trt_timing_cache_path": str(cache[1])}
    return settings


def open_engine(folder: Path, options: Mapping[str, Any], threads: int | None = None) -> Session:
    """A session of the engine's model.onnx.

    Args:
        threads: for what runs on the CPU.

    Raises:
        TargetError: no provider loads that is wanted, and none else may run it; or the model is refused.
    """
    runtime = import_onnxruntime()
    _load_libraries(runtime)
    available = runtime.get_available_providers()
    path = folder / MODEL
    wanted = providers_for(options)
    cached = options["cache"] == "on" and "tensorrt" in wanted
    cache = _cache(folder, f"{runtime.__version__} {options['precision']}") if cached else None
    failed: dict[str, str] = {}
    for name in wanted:
        if PROVIDERS[name] not in available:
            failed[name] = f"this onnxruntime has no such provider, only {', '.join(map(_short, available))}"
            continue
        settings = {PROVIDERS[name]: provider_options(name, options, cache)}
        if name == "tensorrt":
            # One graph of all, or none.
            settings[PROVIDERS["cuda"]] = provider_options("cuda", {**options, "graphs": "off"}, None)
        try:
            session = CudaSession(path, settings, threads, graphs=options["graphs"] == "on")
        except TargetError as error:
            if type(error.__cause__).__name__ in _OF_THE_MODEL or error.__cause__ is None:
                raise
            failed[name] = _why(path, PROVIDERS[name], settings) or str(error.__cause__).strip()
            continue
        if session.providers[0] != PROVIDERS[name]:
            failed[name] = _why(path, PROVIDERS[name], settings) or "onnxruntime does not say why"
            continue
        if failed:
            warn(TargetError(f"{_told(failed)}; running on {session.device}", folder, "--option provider=cuda"))
        return session
    hint = _remedy(" ".join(failed.values()), runtime)
    if options["fallback"] != "on":
        raise TargetError(f"the engine cannot run on a GPU: {_told(failed)}", folder, f"{hint}; {_FALLBACK}")
    warn(TargetError(f"{_told(failed)}; running on the CPU", folder, hint))
    return OnnxSession(path, [CPU], threads)


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _told(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{TITLES[name]} did not load: {reason}" for name, reason in failed.items())


def _remedy(reasons: str, runtime: Any) -> str:
    """The command that mends what is the matter."""
    for pattern, hint in _REMEDIES:
        if re.search(pattern, reasons):
            release = re.search(r"libnv\w+\.so\.(\d+)", reasons)
            major = str(getattr(runtime, "cuda_version", "") or "12").partition(".")[0]
            return hint.format(cuda=major, tensorrt=release[1] if release else "10")
    return _GPU_BUILD


def _load_libraries(runtime: Any) -> None:
    """NVIDIA's libraries of PyPI's packages, which are not where the system looks for libraries."""
    # It prints what it misses; what matters of that is in the reason.
    with contextlib.redirect_stdout(io.StringIO()):
        if hasattr(runtime, "preload_dlls"):
            runtime.preload_dlls()
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt_libs")


def _why(path: Path, provider: str, settings: Settings) -> str:
    """Reason in onnxruntime's log why a provider does not load; empty if there is none."""
    request = json.dumps([provider, settings[provider]])
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-c", _ASK, str(path), request],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    log = re.sub(r"\x1b\[[\d;]*m", "", result.stderr)
    for pattern in (r"with error: (.+)", r"(CUDA failure \d+: [^;\n]+)", rf"Failed to create {provider}\. (.+)"):
        if match := re.search(pattern, log):
            return match[1].strip()
    return ""


def _cache(folder: Path, conditions: str) -> tuple[Path, Path] | None:
    """Folders for TensorRT's engines of a finished engine folder, and for its times; None if it may keep nothing.

    Args:
        conditions: what else its engines depend on. The GPU and TensorRT's version are in their names.
    """
    try:
        root = cache_dir(to_write=True) / "tensorrt"
        digest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        place = root / hashlib.sha256(f"{digest} {conditions}".encode()).hexdigest()[:16]
        times = root / "times"
        for file in (place, times):
            file.mkdir(parents=True, exist_ok=True)
        os.utime(place)
        prune(root, _CACHE_LIMIT, {place, times})
    except (DncError, OSError, ValueError, LookupError, TypeError):
        return None
    return (place, times) if os.access(place, os.W_OK) else None


class CudaSession(OnnxSession):
    """An onnxruntime.InferenceSession on a GPU.

    Args:
        settings: options of providers, in the order in which they are to take nodes.
        threads: for what runs on the CPU.
        graphs: the first provider records CUDA graphs.

    Raises:
        TargetError: onnxruntime raises something; or the model's shapes are not fixed, as graphs need them.
    """

    apart: ClassVar[bool] = True

    def __init__(self, path: Path, settings: Settings, threads: int | None, graphs: bool = False) -> None:
        self._settings = settings
        super().__init__(path, list(settings), threads)
        first = next(iter(settings.values()), {})
        self._place = ("cuda" if self.providers[0] != CPU else "cpu", int(first.get("device_id", "0")))
        inputs = self._session.get_inputs()
        self._types = {meta.name: np.dtype(_TYPES[meta.type]) for meta in inputs}
        self._shapes = {meta.name: meta.shape for meta in inputs}
        self._lock = threading.Lock()
        self._graphs = graphs
        self._turn: Any = threading.Lock() if graphs else contextlib.nullcontext()
        self._free: list[_Bound] = []
        free = [name for name, shape in self._shapes.items() if any(not isinstance(side, int) for side in shape)]
        if graphs and free:
            what = f"CUDA graphs need fixed shapes, and {', '.join(free)} has none"
            raise TargetError(what, path, "compile it with --batch N, or leave out graphs=on")

    def _open(self, providers: Sequence[str], options: Any) -> Any:
        # Where it fell back by itself it would print that, among what a program prints.
        return import_onnxruntime().InferenceSession(
            str(self._model),
            options,
            providers=[(name, dict(self._settings.get(name, {}))) for name in providers],
            enable_fallback=0,
        )

    def run(self, inputs: Arrays) -> list[Array]:
        """Copies to the device, runs there, and copies back."""
        return self._run(inputs, None)

    def submit(
        self, inputs: Mapping[str, Any], wanted: Container[int] | None = None, *, on_device: bool = False
    ) -> Pending:
        """As `run`, to its end, without copies of what nobody wants. Arrays are the host's."""
        if on_device or any(not isinstance(array, np.ndarray) and is_on_device(array) for array in inputs.values()):
            what = "back end onnxruntime takes and gives arrays of the host alone"
            raise TargetError(what, hint="compile it with --backend tvm, or copy them: x.cpu().numpy()")
        return Pending(self._run(inputs, wanted))

    def _run(self, inputs: Arrays, wanted: Container[int] | None) -> list[Array]:
        # onnxruntime would copy an array of another type, or of another shape, as it lies.
        checked("ONNX Runtime", inputs, self._types, self._shapes)
        shapes = {name: np.shape(array) for name, array in inputs.items()}
        try:
            with self._turn:
                bound = self._take(shapes)
                outputs = bound.run(self._session, inputs, wanted)
                if not self._graphs:
                    # Memory of a run that failed is not used again.
                    self._keep(bound)
        except Exception as error:
            raise TargetError(f"ONNX Runtime failed: {error}") from error
        return outputs

    def device_seconds(self, inputs: Arrays, runs: int) -> float:
        """With inputs and outputs on the device; ONNX Runtime waits for it at the end of each run."""
        self.run(inputs)
        with self._turn:
            bound = self._take({name: np.shape(array) for name, array in inputs.items()})
            try:
                start = time.perf_counter()
                for _ in range(runs):
                    self._session.run_with_iobinding(bound.binding)
                return (time.perf_counter() - start) / runs
            except Exception as error:
                raise TargetError(f"ONNX Runtime failed: {error}") from error
            finally:
                if not self._graphs:
                    self._keep(bound)

    def _take(self, shapes: Mapping[str, tuple[int, ...]]) -> _Bound:
        """Memory for arrays of these shapes, which no other thread has. With graphs it is always the same, whatever
        ended the runs before: what was recorded goes on reading and writing it."""
        with self._lock:
            for place, free in enumerate(self._free):
                if free.shapes == shapes:
                    return free if self._graphs else self._free.pop(place)
        bound = _Bound(self._session, shapes, self._place)
        if self._graphs:
            self._keep(bound)
        return bound

    def _keep(self, bound: _Bound) -> None:
        with self._lock:
            self._free = [*self._free[1 - _KEPT_SHAPES :], bound]


class _Bound:
    """Memory of the device for the inputs, and for the outputs whose shapes these decide."""

    def __init__(self, session: Any, shapes: Mapping[str, tuple[int, ...]], place: tuple[str, int]) -> None:
        self.shapes = dict(shapes)
        self.binding = session.io_binding()
        sides: dict[str, int] = {}
        allocate = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        self._values = {}
        for meta in session.get_inputs():
            shape = self.shapes[meta.name]
            sides |= {side: size for side, size in zip(meta.shape, shape, strict=True) if isinstance(side, str)}
            self._values[meta.name] = allocate(list(shape), _TYPES[meta.type], *place)
            self.binding.bind_ortvalue_input(meta.name, self._values[meta.name])
        for meta in session.get_outputs():
            shape = tuple(sides.get(side, side) for side in meta.shape)
            if all(isinstance(side, int) for side in shape):
                self.binding.bind_ortvalue_output(meta.name, allocate(list(shape), _TYPES[meta.type], *place))
            else:
                # As many as there are detections.
                self.binding.bind_output(meta.name, "cpu")

    def run(self, session: Any, inputs: Arrays, wanted: Container[int] | None) -> list[Array]:
        """The outputs, in memory of their own; those that nobody wants are empty."""
        for name, value in self._values.items():
            value.update_inplace(np.ascontiguousarray(inputs[name]))
        session.run_with_iobinding(self.binding)
        if wanted is None:
            return list(self.binding.copy_outputs_to_cpu())
        values = enumerate(self.binding.get_outputs())
        return [value.numpy() if place in wanted else np.empty(0, np.float32) for place, value in values]
