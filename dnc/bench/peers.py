"""Other readers of the same network, each in a process of its own, so that no library is in another's way.

    opencv         readNetFromDarknet (OpenCV 4: 5 has no such reader)
    ncnn           pnnx on the plain ONNX
    darknet2any    its ONNX in ONNX Runtime
    ort            ONNX Runtime on the plain ONNX
    openvino       OpenVINO on the plain ONNX, in float32

The plain ONNX is the graph as it was lowered, before any pass. A process measures its own runs: what it takes to wake
it up does not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.bench.peer_child import NAMES
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import DncError, TargetError, close_match
from dnc.graph.composites import inline_composites
from dnc.graph.serialization import serialize_to
from dnc.runtime.timing import Run

__all__ = ["NAMES", "Peer", "Plain", "check_names"]

_TITLES = {"opencv": "OpenCV", "ncnn": "ncnn", "ort": "ONNX Runtime", "openvino": "OpenVINO"}
_MISSING = 3
_MEANT = {
    **dict.fromkeys(("onnx", "onnxruntime"), "ort"),
    "cv2": "opencv",
    "darknet": "`dnc compare --golden` compares with Darknet",
}
_INSTALL = {
    "opencv": 'pip install "opencv-python-headless<5"',
    "ncnn": "pip install ncnn pnnx",
    "darknet2any": "pip install darknet2any onnxruntime",
    "ort": "pip install onnxruntime",
    "openvino": "pip install openvino",
}
"""What brings a peer."""
_CHILD = Path(__file__).with_name("peer_child.py")


def check_names(names: list[str]) -> None:
    """Raises DncError for a peer that does not exist."""
    for name in names:
        if name not in NAMES:
            raise DncError(
                f"no peer '{name}'", hint=close_match(name, NAMES, meant=_MEANT) or f"there is {', '.join(NAMES)}"
            )


@dataclass(frozen=True)
class Plain:
    """A network as files that anyone can read."""

    cfg: Path
    weights: Path
    model: Path
    input: Path

    @classmethod
    def write(cls, network: Network, weights: Path, x: npt.NDArray[np.float32], folder: Path) -> Plain:
        """Writes what is not there yet.

        Args:
            x: the input (N, C, H, W).

        Raises:
            DncError: the graph is over 2 GiB.
        """
        model, saved = folder / "plain.onnx", folder / "input.npy"
        graph = lower(network, batch=len(x))
        inline_composites(graph)
        serialize_to(graph, model)
        np.save(saved, x)
        cfg = folder / Path(network.file).name
        # Of the size that the engine has, which may not be the file's.
        cfg.write_bytes(network.cfg_with({}))
        return cls(cfg, weights, model, saved)


class Peer:
    """A library that reads a network.

    Args:
        folder: is kept from one start to the next, for what the library converts.
        python: the interpreter that has the library.
    """

    def __init__(self, name: str, network: Plain, threads: int, folder: Path, python: str = sys.executable) -> None:
        self.name = name
        self._network, self._threads, self._python = network, threads, python
        self._folder = folder / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self.told: Mapping[str, Any] = {}
        """What it said when it was opened last: its version, seconds to its first result, and bytes of memory."""

    @property
    def title(self) -> str:
        """The library and its version."""
        return f"{_TITLES.get(self.name, self.name)} {self.told.get('version', '')}".strip()

    @contextmanager
    def open(self) -> Iterator[Run]:
        """The library in a new process; the run gives the seconds that it took there. Raises TargetError if it is not
        installed, cannot read the network, or has failed."""
        network = self._network
        files = (network.cfg, network.weights, network.model, network.input)
        arguments = [
            str(argument) for argument in (self._python, _CHILD, self.name, *files, self._threads, self._folder)
        ]
        piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with (self._folder / "log.txt").open("w+b") as log:
            try:
                process = subprocess.Popen(arguments, stderr=log, **piped)
            except OSError as error:
                hint = f"--peer {self.name}=/path/to/python names one"
                raise TargetError(f"{self.name}: cannot start {self._python}: {error.strerror}", hint=hint) from error
            with process:
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    word, _, told = process.stdout.readline().partition(" ")
                    if word != "ready":
                        raise self._reason(process.wait(), log)
                    self.told = json.loads(told)
                    stdin, stdout = process.stdin, process.stdout

                    def run() -> float:
                        try:
                            stdin.write("\n")
                            stdin.flush()
                            return float(stdout.readline())
                        except (OSError, ValueError):
                            raise self._reason(process.wait(), log) from None

                    yield run
                finally:
                    process.kill()

    def _reason(self, code: int, log: Any) -> TargetError:
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
        last = lines[-1] if lines else f"it ended with code {code}"
        if code == _MISSING:
            hint = f"{_INSTALL[self.name]}; --peer {self.name}=/path/to/python names another interpreter that has it"
            return TargetError(f"{self.name} is not installed: {last}", hint=hint)
        return TargetError(f"{self.name} does not run this network: {last}")
