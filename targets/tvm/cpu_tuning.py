"""Kernels chosen by measuring, of target tvm: on this machine's CPU, or on a device behind TVM's RPC.

See `dnc.targets.tvm.tuning`. Candidates are the rule's own loops with other tiles and MetaSchedule's schedules, in
turn.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir

from dnc.errors import TargetError
from dnc.files.writing import scratch_folder
from dnc.runtime.timing import Run
from dnc.targets.tvm import schedules
from dnc.targets.tvm.compile import Built, Machine, fused, link_with
from dnc.targets.tvm.compile import build as compile_network
from dnc.targets.tvm.emit.suppression import SUPPRESSION
from dnc.targets.tvm.forms import Forms, key_of
from dnc.targets.tvm.functions import lowered
from dnc.targets.tvm.provenance import kernels_of
from dnc.targets.tvm.remote import Device
from dnc.targets.tvm.schedules.rewriting import calls, is_fixed, scheduled
from dnc.targets.tvm.trials import Way
from dnc.targets.tvm.tuning import (
    Kernel,
    Made,
    Outputs,
    Pending,
    Tuner,
    Written,
    places_of,
    versions,
)
from dnc.typing import Array, Progress

__all__ = ["CpuTuner", "device_name", "replayed"]

_SAMPLES = 3
_BATCH = 4
"""Schedules that MetaSchedule is asked for at once."""


def device_name(machine: Machine, threads: int) -> str:
    """Name of the device that measurements hold for."""
    features = " ".join(machine.extensions)
    return f"{machine.architecture} {machine.mcpu}, {features}, {threads} threads, {versions()}"


class CpuTuner(Tuner[Built]):
    """The kernels of a network on a CPU.

    Args:
        emit, machine, linker: as for `dnc.targets.tvm.compile.build`.
        model: what is emitted, for the names of its layers.
        feeds: inputs of the network.
        device: what measures.
        precision, cache, progress: as for `Tuner`.
    """

    rules = frozenset({"pointwise", "spatial", "winograd", "depthwise", "binary", "none"})

    def __init__(
        self,
        emit: Callable[[], Any],
        machine: Machine,
        linker: str,
        model: ir.Model,
        feeds: Mapping[str, Array],
        precision: str,
        device: Device,
        scratch: Path,
        cache: Path | None,
        progress: Progress,
    ) -> None:
        import tvm

        name = device_name(machine, device.threads)
        super().__init__(name, device.name, cache, progress, precision=precision)
        self._tvm = tvm
        self._emit, self._machine, self._linker, self._model = emit, machine, linker, model
        self._feeds, self._device, self._scratch = feeds, device, scratch
        self._ways: dict[str, _Ways] = {}
        with _refusals(), machine.target, tvm.transform.PassContext(opt_level=3):
            self._module = fused(emit())
            self._scheduled = schedules.apply(self._module, machine.target)

    def kernels(self) -> Sequence[Kernel]:
        rules = schedules.report(self._scheduled)
        places = places_of(kernels_of(self._scheduled), self._model)
        called = [call.args[0].name_hint for call in calls(self._module)]
        functions = {name: self._scheduled[name] for name in dict.fromkeys(called)}
        fixed = {
            name: entry
            for name, entry in functions.items()
            if is_fixed(entry) and rules.get(name) not in ("view", SUPPRESSION)
        }
        library = self._library(fixed)
        kernels = []
        for number, (name, function) in enumerate(fixed.items(), 1):
            self.progress(f"timing kernel {number} of {len(fixed)}")
            run = self._device.kernel(library, name, self._arguments(function))
            # Whatever else the machine does only adds to it.
            seconds = min(run() for _ in range(_SAMPLES)) * called.count(name)
            key, layers = key_of(self._module[name]), places.get(name, ())
            kernels.append(Kernel(name, key, layers, rules.get(name, ""), called.count(name), seconds))
        return kernels

    def write(self, kernel: Kernel, count: int) -> Pending[Written]:
        if kernel.name not in self._ways:
            self._ways[kernel.name] = _Ways(self._module, kernel, self._machine, self.database.trials(kernel.key))
        return Made(lambda: list(islice(self._ways[kernel.name], count)))

    def tell(self, kernel: Kernel, way: Way, ratio: float | None) -> None:
        self._ways[kernel.name].tell(way, ratio)

    def rewrite(self, kernel: Kernel, ways: Sequence[Way]) -> Pending[Written]:
        return Made(lambda: [(way, self._rewritten(kernel, way)) for way in ways])

    def _rewritten(self, kernel: Kernel, way: Way) -> Any:
        """What an older dnc or TVM could write, this one perhaps cannot."""
        try:
            if not isinstance(way, int):
                return replayed(self._module[kernel.name], way)
            function = scheduled(self._module, kernel.name, self._machine.target, way)
        except TargetError as error:
            return error
        return TargetError("no rule writes it any more") if function is None else function

    def runs(self, kernel: Kernel, candidates: Mapping[str, Any]) -> Mapping[str, Run]:
        functions = {name: function or self._scheduled[kernel.name] for name, function in candidates.items()}
        library = self._library(functions)
        return {
            name: self._device.kernel(library, name, self._arguments(function)) for name, function in functions.items()
        }

    def winner(self, kernel: Kernel, way: Way, candidate: Any) -> Any:
        return way if isinstance(way, int) else candidate

    def build(self, path: Path, chosen: Mapping[str, Any]) -> Pending[Built]:
        return Made(lambda: compile_network(self._emit, self._machine, self._linker, path, chosen))

    def networks(self, libraries: Mapping[str, Path]) -> tuple[Mapping[str, Run], Mapping[str, Outputs]]:
        runs: dict[str, Run] = {}
        outputs: dict[str, Outputs] = {}
        inputs = [np.ascontiguousarray(array) for array in self._feeds.values()]
        for name, library in libraries.items():
            module = self._device.load(library, f"{self._machine.architecture} {self._machine.mcpu}")
            runs[name], outputs[name] = self._device.network(module, inputs)
        return runs, outputs

    def _library(self, functions: Mapping[str, Any]) -> Any:
        """The functions as a library on the device."""
        tvm, machine = self._tvm, self._machine
        named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
        path = self._scratch / "kernels.so"
        with _refusals():
            with machine.target, tvm.transform.PassContext(opt_level=3), lowered():
                executable = tvm.compile(tvm.IRModule(named), machine.target)
            # TVM would make a folder of its own, which nobody removes when the process is killed.
            with scratch_folder("link") as work:
                executable.export_library(str(path), fcompile=link_with(self._linker, machine), workspace_dir=str(work))
        return self._device.load(path, f"{machine.architecture} {machine.mcpu}")

    def _arguments(self, function: Any) -> list[Any]:
        """Numbers for each parameter: small and positive, so that nothing overflows or becomes denormal."""
        generator = np.random.default_rng(0)
        arrays = []
        for parameter in function.params:
            dims = [int(side) for side in parameter.shape]
            dtype = np.dtype(str(parameter.dtype))
            drawn = generator.random(dims, np.float32) * 0.1 if dtype.kind == "f" else np.zeros(dims)
            arrays.append(drawn.astype(dtype))
        return self._device.tensors(arrays)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turns what TVM and the linker raise into TargetError."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        raise TargetError(f"the linker fails: {error.stderr.strip()}") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise TargetError(f"TVM cannot compile a kernel: {error}") from error


class _Ways:
    """Ways of writing a kernel that are not known yet: other tiles and MetaSchedule's, in turn, while there are any."""

    def __init__(
        self, module: Any, kernel: Kernel, machine: Machine, known: Sequence[tuple[Way, float | None]]
    ) -> None:
        self._number = len(known)
        self._search = _Search(module[kernel.name], machine, known)
        self._tiles = Forms(
            lambda place: scheduled(module, kernel.name, machine.target, place),
            [way for way, _ in known if isinstance(way, int)],
        )

    def __iter__(self) -> Iterator[tuple[Way, Any]]:
        return self

    def __next__(self) -> tuple[Way, Any]:
        first, second = (self._tile, self._search.next) if self._number % 2 == 0 else (self._search.next, self._tile)
        self._number += 1
        found = first() or second()
        if found is None:
            raise StopIteration
        return found

    def _tile(self) -> tuple[Way, Any] | None:
        return next(self._tiles, None)

    def tell(self, way: Way, ratio: float | None) -> None:
        """What became of one."""
        if not isinstance(way, int):
            self._search.tell(ratio)


