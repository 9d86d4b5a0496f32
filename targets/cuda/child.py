"""The process that compiles for GPUs: `python -m dnc.targets.cuda.child < requests.jsonl > replies.jsonl`.

TVM keeps compiled kernels in a module of its CUDA runtime, and otherwise their source alone. That runtime links with
NVIDIA's driver, which is not there where there is no GPU. So `dnc.targets.cuda.process` starts this process with
libraries in its path that have the driver's names, and functions that say that there is no GPU. Nothing of that gets
into the process that the user runs.

The first request says what is compiled:

    model           an .onnx file, ready for the target
    archs           ["sm_75", ...]
    triple, mcpu    the machine that launches the kernels: see `dnc.targets.tvm.compile.machine_for`
    linker          a C++ compiler for that machine
    compiler        see `dnc.targets.cuda.toolkit.find_toolkit`
    tf32            whether products of float32 may be rounded to TF32
    bfloat16        whether convolutions multiply in it
    new             whether kinds of kernels that no GPU has run yet may be taken

and is answered with {}. Those that follow are answered several at once; they write libraries, to the file `library`:

    do              more                        the library, and the reply
    network         chosen: {function: rank}    the whole: {"compiler", "archs", "ptx", "rules", "kernels",
                                                "large", "resources"}
    functions                                   each by itself: {"functions": [{"name", "key", "rules", "calls",
                                                "arguments": [[shape, dtype], ...]}, ...], "compiler", "kernels"}
    forms           name, ranks, more           one function in the forms of these ranks, or in so many more of the next
                                                ones that differ from them: {"forms": {rank: [library, function,
                                                arguments]}, "refused": {rank: why}}
    weights         name, files: {rank: file}   numbers for the parameters that these forms want packed, the same ones
                                                for all, in files of numpy's, by place: {}

See `dnc.targets.cuda.serving` for what is there besides replies.
"""

from __future__ import annotations

import dataclasses
import subprocess
import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

from dnc.errors import TargetError, how_to_report
from dnc.files.writing import scratch_folder
from dnc.runtime.runners.cuda.device import Device
from dnc.runtime.timing import processors
from dnc.targets.cuda.serving import serve
from dnc.targets.cuda.toolkit import Resources, find_toolkit
from dnc.targets.tvm.compile import link_with, machine_for
from dnc.targets.tvm.forms import Forms, key_of

_MOST_REGISTERS = 255
_OF_TVM = (RuntimeError, ValueError, TypeError, AttributeError)
"""What TVM raises: tvm_ffi makes of its errors the builtin class that they name."""


class _Taken(threading.local):
    """What this thread compiled last: for which architectures, and what the kernels take."""

    def __init__(self, archs: list[str]) -> None:
        self.archs = archs
        self.resources: dict[str, Resources] = {}


