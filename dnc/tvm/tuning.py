"""Kernels chosen by measuring: `--tune TRIALS` of target tvm.

1. Each kernel of the network is timed alone, on the device. The trials are shared out among those that compute sums
   (convolutions, products) by their share of the network's time.
2. A trial writes a kernel in another way, builds it, and times it in turn with the kernel of the rule:

       tile N          the rule's own loops with the tile that its count puts in place N (`dnc.tvm.schedules.tiles`)
       MetaSchedule    a schedule from TVM's search, of multi-level tilings with random cost model

   in turn: the first are few and good, the second many.
3. The best of each kernel replaces the rule's if it certainly takes less than 98 % of its time.
4. The network as a whole is built both ways and timed in turn. Unless the tuned one is certainly faster, and its
   outputs are the same, the other is kept: the result is never slower than the untuned one.

Trials are kept in the user's cache, in a file for each kind of device (processor, extensions, threads, versions):

    {"schema": 1, "device": "…"}
    {"kernel": "…", "way": 3, "ratio": 0.94}
    {"kernel": "…", "way": [trace], "ratio": null, "error": "…"}

`kernel` is the structural hash of its loops before any schedule, so that networks share what they have in common;
`way` the place of a tile, or a trace of MetaSchedule; `ratio` its time as a multiple of the rule's. A line is written
when its trial ends: who is killed goes on from there. Ratios choose what is measured again for points 3 and 4, nothing
else.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import dnc
from dnc.errors import TargetError
from dnc.graph import where_of
from dnc.passes.base import constant_array
from dnc.timing import Ratio, interleave
from dnc.tvm import schedules
from dnc.tvm.compile import Machine, fused, link_with
from dnc.tvm.compile import build as compile_network
from dnc.tvm.functions import lowered
from dnc.tvm.remote import Device, Lost
from dnc.tvm.schedules.rewriting import calls, scheduled
from dnc.tvm.session import MODEL

__all__ = ["Database", "Kernel", "build", "device_name"]

Way = int | list[Any]
"""A tile's place, or a trace of MetaSchedule."""
Progress = Callable[[str], None]

_SCHEMA = 1
_RULES = ("pointwise", "spatial", "depthwise", "none")
"""Of kernels that are tuned: those that compute sums, and those that no rule wrote."""
_GAIN = 0.98
_CONFIDENCE = 0.99
_SAMPLES = 3
_ROUNDS = (3, 3)
_HOPELESS = 1.5
"""A candidate that takes so many times as long is timed once."""
_FINAL_SECONDS = 0.6
_FINALISTS = 2
_NETWORK_SECONDS = 4.0
_BATCH = 4
"""Schedules that MetaSchedule is asked for at once."""
_CLOSE = 1e-4
"""Of an output's largest value: sums of float32 in another order, through all layers."""
_CLOSE_HALF = 2e-2
"""For float16, which has 11 bits."""


def device_name(machine: Machine, threads: int) -> str:
    """What measurements hold for."""
    from importlib.metadata import version

    features = " ".join(machine.extensions)
    versions = f"TVM {version('apache-tvm')}, dnc {dnc.__version__}"
    return f"{machine.architecture} {machine.mcpu}, {features}, {threads} threads, {versions}"


