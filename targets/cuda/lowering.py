"""A network in Relax -> kernels for GPUs and what launches them, as an executable of TVM's. It runs in
`dnc.targets.cuda.child`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.relax.backend.cuda import pipeline

from dnc.runtime.runners.cuda.device import Device
from dnc.targets.cuda import schedules
from dnc.targets.cuda.excitation import squeezed
from dnc.targets.cuda.graphs import with_graphs
from dnc.targets.cuda.places import placed
from dnc.targets.cuda.source import checked
from dnc.targets.tvm.compile import fused
from dnc.targets.tvm.provenance import kernels_of
from dnc.targets.tvm.schedules.rewriting import calls, is_fixed
from dnc.targets.tvm.schedules.stages import dims
from dnc.typing import Array

__all__ = ["Lowered", "Network", "fill_of"]


@dataclass(frozen=True)
class Lowered:
    """A whole network."""

    executable: Any
    rules: Mapping[str, str]
    """Which rules wrote each function."""
    kernels: Sequence[tuple[str, str]]
    """See `dnc.targets.tvm.provenance.kernels_of`."""
    large: int
    """Bytes of shared memory that the kernels ask for when they are launched, at most."""


def fill_of(device: Device, new: bool) -> int:
    """What `emit` is to be told: of images with three channels, `mma-product` copies a pixel of four at once."""
    return 4 if new and device.copies else 0


class Network:
    """A Relax module, to be scheduled in one way or another.

    Args:
        module: as `dnc.targets.tvm.emit` gives it.
        archs: the GPUs; the first has the fewest instructions.
        host: the tvm.target.Target of the processor that launches kernels.
        compile_kernels: makes of CUDA C++ what the driver loads.
        tf32: whether products of float32 may be rounded to TF32.
        new: whether kinds of kernels that no GPU has run yet may be taken.
    """

    def __init__(
        self,
        module: Any,
        archs: Sequence[str],
        host: Any,
        compile_kernels: Callable[[str], bytes],
        *,
        tf32: bool = False,
        new: bool = False,
    ) -> None:
        self._device = replace(Device.of(archs), tf32=tf32, new=new)
        self._target = tvm.target.Target(
            {
                "kind": "cuda",
                "arch": archs[0],
                "max_shared_memory_per_block": self._device.shared,
                "max_threads_per_block": self._device.threads,
                "thread_warp_size": self._device.warp,
            },
            host=host,
        )
        compile_checked = lambda source: compile_kernels(checked(source))  # noqa: E731
        tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_checked, override=True)
        with self._scope():
            self.loops = fused(module, (lambda functions: placed(squeezed(functions))) if new else None)

    @contextmanager
    def _scope(self) -> Iterator[None]:
        config = {
            # What is unrolled is left to NVIDIA's compilers.
            "tirx.UnrollLoop": {"explicit_unroll": False},
            # It would let buffers of different types share memory, which fragments cannot be loaded from.
            "tirx.disable_storage_rewrite": True,
        }
        with self._target, tvm.transform.PassContext(opt_level=3, config=config):
            yield

    def lowered(self, chosen: Mapping[str, int] | None = None) -> Lowered:
        """The whole network, with the forms that are chosen for some functions."""
        with self._scope():
            module = schedules.apply(self.loops, self._device, chosen)
            rules, kernels = schedules.report(module), kernels_of(module)
            planning, *others = pipeline.finalize_passes(self._target)
            planned = tvm.transform.Sequential([*pipeline.dataflow_lower_passes(self._target), planning])(module)
            steps = tvm.transform.Sequential(others)
            executable = tvm.compile(with_graphs(planned), self._target, relax_pipeline=steps)
            return Lowered(executable, rules, kernels, _large(module))

    def functions(self) -> dict[str, tuple[Any, str, int]]:
        """Functions that can be run alone, as the rules write them, with their rules and how often each is called."""
        with self._scope():
            module = schedules.apply(self.loops, self._device)
        rules = schedules.report(module)
        called = [call.args[0].name_hint for call in calls(self.loops)]
        runnable = {name: (module[name], rules.get(name, ""), called.count(name)) for name in dict.fromkeys(called)}
        return {name: entry for name, entry in runnable.items() if entry[1] != "view" and is_fixed(entry[0])}

    def form(self, name: str, rank: int) -> Any:
        """A function in the form of a rank; None if no rule matches it."""
        with self._scope():
            return schedules.scheduled(self.loops, name, self._device, rank)

    def weights(self, name: str, ranks: Sequence[int]) -> dict[int, dict[int, Array]]:
        """See `dnc.targets.cuda.schedules.weights`."""
        with self._scope():
            return schedules.weights(self.loops, name, self._device, ranks)

    def alone(self, functions: Mapping[str, Any]) -> Any:
        """An executable of functions by these names, and nothing else."""
        named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
        with self._scope():
            return tvm.compile(tvm.IRModule(named), self._target)


def _large(module: Any) -> int:
    """See `Lowered.large`."""
    found: list[Any] = []
    for function in module.functions.values():
        if isinstance(function, tirx.PrimFunc):
            tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, found.append), order="pre")
    asked = [each.buffer for each in found if each.buffer.scope() == "shared.dyn"]
    return max((math.prod(dims(each)) * np.dtype(str(each.dtype)).itemsize for each in asked), default=0)
