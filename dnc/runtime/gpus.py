"""NVIDIA's GPUs of this machine, as their driver's own tool lists them, or the driver itself.

A generation has the name that NVIDIA's compilers have for it: sm_87 is compute capability 8.7. nvidia-smi tells it from
drivers of 2021 on. Jetsons and some containers have no such tool, or one that does not know its GPU: there the driver's
library is asked, by another process, because one that has asked it may not fork any more.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

__all__ = ["Gpu", "arch", "gpus"]

_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
_ASK = f"""
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count, version, major, minor = (ctypes.c_int() for _ in range(4))
if not (cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count))):
    for number in range(count.value):
        name = ctypes.create_string_buffer(100)
        cuda.cuDeviceGetName(name, 100, number)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), {_MAJOR}, number)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), {_MINOR}, number)
        told = f"CUDA {{version.value // 1000}}.{{version.value % 1000 // 10}}"
        print(name.value.decode(), f"{{major.value}}.{{minor.value}}", told, sep=", ")
"""


class Gpu(NamedTuple):
    """One of them."""

    name: str
    arch: str
    """`sm_90`."""
    driver: str
    """Its release, or where the driver itself was asked the CUDA that it is for."""


@cache
def gpus() -> tuple[Gpu, ...]:
    """All of them by number; none where there is no driver."""
    return _listed(_QUERY) or _listed((sys.executable, "-I", "-S", "-c", _ASK))


def _listed(command: Sequence[str]) -> tuple[Gpu, ...]:
    """What a command prints; nothing if it cannot be run, or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    rows = [line.split(", ") for line in result.stdout.splitlines()] if result.returncode == 0 else []
    return tuple(
        Gpu(name, "sm_" + capability.replace(".", ""), driver)
        for name, capability, driver in (row for row in rows if len(row) == 3)
        if re.fullmatch(r"\d+\.\d", capability)
    )


def arch(text: str) -> str:
    """For `Option.parse`: generations with commas between, or nothing, which is that of this machine's GPU."""
    if text and not re.fullmatch(r"sm_\d{2,3}[af]?(,sm_\d{2,3}[af]?)*", text):
        raise ValueError("a generation of NVIDIA's GPUs: sm_75, sm_87, sm_90, …")
    return text
