"""Runs a graph in ONNX Runtime on the CPU: to prove passes, to calibrate, to measure what quantization costs.

optimize=False    node by node as the graph says: no fusion of ONNX Runtime's own hides or adds a difference, and
                  16-bit values are rounded as an engine with half-precision units rounds them (dnc.graph.rounding).
                  Weights are read where they lie.
optimize=True     as ONNX Runtime runs an engine: faster where there are many runs
"""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dnc.files.writing import scratch_folder
from dnc.graph.rounding import spell_out
from dnc.graph.serialization import serialize_to, small_model, with_outputs
from dnc.runtime.runners.onnx import MODEL, import_onnxruntime
from dnc.typing import Array

__all__ = ["Running", "available", "run"]

_PROVIDERS = ("CPUExecutionProvider",)
_RELEASE = 1 << 25
"""Bytes of weights between two calls of `release`."""


def available() -> bool:
    """Whether there is an ONNX Runtime to run models with."""
    return importlib.util.find_spec("onnxruntime") is not None


def run(model: ir.Model, feeds: Mapping[str, Array], *, optimize: bool = False) -> dict[str, Array]:
    """Every output of a model by name, for inputs by name."""
    return Running(model, optimize=optimize)(feeds)


class Running:
    """A model that is open; a call gives its outputs by name, for inputs by name.

    Args:
        model: the model, which stays as it is; or a file of one, which is run with `optimize`.
        optimize: see the module.
        watch: values to give besides the outputs, as long as they are in the graph.
        integers: whether what is rounded to 8 bits and back is computed with the processor's 8-bit instructions, where
            they can, and not as the graph says.
        spin: whether threads wait busily between nodes, which takes the time of other threads.
        threads: how many threads one run uses; ONNX Runtime's own choice if not given.
        release: is called now and then while weights are computed, and gives back the memory that they were read into.

    Raises:
        TargetError: onnxruntime cannot be loaded.
    """

    def __init__(
        self,
        model: ir.Model | Path,
        *,
        optimize: bool = False,
        watch: Collection[str] = (),
        integers: bool = True,
        spin: bool = True,
        threads: int | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if not integers:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        self._weights: dict[str, Array] = {}
        if isinstance(model, Path):
            self._session = onnxruntime.InferenceSession(str(model), options, providers=_PROVIDERS)
        elif optimize:
            with scratch_folder("run") as folder:
                serialize_to(with_outputs(model, watch), folder / MODEL)
                path = str(folder / MODEL)
                self._session = onnxruntime.InferenceSession(path, options, providers=_PROVIDERS)
        else:
            proto = small_model(model, watch)
            halves = spell_out(proto)
            self._weights = _weights(model, [value.name for value in proto.graph.input], halves, release)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            # Freed memory goes back: the next model's weights are yet to be computed.
            options.enable_cpu_mem_arena = False
            self._session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=_PROVIDERS)
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array], change: Callable[[Array], Array] | None = None) -> dict[str, Array]:
        """Runs it.

        Args:
            change: makes of each input and, without `optimize`, of each large weight what is taken instead.

        Raises:
            MemoryError: the network's values take more than there is.
        """
        given = {**feeds, **self._weights}
        if change is not None:
            given = {name: change(array) for name, array in given.items()}
        try:
            outputs = self._session.run(None, given)
        except Exception as error:
            # ONNX Runtime has no class of its own for it.
            if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        return dict(zip(self._names, outputs, strict=True))


def _weights(
    model: ir.Model, inputs: Collection[str], halves: Collection[str], release: Callable[[], None]
) -> dict[str, Array]:
    """The initializers that are inputs of the small model: as initializers of a session they would be copied."""
    arrays: dict[str, Array] = {}
    fresh = 0
    for name, value in model.graph.initializers.items():
        if name not in inputs:
            continue
        tensor = value.const_value
        assert tensor is not None
        array = np.ascontiguousarray(tensor.numpy().astype(np.float32) if name in halves else tensor.numpy())
        arrays[name] = _outside_heap(array) if isinstance(tensor, ir.LazyTensor) else array
        fresh += tensor.nbytes
        if fresh > _RELEASE:
            release()
            fresh = 0
    release()
    return arrays


def _outside_heap(array: Array) -> Array:
    """A copy in memory of its own, which the system gets back at once: that of a heap stays the process's."""
    if not array.size:
        return array
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
