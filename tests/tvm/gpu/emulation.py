"""Engines for GPUs on a machine without one: their kernels' very source, compiled by g++, behind a stand-in for
NVIDIA's driver (emulator/driver.cpp). So TVM's runtime, the engine's host code, its launches, barriers and index
arithmetic run as they would; what NVIDIA's compilers and the silicon make of the source is not seen."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

__all__ = ["make_driver", "make_kernels"]

_HERE = Path(__file__).parent / "emulator"
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\)\s*\{')


def make_driver(folder: Path) -> Path:
    """Writes libcuda.so.1 and libcudart.so.13 into a folder, to be in LD_LIBRARY_PATH."""
    versions = folder / "versions"
    versions.write_text("libcudart.so.13 { global: cuda*; };\nDRIVER { global: cu[A-Z]*; };\n")
    runtime = folder / "libcudart.so.13"
    command = ["g++", "-O2", "-shared", "-fPIC", f"-Wl,--version-script={versions}", "-o", str(runtime)]
    subprocess.run([*command, "-Wl,-soname,libcudart.so.13", str(_HERE / "driver.cpp"), "-ldl"], check=True)
    # One library under two names: both have the same memory.
    (folder / "libcuda.so.1").symlink_to(runtime.name)
    return folder


def make_kernels(source: str, library: Path, driver: Path) -> Path:
    """Compiles CUDA C++ that TVM wrote for the CPU; `driver` is the folder that `make_driver` wrote."""
    calls = []
    for name, parameters in _KERNEL.findall(source):
        types = [
            parameter.rpartition(" ")[0].replace("__restrict__", "").strip() for parameter in parameters.split(",")
        ]
        given = ", ".join(f"*({kind} *)a[{place}]" for place, kind in enumerate(types))
        calls.append(f'extern "C" void {name}__call(void **a) {{ {name}({given}); }}')
    assert calls
    # Blocks run one after the other, so that one piece of memory is enough.
    source = re.sub(r"__shared__ (alignas\(\d+\))?", r"\1 static ", source)
    file = library.with_suffix(".cpp")
    file.write_text("#include <cuda_fp16.h>\n#include <mma.h>\n" + source + "\n".join(calls) + "\n")
    # Products are not to be fused with sums in another way than on a GPU; neither is exact.
    command = ["g++", "-O1", "-w", "-std=c++17", "-fpermissive", "-shared", "-fPIC", "-ffp-contract=off"]
    subprocess.run(
        [*command, f"-I{_HERE / 'include'}", "-o", str(library), str(file), str(driver / "libcudart.so.13")], check=True
    )
    return library