class Database:
    """The trials of one kind of device.

    Args:
        folder: the cache; None to keep nothing.
        device: see `device_name`.

    A file that is damaged, or of another device, counts as empty; a line that is torn is left out.
    """

    def __init__(self, folder: Path | None, device: str) -> None:
        digest = hashlib.sha256(device.encode()).hexdigest()[:16]
        self.path = None if folder is None else folder / "tvm" / f"{digest}.jsonl"
        self._head = {"schema": _SCHEMA, "device": device}
        self._found: dict[str, list[tuple[Way, float | None]]] = {}
        text = ""
        if self.path is not None:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = self.path.read_text(encoding="utf-8")
        head, *lines = [_parsed(line) for line in text.split("\n")]
        self._fits = head == self._head
        self._torn = bool(text) and not text.endswith("\n")
        for item in lines if self._fits else ():
            if item is not None and isinstance(item.get("kernel"), str) and isinstance(item.get("way"), int | list):
                ratio = item.get("ratio")
                self._add(item["kernel"], item["way"], float(ratio) if isinstance(ratio, int | float) else None)

    def _add(self, kernel: str, way: Way, ratio: float | None) -> None:
        self._found.setdefault(kernel, []).append((way, ratio))

    def trials(self, kernel: str) -> Sequence[tuple[Way, float | None]]:
        """What was tried for a kernel, in order: the way, and its ratio if it ran."""
        return self._found.get(kernel, [])

    def put(self, kernel: str, way: Way, ratio: float | None, error: str = "") -> None:
        """Keeps a trial; that the file cannot be written is no error."""
        self._add(kernel, way, ratio)
        if self.path is None:
            return
        item = {"kernel": kernel, "way": way, "ratio": ratio, **({"error": error} if error else {})}
        before = "\n" * self._torn if self._fits else json.dumps(self._head) + "\n"
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self._fits else "w", encoding="utf-8") as file:
                file.write(before + json.dumps(item) + "\n")
            self._fits, self._torn = True, False


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@dataclass
class Kernel:
    """A function of the network, and what became of it."""

    name: str
    key: str
    layers: tuple[str, ...]
    """The sections of the cfg that call it, where they are known."""
    rule: str
    calls: int
    seconds: float
    """Of all calls together, as the rule wrote it."""
    share: float = 0.0
    """Of the network's time."""
    trials: int = 0
    """That it may have."""
    best: Way | None = None
    """What replaces the rule's kernel; None if nothing does."""
    ratio: Ratio | None = None
    function: Any = field(default=None, repr=False)
    """The loops before any schedule."""

    @property
    def title(self) -> str:
        """For messages: `layer 36`, or the function's name."""
        numbers = [place.rpartition("#")[2] for place in self.layers if "#" in place]
        return f"layer {numbers[0]}" if numbers else self.name

    def to_json(self) -> dict[str, Any]:
        """What was won, as JSON values."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "rule": self.rule,
            "calls": self.calls,
            "microseconds": round(self.seconds * 1e6, 1),
            "share": round(self.share, 4),
            "trials": self.trials,
            "best": _title(self.best),
            "ratio": None if self.ratio is None else _numbers(self.ratio),
        }


def _title(way: Way | None) -> str:
    return "rule" if way is None else f"tile {way}" if isinstance(way, int) else "MetaSchedule"


def _numbers(ratio: Ratio) -> list[float]:
    return [round(each, 4) for each in (ratio.value, ratio.low, ratio.high)]


def build(
    emit: Callable[[], Any],
    machine: Machine,
    linker: str,
    path: Path,
    *,
    model: ir.Model,
    feeds: Mapping[str, npt.NDArray[Any]],
    trials: int,
    device: Device,
    cache: Path | None,
    progress: Progress,
) -> tuple[Mapping[str, int], dict[str, Any]]:
    """Writes the library of a network, with kernels that were chosen by measuring.

    Args:
        emit, machine, linker, path: as for `dnc.tvm.compile.build`.
        model: what is emitted, for the names of its layers.
        feeds: inputs of the network.
        trials: how many kernels to try, all together; those that the cache knows count.
        device: what measures.
        cache: the folder to keep trials in; None to keep none.
        progress: is told what happens now.

    Returns:
        What `dnc.tvm.compile.build` does, and for engine.json what was measured and won.

    Raises:
        TargetError: TVM fails; the device fails.
    """
    with tempfile.TemporaryDirectory(prefix="dnc-tune-") as scratch:
        tuner = _Tuner(emit, machine, linker, device, Database(cache, device_name(machine, device.threads)), scratch)
        kernels = tuner.kernels(model, progress)
        _share_out(kernels, trials)
        chosen: dict[str, Any] = {}
        done = 0
        for kernel in kernels:
            if kernel.trials:
                won = tuner.tune(kernel, f"{{}} of {trials} trials", done, progress)
                done += kernel.trials
                if won is not None:
                    chosen[kernel.name] = won
        progress("compiling the network")
        rules = compile_network(emit, machine, linker, path)
        ratio, kept, why = None, False, "no kernel is faster than the rule's"
        if chosen:
            tuned = Path(scratch) / MODEL
            found = compile_network(emit, machine, linker, tuned, chosen)
            progress("timing the whole network")
            ratio, why = _compare(device, machine, path, tuned, feeds)
            kept = not why
            if kept:
                shutil.copyfile(tuned, path)
                rules = found
    about = {
        "device": device_name(machine, device.threads),
        "measured_at": device.name,
        "trials": trials,
        "kept": kept,
        "ratio": None if ratio is None else _numbers(ratio),
        "dropped": why,
        "kernels": [kernel.to_json() for kernel in kernels if kernel.trials],
    }
    return rules, about


def _share_out(kernels: Sequence[Kernel], trials: int) -> None:
    """Gives each kernel its trials, by its share; what rounding leaves goes to the largest."""
    able = [kernel for kernel in kernels if kernel.rule.startswith(_RULES)]
    total = sum(kernel.share for kernel in able)
    for kernel in able:
        kernel.trials = int(trials * kernel.share / total)
    for kernel in able[: trials - sum(kernel.trials for kernel in able)]:
        kernel.trials += 1


def _compare(
    device: Device, machine: Machine, path: Path, tuned: Path, feeds: Mapping[str, npt.NDArray[Any]]
) -> tuple[Ratio | None, str]:
    """The tuned network's time as a multiple of the other's; and why it is not to be had, if so."""
    runs, outputs = {}, {}
    for name, library in (("rule", path), ("tuned", tuned)):
        module = device.load(library, f"{machine.architecture} {machine.mcpu}")
        runs[name], outputs[name] = device.network(module, [np.ascontiguousarray(each) for each in feeds.values()])
    for found, expected in zip(outputs["tuned"], outputs["rule"], strict=True):
        bound = _CLOSE_HALF if expected.dtype == np.float16 else _CLOSE
        if not np.allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max(initial=0), equal_nan=True):
            return None, "its outputs differ"
    ratio = interleave(runs, seconds=_NETWORK_SECONDS, rounds=(15, 1000)).ratio("tuned", "rule", _CONFIDENCE)
    return ratio, "" if ratio.high < 1 else "the network as a whole is not certainly faster"


class _Tuner:
    """The kernels of one network on one device."""

    def __init__(
        self,
        emit: Callable[[], Any],
        machine: Machine,
        linker: str,
        device: Device,
        database: Database,
        scratch: str,
    ) -> None:
        import tvm

        self._tvm = tvm
        self._machine, self._linker, self._device, self._database = machine, linker, device, database
        self._scratch = Path(scratch)
        with _refusals(), machine.target, tvm.transform.PassContext(opt_level=3):
            self._module = fused(emit())
            self._scheduled = schedules.apply(self._module, machine.target)

    def kernels(self, model: ir.Model, progress: Progress) -> list[Kernel]:
        """All that can be timed alone, the one with the largest share first."""
        from tvm_ffi import structural_hash

        rules = schedules.report(self._scheduled)
        places = _layers(model)
        called: dict[str, list[Any]] = {}
        for call in calls(self._module):
            called.setdefault(call.args[0].name_hint, []).append(call)
        functions = {name: self._scheduled[name] for name in called}
        fixed = {name: each for name, each in functions.items() if _is_fixed(each) and rules.get(name) != "view"}
        library = self._library(fixed)
        kernels = []
        for number, (name, function) in enumerate(fixed.items(), 1):
            progress(f"timing kernel {number} of {len(fixed)}")
            run = self._device.kernel(library, name, self._arguments(function))
            # Whatever else the machine does only adds to it.
            seconds = min(run() for _ in range(_SAMPLES)) * len(called[name])
            loops = self._module[name]
            key = f"{structural_hash(loops) % (1 << 64):016x}"
            layers = [places[mark] for call in called[name] if (mark := _mark_of(call)) in places]
            kernel = Kernel(
                name, key, tuple(dict.fromkeys(layers)), rules.get(name, ""), len(called[name]), seconds, function=loops
            )
            kernels.append(kernel)
        total = sum(kernel.seconds for kernel in kernels)
        for kernel in kernels:
            kernel.share = kernel.seconds / total
        return sorted(kernels, key=lambda kernel: -kernel.seconds)

    def tune(self, kernel: Kernel, count: str, done: int, progress: Progress) -> Any:
        """Tries other ways of a kernel; returns what replaces the rule's for `dnc.tvm.schedules.apply`, or None."""
        known = list(self._database.trials(kernel.key))
        search = _Search(kernel.function, self._machine, known)
        tiles = _Tiles(self._module, kernel.name, self._machine, known)
        for number in range(len(known), kernel.trials):
            ratios = [ratio for _, ratio in self._database.trials(kernel.key) if ratio is not None]
            best = f", best {min(ratios):.2f} of the untuned" if ratios else ""
            progress(f"tuning {kernel.title}, {count.format(done + number)}{best}")
            ways = (tiles, search) if number % 2 == 0 else (search, tiles)
            found = ways[0].next() or ways[1].next()
            if found is None:
                break
            way, function = found
            try:
                ratio, why = self._trial(kernel, function)
            except Lost as error:
                # Perhaps it was this one that ended the server: it is not tried again.
                self._database.put(kernel.key, way, None, error.message)
                raise
            self._database.put(kernel.key, way, ratio, why)
            if not isinstance(way, int):
                search.tell(ratio)
        return self._final(kernel)

    def _trial(self, kernel: Kernel, function: Any) -> tuple[float | None, str]:
        """A candidate's time as a multiple of the rule's, or why it has none."""
        try:
            runs = self._runs({"rule": self._scheduled[kernel.name], "candidate": function})
        except Lost:
            raise
        except TargetError as error:
            return None, error.message
        once = runs["candidate"]() / runs["rule"]()
        if once > _HOPELESS:
            return round(once, 4), ""
        timings = interleave(runs, rounds=_ROUNDS, seconds=0.0)
        return round(float(np.median(timings.seconds["candidate"] / timings.seconds["rule"])), 4), ""

    def _final(self, kernel: Kernel) -> Any:
        """The best candidates once more, for longer."""
        ran = [(ratio, way) for way, ratio in self._database.trials(kernel.key) if ratio is not None and ratio < 1]
        functions: dict[str, Any] = {"rule": self._scheduled[kernel.name]}
        ways: dict[str, tuple[Way, Any]] = {}
        for number, (_, way) in enumerate(sorted(ran, key=lambda item: item[0])[:_FINALISTS]):
            # What an older dnc or TVM could write, this one perhaps cannot.
            with contextlib.suppress(TargetError):
                function = self._write(kernel, way)
                if function is not None:
                    functions[f"candidate{number}"] = function
                    ways[f"candidate{number}"] = (way, way if isinstance(way, int) else function)
        if not ways:
            return None
        timings = interleave(self._runs(functions), seconds=_FINAL_SECONDS * len(functions), rounds=(15, 1000))
        best = min(ways, key=timings.median)
        ratio = timings.ratio(best, "rule", _CONFIDENCE)
        if ratio.high >= _GAIN:
            return None
        kernel.ratio, kernel.best = ratio, ways[best][0]
        return ways[best][1]

    def _write(self, kernel: Kernel, way: Way) -> Any:
        if isinstance(way, int):
            return scheduled(self._module, kernel.name, self._machine.target, way)
        return replayed(kernel.function, way)

    def _runs(self, functions: Mapping[str, Any]) -> dict[str, Callable[[], float]]:
        library = self._library(functions)
        return {
            name: self._device.kernel(library, name, self._arguments(function)) for name, function in functions.items()
        }

    def _library(self, functions: Mapping[str, Any]) -> Any:
        """The functions as a library on the device."""
        tvm, machine = self._tvm, self._machine
        named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
        path = self._scratch / "kernels.so"
        with _refusals():
            with machine.target, tvm.transform.PassContext(opt_level=3), lowered():
                executable = tvm.compile(tvm.IRModule(named), machine.target)
            executable.export_library(str(path), fcompile=link_with(self._linker, machine))
        return self._device.load(path, f"{machine.architecture} {machine.mcpu}")

    def _arguments(self, function: Any) -> list[Any]:
        """Numbers for each parameter: small and positive, so that nothing overflows or becomes denormal."""
        generator = np.random.default_rng(0)
        arrays = []
        for parameter in function.params:
            sides = [int(side) for side in parameter.shape]
            dtype = np.dtype(str(parameter.dtype))
            drawn = generator.random(sides, np.float32) * 0.1 if dtype.kind == "f" else np.zeros(sides)
            arrays.append(drawn.astype(dtype))
        return self._device.tensors(arrays)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What TVM and the linker raise, as TargetError."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        raise TargetError(f"the linker fails: {error.stderr.strip()}") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise TargetError(f"TVM cannot compile a kernel: {error}") from error


