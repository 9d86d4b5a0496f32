"""NVIDIA's compilers for CUDA C++, which need no GPU: nvcc, or NVRTC.

Looked for in this order, unless one is named: nvcc on the PATH, of $CUDA_HOME or in /usr/local/cuda; nvcc of PyPI's
nvidia-cuda-nvcc; NVRTC of PyPI's nvidia-cuda-nvrtc.

nvcc makes a fat binary: machine code for each architecture, and PTX of the last one, which the drivers of later GPUs
compile when the engine is opened. NVRTC makes one piece of code: machine code for one architecture, or for several PTX
of the first. For sm_90a either makes machine code alone.

Of each kernel both tell what it takes of a multiprocessor. A kernel that spills registers into memory works, slowly.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnc.errors import TargetError
from dnc.runtime.runners.cuda.device import is_alone

__all__ = ["Resources", "Toolkit", "find_toolkit"]

_WHEELS = 'pip install "darknet-compiler[nvcc]"'
_SYSTEM = Path("/usr/local/cuda")
_STANDARD = "c++17"
_OWN = "wgmma.mma_async"


@dataclass(frozen=True)
class Resources:
    """Registers and memory of a kernel, of the architecture that needs the most."""

    registers: int = 0
    """Of a thread."""
    shared: int = 0
    """Bytes, of a block."""
    spilled: int = 0
    """Bytes of a thread that did not fit into registers."""


@dataclass(frozen=True)
class Toolkit:
    """A compiler: `nvcc`, or `libnvrtc.so.13`."""

    path: Path
    include: tuple[Path, ...] = ()
    """Where NVRTC finds CUDA's headers; nvcc knows that itself."""

    @property
    def is_nvcc(self) -> bool:
        """Whether it is nvcc."""
        return "nvrtc" not in self.path.name

    def version(self) -> str:
        """Name and version, as `nvcc 13.0`."""
        if self.is_nvcc:
            match = re.search(r"release (\d+\.\d+)", _run([str(self.path), "--version"]).stdout)
            return f"nvcc {match[1] if match else '?'}"
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"NVRTC {major.value}.{minor.value}"

    def forms(self, archs: Sequence[str]) -> tuple[list[str], str]:
        """The architectures that `compile` makes machine code for, and that of which it makes PTX, if any."""
        if self.is_nvcc:
            return list(archs), "" if is_alone(archs[-1]) else archs[-1]
        return (list(archs), "") if len(archs) == 1 else ([], archs[0])

    @staticmethod
    def compiled_for(source: str, archs: Sequence[str]) -> list[str]:
        """What `compile` is to be given for those architectures that are asked for: sm_90a where the source has its
        instructions, which the schedules write for sm_90 alone."""
        return ["sm_90a"] if _OWN in source else list(archs)

    def compile(self, source: str, archs: Sequence[str], folder: Path) -> tuple[bytes, dict[str, Resources]]:
        """Code that the driver loads, and what its kernels take, by name.

        Args:
            source: CUDA C++.
            archs: as sm_87, in order; or sm_90a.

        Raises:
            TargetError: the compiler refuses the source or an architecture, or cannot be run.
        """
        code, log = (self._nvcc if self.is_nvcc else self._nvrtc)(source, archs, folder)
        return code, _resources(log)

    def _nvcc(self, source: str, archs: Sequence[str], folder: Path) -> tuple[bytes, str]:
        file, result = folder / "kernels.cu", folder / "kernels.fatbin"
        file.write_text(source, encoding="utf-8")
        command = [str(self.path), "--fatbin", f"-std={_STANDARD}", "--threads=0", "-diag-suppress=177", "-Xptxas=-v"]
        for arch in archs:
            command += ["-gencode", f"arch={_virtual(arch)},code={arch}"]
        _, ptx = self.forms(archs)
        if ptx:
            command += ["-gencode", f"arch={_virtual(ptx)},code={_virtual(ptx)}"]
        done = _run([*command, "-o", str(result), str(file)])
        if done.returncode:
            raise TargetError(f"nvcc failed: {_complaint(done.stderr)}", self.path)
        return result.read_bytes(), done.stderr

    def _nvrtc(self, source: str, archs: Sequence[str], folder: Path) -> tuple[bytes, str]:
        library = self._library()
        binary, ptx = self.forms(archs)
        arch = _virtual(ptx) if ptx else archs[0]
        options = [f"--gpu-architecture={arch}", f"-std={_STANDARD}", "-default-device", "--diag-suppress=177"]
        options += [f"--include-path={path}" for path in self.include] + ["--ptxas-options=-v"] * len(binary)
        program = ctypes.c_void_p()
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        try:
            failed = library.nvrtcCompileProgram(program, len(options), given)
            log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode(errors="replace")
            if failed:
                raise TargetError(f"NVRTC failed: {_complaint(log)}", self.path)
            if binary:
                return _text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program), log
            return _text(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _library(self) -> Any:
        try:
            return ctypes.CDLL(str(self.path))
        except OSError as error:
            raise TargetError(f"NVRTC cannot be loaded: {error}", self.path) from error


def _text(size: Any, get: Any, program: Any) -> bytes:
    count = ctypes.c_size_t()
    size(program, ctypes.byref(count))
    buffer = ctypes.create_string_buffer(count.value)
    get(program, buffer)
    return buffer.raw


def _virtual(arch: str) -> str:
    return arch.replace("sm_", "compute_")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise TargetError(f"{command[0]} cannot be run: {error.strerror}") from error


def _complaint(log: str) -> str:
    """The first error of a compiler's log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b|fatal|[Uu]nsupported", line)), " ".join(lines[-1:]))


def _resources(log: str) -> dict[str, Resources]:
    """Reads what ptxas -v prints."""
    kernels: dict[str, Resources] = {}
    name = ""
    for line in log.splitlines():
        if match := re.search(r"(?:entry function|properties for) '?(\w+)'?", line):
            name = match[1]
        before = kernels.get(name, Resources())
        if match := re.search(r"(\d+) bytes spill stores", line):
            kernels[name] = Resources(before.registers, before.shared, max(before.spilled, int(match[1])))
        if match := re.search(r"Used (\d+) registers", line):
            bytes_ = re.search(r"(\d+) bytes smem", line)
            shared = max(before.shared, int(bytes_[1]) if bytes_ else 0)
            kernels[name] = Resources(max(before.registers, int(match[1])), shared, before.spilled)
    return {name: resources for name, resources in kernels.items() if resources.registers}


def find_toolkit(named: str = "") -> Toolkit:
    """The compiler to use.

    Args:
        named: a path of nvcc or of libnvrtc.so, `nvcc` or `nvrtc`; whichever is found first if empty.

    Raises:
        TargetError: there is none.
    """
    if "/" in named:
        if not Path(named).is_file():
            raise TargetError("there is no such compiler", named)
        path = Path(named).resolve() if "nvrtc" in named else Path(named)
        folders = [path.parent.parent / "include", path.parent.parent / "include" / "cccl"]
        return Toolkit(path, () if "nvrtc" not in path.name else tuple(path for path in folders if path.is_dir()))
    nvcc = None if named == "nvrtc" else _nvcc_path()
    if nvcc is not None:
        return Toolkit(nvcc)
    for root in [] if named == "nvcc" else _wheels():
        for library in sorted((root / "lib").glob("libnvrtc.so.*")):
            folders = [root / "include", root / "include" / "cccl"]
            if all(folder.is_dir() for folder in folders):
                return Toolkit(library, tuple(folders))
    what = {"nvcc": "there is no nvcc", "nvrtc": "there is no NVRTC with CUDA's headers"}
    raise TargetError(what.get(named, "there is no compiler for CUDA: neither nvcc nor NVRTC"), hint=_WHEELS)


def _nvcc_path() -> Path | None:
    homes = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), _SYSTEM) if home]
    places = [None, *map(str, homes), *(str(root / "bin") for root in _wheels())]
    nvcc = next((path for path in (shutil.which("nvcc", path=place) for place in places) if path is not None), None)
    return None if nvcc is None else Path(nvcc)


def _wheels() -> list[Path]:
    """The folders of NVIDIA's packages for CUDA, the newest first."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return [path for place in places for path in sorted(Path(place).glob("cu[0-9]*"), reverse=True) if path.is_dir()]
