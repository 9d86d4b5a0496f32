"""What works on this machine, and what to do about the rest.

A target works if a tiny network, compiled for it, gives the reference's numbers. That is tried in a child process with
a time limit, one for each target that is installed: a library that crashes or hangs is then something to report.

    works      the outputs are right; `device` is what they were computed on
    missing    something is not installed; `remedy` installs it
    no GPU     it compiles, but nothing here can run what it makes
    fails      it is installed, but raised an error, gave other numbers, crashed, or took too long: `reason`
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import dnc
from dnc.bench.machine import machine
from dnc.cli._project import find
from dnc.darknet.network import Network
from dnc.darknet.reference import run
from dnc.darknet.weights import write_weights
from dnc.errors import DncError, DncWarning, how_to_report
from dnc.files.places import cache_dir, can_be_written
from dnc.files.writing import scratch_folder
from dnc.runtime.gpus import gpus
from dnc.runtime.runners.myriad import toolchain
from dnc.targets import targets
from dnc.typing import Progress, silent

__all__ = ["State", "examine", "try_target"]

ARCH = "sm_75"
"""What is compiled for where there is no GPU."""
SECONDS = 120.0
"""How long a target may take; an engine for TensorRT or a Myriad X takes some of it."""
TOLERANCE = 0.02
"""Of the largest output. Right numbers are within 1e-5 in float32 and 1e-3 in float16; wrong ones are far off."""
PACKAGES = (
    *("numpy", "libstb", "click", "onnx", "onnx-ir", "pillow", "rich"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "apache-tvm", "apache-tvm-ffi", "pycocotools", "matplotlib"),
    *("nvidia-cuda-nvcc", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"),
    *("opencv-python", "opencv-python-headless", "depthai", "supervision"),
)
"""What dnc can make use of, by the names of its distributions."""

TOOLS = ("g++", "cmake", "nvidia-smi", "nvcc", "ffmpeg")

_BY_TVM = "cuda by tvm"
_CHILD = "import sys; from dnc.cli import _doctor as doctor; doctor._answer(sys.argv[1])"
_TINY = Path(__file__).with_name("doctor.cfg")


@dataclass(frozen=True)
class State:
    """What was found out about a target."""

    target: str
    state: str
    device: str = ""
    reason: str = ""
    remedy: str = ""


def examine(seconds: float = SECONDS, progress: Progress = silent) -> dict[str, Any]:
    """Everything, as JSON values.

    Args:
        seconds: how long each target may take.
    """
    states = []
    names = [*targets, *([_BY_TVM] if "cuda" in targets else [])]
    for place, target in enumerate(names, 1):
        progress(f"trying target {target}, {place} of {len(names)}")
        states.append(asdict(_state(target, seconds)))
    progress("looking at the machine")
    project = find()
    return {
        "dnc": dnc.__version__,
        "folder": str(Path(dnc.__file__).parent),
        "python": sys.executable,
        "machine": machine(),
        "packages": {name: number for name in PACKAGES if (number := _version(name))},
        "targets": states,
        "toolchains": [_toolchain(name) for name in toolchain.TOOLCHAINS],
        "tools": {name: path for name in TOOLS if (path := shutil.which(name))},
        "cache": _cache(),
        "project": str(project or ""),
        "warnings": _conflicts(),
    }


def _named(name: str) -> tuple[str, dict[str, str]]:
    """A target's name and options: the back end of cuda that it takes only where it is asked for is tried as well."""
    if name != _BY_TVM:
        return name, {}
    return "cuda", {"backend": "tvm"} | ({} if gpus() else {"arch": ARCH})


def try_target(name: str) -> State:
    """Compiles the tiny network and compares, in this process."""
    import numpy as np

    x = np.random.default_rng(0).random((3, 32, 32), np.float32)
    with scratch_folder("doctor") as scratch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cfg = scratch / "tiny.cfg"
        shutil.copyfile(_TINY, cfg)
        network = Network.load(cfg).with_random_weights(0)
        with cfg.with_suffix(".weights").open("wb") as file:
            write_weights(file, network.layers, network.arrays)
        try:
            target, options = _named(name)
            out = scratch / "tiny.engine"
            with dnc.compile(cfg, target=target, out=out, verify=False, options=options) as engine:
                (output,) = engine.forward(x)
                device = engine.device
        except DncError as error:
            return State(name, "fails", reason=error.message, remedy=error.hint)
        expected = run(network, x[None])[-1][0]
    off = float(np.abs(output - expected).max() / np.abs(expected).max())
    if not off <= TOLERANCE:
        remedy = how_to_report("what `dnc doctor --json` prints")
        return State(name, "fails", device, f"its numbers are {off:.1%} off", remedy)
    notes = [str(warning.message).splitlines()[0] for warning in told if issubclass(warning.category, DncWarning)]
    return State(name, "works", device, "; ".join(notes))


def _state(name: str, seconds: float) -> State:
    target_name, options = _named(name)
    target = targets[target_name](options)
    missing = target.missing()
    if missing:
        return State(name, "missing", reason=missing, remedy=target.remedy())
    if target_name == "cuda" and not gpus():
        reason = "engines are compiled for GPUs, but there is none of NVIDIA's here to run them on, or no driver for it"
        return State(name, "no GPU", reason=reason)
    command = [sys.executable, "-c", _CHILD, name]
    again = f'pip install --force-reinstall "darknet-compiler[{target.extra}]"'
    if target.extra in toolchain.TOOLCHAINS:
        again = f"dnc toolchain install {target.extra} --force"
    # A session of its own, so that what it started ends with it.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return State(name, "fails", reason=f"no answer within {seconds:.0f} s", remedy=again)
        finally:
            _end(child)
    lines = out.decode(errors="replace").splitlines()
    try:
        return State(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        said = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
        return State(name, "fails", reason=_ending(child.returncode, said), remedy=again)


def _answer(name: str) -> None:
    """What the child does."""
    print("\n" + json.dumps(asdict(try_target(name))), flush=True)


def _end(child: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        child.kill()


def _ending(code: int, said: list[str]) -> str:
    if code < 0:
        return f"it crashed ({signal.Signals(-code).name})"
    return f"it ended with code {code}{': ' + said[-1] if said else ''}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _toolchain(name: str) -> dict[str, Any]:
    damage = toolchain.damage(name, thorough=True)
    state = "missing" if damage is None else "damaged" if damage else "whole"
    remedy = "" if damage == "" else f"dnc toolchain install {name}"
    return {"name": name, "state": state, "reason": damage or "", "remedy": remedy}


def _cache() -> dict[str, Any]:
    folder = cache_dir()
    sizes: dict[str, int] = {}
    for path in folder.rglob("*") if folder.is_dir() else ():
        part = path.relative_to(folder).parts
        kind = part[0] if len(part) > 1 else "weights"
        if path.is_file():
            sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    writable = can_be_written(folder)
    remedy = "" if writable else "set DNC_CACHE to a folder that can be written to"
    return {"folder": str(folder), "writable": writable, "remedy": remedy, "bytes": dict(sorted(sizes.items()))}


def _conflicts() -> list[str]:
    """Distributions that overwrite each other's files."""
    names = {(distribution.metadata["Name"] or "").lower() for distribution in distributions()}
    builds = sorted(names & {"onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"})
    if len(builds) < 2:
        return []
    return [f"{' and '.join(builds)} share their files: uninstall all of them, then install one again"]
