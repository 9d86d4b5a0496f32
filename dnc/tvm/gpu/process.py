"""Compiles for GPUs in a process of its own (`dnc.tvm.gpu.child`), with stand-ins for NVIDIA's driver.

The stand-ins are shared libraries with the names that TVM's CUDA runtime links with, made by the C++ compiler that
links engines as well. Every function in them returns "no CUDA-capable device".
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dnc
from dnc.errors import TargetError
from dnc.preprocess import Preprocessing
from dnc.tvm.gpu.session import CUDA_RUNTIME
from dnc.tvm.session import runtime_library

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Job", "cuda_runtime", "make_library"]

_NO_DEVICE = 100
"""CUDA's error for that."""


@dataclass(frozen=True)
class Job:
    """What code is made for, and with what."""

    archs: Sequence[str]
    """As sm_87."""
    triple: str = ""
    """The machine with the GPU; this machine's if empty."""
    mcpu: str = "generic"
    linker: str = ""
    """Its C++ compiler; the usual one if empty."""
    compiler: str = ""
    """See `dnc.tvm.gpu.toolkit.find_toolkit`."""


def cuda_runtime() -> Path | None:
    """The libtvm_runtime_cuda.so of an installed TVM, found without importing it; None if there is none."""
    library = runtime_library()
    path = None if library is None else library.with_name(CUDA_RUNTIME)
    return path if path is not None and path.is_file() else None


def make_library(
    model: ir.Model,
    preprocessing: Preprocessing | None,
    job: Job,
    library: Path,
    progress: Callable[[str], None] | None = None,
) -> Mapping[str, Any]:
    """Writes the shared library of a model.

    Args:
        model: in which `dnc.tvm.emit.unsupported` finds nothing.
        preprocessing: what a model that takes pixels does first.
        job: what it is for.
        library: the file.
        progress: is told what happens now.

    Returns:
        compiler: its version; archs, ptx: see `Toolkit.forms`; rules: which rules wrote each function; resources: what
        each kernel takes.

    Raises:
        TargetError: a compiler is missing, or refuses the network.
    """
    from dnc.graph import serialize_to
    from dnc.tvm.compile import find_linker, machine_for

    here = machine_for("", "generic")
    linker = find_linker(job.linker, machine_for(job.triple, job.mcpu))
    with tempfile.TemporaryDirectory(prefix="dnc-tvm-") as name:
        scratch = Path(name)
        _make_stand_ins(find_linker("", here), scratch)
        serialize_to(model, scratch / "model.onnx")
        request = {
            "model": str(scratch / "model.onnx"),
            "preprocessing": None if preprocessing is None else preprocessing.to_json(),
            "archs": list(job.archs),
            "triple": job.triple,
            "mcpu": job.mcpu,
            "linker": linker,
            "compiler": job.compiler,
            "library": str(library),
        }
        return _run(request, scratch, progress or (lambda _: None))


def _run(request: Mapping[str, Any], stand_ins: Path, tell: Callable[[str], None]) -> Mapping[str, Any]:
    paths = {"LD_LIBRARY_PATH": stand_ins, "PYTHONPATH": Path(dnc.__file__).parent.parent}
    environment = dict(os.environ)
    for variable, path in paths.items():
        environment[variable] = os.pathsep.join(filter(None, [str(path), os.environ.get(variable, "")]))
    reply: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "dnc.tvm.gpu.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=environment,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin:
                json.dump(request, process.stdin)
            for line in process.stdout:
                reply = json.loads(line)
                if "stage" in reply:
                    tell(reply["stage"])
        except BrokenPipeError:
            # It ended at once; what it said is in `errors`.
            pass
        except BaseException:
            process.kill()
            raise
        status = process.wait()
        errors.seek(0)
        lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    if "error" in reply:
        raise TargetError(reply["error"], reply["where"], reply["hint"])
    if status or "compiler" not in reply:
        raise TargetError(f"compiling for the GPU ended with status {status}: {' '.join(lines[-1:])}")
    return reply


def _make_stand_ins(compiler: str, folder: Path) -> None:
    """Writes libcuda.so.1 and libcudart.so.N as TVM's CUDA runtime wants them."""
    runtime = cuda_runtime()
    if runtime is None:
        raise TargetError(
            f"this apache-tvm has no {CUDA_RUNTIME}", hint="its wheels for Linux have it: pip install apache-tvm"
        )
    listing = _checked(["nm", "-D", "--undefined-only", str(runtime)])
    symbols = re.findall(r"\bU (cu\w+)(?:@+(\S+))?", listing)
    for version in sorted({version for _, version in symbols}):
        names = [name for name, each in symbols if each == version]
        source = folder / "driver.c"
        source.write_text("".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in names), encoding="utf-8")
        # Symbols of a version are in the library that the version is named after.
        name = version or "libcuda.so.1"
        command = [
            compiler,
            "-x",
            "c",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{name}",
            "-o",
            str(folder / name),
            str(source),
        ]
        if version:
            script = folder / "versions"
            script.write_text(f"{version} {{ global: *; }};\n", encoding="utf-8")
            command.append(f"-Wl,--version-script={script}")
        _checked(command)


def _checked(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    except OSError as error:
        raise TargetError(
            f"{command[0]} cannot be run: {error.strerror}", hint="apt-get install g++ binutils"
        ) from error
    except subprocess.CalledProcessError as error:
        raise TargetError(f"{command[0]} failed: {error.stderr.strip()}") from error
