"""Runs a network in another library, in a Python that may be another one: dnc and its modules are not at hand.

    arguments   NAME CFG WEIGHTS MODEL.onnx INPUT.npy THREADS FOLDER
    stdout      "ready" and JSON: the library's version, seconds from opening to the first result, peak memory;
                then for each line read from stdin the seconds that one run took
    exit code   3 with the reason on stderr where the library is not installed

MODEL.onnx is the graph as it was lowered, before any pass. FOLDER is kept from one start to the next, for what a
library converts.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["NAMES"]

if __name__ == "__main__":
    # The script's folder comes first, and its modules would hide others of these names.
    sys.path.pop(0)


class Job:
    """Arguments of the process."""

    def __init__(self, cfg: str, weights: str, model: str, x: Any, threads: str, folder: str) -> None:
        self.cfg, self.weights, self.model, self.folder = Path(cfg), Path(weights), Path(model), Path(folder)
        self.input, self.threads = x, int(threads)


def opencv(job: Job) -> Iterator[Any]:
    """OpenCV's own reader of Darknet's files, which OpenCV 5 no longer has."""
    cv2 = importlib.import_module("cv2")
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        raise ImportError(f"OpenCV {cv2.__version__} has no reader of Darknet's files")
    yield cv2.__version__
    cv2.setNumThreads(job.threads)
    net = cv2.dnn.readNetFromDarknet(str(job.cfg), str(job.weights))
    names = net.getUnconnectedOutLayersNames()

    def run() -> object:
        net.setInput(job.input)
        return net.forward(names)

    yield run


def ncnn(job: Job) -> Iterator[Any]:
    """The lowered graph by way of pnnx."""
    library = importlib.import_module("ncnn")
    package = importlib.util.find_spec("pnnx")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'pnnx'")
    yield library.__version__
    if len(job.input) != 1:
        raise ValueError("it takes one image at a time")
    param = job.folder / "model.ncnn.param"
    if not param.exists():
        model = job.folder / "model.onnx"
        model.write_bytes(job.model.read_bytes())
        # Importing pnnx would need torch.
        tool = Path(package.submodule_search_locations[0]) / "pnnx"
        shape = str(list(job.input.shape)).replace(" ", "")
        subprocess.run([tool, model.name, f"inputshape={shape}"], cwd=job.folder, check=True, stdout=subprocess.DEVNULL)
    net = library.Net()
    net.opt.num_threads = job.threads
    if net.load_param(str(param)) or net.load_model(str(param.with_suffix(".bin"))):
        raise ValueError("it cannot read what pnnx wrote")
    name, outputs = net.input_names()[0], net.output_names()

    def run() -> object:
        with net.create_extractor() as extractor:
            extractor.input(name, library.Mat(job.input[0]).clone())
            return [extractor.extract(output)[1].numpy() for output in outputs]

    yield run


def darknet2any(job: Job) -> Iterator[Any]:
    """The ONNX that darknet2any writes, in ONNX Runtime."""
    version = importlib.import_module("importlib.metadata").version("darknet2any")
    library = importlib.import_module("onnxruntime")
    yield version
    model = job.folder / "net.onnx"
    if not model.exists():
        # It looks for the cfg beside the weights.
        for source, suffix in ((job.cfg, ".cfg"), (job.weights, ".weights")):
            (job.folder / "net").with_suffix(suffix).write_bytes(source.read_bytes())
        command = [sys.executable, "-m", "darknet2any.darknet2onnx", "-i", "net.weights", "-o", model.name]
        done = subprocess.run(command, cwd=job.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode or not model.exists():
            raise ValueError((done.stdout.strip().splitlines() or ["it wrote no model"])[-1])
    yield _session(library, model, job)


def ort(job: Job) -> Iterator[Any]:
    """ONNX Runtime on the lowered graph."""
    library = importlib.import_module("onnxruntime")
    yield library.__version__
    yield _session(library, job.model, job)


def _session(library: Any, model: Path, job: Job) -> Callable[[], object]:
    options = library.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    # Its threads would wait busily for tens of milliseconds, in the way of whoever has the next turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = library.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: job.input})


def openvino(job: Job) -> Iterator[Any]:
    """OpenVINO on the lowered graph, in float32."""
    # Its telemetry is kept out: importing a module that is None here raises ImportError, which OpenVINO is ready for.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    library = importlib.import_module("openvino")
    yield library.__version__.partition("-")[0]
    config = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = library.Core().compile_model(str(job.model), "CPU", config).create_infer_request()
    yield lambda: request.infer({0: job.input})


NAMES = {"opencv": opencv, "ncnn": ncnn, "darknet2any": darknet2any, "ort": ort, "openvino": openvino}
"""The libraries, and for each what gives its version and then, if it can read the network, a function that runs it."""


def _memory() -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def main() -> None:
    """Runs a peer as the module's docstring says."""
    # ONNX Runtime reads it while it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Libraries print what they like; the answers go elsewhere.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name, *arguments = sys.argv[1:]
    cfg, weights, model, x, threads, folder = arguments
    try:
        import numpy as np

        job = Job(cfg, weights, model, np.load(x), threads, folder)
        steps = NAMES[name](job)
        version = next(steps)
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    start = time.perf_counter()
    run = next(steps)
    run()
    told = {"version": version, "open": time.perf_counter() - start, "memory": _memory()}
    print("ready", json.dumps(told), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, file=answers, flush=True)


if __name__ == "__main__":
    main()
