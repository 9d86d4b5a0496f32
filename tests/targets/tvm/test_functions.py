"""exp and its like: errors over all of float32, what is special, and that TVM's own stay elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dnc.targets.tvm.functions import lowered, softplus

pytest.importorskip("tvm.relax", exc_type=ImportError)

import tvm
from tvm import te, tirx

Array = npt.NDArray[np.float32]
SIZE = 1 << 16
NORMAL = 2.0**-126
"""The smallest normal number of float32."""


def built(function: Callable[[Any], Any], dtype: str = "float32", lanes: int = 16, mcpu: str = "x86-64-v3") -> Any:
    x = te.placeholder((SIZE,), dtype, name="x")
    y = function(x) if function is softplus else te.compute((SIZE,), lambda i: function(x[i]), name="y")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([x, y]))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        (loop,) = schedule.get_loops(block)
        schedule.vectorize(schedule.split(loop, [None, lanes])[1])
    return tvm.tirx.build(schedule.mod, tvm.target.Target({"kind": "llvm", "mcpu": mcpu}))


@pytest.fixture(scope="module")
def inputs() -> Array:
    """Every 997th float32 of either sign, denormal numbers and infinities too; where the functions bend, far more."""
    bits = np.arange(0, 2**32, 997, dtype=np.uint64).astype(np.uint32)
    every = bits.view(np.float32)
    dense = [np.linspace(low, high, 500_000, dtype=np.float32) for low, high in ((-110, 95), (-12, 12), (-1, 1))]
    special = np.array([0.0, -0.0, np.inf, -np.inf, 88.72283, 88.72284, -87.33655, -103.97], np.float32)
    return np.concatenate([every[~np.isnan(every)], *dense, special])


def run(module: Any, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    padded = np.concatenate([x, np.zeros(-len(x) % SIZE, x.dtype)]).reshape(-1, SIZE)
    found = []
    for part in padded:
        y = tvm.runtime.tensor(np.empty(SIZE, x.dtype))
        module["main"](tvm.runtime.tensor(part), y)
        found.append(y.numpy())
    return np.concatenate(found)[: len(x)]


FUNCTIONS: dict[str, tuple[Any, Callable[[Any], Any], float]] = {
    "exp": (tirx.exp, np.exp, 2),
    "sigmoid": (tirx.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 3),
    "tanh": (tirx.tanh, np.tanh, 3),
    "softplus": (softplus, lambda x: np.logaddexp(0, x), 4),
}
"""In TVM, exactly, and the largest error in units of the last place that functions.py states."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors(name: str, inputs: Array) -> None:
    function, exact, bound = FUNCTIONS[name]
    with lowered():
        module = built(function)
    found = run(module, inputs)
    with np.errstate(all="ignore"):
        wanted = exact(inputs.astype(np.float64))
        rounded = wanted.astype(np.float32)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(rounded))
    finite = np.isfinite(rounded)
    found, wanted = found[finite].astype(np.float64), wanted[finite]
    unit = np.spacing(np.maximum(np.abs(wanted), NORMAL).astype(np.float32)).astype(np.float64)
    # Where a sigmoid is below the normal numbers, it need not be right in its own last place.
    allowed = np.where((name == "sigmoid") & (wanted < NORMAL), NORMAL, bound * unit)
    worst = np.argmax(np.abs(found - wanted) / allowed)
    assert abs(found[worst] - wanted[worst]) <= allowed[worst], inputs[finite][worst]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_numbers(name: str) -> None:
    function, exact, _ = FUNCTIONS[name]
    with lowered():
        module = built(function)
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38], np.float32)
    with np.errstate(all="ignore"):
        expected = exact(x.astype(np.float64)).astype(np.float32)
    # 1e-38 is what a sigmoid may leave instead of 0.
    np.testing.assert_allclose(run(module, x), expected, rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize(("lanes", "mcpu"), [(1, "x86-64"), (4, "x86-64"), (8, "x86-64-v3"), (32, "x86-64-v3")])
def test_any_width(lanes: int, mcpu: str) -> None:
    """Scalars, vectors of the processor's width, and several vectors at once."""
    with lowered():
        module = built(tirx.exp, lanes=lanes, mcpu=mcpu)
    x = np.linspace(-90, 88, 10_000, dtype=np.float32)
    np.testing.assert_allclose(run(module, x), np.exp(x), rtol=3e-7, atol=1e-38)


def test_half_precision() -> None:
    """Computed as float32: the error is that of rounding to float16."""
    with lowered():
        module = built(tirx.sigmoid, "float16")
    x = np.linspace(-12, 12, 10_000).astype(np.float16)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(run(module, x), expected, rtol=2**-11, atol=2**-24)


def test_only_inside(inputs: Array) -> None:
    """Outside of `lowered`, and for float64, TVM compiles calls of libm as ever."""
    with lowered():
        ours, double = built(tirx.exp), built(tirx.exp, "float64")
    theirs = built(tirx.exp)
    assert "llvm.exp" not in ours.inspect_source()
    assert "llvm.exp" in theirs.inspect_source()
    assert "llvm.exp" in double.inspect_source()
