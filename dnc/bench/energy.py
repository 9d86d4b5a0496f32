"""Joules, from the counters of the hardware: RAPL of Intel's and AMD's processors, NVML of NVIDIA's GPUs.

    /sys/class/powercap/intel-rapl:N/energy_uj    microjoules of processor package N, cores, caches and its other parts;
                                                  starts again from 0 after max_energy_range_uj
    nvmlDeviceGetTotalEnergyConsumption           millijoules of a GPU since its driver was loaded (pynvml)

Both count everything that runs there, and idling as well: on a machine that does something else besides, the figure is
too high. On Linux the RAPL files are for root alone unless somebody has opened them.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dnc.runtime.timing import Run

__all__ = ["Meter", "joules", "meters"]

_ROOT = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """A counter of joules."""

    name: str
    read: Callable[[], float]
    """Joules since some time."""
    wraps: float = 0.0
    """After so many it starts again from 0; 0 if it does not."""


def meters(gpu: bool = False, root: Path = _ROOT) -> tuple[list[Meter], str]:
    """The counters of the processors, or of the GPUs; and why there are none.

    Args:
        gpu: the engine runs on an NVIDIA GPU.
        root: where Linux has its power caps.
    """
    return _nvml() if gpu else _rapl(root)


def _rapl(root: Path) -> tuple[list[Meter], str]:
    # Zones below a package, intel-rapl:0:1, are parts of it.
    zones = sorted(zone for zone in root.glob("*-rapl:*") if zone.name.count(":") == 1)
    if not zones:
        return [], "this machine has no RAPL counters, or its virtual machine does not pass them on"
    meters = []
    for zone in zones:
        try:
            (zone / "energy_uj").read_text(encoding="ascii")
            wraps = int((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
        except PermissionError:
            return [], f"{zone / 'energy_uj'} is for root alone (chmod a+r opens it)"
        except (OSError, ValueError) as error:
            return [], f"cannot read {zone}: {error}"
        meters.append(Meter(f"RAPL {zone.name}", lambda zone=zone: _microjoules(zone / "energy_uj"), wraps))  # type: ignore[misc]
    return meters, ""


def _microjoules(path: Path) -> float:
    return int(path.read_text(encoding="ascii")) / 1e6


def _nvml() -> tuple[list[Meter], str]:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return [], "it takes pynvml: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
        meters = []
        for place, handle in enumerate(handles):

            def read(handle: object = handle) -> float:
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

            read()
            meters.append(Meter(f"NVML GPU {place}", read))
    except pynvml.NVMLError as error:
        return [], f"NVML: {error}"
    return meters, "" if meters else "NVML sees no GPU"


def joules(
    run: Run, counters: list[Meter], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[Mapping[str, float], int]:
    """Runs for some seconds; joules by counter, and how often it ran."""
    before = {meter.name: meter.read() for meter in counters}
    start = clock()
    runs = 0
    while clock() - start < seconds or not runs:
        run()
        runs += 1
    spent = {}
    for meter in counters:
        change = meter.read() - before[meter.name]
        spent[meter.name] = change + meter.wraps if change < 0 else change
    return spent, runs
