"""The processes that compile for GPUs (`dnc.targets.cuda.child`) and measure on them (`dnc.targets.cuda.measure`).

The one that compiles has stand-ins for NVIDIA's driver: shared libraries with the names that TVM's CUDA runtime links
with, made by the C++ compiler that links engines as well. Every function in them returns "no CUDA-capable device". The
one that measures has the driver itself, and may be ended by what it measures.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dnc
from dnc.errors import TargetError
from dnc.files.writing import scratch_folder
from dnc.graph.serialization import serialize_to
from dnc.runtime.runners.cuda.kernels import CUDA_RUNTIME
from dnc.runtime.runners.tvm.session import runtime_library
from dnc.targets.tvm.compile import find_linker, machine_for
from dnc.targets.tvm.remote import Lost
from dnc.typing import Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Child", "Compiler", "Ended", "Job", "cuda_runtime"]

_NO_DEVICE = 100
"""CUDA's error for that."""


@dataclass(frozen=True)
class Job:
    """The machine that code is made for, and the compilers."""

    archs: Sequence[str]
    """As sm_87."""
    triple: str = ""
    """The machine with the GPU; this machine's if empty."""
    mcpu: str = "generic"
    linker: str = ""
    """Its C++ compiler; the usual one if empty."""
    compiler: str = ""
    """See `dnc.targets.cuda.toolkit.find_toolkit`."""
    tf32: bool = False
    """Whether products of float32 may be rounded to TF32."""
    bfloat16: bool = False
    """Whether convolutions multiply in it: see `dnc.targets.tvm.emit.halves`."""
    new: bool = False
    """Whether kinds of kernels that no GPU has run yet may be taken."""


def cuda_runtime() -> Path | None:
    """The libtvm_runtime_cuda.so of an installed TVM, found without importing it; None if there is none."""
    library = runtime_library()
    path = None if library is None else library.with_name(CUDA_RUNTIME)
    return path if path is not None and path.is_file() else None


class Ended(TargetError):
    """A process ended before it answered, or did not answer in time."""


class Child:
    """A Python process that answers requests, each a line of JSON: a context, which ends it.

    Args:
        does: what it does, for messages.
        path: a folder to find libraries in first.
    """

    def __init__(self, module: str, does: str, path: Path | None, progress: Progress) -> None:
        self._does, self._progress = does, progress
        environment = dict(os.environ)
        for variable, folder in (("LD_LIBRARY_PATH", path), ("PYTHONPATH", Path(dnc.__file__).parent.parent)):
            if folder is not None:
                environment[variable] = os.pathsep.join(filter(None, [str(folder), os.environ.get(variable, "")]))
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env=environment,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        # What it was sent and did not read is lost with it.
        self._process.communicate()
        self._errors.close()

    def ask(self, request: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """The reply to a request. Raises TargetError if the reply is an error; Ended if there is none, or not within so
        many seconds, or the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds or 0, end)
        if seconds is not None:
            timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                reply: dict[str, Any] = json.loads(line)
                if "stage" in reply:
                    self._progress(reply["stage"])
                elif "error" in reply:
                    raise TargetError(reply["error"], reply["where"], reply["hint"])
                else:
                    return reply
        except BrokenPipeError:
            # It ended at once; what it said is in `errors`.
            pass
        finally:
            timer.cancel()
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        if late.is_set():
            raise Ended(f"{self._does} took more than {seconds:.0f} s")
        raise Ended(f"{self._does} ended with status {status}: {' '.join(lines[-1:])}")


class Compiler:
    """A model in a process that compiles it: a context.

    Args:
        model: in which `dnc.targets.tvm.emit.unsupported` finds nothing.

    Raises:
        TargetError: a compiler is missing, or refuses the network.
    """

    def __init__(self, model: ir.Model, job: Job, progress: Progress = silent) -> None:
        here = machine_for("", "generic")
        linker = find_linker(job.linker, machine_for(job.triple, job.mcpu))
        with ExitStack() as stack:
            scratch = stack.enter_context(scratch_folder("tvm"))
            _make_stand_ins(find_linker("", here), scratch)
            serialize_to(model, scratch / "model.onnx")
            does = "compiling for the GPU"
            self._child = stack.enter_context(Child("dnc.targets.cuda.child", does, scratch, progress))
            model_file = str(scratch / "model.onnx")
            self._child.ask({**vars(job), "model": model_file, "archs": list(job.archs), "linker": linker})
            self._stack = stack.pop_all()

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def network(self, library: Path, chosen: Mapping[str, int] | None = None) -> Mapping[str, Any]:
        """Writes the shared library of the network.

        Args:
            chosen: ranks of some functions: see `dnc.runtime.runners.cuda.device.Device`.

        Returns:
            compiler: its version; archs, ptx: see `Toolkit.forms`; rules: which rules wrote each function; kernels: see
            `dnc.targets.tvm.provenance.kernels_of`; large: bytes of shared memory that kernels ask for, at most;
            resources: what each kernel takes.
        """
        return self._ask({"do": "network", "library": str(library), "chosen": dict(chosen or {})})

    def functions(self, library: Path) -> Mapping[str, Any]:
        """Writes a library of the network's functions, and says what there is to know of them."""
        return self._ask({"do": "functions", "library": str(library)})

    def forms(self, library: Path, name: str, ranks: Sequence[int]) -> dict[int, Any]:
        """Writes a library of a function in the forms of some ranks, called rankN; their arguments."""
        reply = self._ask({"do": "forms", "library": str(library), "name": name, "ranks": list(ranks)})
        return {int(rank): arguments for rank, arguments in reply["forms"].items()}

    def next_ranks(self, name: str, tried: Sequence[int], count: int) -> list[int]:
        """The next ranks whose forms differ from the rule's own and from those that were tried."""
        return list(self._ask({"do": "next", "name": name, "tried": list(tried), "count": count})["ranks"])

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._child.ask(request)
        except Ended as error:
            raise Lost(error.message) from error


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
        names = [name for name, defined in symbols if defined == version]
        source = folder / "driver.c"
        source.write_text("".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in names), encoding="utf-8")
        # Symbols of a version are in the library that the version is named after.
        name = version or "libcuda.so.1"
        command = [compiler, "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        command += ["-o", str(folder / name), str(source)]
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
