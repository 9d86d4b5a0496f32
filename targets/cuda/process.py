"""The processes that compile for GPUs (`dnc.targets.cuda.child`) and measure on them (`dnc.targets.cuda.measure`).

The one that compiles has stand-ins for NVIDIA's driver: shared libraries with the names that TVM's CUDA runtime links
with, made by the C++ compiler that links engines as well. Every function in them returns "no CUDA-capable device". The
one that measures has the driver itself, and may be ended by what it measures.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import dnc
from dnc.errors import TargetError
from dnc.files.writing import scratch_folder
from dnc.graph.serialization import serialize_to
from dnc.runtime.runners.cuda.kernels import CUDA_RUNTIME
from dnc.runtime.runners.tvm.session import runtime_library
from dnc.targets.tvm.compile import find_linker, machine_for
from dnc.typing import Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Child", "Compiler", "Ended", "Job", "Reply", "cuda_runtime"]

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


class Reply:
    """What a process will answer to a request."""

    def __init__(self, ended: Callable[[], Ended], progress: Progress) -> None:
        self._ended, self._progress = ended, progress
        self._lines: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._over = threading.Event()

    def put(self, line: dict[str, Any] | None) -> None:
        """For whoever reads what the process says: a line of it, or None at its end."""
        self._lines.put(line)
        if line is None or "stage" not in line:
            self._over.set()

    def ready(self) -> bool:
        """Whether `result` need not wait."""
        return self._over.is_set()

    def result(self, seconds: float | None = None) -> dict[str, Any]:
        """The reply, once.

        Raises:
            TargetError: the reply is an error.
            Ended: the process has ended.
            TimeoutError: there is none within so many seconds.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except Empty:
                raise TimeoutError from None
            if line is None:
                raise self._ended()
            if "error" in line:
                raise TargetError(line["error"], line["where"], line["hint"])
            if "stage" not in line:
                return line
            self._progress(line["stage"])


class Child:
    """A Python process that answers requests (`dnc.targets.cuda.serving`): a context, which ends it, and what it has
    started itself.

    Args:
        does: what it does, for messages.
        path: a folder to find libraries in first.

    Ctrl-C does not reach it.
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
            process_group=0,
        )
        self._lock = threading.Lock()
        self._waiting: dict[int, Reply] | None = {}
        """Requests without a reply; None where there will be no more replies."""
        self._numbers = count()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            # What it was sent and did not read is lost with it.
            with suppress(BrokenPipeError):
                stream.close()
        self._errors.close()

    def _kill(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                break  # It was ended while it wrote.
            number, reply = json.loads(line)
            with self._lock:
                assert self._waiting is not None
                waiting = self._waiting[number] if "stage" in reply else self._waiting.pop(number)
            waiting.put(reply)
        with self._lock:
            left, self._waiting = list((self._waiting or {}).values()), None
        for waiting in left:
            waiting.put(None)

    def send(self, request: Mapping[str, Any]) -> Reply:
        """Asks without waiting."""
        reply = Reply(self._ended, self._progress)
        with self._lock:
            number = next(self._numbers)
            if self._waiting is None:
                reply.put(None)
                return reply
            self._waiting[number] = reply
        assert self._process.stdin is not None
        # One that ended at once says why: the reader hears of it.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([number, request]) + "\n")
            self._process.stdin.flush()
        return reply

    def ask(self, request: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """The reply to a request. Raises TargetError if the reply is an error; Ended if the process has ended, or does
        not answer within so many seconds: it is ended then."""
        try:
            return self.send(request).result(seconds)
        except TimeoutError:
            self._kill()
            raise Ended(f"{self._does} took more than {seconds:.0f} s") from None

    def _ended(self) -> Ended:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return Ended(f"{self._does} ended with status {status}: {' '.join(lines[-1:])}")


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
            self._start: Reply | None = self._child.send(
                {**vars(job), "model": model_file, "archs": list(job.archs), "linker": linker}
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def network(self, library: Path, chosen: Mapping[str, int] | None = None) -> Reply:
        """Writes the shared library of the network.

        Args:
            chosen: ranks of some functions: see `dnc.runtime.runners.cuda.device.Device`.

        Returns:
            compiler: its version; archs, ptx: see `Toolkit.forms`; rules: which rules wrote each function; kernels: see
            `dnc.targets.tvm.provenance.kernels_of`; large: bytes of shared memory that kernels ask for, at most;
            resources: what each kernel takes.
        """
        return self._send({"do": "network", "library": str(library), "chosen": dict(chosen or {})})

    def functions(self, library: Path) -> Reply:
        """Writes a library of the network's functions, and says what there is to know of them."""
        return self._send({"do": "functions", "library": str(library)})

    def forms(self, library: Path, name: str, ranks: Sequence[int], *, more: int = 0) -> Reply:
        """Writes libraries of a function in other forms; several are written at once.

        Args:
            ranks: which ranks; with `more`, those that were tried: as many are written of the next ones, whose forms
                differ from theirs and from the rule's own.

        Returns:
            forms: {rank: [library, function, arguments]}; refused: {rank: why}.
        """
        return self._send({"do": "forms", "library": str(library), "name": name, "ranks": list(ranks), "more": more})

    def weights(self, name: str, files: Mapping[int, Path]) -> Reply:
        """Writes numbers for the parameters of a function that forms of some ranks want packed, the same ones for all,
        to files of numpy's, by place."""
        return self._send({"do": "weights", "name": name, "files": {rank: str(file) for rank, file in files.items()}})

    def _send(self, request: Mapping[str, Any]) -> Reply:
        if self._start is not None:
            self._start.result()
            self._start = None
        return self._child.send(request)


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
