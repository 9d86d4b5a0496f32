"""Which instructions this processor has: extensions of the instruction set, by LLVM's names.

LLVM and Linux name the extensions of processors differently; this is the table of those that code for networks uses. An
engine of TVM keeps LLVM's names in model.json. macOS and Windows tell of some; what a system does not tell is unknown.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

__all__ = ["architecture", "extensions", "has", "linux_names", "missing_extensions"]

_CPUINFO = Path("/proc/cpuinfo")
# fmt: off
_FLAGS = {
    "x86_64": {
        "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "sse4a": "sse4a", "popcnt": "popcnt",
        "movbe": "movbe", "avx": "avx", "f16c": "f16c", "fma": "fma", "fma4": "fma4", "xop": "xop", "avx2": "avx2",
        "bmi": "bmi1", "bmi2": "bmi2", "lzcnt": "abm", "adx": "adx", "gfni": "gfni", "avx512f": "avx512f",
        "avx512cd": "avx512cd", "avx512bw": "avx512bw", "avx512dq": "avx512dq", "avx512vl": "avx512vl",
        "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi", "avx512vbmi2": "avx512_vbmi2",
        "avx512vnni": "avx512_vnni", "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
        "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16", "avx512vp2intersect": "avx512_vp2intersect",
        "avxvnni": "avx_vnni", "avxifma": "avx_ifma", "avxvnniint8": "avx_vnni_int8", "avxneconvert": "avx_ne_convert",
        "amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16",
    },
    "aarch64": {
        "fp-armv8": "fp", "neon": "asimd", "lse": "atomics", "rdm": "asimdrdm", "fullfp16": "asimdhp",
        "dotprod": "asimddp", "fp16fml": "asimdfhm", "rcpc": "lrcpc", "sve": "sve", "sve2": "sve2", "i8mm": "i8mm",
        "bf16": "bf16",
    },
}
# fmt: on
_SAME = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}


def architecture(name: str | None = None) -> str:
    """The usual name of an architecture or of that in a triple; this machine's if none is given."""
    first = (name or platform.machine()).partition("-")[0].lower()
    return _SAME.get(first, first)


def extensions(features: Collection[str], machine: str) -> list[str]:
    """Picks, sorted, LLVM's features of an architecture that `missing_extensions` knows."""
    return sorted(name for name in features if name in _FLAGS.get(machine, ()))


def linux_names(names: Iterable[str], machine: str) -> list[str]:
    """Linux's names of these extensions in /proc/cpuinfo, for readers of model.json without this table."""
    return sorted(_FLAGS[machine][name] for name in names)


def missing_extensions(needed: Iterable[str], machine: str) -> list[str]:
    """Extensions that this processor lacks; none where that cannot be known."""
    return [name for name in needed if has(name, machine) is False]


def has(name: str, machine: str) -> bool | None:
    """Whether this processor, of the architecture `machine`, has an extension; None where that cannot be known."""
    known = _FLAGS.get(machine, {}).get(name)
    if known is None:
        return None
    if sys.platform == "darwin":
        return _by_macos(name)
    if sys.platform == "win32":
        return _by_windows(name)
    flags = _flags()
    return known in flags if flags else None


def _flags() -> set[str]:
    """Flags of the first processor, by Linux."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


_MACOS = {
    **{"dotprod": "hw.optional.arm.FEAT_DotProd", "i8mm": "hw.optional.arm.FEAT_I8MM"},
    **{"avx2": "hw.optional.avx2_0", "avx512f": "hw.optional.avx512f", "avx512vnni": "hw.optional.avx512vnni"},
}
"""What sysctl says of extensions, 0 or 1."""
_WINDOWS = {"avx2": 40, "avx512f": 41, "dotprod": 43, "i8mm": 66}
"""The numbers of IsProcessorFeaturePresent: PF_AVX2_INSTRUCTIONS_AVAILABLE and so on, in winnt.h."""
_IMPLIED = {"avx512vnni": "avx512f", "amx-int8": "avx512f", "avxvnni": "avx2"}
"""What has the first has the second, so that what lacks the second is known to lack the first."""


def _by_macos(name: str) -> bool | None:
    if name not in _MACOS:
        # No Mac has AMX as Intel means it, and none with an Intel processor has AVX-VNNI.
        return False if name in _IMPLIED else None
    number, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    asked = ctypes.CDLL(None).sysctlbyname(
        _MACOS[name].encode(), ctypes.byref(number), ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    # What it has not heard of, the processor does not have.
    return asked == 0 and number.value != 0


def _by_windows(name: str) -> bool | None:
    if name in _WINDOWS:
        return bool(ctypes.WinDLL("kernel32").IsProcessorFeaturePresent(_WINDOWS[name]))  # type: ignore[attr-defined,unused-ignore]
    implied = _IMPLIED.get(name)
    return False if implied is not None and not _by_windows(implied) else None
