"""What opens and runs the engine of a target: the half of it that an application needs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from dnc.errors import TargetError
from dnc.files.installed import to_install
from dnc.runtime.arithmetic import Arithmetic
from dnc.runtime.devices import Lent, is_on_device
from dnc.runtime.options import Option, parse_options
from dnc.runtime.timing import Run
from dnc.typing import Array

__all__ = ["Pending", "Runner", "Session", "checked"]


class Pending:
    """A run that was asked for with `Session.submit`; this one is done."""

    def __init__(self, outputs: list[Any]) -> None:
        self._outputs = outputs

    def result(self, *, keep: bool = True) -> list[Any]:
        """The outputs in the model's order, when they are there. Raises as `Session.run`.

        Args:
            keep: False from who reads them now and keeps none: they may be memory of which the device has little.
        """
        return self._outputs


_FEW = 3
_LEAST = 0.004
"""Seconds of runs that are timed together."""


class Session(ABC):
    """An opened engine. `run` and `submit` may be called from several threads at once."""

    device: str
    """What it really runs on, in the engine's own words."""
    apart: ClassVar[bool] = False
    """Whether that has memory of its own, so that inputs and outputs are copied."""
    opening: Callable[[], AbstractContextManager[None]] = nullcontext
    """What a session is in while its library opens files of the engine after `Runner.open`: it raises BundleError if
    they are not those that were checked any more."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order, for inputs by name."""

    def submit(
        self, inputs: Mapping[str, Any], wanted: Container[int] | None = None, *, on_device: bool = False
    ) -> Pending:
        """Asks for a run, which may go on while the caller does something else.

        Args:
            inputs: as for `run`; they stay as they are until the result is there. A GPU's session takes arrays that
                are in its memory as well: see `dnc.runtime.devices`.
            wanted: the places of the outputs that somebody reads; all if not given. Others may come as empty arrays.
            on_device: outputs come as `dnc.runtime.devices.DeviceArray`, and stay in the device's memory.

        Raises:
            TargetError: an input is wrong, or the engine runs on no device that has memory of its own.
        """
        there = [name for name, array in inputs.items() if not isinstance(array, np.ndarray) and is_on_device(array)]
        if on_device or there:
            what = f"input {there[0]} is" if there else "outputs cannot be"
            said = f"{what} in the memory of a GPU, and the engine runs on {self.device}"
            raise TargetError(said, hint="copy it: x.cpu().numpy(); or compile with --target cuda --backend tvm")
        return Pending(self.run(inputs))

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Memory for an input that is to be written, from which a run takes it without one more copy."""
        return np.empty(shape, dtype)

    def device_seconds(self, inputs: Mapping[str, Array], runs: int) -> float:
        """Seconds of one run, the mean of so many in a row, without what it takes to bring inputs to a device that has
        memory of its own, and outputs back. Raises as `run`."""
        self.run(inputs)
        start = time.perf_counter()
        for _ in range(runs):
            self.run(inputs)
        return (time.perf_counter() - start) / runs

    def device_run(self, inputs: Mapping[str, Array]) -> Run:
        """What times a run on the device, to choose kernels by: where that has memory of its own, a call gives the mean
        of as many runs as take 4 ms together, without copies. Raises as `run`."""
        if not self.apart:
            return partial(self.run, inputs)
        once = self.device_seconds(inputs, _FEW)
        return partial(self.device_seconds, inputs, max(_FEW, round(_LEAST / max(once, 1e-7))))

    def profile(self, inputs: Mapping[str, Array], runs: int) -> list[tuple[str, float]]:
        """How long each node takes, for `dnc bench --layers`.

        Args:
            inputs: as for `run`.
            runs: how often to run; outliers among them do not count.

        Returns:
            Names and seconds, in order. A node that the engine made itself has the name of what it writes or reads
            behind its own, after a blank; nodes that it computes together are joined by +.

        Raises:
            TargetError: the engine does not tell.
        """
        raise TargetError(f"{self.device} does not tell how long its layers take", hint="measure on another target")


def checked(
    library: str,
    inputs: Mapping[str, Any],
    types: Mapping[str, np.dtype[Any]],
    shapes: Mapping[str, Sequence[object]] | None = None,
) -> list[Any]:
    """The inputs of a run in the model's order, for a library that would take others as they lie.

    Args:
        library: the library, for messages.
        types: types of the model's inputs.
        shapes: their shapes; what is no number in one may be any.

    Raises:
        TargetError: there is another number of inputs, or one has another name, type or shape.
    """
    if inputs.keys() != types.keys():
        raise TargetError(f"{library} failed: the inputs are {', '.join(types)}, not {', '.join(inputs)}")
    for name, dtype in types.items():
        array = inputs[name]
        if not isinstance(array, np.ndarray | Lent) or array.dtype != dtype:
            raise TargetError(f"{library} failed: input {name} is no array of {dtype}")
        wanted = array.shape if shapes is None else tuple(shapes[name])
        fits = [side == size for side, size in zip(wanted, array.shape, strict=False) if isinstance(side, int)]
        if array.ndim != len(wanted) or not all(fits):
            raise TargetError(f"{library} failed: input {name} has shape {array.shape}, not {wanted}")
    return [inputs[name] for name in types]


class Runner(ABC):
    """Opens engines of one target. Its only state is its options: all else it needs is in the engine folder.

    Args:
        given: options by name, as text: what was given when the engine was compiled (engine.json has it), and what is
            given anew. Those that only a compiler reads are ignored.

    Raises:
        TargetError: an option has a value that is not allowed.
    """

    name: ClassVar[str]
    """The target's, as engine.json has it."""
    extra: ClassVar[str]
    """The extra of the distribution that installs what it needs: `pip install darknet-compiler[extra]`."""
    runs_code: ClassVar[bool] = False
    """Whether an engine is machine code, which may do all that the process may."""
    known_options: ClassVar[Sequence[Option]] = ()
    """What it reads; those that are `at_load` may be given anew."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self.given: dict[str, str] = dict(given or {})
        self.options: dict[str, Any] = parse_options(f"target {self.name}", self.known_options, self.given)

    @classmethod
    def select(cls, given: Mapping[str, str]) -> type[Runner]:
        """The class that runs engines with these options: this one, but for targets with several libraries."""
        return cls

    @property
    def arithmetic(self) -> Arithmetic | None:
        """The 8-bit arithmetic that its engines compute with on this machine; None where it is the engine's own code
        that says how, or no CPU computes them.

        Raises:
            TargetError: DNC_ISA says what no CPU has.
        """
        return None

    @abstractmethod
    def missing(self) -> str:
        """What has to be installed to run an engine; empty if nothing."""

    def remedy(self) -> str:
        """The command that installs what is missing."""
        return f"{to_install(self.extra)}, or pip install {self.missing()}"

    def taking_turns(self) -> Self:
        """This runner for engines that are timed in turn with others: nothing of one may run on after its turn."""
        return self

    @abstractmethod
    def open(self, folder: Path, threads: int | None = None) -> Session:
        """Opens what the target built.

        Args:
            threads: how many threads one run uses; the engine's own choice if not given.

        Raises:
            TargetError: the engine's library is missing or refuses the model.
        """

    def open_memory(self, files: Mapping[str, memoryview], threads: int | None = None) -> Session | None:
        """As `open`, for an engine that is in memory and on no disk; None where its library takes nothing but files.

        Args:
            files: what is in its files, by their names, which nobody changes.
        """
        return None
