"""Runs a command as if the CPU had fewer instruction sets: shows what 8-bit arithmetic computes and costs on others.

    python -m benchmarks.held avx2 dnc eval yolo-fastest-1.1.engine --data images

`avx2` takes away AVX-512, VNNI and AMX, `avx512` VNNI and AMX alone. ONNX Runtime, OpenVINO, OpenCV and ncnn choose
their kernels by the instruction `cpuid`, whose answer most machines let no program change. So the command sees copies
of their libraries in which each `cpuid` is a breakpoint, and a small library that is loaded before them answers it.
Kernels are the libraries' own, and so are their results and times. Compilers are told by their own options
(`--option mcpu=`); dnc itself goes by DNC_ISA, which is set.

Needs gcc and objdump. The copies are kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dnc.files.places import cache_dir

__all__ = ["KINDS", "environment"]

KINDS = ("avx2", "avx512")
_LIBRARIES = {
    "onnxruntime": r"onnxruntime_pybind11_state.*\.so",
    "openvino": r"libopenvino(_intel_cpu_plugin)?\.so(\.\d+)*",
    "cv2": r"cv2.*\.so",
    "ncnn": r"ncnn.*\.so",
}
_BESIDE = {"cv2": "opencv_python*.libs", "ncnn": "ncnn.libs"}
"""Libraries that are found by their place beside a package."""
_CPUID = b"\x0f\xa2"


def environment(isa: str, interpreters: Sequence[str] = ()) -> dict[str, str]:
    """The variables with which Python's programs see a CPU without what is above `isa`, one of KINDS.

    Args:
        interpreters: others, whose packages are held before those of this one.
    """
    assert isa in KINDS
    place = cache_dir(to_write=True) / "held"
    place.mkdir(exist_ok=True)
    overlay = _overlay(place, [*interpreters, sys.executable])
    paths = [str(overlay), *filter(None, [os.environ.get("PYTHONPATH")])]
    preloads = [str(_answering(place)), *filter(None, [os.environ.get("LD_PRELOAD")])]
    return {
        "HELD_ISA": isa,
        "DNC_ISA": isa,
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_PRELOAD": ":".join(preloads),
        # Its cache of compiled models does not know of this.
        "DNC_CACHE": str(place / f"cache-{isa}"),
    }


def _answering(place: Path) -> Path:
    """The library that answers, built."""
    source = Path(__file__).with_suffix(".c")
    built = place / f"held-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not built.exists():
        making = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(making), "-x", "c", str(source)], check=True)
        making.rename(built)
    return built


def _overlay(place: Path, interpreters: Sequence[str]) -> Path:
    """A folder with the packages, of which all files but the changed libraries are links."""
    origins = {name: _origin(name, interpreters) for name in _LIBRARIES}
    found = {name: folder for name, folder in origins.items() if folder is not None}
    key = hashlib.sha256(repr([(name, _stamp(name, folder)) for name, folder in found.items()]).encode())
    overlay = place / f"packages-{key.hexdigest()[:12]}"
    if overlay.exists():
        return overlay
    making = overlay.with_suffix(f".{os.getpid()}")
    for name, folder in found.items():
        beside = folder.parent.glob(_BESIDE[name]) if name in _BESIDE else ()
        for path in (path for part in (folder, *beside) for path in part.rglob("*")):
            if path.is_dir() or "__pycache__" in path.parts:
                continue
            copy = making / path.relative_to(folder.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if re.fullmatch(_LIBRARIES[name], path.name) and not path.is_symlink():
                copy.write_bytes(_with_breakpoints(path))
            else:
                _link(path, copy)
    making.rename(overlay)
    return overlay


def _link(path: Path, copy: Path) -> None:
    """The same file once more: a library looks for others beside the place that it was loaded from."""
    try:
        os.link(path, copy, follow_symlinks=True)
    except OSError:
        shutil.copyfile(path, copy)


_FIND = (
    "import importlib.util, sys; found = importlib.util.find_spec(sys.argv[1]); print(found.origin if found else '')"
)


def _origin(name: str, interpreters: Sequence[str]) -> Path | None:
    """The folder of a package in the first interpreter that has it; it is not imported."""
    for python in interpreters:
        command = [python, "-c", _FIND, name]
        origin = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        if origin:
            return Path(origin).parent
    return None


def _stamp(name: str, folder: Path) -> list[tuple[str, int, int]]:
    paths = [path for path in folder.rglob("*.so*") if re.fullmatch(_LIBRARIES[name], path.name)]
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def _with_breakpoints(path: Path) -> bytes:
    """A library whose `cpuid` are `int3`, found by disassembling it: the same bytes stand elsewhere as well."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(path)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    places = [int(found[1], 16) for found in re.finditer(r"^\s*([0-9a-f]+):\s+cpuid\b", listing, re.MULTILINE)]
    headers = subprocess.run(["objdump", "-h", "-w", str(path)], check=True, stdout=subprocess.PIPE, text=True).stdout
    sections = [
        tuple(int(number, 16) for number in found.groups())
        for found in re.finditer(
            r"^\s*\d+ \S+\s+([0-9a-f]+)\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+).*CODE", headers, re.MULTILINE
        )
    ]
    content = bytearray(path.read_bytes())
    for address in places:
        start, offset = next((start, offset) for size, start, offset in sections if start <= address < start + size)
        at = address - start + offset
        assert content[at : at + 2] == _CPUID, f"{path}: no cpuid at {address:x}"
        content[at] = 0xCC
    return bytes(content)


def main() -> None:
    """Replaces this process by the command."""
    if len(sys.argv) < 3 or sys.argv[1] not in KINDS:
        sys.exit(f"python -m benchmarks.held {'|'.join(KINDS)} COMMAND …")
    os.environ.update(environment(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
