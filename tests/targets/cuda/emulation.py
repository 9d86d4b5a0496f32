"""Engines for GPUs on a machine without one: their kernels' very source, compiled by g++, behind a stand-in for
NVIDIA's driver (emulator/driver.cpp). So TVM's runtime, the engine's host code, its launches, barriers and index
arithmetic run as they would, and every access of a kernel is looked at (emulator/include/checked.h); what NVIDIA's
compilers and the silicon make of the source is not seen.

`python -m tests.targets.cuda.emulation … -o RESULT SOURCE` is the nvcc of this GPU: see `make_nvcc`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import ROOT

__all__ = ["environment", "make_driver", "make_kernels", "make_nvcc"]

_HERE = Path(__file__).parent / "emulator"
_ROOT = ROOT
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\((\d+)\) )?(\w+)\(([^)]*)\)\s*([{;])')
_PARAMETER = re.compile(r"([\w ]+?)\s*\*\s*(?:__restrict__\s+)?(\w+)$")
_SHARED = re.compile(r"__shared__ (?:alignas\(\d+\) )?([\w:]+) (\w+)\[(\d+)\];")
_DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?([\w:]+) (\w+)\[\];")
_OWN = re.compile(r"alignas\(\d+\) ([\w:]+) (\w+)\[(\d+)\];")
_VECTOR = re.compile(r"\*\((\w+)\*\)\(")
_MOST_THREADS = 1024
_DRIVER = "libcudart.so.13"
_ALL = "all.h"
_KERNELS = (
    # Most of what kernels take is compiling them; without any optimization they run too slowly.
    *("g++", "-Og", "-w", "-std=c++17", "-fpermissive", "-fPIC"),
    # Products are not to be fused with sums in another way than on a GPU; neither is exact.
    "-ffp-contract=off",
    # Arrays that are not looked at, those of fragments for one.
    *("-fsanitize=bounds", "-fsanitize-undefined-trap-on-error"),
    f"-I{_HERE / 'include'}",
)


@functools.cache
def _built() -> Path:
    """A folder with the driver, and with the headers of all kernels as g++ has read them: made once for each state of
    their sources, in build/."""
    sources = sorted(path for path in _HERE.rglob("*") if path.is_file())
    compiler = subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout
    parts = (compiler, repr(_KERNELS).encode(), *(path.read_bytes() for path in (Path(__file__), *sources)))
    place = ROOT / "build" / "emulator" / hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        folder = Path(name) / "made"
        folder.mkdir()
        (folder / _ALL).write_text("".join(f"#include <{path.name}>\n" for path in sources if path.suffix == ".h"))
        header = ["-x", "c++-header", "-o", str(folder / f"{_ALL}.gch"), str(folder / _ALL)]
        subprocess.run([*_KERNELS, *header], check=True)
        versions = folder / "versions"
        # The driver's own names have the version that its users' have, which is none.
        versions.write_text(f"{_DRIVER} {{ global: cuda*; }};\nDRIVER {{ global: cu[A-Z]*; }};\n")
        command = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", f"-Wl,--version-script={versions}"]
        library = [f"-Wl,-soname,{_DRIVER}", "-o", str(folder / _DRIVER), str(_HERE / "driver.cpp"), "-ldl"]
        subprocess.run([*command, *library], check=True)
        # Another process may have been here first.
        with contextlib.suppress(OSError):
            folder.rename(place)
    return place


def make_driver(folder: Path) -> Path:
    """Writes libcuda.so.1 and libcudart.so.13 into a folder, to be in LD_LIBRARY_PATH."""
    shutil.copyfile(_built() / _DRIVER, folder / _DRIVER)
    # One library under two names: both have the same memory.
    (folder / "libcuda.so.1").symlink_to(_DRIVER)
    return folder


def make_nvcc(folder: Path, driver: Path) -> Path:
    """Writes a compiler whose code runs on the GPU of `driver`, and which keeps the last source as kernels.cu."""
    path = folder / "nvcc"
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in --version) echo "release 13.0"; exit;; esac\n'
        f'cd {_ROOT} && exec {sys.executable} -m tests.targets.cuda.emulation {folder} {driver} "$@"\n'
    )
    path.chmod(0o755)
    return path


def environment(driver: Path, **more: str) -> dict[str, str]:
    """The environment of a process that has this GPU."""
    return os.environ | {"LD_LIBRARY_PATH": str(driver)} | more


def make_kernels(source: str, library: Path, driver: Path) -> bytes:
    """Compiles CUDA C++ that TVM wrote for the CPU.

    Args:
        source: the source.
        library: the shared library to write.
        driver: the folder that `make_driver` wrote.

    Returns:
        What the driver takes for code.
    """
    calls: list[str] = []

    def kernel(match: re.Match[str]) -> str:
        bounds, name, listed, end = match.groups()
        parameters, given, sizes = [], [], []
        for place, parameter in enumerate(listed.split(",")):
            pointer = _PARAMETER.match(parameter.strip())
            kind, _, title = parameter.strip().rpartition(" ")
            if pointer is not None:
                kind, title = f"Parameter<{pointer[1]}>", pointer[2]
            parameters.append(f"{kind} {title}")
            plain = f"{pointer[1]}*" if pointer is not None else kind
            given.append(f"*({plain} *)a[{place}]")
            sizes.append(f"sizeof({plain})")
        if end == "{":
            calls.append(f'extern "C" void {name}__call(void **a) {{ {name}({", ".join(given)}); }}')
            calls.append(f'extern "C" const int {name}__sizes[] = {{{", ".join(sizes)}, 0}};')
            calls.append(f'extern "C" const int {name}__bounds = {bounds or _MOST_THREADS};')
        return f"void {name}({', '.join(parameters)}) {end}"

    source = _KERNEL.sub(kernel, source)
    assert calls
    # Blocks run one after the other, so that one piece of memory is enough.
    source = _SHARED.sub(r"static Shared<\1, \3> \2;", source)
    source = _DYNAMIC.sub(r"static Dynamic<\1> \2;", source)
    source = _OWN.sub(r"Local<\1, \3> \2;", source)
    source = _VECTOR.sub(r"*Vector<\1>::at(", source)
    file = library.with_suffix(".cpp")
    file.write_text(source + "\n".join(calls) + "\n")
    given = ["-shared", f"-I{_built()}", "-include", _ALL, str(file), str(driver / _DRIVER)]
    subprocess.run([*_KERNELS, *given, "-o", str(library)], check=True)
    return f"{library}\n".encode()


def main(folder: Path, driver: Path, arguments: list[str]) -> None:
    """What nvcc does."""
    source = Path(arguments[-1]).read_text()
    (folder / "kernels.cu").write_text(source)
    result = Path(arguments[arguments.index("-o") + 1])
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    result.write_bytes(make_kernels(source, folder / f"{name}.so", driver))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
