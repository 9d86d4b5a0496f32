"""Kernels chosen by measuring, of target cuda's back end tvm, on a GPU of this machine: by the time of the device.

See `dnc.targets.tvm.tuning`. Candidates are the forms that the rules have for a kernel (`Device.rank`). What compiles
has no GPU, and compiles on all processors at once, while what measures has a GPU to itself and may be ended by a
kernel; both are processes of their own (`dnc.targets.cuda.process`).

Where both are allowed, the network is compiled twice, from the kinds of kernels that GPUs have run and with those that
none has (option `kernels`). The latter is what is tuned, and what is kept, only if here it gives the same outputs and
is certainly faster.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from dnc.errors import TargetError
from dnc.files.writing import scratch_folder
from dnc.runtime.runners.tvm.session import MODEL, MODEL_JSON
from dnc.runtime.timing import Run, processors
from dnc.targets.cuda.process import Child, Compiler, Reply
from dnc.targets.tvm.trials import Database, Way
from dnc.targets.tvm.tuning import (
    STOPPED,
    Kernel,
    Outputs,
    Pending,
    Tuner,
    Written,
    closeness,
    compared,
    places_of,
    versions,
)
from dnc.typing import Array, Progress

__all__ = ["GpuTuner", "Measurer"]

_PATIENCE = 600.0
"""Seconds that the process that measures may take to open something: a driver may have to compile it."""
_RUN_PATIENCE = 10.0
"""And for a run, which takes milliseconds: a kernel may not end."""
_BATCH = 4
"""Forms of a kernel that are compiled together: NVIDIA's compiler takes a second to begin with."""
_SAMPLES = 3
_RULE = 0
"""The rank of the rule's own form."""
_NETWORK_SECONDS = 1.0
_CLOSE = {"fp32": 1e-4, "tf32": 2e-3, "fp16": 4e-3, "bf16": 1.6e-2, "int8": 1e-2, "mixed": 1e-2}
"""By how much numbers of a kernel may be off, of the largest, by precision: sums of float32 in another order; of
factors with 11 bits that are rounded in another way; four steps of results in float16, and in bfloat16; one step of
8 bits."""


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

    def networks(
        self, folders: Mapping[str, Path], feeds: Mapping[str, Array], graphs: str
    ) -> tuple[Mapping[str, Run], Mapping[str, Outputs]]:
        """Opens engines: what times them, and their outputs."""
        with scratch_folder("measure") as scratch:
            np.savez(scratch / "inputs.npz", **feeds)  # type: ignore[arg-type]
            places = {name: str(folder) for name, folder in folders.items()}
            files = {"inputs": str(scratch / "inputs.npz"), "outputs": str(scratch)}
            self.ask({"do": "networks", "folders": places, "graphs": graphs, **files})
            outputs: dict[str, Outputs] = {}
            for name in folders:
                with np.load(scratch / f"{name}.npz") as file:
                    outputs[name] = [file[f"arr_{place}"] for place in range(len(file.files))]
        return {name: self.run(name) for name in folders}, outputs

    def try_new(
        self, folder: Path, proven: Path, feeds: Mapping[str, Array], precision: str, graphs: str
    ) -> tuple[bool, str]:
        """Whether an engine with kinds of kernels that no GPU has run may take the place of one without: it gives the
        same outputs and is certainly faster; and that in words."""
        if (folder / MODEL).read_bytes() == (proven / MODEL).read_bytes():
            return False, "left out: this network has none of them"
        try:
            networks = self.networks({"rule": proven, "tuned": folder}, feeds, graphs)
            ratio, why = compared(*networks, closeness(precision), _NETWORK_SECONDS)
        except TargetError as error:
            return False, f"left out: {error.message}"
        if why:
            return False, f"left out: {why}" + (f", {ratio} of its time" if ratio is not None else "")
        return True, f"taken: the same outputs, and {ratio} of the time"