class _Tiles:
    """The rule's loops with other tiles, those that its count likes best first."""

    def __init__(self, module: Any, name: str, machine: Machine, known: Sequence[tuple[Way, float | None]]) -> None:
        self._module, self._name, self._target = module, name, machine.target
        tried = [way for way, _ in known if isinstance(way, int)]
        self._seen = {self._hash(rank) for rank in (0, *tried)}
        self._next = max(tried, default=0) + 1

    def _hash(self, rank: int) -> int | None:
        from tvm_ffi import structural_hash

        function = scheduled(self._module, self._name, self._target, rank)
        return None if function is None else int(structural_hash(function))

    def next(self) -> tuple[Way, Any] | None:
        """The next one that differs from all before; None if there is none."""
        while self._next < _TILES:
            rank = self._next
            self._next += 1
            mark = self._hash(rank)
            if mark not in self._seen:
                self._seen.add(mark)
                return rank, scheduled(self._module, self._name, self._target, rank)
        return None


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

            quiet = logging.getLogger("dnc.tvm.search")
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


_TILES = 60
"""Places of tiles that are looked at."""
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
    """What a trace of MetaSchedule makes of a function; raises TargetError if it does not fit."""
    return _bare(_schedule(_module_of(function), trace).mod)


def _plain(value: Any) -> Any:
    """TVM's containers and numbers as JSON values."""
    from tvm import tirx

    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return value.value
    if value is None or isinstance(value, str | int | float):
        return value
    if hasattr(value, "items"):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value]


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


def _is_fixed(function: Any) -> bool:
    from tvm import tirx

    return all(isinstance(side, tirx.IntImm) for parameter in function.params for side in parameter.shape)


_Mark = tuple[int, float, float, float]
"""What tells weights from others in any layout: how many, the first, the smallest and the largest."""


def _mark(array: npt.NDArray[Any]) -> _Mark:
    return array.size, float(array.flat[0]), float(array.min()), float(array.max())


def _layers(model: ir.Model) -> dict[_Mark, str]:
    """The cfg sections of convolutions and products, by their weights: TVM does not keep names."""
    found = {}
    for node in model.graph:
        weights = constant_array(node.inputs[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if weights is not None and weights.size:
            found[_mark(weights.numpy())] = where_of(node)
    return found


def _mark_of(call: Any) -> _Mark | None:
    from tvm.ir import GenericConst

    constants = [each.value.numpy() for each in call.args[1] if isinstance(each, GenericConst)]
    largest = max(constants, key=lambda each: each.size, default=None)
    return None if largest is None or not largest.size else _mark(largest)
