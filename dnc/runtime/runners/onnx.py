"""Runs model.onnx in ONNX Runtime on the CPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np

from dnc.errors import DncError, TargetError
from dnc.files.writing import scratch_folder
from dnc.runtime.arithmetic import Arithmetic, of_isa
from dnc.runtime.options import Option, one_of
from dnc.runtime.runners import Runner, Session, runners
from dnc.runtime.timing import typical, warm_up
from dnc.typing import Array

__all__ = ["MODEL", "OnnxRunner", "OnnxSession", "import_onnxruntime"]

MODEL = "model.onnx"


def import_onnxruntime() -> ModuleType:
    """onnxruntime, whose telemetry stays off unless ORT_DISABLE_TELEMETRY says otherwise.

    Raises TargetError where it is installed but its libraries do not load.
    """
    # It is read while onnxruntime is imported, which otherwise writes a device id and a data base below HOME. Children
    # inherit it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise TargetError(f"onnxruntime cannot be loaded: {error}", hint="install it again") from error


class OnnxSession(Session):
    """An onnxruntime.InferenceSession of a file, or of what is in one."""

    def __init__(
        self, model: Path | memoryview, providers: Sequence[str], threads: int | None, spin: bool = True
    ) -> None:
        self._model, self._threads, self._spin = model, threads, spin
        try:
            self._session = self._open(providers, self._options())
        except Exception as error:
            # onnxruntime raises classes of its own that have no common base but Exception.
            where = model if isinstance(model, Path) else None
            raise TargetError(f"ONNX Runtime refuses the model: {error}", where, "build the engine again") from error
        self.providers: list[str] = self._session.get_providers()
        self.device = self.providers[0].removesuffix("ExecutionProvider")

    def _options(self) -> Any:
        options = import_onnxruntime().SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if not self._spin:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _open(self, providers: Sequence[str], options: Any) -> Any:
        model = str(self._model) if isinstance(self._model, Path) else bytes(self._model)
        return import_onnxruntime().InferenceSession(model, options, providers=list(providers))

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        try:
            return list(self._session.run(None, dict(inputs)))
        except Exception as error:
            raise TargetError(f"ONNX Runtime failed: {error}") from error

    def profile(self, inputs: Mapping[str, Array], runs: int) -> list[tuple[str, float]]:
        """ONNX Runtime's own profile, in whole microseconds, less what it takes to write each node's line of it.

        On a GPU it has the time that it takes to ask for the work alone.
        """
        if self.device != "CPU":
            return super().profile(inputs, runs)
        with scratch_folder("profile") as scratch:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(scratch / "profile")
            options.optimized_model_filepath = str(scratch / MODEL)
            try:
                with self.opening():
                    session = self._open(self.providers, options)
                warm_up(lambda: session.run(None, dict(inputs)))
                for _ in range(runs):
                    session.run(None, dict(inputs))
                events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            except DncError:
                raise
            except Exception as error:
                raise TargetError(f"ONNX Runtime failed: {error}") from error
            written = _written(scratch / MODEL)
        taken: dict[str, list[float]] = {}
        for event in events:
            name = event["name"].removesuffix("_kernel_time")
            if event["cat"] == "Node" and name != event["name"]:
                taken.setdefault(name, []).append(event["dur"] / 1e6)
        # What is in a loop or in a branch does not run once in every run.
        count = sum(event["name"] == "model_run" for event in events)
        every = [name for name, seconds in taken.items() if len(seconds) == count]
        if not every:
            raise TargetError("ONNX Runtime's profile has no nodes")
        table = np.array([taken[name][-runs:] for name in every])
        parts = np.maximum(0.0, typical(table.T) - _cost_of_a_line()).tolist()
        titles = (f"{name} {written.get(name, '')}".strip() for name in every)
        return list(zip(titles, parts, strict=True))


_CHAINS, _CHAIN_RUNS = (50, 250), 100


@functools.cache
def _cost_of_a_line() -> float:
    """Seconds by which ONNX Runtime's profile makes a node longer: shapes are written into its line before its time is
    taken. Measured on chains of nodes that do next to nothing: what the profile says of one, less what it really takes,
    which is how much longer the longer chain runs, without a profile, for each node more."""
    onnxruntime = import_onnxruntime()
    x = {"x": np.zeros((1, 8, 1, 1), np.float32)}
    seconds = []
    for length in _CHAINS:
        session = onnxruntime.InferenceSession(_chain(length))
        taken = []
        for _ in range(_CHAIN_RUNS):
            start = time.perf_counter()
            session.run(None, x)
            taken.append(time.perf_counter() - start)
        seconds.append(float(np.median(taken)))
    with scratch_folder("profile") as scratch:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / "profile")
        session = onnxruntime.InferenceSession(_chain(_CHAINS[1]), options)
        for _ in range(_CHAIN_RUNS):
            session.run(None, x)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    lines = np.sort([event["dur"] / 1e6 for event in events if event["name"].endswith("_kernel_time")])
    really = (seconds[1] - seconds[0]) / (_CHAINS[1] - _CHAINS[0])
    # The slowest tenth was disturbed.
    return max(0.0, float(np.mean(lines[: -len(lines) // 10])) - really)


def _chain(length: int) -> bytes:
    import onnx
    import onnx.parser

    shape = "float[1,8,1,1]"
    names = ["x", *(f"x{number}" for number in range(1, length + 1))]
    lines = "".join(f"{after} = Sum({before}, x, x)" for before, after in itertools.pairwise(names))
    text = f'<ir_version: 8, opset_import: ["": 14]> chain ({shape} x) => ({shape} {names[-1]}) {{{lines}}}'
    model: bytes = onnx.parser.parse_model(text).SerializeToString()
    return model


def _written(path: Path) -> dict[str, str]:
    """What each node of a model writes, as far as one can tell from names: of a node that ONNX Runtime made, what is
    made of it further on."""
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    names: dict[str, str] = {}
    readers: dict[str, str] = {}
    for node in reversed(nodes):
        made = [name for name in node.output if name]
        names[node.name] = next((name for name in made if "_token_" not in name), "") or readers.get(made[0], "")
        for name in node.input:
            readers[name] = names[node.name]
    return names


@runners.register
class OnnxRunner(Runner):
    """ONNX Runtime."""

    name: ClassVar[str] = "onnx"
    extra: ClassVar[str] = "onnx"
    known_options: ClassVar[Sequence[Option]] = (
        Option(
            "spin",
            "on",
            "off: threads do not wait busily after a run: 5 % slower for an engine that runs all the time, several "
            "times as fast for engines that take turns",
            one_of("on", "off"),
            at_load=True,
        ),
    )

    @property
    def arithmetic(self) -> Arithmetic | None:
        """ONNX Runtime chooses its kernels by the CPU that it finds."""
        return of_isa()

    def missing(self) -> str:
        return "" if importlib.util.find_spec("onnxruntime") else "onnxruntime"

    def open(self, folder: Path, threads: int | None = None) -> Session:
        return self._session(folder / MODEL, threads)

    def open_memory(self, files: Mapping[str, memoryview], threads: int | None = None) -> Session:
        return self._session(files.get(MODEL, memoryview(b"")), threads)

    def _session(self, model: Path | memoryview, threads: int | None) -> Session:
        return OnnxSession(model, ["CPUExecutionProvider"], threads, self.options["spin"] == "on")

    def taking_turns(self) -> Self:
        """Returns a runner without busy waiting."""
        return type(self)({**self.given, "spin": "off"})
