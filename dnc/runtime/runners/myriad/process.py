"""Runs the Myriad X toolchain in a process of its own (child.py), within limits, and says what went wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.errors import TargetError
from dnc.files.writing import scratch_folder
from dnc.typing import Array

__all__ = ["CompilerError", "Job", "Limits", "check_blob", "compile_blob", "infer"]

_CHILD = Path(__file__).with_name("child.py")
_MAGIC = 9709
_HEADER = 52
"""Where in a blob stand its magic number and, after it, the bytes that the device reads; both little-endian uint32."""


class CompilerError(TargetError):
    """The compiler refused a network, in the words of `message`, or ended in another way."""


@dataclass(frozen=True)
class Limits:
    """Limits of the process."""

    seconds: float = 600.0
    memory: int = field(default_factory=lambda: os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    """Bytes of address space; all of the machine's memory if not given."""


@dataclass(frozen=True)
class Job:
    """A model for the toolchain."""

    libraries: Path
    model: Path
    limits: Limits = field(default_factory=Limits)


def compile_blob(
    job: Job,
    blob: Path,
    precisions: Mapping[str, str],
    *,
    shaves: int,
    config: Mapping[str, str] | None = None,
    dump: Path | None = None,
) -> int:
    """Compiles a model without a device.

    Args:
        precisions: "U8", "FP16" or "FP32" of each input and output.
        shaves: how many of the device's 16 vector processors the network uses, and slices of its on-chip memory.
        config: more settings of the Myriad plugin.
        dump: a file for the compiler's stages, in Graphviz's language; its name ends with .dot.

    Returns:
        The most memory that the compiler took, in bytes.

    Raises:
        CompilerError: the compiler refused the model, crashed, or took too long or too much.
        OSError: a file cannot be written.
    """
    settings = {
        **(config or {}),
        # Not to look for a device: there need not be one.
        "MYRIAD_ENABLE_MX_BOOT": "NO",
        "MYRIAD_NUMBER_OF_SHAVES": str(shaves),
        "MYRIAD_NUMBER_OF_CMX_SLICES": str(shaves),
        "MYRIAD_THROUGHPUT_STREAMS": "1",
    }
    if dump is not None:
        settings["MYRIAD_DUMP_INTERNAL_GRAPH_FILE_NAME"] = str(dump)
    reply = _run(job, device="MYRIAD", config=settings, precisions=dict(precisions), blob=str(blob))
    check_blob(blob)
    return int(reply["peak"])


def check_blob(path: Path) -> None:
    """Raises CompilerError if a file is no whole blob."""
    with path.open("rb") as file:
        header = file.read(_HEADER + 8)
    magic, size = struct.unpack_from("<II", header.ljust(_HEADER + 8, b"\0"), _HEADER)
    if magic != _MAGIC:
        raise CompilerError(f"the compiler's output is no blob: its magic number is {magic}, not {_MAGIC}")
    if not 0 < size <= path.stat().st_size:
        what = f"{path.stat().st_size} of {size} bytes"
        raise CompilerError(f"the compiler's blob is cut off: {what}", hint="is the memory or the disk full?")


def infer(job: Job, feeds: Mapping[str, Array], outputs: Mapping[str, str]) -> dict[str, npt.NDArray[np.float32]]:
    """Computes outputs with the toolchain's CPU plugin, in float32.

    Args:
        feeds: float32 arrays by input.
        outputs: the outputs wanted: the name of each, and what it is called in the toolchain.

    Raises:
        CompilerError: as `compile_blob`.
    """
    with scratch_folder("myriad") as scratch:
        files = {}
        for number, (name, array) in enumerate(feeds.items()):
            files[name] = f"{scratch}/{number}.in"
            np.ascontiguousarray(array, np.float32).tofile(files[name])
        results = {inner: f"{scratch}/{number}.out" for number, inner in enumerate(outputs.values())}
        # On CPUs with bfloat16 the plugin would compute in it.
        reply = _run(job, device="CPU", config={"ENFORCE_BF16": "NO"}, feeds=files, results=results)
        shapes = reply["shapes"]
        return {name: np.fromfile(results[inner], np.float32).reshape(shapes[inner]) for name, inner in outputs.items()}


def _run(job: Job, **request: Any) -> dict[str, Any]:
    request |= {"libraries": str(job.libraries), "model": str(job.model), "memory": job.limits.memory}
    try:
        result = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps(request),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=job.limits.seconds,
        )
    except subprocess.TimeoutExpired:
        hint = "--option seconds=N allows more"
        raise CompilerError(
            f"the compiler took more than {job.limits.seconds:g} s and was stopped", hint=hint
        ) from None
    if result.returncode:
        raise _failure(result, job.limits)
    reply: dict[str, Any] = json.loads(result.stdout)
    if "errno" in reply:
        raise OSError(reply["errno"], reply["error"])
    return reply


def _failure(result: subprocess.CompletedProcess[str], limits: Limits) -> CompilerError:
    _, thrown, message = result.stderr.partition("what():")
    if "std::bad_alloc" in result.stderr or "MemoryError" in result.stderr:
        megabytes = limits.memory // 2**20
        hint = "--option memory=MB allows more, as far as the machine has it"
        return CompilerError(f"the compiler ran out of memory: it may take {megabytes} MB", hint=hint)
    if thrown:
        return CompilerError(f"the compiler refuses the network: {_plain(message)}")
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        hint = "is there too little memory?" if name == "SIGKILL" else ""
        return CompilerError(f"the compiler was ended by {name}{_last_line(result.stderr)}", hint=hint)
    return CompilerError(f"the compiler failed{_last_line(result.stderr)}")


def _plain(message: str) -> str:
    """The exception's text without the places in the compiler's own sources, in one line."""
    lines = [re.sub(r"^/\S+\.[ch]pp:\d+ ", "", line).strip() for line in message.splitlines()]
    return " ".join(line.replace("[ GENERAL_ERROR ]", "").strip() for line in lines if line).strip()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""