class _Search:
    """TVM's evolutionary search among its own schedules of a kernel. It starts when it is first asked."""

    def __init__(self, function: Any, machine: Machine, known: Sequence[tuple[Way, float | None]]) -> None:
        self._module = _module_of(function)
        self._machine = machine
        self._known = [(way, ratio) for way, ratio in known if not isinstance(way, int)]
        self._context: Any = None
        self._over = False
        self._batch: list[Any] = []
        self._told: list[float | None] = []

    def next(self) -> tuple[Way, Any] | None:
        """A trace and the function that it makes; None if the search is over, or has nothing for this kernel."""
        if self._over:
            return None
        try:
            if self._context is None:
                self._start()
            if len(self._told) == len(self._batch):
                self._fetch()
        except ImportError as error:
            hint = "pip install psutil cloudpickle"
            raise TargetError(f"MetaSchedule cannot be loaded: {error}", hint=hint) from error
        except (RuntimeError, ValueError, TypeError) as error:
            # Its rules do not take every function; the rule's kernel is there in any case.
            logging.getLogger(__name__).debug("MetaSchedule: %s", error)
            self._batch = []
        if not self._batch:
            self._over = True
            return None
        schedule = self._batch[len(self._told)].sch
        return _plain(schedule.trace.as_json()), _bare(schedule.mod)

    def tell(self, ratio: float | None) -> None:
        """The ratio of the last one."""
        self._told.append(ratio)

    def _start(self) -> None:
        import tvm

        with _without_intrinsics():
            from tvm.s_tir import meta_schedule as ms

            quiet = logging.getLogger("dnc.targets.tvm.search")
            quiet.setLevel(logging.CRITICAL)
            settings = {key: value for key, value in json.loads(str(self._machine.target)).items() if key in _TARGET}
            context = ms.TuneContext(
                self._module,
                target=tvm.target.Target({**settings, "num-cores": _CORES}),
                # What is named after its kind alone uses no instruction that would have to be registered.
                space_generator=ms.space_generator.PostOrderApply(
                    sch_rules="llvm", postprocs="llvm", mutator_probs="llvm"
                ),
                search_strategy=ms.search_strategy.EvolutionarySearch(
                    population_size=64, init_min_unmeasured=16, genetic_num_iters=2
                ),
                rand_state=1 + len(self._known),
                num_threads=1,
                logger=quiet,
            )
            database = ms.database.MemoryDatabase()
            workload = database.commit_workload(self._module)
            # It goes on from what is known to be good.
            for way, ratio in self._known:
                with contextlib.suppress(TargetError):
                    assert isinstance(way, list)
                    trace = _schedule(self._module, way).trace
                    seconds = [1e3 if ratio is None else ratio]
                    database.commit_tuning_record(ms.database.TuningRecord(trace, workload, seconds))
            space = context.generate_design_space()
            model = ms.cost_model.RandomModel(seed=1)
            context.pre_tuning(_ENDLESS, _BATCH, space, database, model)
        self._context, self._database, self._workload, self._ms = context, database, workload, ms

    def _fetch(self) -> None:
        if self._batch:
            results = []
            for candidate, ratio in zip(self._batch, self._told, strict=True):
                seconds = [1e3 if ratio is None else ratio]
                results.append(self._ms.runner.RunnerResult(seconds, None))
                record = self._ms.database.TuningRecord(candidate.sch.trace, self._workload, seconds)
                self._database.commit_tuning_record(record)
            self._context.notify_runner_results(self._batch, results)
        self._batch = list(self._context.generate_measure_candidates() or ())
        self._told = []


