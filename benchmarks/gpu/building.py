"""Weights, right values and engines, by dnc's own commands, as many at once as there are processors.

A folder keeps them, so that the next call builds what is not there yet:

    weights/NET.weights, .json          random ones where a network has none; a calibration, for 8 bits
    expected/NET.IMAGES.npz             the inputs `x`, and the outputs y0, y1, ... of float32 on the CPU for the first
    engines/NET.PRECISION.IMAGES.KIND/  KIND is one of `KINDS`, or tuned
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from dnc.darknet.cfg import find_cfg

__all__ = ["KINDS", "Job", "Place", "build"]

KINDS = {
    "measured": ["--backend", "tvm"],
    "new": ["--backend", "tvm", "--option", "kernels=new"],
    "boxes": ["--backend", "tvm", "--input", "u8", "--decode", "graph+nms"],
    "onnxruntime": ["--backend", "onnxruntime"],
}
"""Options of dnc compile by the kind of engine."""
_EXPECTED = """
import sys
import numpy as np
import dnc
engine, images, out = sys.argv[1:]
with dnc.load(engine) as engine:
    x = np.random.default_rng(0).random((int(images), *engine.manifest.input_shape), np.float32)
    outputs = engine.forward(x[:1])
np.savez(out, x=x, **{f"y{place}": output for place, output in enumerate(outputs)})
"""


@dataclass(frozen=True)
class Place:
    """Where everything is kept.

    Args:
        folder: that of this module's docstring.
        trained: where NET.cfg and NET.weights of trained networks may be.
    """

    folder: Path
    trained: Path | None

    def cfg(self, network: str) -> Path:
        """The cfg: a trained one, a file, or that of cfg/."""
        own = None if self.trained is None else self.trained / f"{network}.cfg"
        return own if own is not None and own.is_file() else find_cfg(network)

    def weights(self, network: str) -> Path:
        """The weights: trained ones, or those that are made here."""
        own = None if self.trained is None else self.trained / f"{network}.weights"
        return own if own is not None and own.is_file() else self.folder / "weights" / f"{network}.weights"

    def calibration(self, network: str) -> Path:
        return self.folder / "weights" / f"{network}.json"

    def expected(self, network: str, images: int) -> Path:
        return self.folder / "expected" / f"{network}.{images}.npz"

    def engine(self, network: str, precision: str, images: int, kind: str) -> Path:
        return self.folder / "engines" / f"{network}.{precision}.{images}.{kind}"


@dataclass(frozen=True)
class Job:
    """Commands that make one file or folder, after which it is there."""

    result: Path
    commands: Sequence[Sequence[str]]

    def run(self, deadline: float) -> str:
        """Runs them; what went wrong, or an empty text."""
        if self.result.exists():
            return ""
        self.result.parent.mkdir(parents=True, exist_ok=True)
        for command in self.commands:
            try:
                left = max(1.0, deadline - time.monotonic())
                done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=left)
            except subprocess.TimeoutExpired:
                return "no time left"
            if done.returncode:
                return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return ""


def ground_job(place: Place, network: str, images: Sequence[str]) -> Job:
    """What all others need: random weights and a calibration, each where there is none, and an engine for the CPU."""
    cfg, weights = str(place.cfg(network)), place.weights(network)
    commands = [] if weights.is_file() else [_dnc("weights", "random", cfg, "-o", str(weights))]
    given = [option for path in images for option in ("--images", path)] or ["--images", _photograph()]
    commands.append(_dnc("calibrate", cfg, str(weights), *given, "-o", str(place.calibration(network))))
    weights.parent.mkdir(parents=True, exist_ok=True)
    engine = place.engine(network, "fp32", 1, "cpu")
    commands.append(_dnc("compile", cfg, "-w", str(weights), "--target", "onnx", "-o", str(engine)))
    return Job(engine, commands)


def expected_job(place: Place, network: str, images: int) -> Job:
    """Right values: target onnx in float32."""
    result = place.expected(network, images)
    engine = place.engine(network, "fp32", 1, "cpu")
    return Job(result, [[sys.executable, "-P", "-c", _EXPECTED, str(engine), str(images), str(result)]])


def engine_job(
    place: Place, network: str, precision: str, images: int, kind: str, target: Sequence[str], tune: str = ""
) -> Job:
    """An engine.

    Args:
        kind: of `KINDS`; tuned: measured, and tuned on the GPU for a time, as 3m.
        target: options of dnc compile that name the GPU.
    """
    result = place.engine(network, precision, images, kind)
    told = [
        *target,
        *KINDS.get(kind, KINDS["measured"]),
        "--precision",
        precision,
        "--batch",
        str(images),
        "--no-verify",
    ]
    if precision in ("int8", "mixed"):
        told += ["--calibration", str(place.calibration(network))]
    if tune:
        told += ["--tune", tune]
    command = _dnc("compile", str(place.cfg(network)), "-w", str(place.weights(network)), *told, "-o", str(result))
    return Job(result, [command])


def build(jobs: Sequence[Job], at_once: int, deadline: float, tell: Callable[[str], None]) -> dict[Path, str]:
    """Runs jobs, those that stand first first, until the time is over; what went wrong with those that did."""
    wrong: dict[Path, str] = {}
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(_unless_late, job, deadline): job for job in jobs}
        for count, future in enumerate(as_completed(running), 1):
            reason = future.result()
            tell(f"building {count} of {len(jobs)}")
            if reason:
                wrong[running[future].result] = reason
    return wrong


def _unless_late(job: Job, deadline: float) -> str:
    if time.monotonic() > deadline and not job.result.exists():
        return "no time left"
    return job.run(deadline)


def _dnc(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "dnc", *words]


def _photograph() -> str:
    import dnc.graph

    with contextlib.suppress(StopIteration):
        return str(next(Path(dnc.graph.__file__).parent.glob("*.jpg")))
    raise FileNotFoundError("dnc's own photograph")
