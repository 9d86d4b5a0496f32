"""What a measurement was made on: figures of different machines, threads or libraries are not to be compared.

Everything is read, nothing is set; what a system does not tell is left out. Linux tells most.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dnc.runtime.arithmetic import KINDS, UNKNOWN, of_isa, this_isa
from dnc.runtime.timing import device_name, processors

__all__ = ["describe", "last_cache", "machine"]

_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
"""Instructions that engines have kernels for."""
_LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "apache-tvm", "onnx")
_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def machine() -> dict[str, Any]:
    """Facts about this machine as JSON values; memory and the cache in bytes."""
    facts: dict[str, Any] = {
        "cpu": device_name(),
        "architecture": platform.machine(),
        "flags": _flags(),
        "isa": this_isa(),
        "arithmetic": of_isa().name,
        "cores": _cores(),
        "processors": os.cpu_count(),
        "usable": processors(),
        "governor": _governor(),
        "turbo": _turbo(),
        "last cache": last_cache(),
        "memory": _memory(),
        "load": _load(),
        "os": _os(),
        "python": platform.python_version(),
        "libraries": _versions(),
        "gpus": _gpus(),
    }
    return {key: value for key, value in facts.items() if value not in (None, [], {}, "")}


def describe(facts: Mapping[str, Any]) -> list[str]:
    """Puts the facts into a few lines of text."""
    cores = f"{facts['cores']} cores, " if "cores" in facts else ""
    lines = [
        f"{facts['cpu']}, {cores}{facts['usable']} of {facts['processors']} processors, "
        f"{facts.get('memory', 0) / 2**30:.1f} GiB, {facts['os']}",
        ", ".join(facts.get("flags", [])),
    ]
    if "isa" in facts:
        lines.append(f"{facts['isa']}, {KINDS.get(facts['arithmetic'], UNKNOWN)}")
    state = [f"governor {facts['governor']}"] if "governor" in facts else []
    state += [f"turbo {facts['turbo']}"] if "turbo" in facts else []
    if "load" in facts:
        state.append(f"load {', '.join(f'{load:.2f}' for load in facts['load'])}")
    versions = [f"{name} {number}" for name, number in facts["libraries"].items()]
    lines.append(", ".join([*state, f"Python {facts['python']}", *versions]))
    lines += [f"{gpu['name']}, driver {gpu['driver']}, {gpu['memory']}" for gpu in facts.get("gpus", [])]
    return [line for line in lines if line]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@cache
def _processor_lines() -> list[str]:
    return _read("/proc/cpuinfo").splitlines()


def _flags() -> list[str]:
    for line in _processor_lines():
        if line.startswith(("flags", "Features")):
            have = set(line.partition(":")[2].split())
            return [flag for flag in _FLAGS if flag in have]
    return []


def _cores() -> int | None:
    """Physical ones: threads of one core share its arithmetic."""
    places, package = set(), ""
    for line in _processor_lines():
        key, _, text = line.partition(":")
        if key.strip() == "physical id":
            package = text
        elif key.strip() == "core id":
            places.add((package, text))
    return len(places) or None


def _governor() -> str:
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def _turbo() -> str:
    boost = _read("/sys/devices/system/cpu/cpufreq/boost")
    no_turbo = _read("/sys/devices/system/cpu/intel_pstate/no_turbo")
    if boost or no_turbo:
        return "on" if boost == "1" or no_turbo == "0" else "off"
    return ""


def last_cache() -> int | None:
    """Bytes of the largest cache of a processor; None if the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM]?)", _read(str(path)))
        if match:
            sizes.append(int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]])
    return max(sizes, default=None)


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _load() -> list[float] | None:
    """Processes that ran or waited, on average over 1, 5 and 15 minutes."""
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def _os() -> str:
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError, AttributeError):
        return kernel


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _gpus() -> list[dict[str, str]]:
    """NVIDIA's, as their driver's own tool lists them."""
    try:
        result = subprocess.run(_QUERY, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ") for line in result.stdout.splitlines()] if result.returncode == 0 else []
    return [dict(zip(("name", "driver", "memory"), row, strict=True)) for row in rows if len(row) == 3]