_ENDLESS = 1 << 20
_CORES = 16
"""MetaSchedule shares work among many more tasks than there are threads; this is all that it needs the number for."""
_TARGET = ("kind", "mcpu", "mattr", "mtriple")


def _module_of(function: Any) -> Any:
    import tvm

    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def _bare(module: Any) -> Any:
    return module["main"].without_attr("global_symbol")


def _schedule(module: Any, trace: list[Any]) -> Any:
    from tvm import s_tir

    schedule = s_tir.Schedule(module)
    with _refusals():
        s_tir.schedule.Trace.apply_json_to_schedule(trace, schedule)
    return schedule


def replayed(function: Any, trace: list[Any]) -> Any:
    """Applies a trace of MetaSchedule to a function; raises TargetError if it does not fit."""
    return _bare(_schedule(_module_of(function), trace).mod)


def _plain(value: Any) -> Any:
    """TVM's containers and numbers as JSON values."""
    from tvm import tirx

    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return value.value
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value]


@contextlib.contextmanager
def _without_intrinsics() -> Iterator[None]:
    """MetaSchedule imports the intrinsics of all processors, which takes half a minute, and here uses none."""
    name = "tvm.s_tir.tensor_intrin"
    absent = name not in sys.modules
    if absent:
        spec = importlib.util.find_spec(name)
        package = ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations or ()) if spec is not None else []
        sys.modules[name] = package
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]
