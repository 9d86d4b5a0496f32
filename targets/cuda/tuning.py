"""Kernels chosen by measuring, of target cuda's back end tvm, on a GPU of this machine.

See `dnc.targets.tvm.tuning`. Candidates are the forms that the rules have for a kernel (`Device.rank`), several of them
built by one run of NVIDIA's compiler. What compiles has no GPU, what measures has one and may be ended by a kernel;
both are processes of their own (`dnc.targets.cuda.process`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.errors import TargetError
from dnc.runtime.runners.tvm.session import MODEL_JSON
from dnc.runtime.timing import Run
from dnc.targets.cuda.process import Child, Compiler
from dnc.targets.tvm.remote import Lost
from dnc.targets.tvm.tuning import Candidates, Kernel, Outputs, Tuner, Way, places_of, versions
from dnc.typing import Array, Progress

__all__ = ["GpuTuner", "Measurer"]

_PATIENCE = 600.0
"""Seconds that the process that measures may take to open something: a driver may have to compile it."""
_RUN_PATIENCE = 60.0
"""And for a run: a kernel may not end."""
_BATCH = 8
"""Forms that are built at once."""
_SAMPLES = 3
_RULE = 0
"""The rank of the rule's own form."""


class Measurer:
    """A GPU, in a process that is started anew where it has ended: a context.

    Raises:
        TargetError: there is no such GPU, or what it needs is missing.
    """

    def __init__(self, number: int, progress: Progress) -> None:
        self._number, self._progress = number, progress
        self._child: Child | None = None
        try:
            device = self.ask({"do": "device", "number": number})
        except TargetError as error:
            raise TargetError(f"nothing can be tuned here: {error.message}", error.where, error.hint) from error
        self.name, self.capability, self.driver = device["name"], device["capability"], device["driver"]

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.__exit__()
            self._child = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request; after a TargetError the process is another one, which knows nothing."""
        try:
            if self._child is None:
                self._child = Child("dnc.targets.cuda.measure", "what measures on the GPU", None, self._progress)
                if request["do"] != "device":
                    self._child.ask({"do": "device", "number": self._number}, _PATIENCE)
            return self._child.ask(request, _RUN_PATIENCE if request["do"] == "run" else _PATIENCE)
        except TargetError:
            # What a kernel did to the GPU's memory may stay with the process.
            self.__exit__()
            raise

    def run(self, name: str) -> Run:
        """Times a part of what was opened last."""
        return lambda: float(self.ask({"do": "run", "name": name})["seconds"])


class GpuTuner(Tuner[Mapping[str, Any]]):
    """The kernels of a network on a GPU.

    Args:
        compiler: has the network.
        model: what is compiled, for the names of its layers.
        feeds: inputs of the network.
        archs: what is compiled for.
        graphs: how engines are opened: see `dnc.runtime.runners.cuda.kernels`.
        record: the model.json that goes with a library, from what the compiler says of it.
        precision, cache, progress: as for `Tuner`.
    """

    rules = frozenset({"product", "tensor-product", "mma-product", "tf32-product", "depthwise", "pool"})

    def __init__(
        self,
        compiler: Compiler,
        measurer: Measurer,
        model: ir.Model,
        feeds: Mapping[str, Array],
        *,
        archs: Sequence[str],
        graphs: str,
        precision: str,
        record: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        scratch: Path,
        cache: Path | None,
        progress: Progress,
    ) -> None:
        self._functions = scratch / "functions.so"
        self._reply = compiler.functions(self._functions)
        device = f"{measurer.name} sm_{measurer.capability.replace('.', '')}, CUDA {measurer.driver}, "
        device += f"{precision} for {', '.join(archs)} by {self._reply['compiler']}, {versions()}"
        super().__init__(device, measurer.name, cache, progress, precision=precision)
        self._compiler, self._measurer, self._model, self._feeds = compiler, measurer, model, feeds
        self._graphs, self._record, self._scratch = graphs, record, scratch
        self._built: list[tuple[str, Path, dict[int, Any]]] = []
        """Libraries of forms: of which function, where, and the arguments by rank."""
        self._numbers = count()
        self._networks: dict[Path, Mapping[str, Any]] = {}

    def kernels(self) -> Sequence[Kernel]:
        places = places_of(self._reply["kernels"], self._model)
        kernels = []
        described = self._reply["functions"]
        for number, entry in enumerate(described, 1):
            self.progress(f"timing kernel {number} of {len(described)}")
            name, calls = entry["name"], entry["calls"]
            request = {"do": "kernels", "library": str(self._functions), "functions": {name: entry["arguments"]}}
            self._measurer.ask(request)
            run = self._measurer.run(name)
            seconds = min(float(run()) for _ in range(_SAMPLES)) * calls  # type: ignore[arg-type]
            kernels.append(Kernel(name, entry["key"], places.get(name, ()), entry["rules"], calls, seconds))
        return kernels

    def candidates(self, kernel: Kernel, known: Sequence[tuple[Way, float | None]]) -> Candidates:
        tried = [way for way, _ in known if isinstance(way, int)]
        left = kernel.trials - len(known)
        while left > 0:
            ranks = self._compiler.next_ranks(kernel.name, tried, min(left, _BATCH))
            if not ranks:
                return
            try:
                self._library(kernel.name, [_RULE, *ranks])
            except Lost:
                raise
            except TargetError:
                # One of them is refused: each is built by itself, when it is tried.
                pass
            for rank in ranks:
                yield rank, rank
            tried += ranks
            left -= len(ranks)

    def write(self, kernel: Kernel, way: Way) -> Any:
        return way if isinstance(way, int) else None

    def winner(self, kernel: Kernel, way: Way, candidate: Any) -> Any:
        return candidate

    def runs(self, kernel: Kernel, candidates: Mapping[str, Any]) -> Mapping[str, Run]:
        ranks = {name: _RULE if rank is None else int(rank) for name, rank in candidates.items()}
        library, arguments = self._library(kernel.name, sorted(set(ranks.values())))
        functions = {f"rank{rank}": arguments[rank] for rank in ranks.values()}
        self._measurer.ask({"do": "kernels", "library": str(library), "functions": functions})
        return {name: self._measurer.run(f"rank{rank}") for name, rank in ranks.items()}

    def _library(self, name: str, ranks: Sequence[int]) -> tuple[Path, Mapping[int, Any]]:
        """A library that has a function in all these forms."""
        for function, library, forms in self._built:
            if function == name and forms.keys() >= set(ranks):
                return library, forms
        library = self._scratch / f"forms{next(self._numbers)}.so"
        forms = self._compiler.forms(library, name, ranks)
        self._built.append((name, library, forms))
        return library, forms

    def build(self, path: Path, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        self._networks[path] = self._compiler.network(path, chosen)
        return self._networks[path]

    def networks(self, libraries: Mapping[str, Path]) -> tuple[Mapping[str, Run], Mapping[str, Outputs]]:
        folders = {}
        for name, library in libraries.items():
            folder = self._scratch / name
            folder.mkdir()
            (folder / "model.so").symlink_to(library.absolute())
            (folder / MODEL_JSON).write_text(json.dumps(self._record(self._networks[library])), encoding="utf-8")
            folders[name] = str(folder)
        inputs = self._scratch / "inputs.npz"
        np.savez(inputs, **self._feeds)  # type: ignore[arg-type]
        request = {"folders": folders, "inputs": str(inputs), "outputs": str(self._scratch), "graphs": self._graphs}
        self._measurer.ask({"do": "networks", **request})
        outputs: dict[str, Outputs] = {}
        for name in libraries:
            with np.load(self._scratch / f"{name}.npz") as file:
                outputs[name] = [file[f"arr_{place}"] for place in range(len(file.files))]
        return {name: self._measurer.run(name) for name in libraries}, outputs
