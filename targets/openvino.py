"""Target `openvino`: OpenVINO on CPUs, and on Intel's GPUs and NPUs. The engine is IR: model.xml and model.bin.

    precision   weights in model.bin    arithmetic (INFERENCE_PRECISION_HINT)
    fp32        float32                 float32, also where OpenVINO would choose bfloat16 by itself
    fp16        float16                 float16 where the device has it, float32 elsewhere
    bf16        float32                 bfloat16 where the device has it, float32 elsewhere
    int8        int8, else float32      8 bits where the graph has FakeQuantize, elsewhere as with bf16
    mixed       int8, else float32      8 bits where the graph has FakeQuantize, float32 elsewhere

The last column holds for CPUs and GPUs. An NPU has neither float32 nor bfloat16, and chooses by itself.

Preprocessing (--input u8) and decoding are part of the graph as for every target, in Darknet's own arithmetic, which
OpenVINO's PrePostProcessor does not have. What OpenVINO's own tools want to know is in model.xml under rt_info /
model_info: in the names and units of its Model API (labels, mean_values, scale_values, resize_type,
reverse_input_channels) where that has them, and the heads as in engine.json.

A model with batches of any size is compiled a second time, for batches of 1: fixed shapes are faster. What OpenVINO
compiled is kept in the cache folder, by the engine's sha256; without the weights, which it reads from the engine.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from dnc.bundle import MANIFEST
from dnc.errors import TargetError
from dnc.targets import Option, Session, Target, targets
from dnc.targets.base import Progress, one_of, silent
from dnc.timing import typical, warm_up

if TYPE_CHECKING:
    import onnx_ir as ir

    from dnc.bundle import Bundle
    from dnc.passes import Pass
    from dnc.quantization import Recipe

__all__ = ["Openvino", "OpenvinoSession"]

MODEL, WEIGHTS = "model.xml", "model.bin"
_PLACES = ("Exception from", "Check '", "To facilitate the conversion")
"""How lines of its messages start that are about its sources and its documentation."""
_CACHING = ("CACHE_DIR", "CACHE_MODE", "WEIGHTS_PATH")
_DEVICES = ("CPU", "GPU", "NPU", "AUTO")


def import_openvino() -> ModuleType:
    """openvino; raises TargetError where it is installed but its libraries do not load."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise TargetError(f"openvino cannot be loaded: {error}", hint="install it again") from error


def _device(text: str) -> str:
    """For `Option.parse`: a device of OpenVINO, as CPU, GPU.1 or AUTO:GPU,CPU."""
    name = text.upper()
    if name.partition(":")[0].partition(".")[0] not in _DEVICES:
        raise ValueError(f"one of {', '.join(_DEVICES)}; GPU.1 for a second one, AUTO:GPU,CPU for an order")
    return name


