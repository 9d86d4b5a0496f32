"""Runs one expression of Relax through the schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from dnc.runtime.processor import missing_extensions
from dnc.targets.tvm import schedules
from dnc.targets.tvm.compile import Machine, machine_for
from dnc.targets.tvm.functions import lowered
from dnc.typing import Array


def machine(mcpu: str = "host") -> Machine:
    """This machine, or an older one whose code it runs; skips if it does not."""
    if mcpu != "host" and not machine_for("", "host").triple.startswith("x86_64"):
        pytest.skip("for x86")
    found = machine_for("", mcpu)
    if missing_extensions(found.extensions, found.architecture):
        pytest.skip(f"this processor is no {mcpu}")
    return found


def legalized(build: Callable[..., Any], shapes: Sequence[tuple[int, ...]], dtype: str = "float32") -> Any:
    """What the schedules are given: `build(*variables)` as a module of fused functions."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{place}", relax.TensorType(shape, dtype)) for place, shape in enumerate(shapes)]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(build(*variables))
        builder.emit_func_output(result)
    passes = relax.transform
    return tvm.transform.Sequential(
        [
            passes.CanonicalizeBindings(),
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            passes.FuseOps(),
            passes.FuseTIR(),
        ]
    )(builder.finalize())


def run(build: Callable[..., Any], *inputs: Array, mcpu: str = "host") -> tuple[Array, str]:
    """The result, and the rules that wrote its functions."""
    where = machine(mcpu)
    with where.target, tvm.transform.PassContext(opt_level=3):
        given = legalized(build, [array.shape for array in inputs], inputs[0].dtype.name)
        module = schedules.apply(given, where.target)
        with lowered():
            executable = tvm.compile(module, where.target)
    virtual = relax.VirtualMachine(executable, tvm.cpu())
    result = virtual["main"](*(tvm.runtime.tensor(array) for array in inputs)).numpy()
    return result, " ".join(schedules.report(module).values())


def close(found: Array, wanted: Array, tolerance: float) -> None:
    """Asserts that no number is further away than so many times the largest."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