class _Later:
    """What is made of a compiler's reply."""

    def __init__(self, reply: Reply, make: Callable[[dict[str, Any]], Any]) -> None:
        self._reply, self._make = reply, make

    def ready(self) -> bool:
        return self._reply.ready()

    def result(self, seconds: float | None = None) -> Any:
        return self._make(self._reply.result(seconds))


class GpuTuner(Tuner[Mapping[str, Any]]):
    """The kernels of a network on a GPU.

    Args:
        compilers: have the network, by what option `kernels` would be: "measured" first, if both.
        models: what they compile, for the names of its layers.
        feeds: inputs of the network.
        archs: what is compiled for.
        graphs: how engines are opened: see `dnc.runtime.runners.cuda.kernels`.
        record: the model.json that goes with a library, from what the compiler says of it.
        precision, cache, progress: as for `Tuner`.
    """

    _products = ("product", "tensor-product", "tf32-product", "mma-product", "wgmma-product", "int8-product")
    rules = frozenset({*_products, "b1-product", "bits-product", "depthwise", "pool"})
    ahead = processors()
    batch = _BATCH
    # Events differ by a thousandth from run to run.
    final_seconds: ClassVar[float | None] = 0.1
    network_seconds: ClassVar[float | None] = _NETWORK_SECONDS

    def __init__(
        self,
        compilers: Mapping[str, Compiler],
        measurer: Measurer,
        models: Mapping[str, ir.Model],
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
        self._precision, self._archs, self._cache = precision, archs, cache
        super().__init__("", measurer.name, None, progress, precision=precision)
        self._compilers, self._measurer, self._models, self._feeds = compilers, measurer, models, feeds
        self._graphs, self._record, self._scratch = graphs, record, scratch
        self._compiler = next(iter(compilers.values()))
        self._functions = scratch
        self._reply: Mapping[str, Any] = {}
        self._numbers = count()
        self._networks: dict[Path, Mapping[str, Any]] = {}
        self.kinds = next(iter(compilers))
        """What option `kernels` is for what is tuned."""
        self.trial = ""
        """What came of trying kinds of kernels that no GPU has run; empty if they were not tried."""

    def base(self, path: Path, scratch: Path) -> Mapping[str, Any]:
        """The network, of kinds of kernels that no GPU has run if here they are right and faster."""
        self.progress("compiling the network")
        paths = {kinds: path if kinds == self.kinds else scratch / f"{kinds}.so" for kinds in self._compilers}
        networks: dict[str, Reply] = {}
        described: dict[str, Reply] = {}
        for kinds, one in self._compilers.items():
            try:
                networks[kinds] = one.network(paths[kinds])
                described[kinds] = one.functions(scratch / f"{kinds}-functions.so")
            except TargetError as error:
                if kinds == self.kinds:
                    raise
                # New kernels cannot even be begun; the others can.
                self.trial = f"left out: {error.message}"
        self._networks[path] = networks[self.kinds].result()
        if len(described) > 1:
            self._try_new(path, paths["new"], networks["new"])
        else:
            # How long that takes is part of what the end needs.
            self.networks({"rule": path})
        self._compiler, self._functions = self._compilers[self.kinds], scratch / f"{self.kinds}-functions.so"
        self._reply = described[self.kinds].result()
        gpu = f"{self._measurer.name} sm_{self._measurer.capability.replace('.', '')}, CUDA {self._measurer.driver}"
        what = f"{self._precision} for {', '.join(self._archs)}" + " with new kernels" * (self.kinds == "new")
        self.device = f"{gpu}, {what} by {self._reply['compiler']}, {versions()}"
        self.database = Database(self._cache, self.device)
        return self._networks[path]

    def _try_new(self, path: Path, other: Path, reply: Reply) -> None:
        """Puts the network with new kernels into the other's place if it is right and faster."""
        try:
            self._networks[other] = reply.result(self._left(self.deadline))
        except TimeoutError:
            self.trial = "left out: there was no time left to compile them"
            return
        except TargetError as error:
            self.trial = f"left out: {error.message}"
            return
        except KeyboardInterrupt:
            self.stopped, self.trial = STOPPED, "left out: it was stopped before they were compiled"
            return
        self.progress("timing kernels that no GPU has run")
        folders = self._folder(other), self._folder(path)
        try:
            taken, self.trial = self._measurer.try_new(*folders, self._feeds, self._precision, self._graphs)
        except KeyboardInterrupt:
            self.stopped, self.trial = STOPPED, "left out: it was stopped before they were timed"
            return
        if taken:
            other.replace(path)
            self._networks[path] = self._networks.pop(other)
            self.kinds = "new"

    def kernels(self) -> Sequence[Kernel]:
        places = places_of(self._reply["kernels"], self._models[self.kinds])
        kernels = []
        described = self._reply["functions"]
        for number, entry in enumerate(described, 1):
            self.progress(f"timing kernel {number} of {len(described)}")
            name, calls = entry["name"], entry["calls"]
            self._open({name: [str(self._functions), name, entry["arguments"]]})
            run = self._measurer.run(name)
            seconds = min(float(run()) for _ in range(_SAMPLES)) * calls  # type: ignore[arg-type]
            kernels.append(Kernel(name, entry["key"], places.get(name, ()), entry["rules"], calls, seconds))
        return kernels

    def write(self, kernel: Kernel, count: int) -> Pending[Written]:
        tried = [way for way, _ in self.database.trials(kernel.key) if isinstance(way, int)]
        return self._forms(kernel, tried, more=count)

    def rewrite(self, kernel: Kernel, ways: Sequence[Way]) -> Pending[Written]:
        return self._forms(kernel, [way for way in ways if isinstance(way, int)])

    def _forms(self, kernel: Kernel, ranks: Sequence[int], more: int = 0) -> Pending[Written]:
        library = self._scratch / f"forms{next(self._numbers)}.so"

        def written(reply: Mapping[str, Any]) -> Written:
            refused = [(int(rank), TargetError(why)) for rank, why in reply["refused"].items()]
            return [*((int(rank), form) for rank, form in reply["forms"].items()), *refused]

        return _Later(self._compiler.forms(library, kernel.name, ranks, more=more), written)

    def runs(self, kernel: Kernel, candidates: Mapping[str, Any]) -> Mapping[str, Run]:
        arguments = next(entry["arguments"] for entry in self._reply["functions"] if entry["name"] == kernel.name)
        rule = [str(self._functions), kernel.name, arguments]
        self._open({name: rule if form is None else form for name, form in candidates.items()})
        return {name: self._measurer.run(name) for name in candidates}

    def _open(self, functions: Mapping[str, Sequence[Any]]) -> None:
        self._measurer.ask({"do": "kernels", "functions": functions})

    def differs(self, kernel: Kernel, way: Way) -> str:
        assert isinstance(way, int)
        files = {rank: self._scratch / f"weights{rank}.npz" for rank in (way, _RULE)}
        self._compiler.weights(kernel.name, files).result()
        weights = {"candidate": str(files[way]), "rule": str(files[_RULE])}
        return str(
            self._measurer.ask({"do": "compare", "weights": weights, "bound": _CLOSE[self._precision]})["differs"]
        )

    def winner(self, kernel: Kernel, way: Way, candidate: Any) -> Any:
        return way

    def build(self, path: Path, chosen: Mapping[str, Any]) -> Pending[Mapping[str, Any]]:
        def built(reply: Mapping[str, Any]) -> Mapping[str, Any]:
            self._networks[path] = reply
            return reply

        return _Later(self._compiler.network(path, chosen), built)

    def networks(self, libraries: Mapping[str, Path]) -> tuple[Mapping[str, Run], Mapping[str, Outputs]]:
        folders = {name: self._folder(library) for name, library in libraries.items()}
        return self._measurer.networks(folders, self._feeds, self._graphs)

    def _folder(self, library: Path) -> Path:
        """What a session opens, of a library."""
        folder = self._scratch / f"network{next(self._numbers)}"
        folder.mkdir()
        (folder / MODEL).symlink_to(library.absolute())
        (folder / MODEL_JSON).write_text(json.dumps(self._record(self._networks[library])), encoding="utf-8")
        return folder