class _Compiler:
    """Answers the requests after the first one, in several threads."""

    def __init__(self, request: dict[str, Any], progress: Callable[[str], None]) -> None:
        import onnx_ir as ir

        from dnc.targets.cuda.emit import emit
        from dnc.targets.cuda.lowering import Network, fill_of

        self._tell = progress
        self._archs = list(request["archs"])
        self._toolkit = find_toolkit(request["compiler"])
        self._machine = machine_for(request["triple"], request["mcpu"])
        self._linker = request["linker"]
        self._taken = _Taken(self._archs)
        progress("reading the graph")
        fill = fill_of(Device.of(self._archs), request["new"])
        module = emit(ir.load(request["model"]), fill=fill, bfloat16=request["bfloat16"])
        switches = {"tf32": request["tf32"], "new": request["new"]}
        self._network = Network(module, self._archs, self._machine.target, self._compile_kernels, **switches)

    def _compile_kernels(self, source: str) -> bytes:
        self._taken.archs = self._toolkit.compiled_for(source, self._archs)
        self._tell(f"compiling kernels for {', '.join(self._taken.archs)}")
        with scratch_folder("cuda") as scratch:
            code, self._taken.resources = self._toolkit.compile(source, self._taken.archs, scratch)
        return code

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request; raises TargetError if something is refused."""
        answers = {"network": self._whole, "functions": self._each, "forms": self._forms}
        answers["weights"] = self._weights
        return answers[request["do"]](request)

    def _whole(self, request: dict[str, Any]) -> dict[str, Any]:
        self._tell("scheduling")
        lowered = self._network.lowered(request["chosen"])
        self._write(lowered.executable, request["library"])
        binary, ptx = self._toolkit.forms(self._taken.archs)
        return {
            "compiler": self._toolkit.version(),
            "archs": binary,
            "ptx": ptx,
            "rules": dict(lowered.rules),
            "kernels": list(lowered.kernels),
            "large": lowered.large,
            "resources": {name: dataclasses.asdict(taken) for name, taken in self._taken.resources.items()},
        }

    def _each(self, request: dict[str, Any]) -> dict[str, Any]:
        from dnc.targets.tvm.provenance import kernels_of

        self._tell("scheduling")
        runnable = self._network.functions()
        functions = {name: function for name, (function, _, _) in runnable.items()}
        self._write(self._network.alone(functions), request["library"])
        described = [
            {
                "name": name,
                "key": key_of(self._network.loops[name]),
                "rules": rules,
                "calls": calls,
                "arguments": _arguments(function),
            }
            for name, (function, rules, calls) in runnable.items()
        ]
        kernels = kernels_of(self._network.loops)
        return {"functions": described, "compiler": self._toolkit.version(), "kernels": kernels}

    def _forms(self, request: dict[str, Any]) -> dict[str, Any]:
        name, ranks, more = request["name"], request["ranks"], request["more"]
        if more:
            following = Forms(lambda rank: self._network.form(name, rank), ranks)
            functions = dict(islice(following, more))
        else:
            functions = {rank: self._network.form(name, rank) for rank in ranks}
        forms: dict[int, Any] = {}
        refused: dict[int, str] = {}
        if functions:
            self._put(functions, request["library"], forms, refused)
        return {"forms": forms, "refused": refused}

    def _weights(self, request: dict[str, Any]) -> dict[str, Any]:
        files = {int(rank): file for rank, file in request["files"].items()}
        for rank, arrays in self._network.weights(request["name"], list(files)).items():
            np.savez(files[rank], **{str(place): array for place, array in arrays.items()})  # type: ignore[arg-type]
        return {}

    def _put(self, functions: dict[int, Any], library: str, forms: dict[int, Any], refused: dict[int, str]) -> None:
        """Writes a library of functions; where one of them is refused, one of each."""
        try:
            if None in functions.values():
                raise TargetError("no rule writes it any more")
            self._write(self._network.alone({f"rank{rank}": form for rank, form in functions.items()}), library)
        except (TargetError, *_OF_TVM) as error:
            if len(functions) > 1:
                for rank, form in functions.items():
                    self._put({rank: form}, f"{library}.{rank}.so", forms, refused)
            else:
                refused |= dict.fromkeys(functions, str(error).strip().partition("\n")[0])
            return
        forms |= {rank: [library, f"rank{rank}", _arguments(form)] for rank, form in functions.items()}

    def _write(self, executable: Any, library: str) -> None:
        self._tell("linking")
        # TVM would make a folder of its own, which nobody removes when the process is killed.
        with scratch_folder("link") as work:
            executable.export_library(library, fcompile=link_with(self._linker, self._machine), workspace_dir=str(work))
        for name, taken in self._taken.resources.items():
            if taken.registers > _MOST_REGISTERS or taken.shared > Device.shared:
                what = f"kernel {name} takes {taken.registers} registers and {taken.shared} bytes of shared memory"
                raise TargetError(what)


def _arguments(function: Any) -> list[tuple[list[int], str]]:
    return [([int(side) for side in parameter.shape], str(parameter.dtype)) for parameter in function.params]


class _Process:
    """Answers all requests, the first one among them."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._tell = progress
        self._compiler: _Compiler | None = None
        self._linker = ""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply; raises TargetError if something is refused, or TVM fails."""
        try:
            if self._compiler is not None:
                return self._compiler.answer(request)
            self._linker = request["linker"]
            self._compiler = _Compiler(request, self._tell)
            return {}
        except TargetError:
            raise
        except subprocess.CalledProcessError as error:
            raise TargetError(f"{self._linker} cannot link: {str(error.stderr).strip()}") from error
        except _OF_TVM as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            remedy = how_to_report("the cfg")
            raise TargetError(f"TVM cannot compile the network: {lines[0]}", hint=remedy) from error


if __name__ == "__main__":
    # What takes long is compiling; what is asked for besides need not wait for that.
    serve(lambda tell: _Process(tell).answer, processors() + 2)
