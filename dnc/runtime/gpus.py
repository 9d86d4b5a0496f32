"""NVIDIA's GPUs of this machine, as their driver's own tool lists them.

A generation has the name that NVIDIA's compilers have for it: sm_87 is compute capability 8.7. nvidia-smi tells it from
drivers of 2021 on; a Jetson that has none, or one that does not know its GPU, counts as a machine without.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from typing import NamedTuple

__all__ = ["Gpu", "arch", "gpus"]

_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")


class Gpu(NamedTuple):
    """One of them."""

    name: str
    arch: str
    """`sm_90`."""
    driver: str


@cache
def gpus() -> tuple[Gpu, ...]:
    """All of them by number; none where there is no driver."""
    try:
        result = subprocess.run(_QUERY, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
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