def _reason(error: Exception) -> str:
    """What OpenVINO has to say, without where in its sources it says so."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_PLACES)]
    return " ".join(telling or lines)


class OpenvinoSession(Session):
    """Compiled models, and infer requests for each thread that runs at the same time."""

    def __init__(self, path: Path, device: str, config: Mapping[str, Any]) -> None:
        openvino = import_openvino()
        self._path = path
        self._asked = device
        self._config = dict(config)
        self._lock = threading.Lock()
        try:
            self._core = openvino.Core()
            self._check(device)
            model = self._core.read_model(path)
            # A port has several names where an output is an input unchanged; the node has ours.
            self._types = {port.node.friendly_name: np.dtype(port.element_type.to_dtype()) for port in model.inputs}
            self._alone = model if _fix_batch(model, openvino.PartialShape) else None
            first = self._compile(self._path if self._alone is None else self._alone)
            running = first.get_property("EXECUTION_DEVICES")
        except RuntimeError as error:
            hint = "build the engine again"
            raise TargetError(f"OpenVINO refuses the model: {_reason(error)}", path, hint) from error
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

    def _compile(self, model: Any) -> Any:
        """A model, or the file with it, which starts faster from the cache."""
        return self._core.compile_model(model, self._asked, self._config)

    def _requests(self, count: int) -> _Requests:
        """Those for batches of this size, compiled at the first use."""
        with self._lock:
            if self._alone is not None and count == 1:
                self._one = self._one or _Requests(self._compile(self._alone))
                return self._one
            self._any = self._any or _Requests(self._compile(self._path))
            return self._any

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Runs on whichever request is free. Inputs are read where they lie."""
        if inputs.keys() != self._types.keys():
            # A request would take what it was given the last time.
            raise TargetError(f"OpenVINO failed: the inputs are {', '.join(self._types)}, not {', '.join(inputs)}")
        for name, array in inputs.items():
            if not isinstance(array, np.ndarray) or array.dtype != self._types[name]:
                raise TargetError(f"OpenVINO failed: input {name} is no array of {self._types[name]}")
        count = next((len(array) for name, array in inputs.items() if name == "input" and array.ndim), 0)
        try:
            return self._requests(count).run(inputs)
        except RuntimeError as error:
            raise TargetError(f"OpenVINO failed: {_reason(error)}") from error

    def profile(self, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> list[tuple[str, float]]:
        """OpenVINO's performance counters, in whole microseconds."""
        openvino = import_openvino()
        # What is cached was compiled without counters.
        config = {name: value for name, value in self._config.items() if name not in _CACHING}
        try:
            model = self._core.read_model(self._path)
            model.reshape({name: openvino.PartialShape(array.shape) for name, array in inputs.items()})
            compiled = self._core.compile_model(model, self._asked, {**config, "PERF_COUNT": True})
            request = compiled.create_infer_request()
            table = []
            warm_up(lambda: request.infer(dict(inputs), share_inputs=True, share_outputs=True))
            for _ in range(runs):
                request.infer(dict(inputs), share_inputs=True, share_outputs=True)
                counters = request.profiling_info
                table.append([each.real_time.total_seconds() for each in counters])
        except RuntimeError as error:
            raise TargetError(f"OpenVINO failed: {_reason(error)}") from error
        ran = openvino.ProfilingInfo.Status.EXECUTED
        pairs = zip(counters, typical(np.array(table)), strict=True)
        return [(each.node_name, float(seconds)) for each, seconds in pairs if each.status == ran]


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

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
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


@targets.register
class Openvino(Target):
    """OpenVINO."""

    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "OpenVINO on CPUs, and on Intel's GPUs and NPUs; model.xml is its IR"
    extra: ClassVar[str] = "openvino"
    faster: ClassVar[Sequence[str]] = ("bf16", "mixed")
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

    def missing(self) -> str:
        """openvino."""
        return "" if importlib.util.find_spec("openvino") else "openvino"

    def passes(self) -> Sequence[Pass]:
        """What OpenVINO profits from: see benchmarks/passes.md. It fuses activations that stand as one operator."""
        from dnc.targets.onnx import optimizations

        return optimizations("openvino", "bits")

    def quantization(self) -> Recipe | None:
        """It joins convolutions with what follows them, so their inputs alone say that they are to have 8 bits."""
        from dnc.quantization import MOVES, Recipe

        return Recipe(frozenset({"Conv", "Gemm", "Concat"}) | MOVES, tied=True, first_limit=63)

    def build(
        self, model: ir.Model, folder: Path, about: Bundle | None = None, progress: Progress = silent
    ) -> Mapping[str, str]:
        """Writes model.xml and model.bin."""
        openvino = import_openvino()
        read = _read(model)
        if about is not None:
            for key, text in _model_info(about).items():
                read.set_rt_info(text, ["model_info", key])
        for port, value in zip(read.inputs, model.graph.inputs, strict=True):
            # An output that is an input unchanged has taken its name.
            port.add_names({value.name})
            port.node.friendly_name = value.name
        for place, op in enumerate(read.get_ordered_ops()):
            # Nodes that OpenVINO made are numbered by how many this process has made so far.
            if re.fullmatch(rf"{op.get_type_name()}_\d+", op.friendly_name):
                op.friendly_name = f"{op.get_type_name()}/{place}"
            # ONNX gives equal scores in their order, and so does Darknet; there are many where a letterbox is gray.
            if op.get_type_name() == "TopK":
                op.set_attribute("stable", True)
        try:
            openvino.save_model(read, str(folder / MODEL), compress_to_fp16=self.options["precision"] == "fp16")
        except RuntimeError as error:
            raise OSError(errno.EIO, f"OpenVINO: {_reason(error)}", str(folder)) from error
        return {}

    def versions(self) -> dict[str, str]:
        """OpenVINO, which wrote the files."""
        from importlib.metadata import version

        return {"openvino": version("openvino")}

    def engine(self) -> str:
        """OpenVINO, and in which precision it computes."""
        from importlib.metadata import version

        return f"OpenVINO {version('openvino')} {self.options['precision']}"

    def open(self, folder: Path, threads: int | None = None) -> Session:
        """A session on the device that was asked for."""
        device = self.options["device"]
        config: dict[str, Any] = {"PERFORMANCE_HINT": self.options["hint"].upper()}
        if not device.startswith("NPU"):
            config["INFERENCE_PRECISION_HINT"] = self._arithmetic(device)
        if threads is not None and device.startswith(("CPU", "AUTO")):
            config["INFERENCE_NUM_THREADS"] = threads
        cache = _cache(folder) if self.options["cache"] == "on" else None
        if cache is not None:
            config |= {"CACHE_DIR": str(cache), "CACHE_MODE": "OPTIMIZE_SIZE", "WEIGHTS_PATH": str(folder / WEIGHTS)}
        return OpenvinoSession(folder / MODEL, device, config)

    def _arithmetic(self, device: str) -> str:
        precision: str = self.options["precision"]
        if precision != "fp16":
            # What is left beside 8 bits gains as much from bfloat16, and its rounding is lost in theirs.
            return "bf16" if precision in ("bf16", "int8") else "f32"
        # Asked for float16 that a CPU has not, OpenVINO takes bfloat16, which has 3 bits less.
        able = import_openvino().Core().get_property(device.partition(":")[0], "OPTIMIZATION_CAPABILITIES")
        return "f16" if "FP16" in able else "f32"


def _read(model: ir.Model) -> Any:
    """The model in OpenVINO; raises TargetError with the places in the cfg that OpenVINO names."""
    from dnc.graph import serialize, where_of

    buffer = io.BytesIO()
    buffer.writelines(serialize(model))
    try:
        return import_openvino().Core().read_model(buffer.getvalue())
    except RuntimeError as error:
        reason = _reason(error)
        words = set(re.findall(r"[\w./:#]+", reason))
        named = [node for node in model.graph if node.name in words or node.op_type in words]
        places = "".join(f"\n    {where_of(node)}: {node.op_type}" for node in named)
        raise TargetError(f"OpenVINO refuses the model: {reason}{places}") from error


_CACHE_LIMIT = 2 << 30
"""Bytes of all that OpenVINO compiled and keeps."""


def _cache(folder: Path) -> Path | None:
    """Where OpenVINO may keep what it compiled of an engine; None for a folder that is no finished engine."""
    from dnc.files import cache_dir, prune

    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        digests = "".join(files[name]["sha256"] for name in (MODEL, WEIGHTS))
        place = cache_dir() / "openvino" / hashlib.sha256(digests.encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)
        prune(place.parent, _CACHE_LIMIT, [place])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return place if os.access(place, os.W_OK) else None


def _model_info(about: Bundle) -> dict[str, str]:
    """What stands in rt_info / model_info; in Model API's units, pixels are 0 to 255."""
    info = {"model_name": about.name, "darknet_network": json.dumps(about.network)}
    if about.heads:
        kinds = {head.kind for head in about.heads}
        info["model_type"] = "Classification" if kinds == {"classifier"} else f"darknet-{about.heads[-1].kind}"
        info["heads"] = json.dumps([head.to_json() for head in about.heads])
        info["classes"] = str(about.heads[-1].classes)
        anchors = [side for head in about.heads for pair in getattr(head, "anchors", ()) for side in pair]
        if anchors:
            info |= {"anchors": " ".join(map(str, anchors)), "iou_threshold": "0.45", "confidence_threshold": "0.25"}
    if about.labels:
        info["labels"] = " ".join(label.replace(" ", "_") for label in about.labels)
    prepared = about.preprocessing
    if prepared is not None and about.input_dtype == "float32":
        modes = {"letterbox": "fit_to_window_letterbox", "center-crop": "crop"}
        info["resize_type"] = modes.get(prepared.mode, "standard")
        for key, numbers in (("mean_values", prepared.mean), ("scale_values", prepared.std)):
            each = numbers * (prepared.channels // len(numbers))
            info[key] = " ".join(f"{number / prepared.scale:.9g}" for number in each)
        info["reverse_input_channels"] = str(prepared.color == "rgb")
    return info
