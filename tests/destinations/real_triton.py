"""Triton itself, as the wheel of nvidia-pytriton has it: its server without the backends for ONNX.

Its Python backend takes their place, under their name ("python-based backends"): what loads, checks and runs ensembles,
batches, reads config.pbtxt and answers by HTTP is Triton's own, and a network is run by ONNX Runtime from Python.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import PATIENCE, until

__all__ = ["find_server", "serving_for_real"]

_BACKEND = """
import sys
sys.path[:0] = PATHS
import json, os
import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        # Together, as the backend that this stands for does.
        names = [each["name"] for each in self.config["output"]]
        parts = [[self.read(request, each["name"]) for request in requests] for each in self.config["input"]]
        joined = int(self.config["max_batch_size"]) > 0
        if not joined:
            return [self.answer(names, [part[at] for part in parts]) for at in range(len(requests))]
        feeds = {each["name"]: np.concatenate(part) for each, part in zip(self.config["input"], parts)}
        ends = np.cumsum([len(part) for part in parts[0]])[:-1]
        found = zip(*(np.split(value, ends) for value in self.session.run(names, feeds)))
        return [triton.InferenceResponse([tensor(*pair) for pair in zip(names, values)]) for values in found]

    def read(self, request, name):
        return np.from_dlpack(triton.get_input_tensor_by_name(request, name))

    def answer(self, names, values):
        feeds = {each["name"]: value for each, value in zip(self.config["input"], values)}
        return triton.InferenceResponse([tensor(*pair) for pair in zip(names, self.session.run(names, feeds))])


def tensor(name, value):
    # By DLPack: the backend was built for NumPy 1.
    value = np.ascontiguousarray(value)
    return triton.Tensor.from_dlpack(name, value) if value.size else triton.Tensor(name, value)
"""


def find_server() -> Path | None:
    """The folder of the wheel's server, if it is installed and has a stub for this Python."""
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        return None
    server = Path(found.submodule_search_locations[0]) / "tritonserver"
    return server if _stub(server).is_file() else None


def _stub(server: Path) -> Path:
    return server / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub"


@contextmanager
def serving_for_real(repository: Path, scratch: Path) -> Iterator[str]:
    """HOST:PORT of a server that has loaded every model of a repository.

    Args:
        scratch: an empty folder.

    Raises:
        AssertionError: it loads not all of them, with what it says.
    """
    server = find_server()
    assert server is not None
    backends = scratch / "backends"
    shutil.copytree(server / "backends", backends)
    for file in (
        shutil.copy(_stub(server), backends / "python"),
        shutil.copy(server / "bin" / "tritonserver", scratch),
    ):
        Path(file).chmod(0o755)
    (backends / "onnxruntime").mkdir()
    paths = [path for path in sys.path if path.endswith("-packages")]
    (backends / "onnxruntime" / "model.py").write_text(_BACKEND.replace("PATHS", repr(paths)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    libraries = [str(server.parents[1] / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    command = [
        str(scratch / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
    log = scratch / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stderr=said, stdout=said, env=environment)

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=PATIENCE) as answer:
                ready: bool = answer.status == 200
                return ready
        except OSError:
            return False

    try:
        try:
            until(is_ready, lambda: process.poll() is None)
        except AssertionError as error:
            raise AssertionError(log.read_text()) from error
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
