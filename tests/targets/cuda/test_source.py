"""What the CUDA C++ of kernels must not have, and that vectors are split so that it has none of it."""

from __future__ import annotations

from typing import Any

import pytest

from dnc.targets.cuda.process import cuda_runtime
from dnc.targets.cuda.source import checked, kernels_in

_KERNEL = """extern "C" __global__ void {}({}) {{
  {}
}}
"""
_FAULTS = {
    "a local array": ("float* __restrict__ y_ptr", "alignas(64) bool t_ptr[4];\n  *(ushort4*)(t_ptr + 0) = v;"),
    "a parameter": ("bool* __restrict__ t_ptr, float* y_ptr", "ushort2 v = *(ushort2*)(t_ptr + 2);"),
    "too much": ("float* __restrict__ y_ptr", "*(ulonglong4*)(y_ptr + 0) = v;"),
}
_RIGHT = (
    ("float* __restrict__ t_ptr", "*(float4*)(t_ptr + 0) = v;"),
    ("long* __restrict__ t_ptr", "*(longlong2*)(t_ptr + 0) = v;"),
    ("bool* __restrict__ b_ptr, float* __restrict__ t_ptr", "b_ptr[0] = 1; *(float4*)(t_ptr + 0) = v;"),
)


def test_right() -> None:
    """What is right stays as it is; names belong to a kernel."""
    source = "".join(_KERNEL.format(f"k{place}", *texts) for place, texts in enumerate(_RIGHT))
    assert checked(source) == source
    assert [name for name, _ in kernels_in(source)] == ["k0", "k1", "k2"]


@pytest.mark.parametrize("name", _FAULTS)
def test_faults(name: str) -> None:
    """A kernel is named that takes truths for a vector, or more at once than there is."""
    with pytest.raises(RuntimeError, match="kernel wrong takes"):
        checked(_KERNEL.format("before", *_RIGHT[0]) + _KERNEL.format("wrong", *_FAULTS[name]))


@pytest.mark.skipif(cuda_runtime() is None, reason="needs apache-tvm")
@pytest.mark.parametrize(
    ("dtype", "lanes", "wanted"),
    [
        ("float32", 8, 4),
        ("float32", 4, 4),
        ("float32", 6, 3),
        ("float16", 8, 8),
        ("float16", 16, 8),
        ("int64", 4, 2),
        ("int8", 16, 16),
        ("bool", 4, 1),
    ],
)
def test_bounded(dtype: str, lanes: int, wanted: int) -> None:
    """Vectors are as long as CUDA has them, whatever type takes part."""
    import tvm_ffi
    from tvm import tirx

    from dnc.targets.cuda.schedules.threads import bounded
    from dnc.targets.tvm.schedules.loops import allocate, vector

    source, target = allocate([lanes], dtype, "x"), allocate([lanes], "float16", "y")

    def found(statement: Any) -> int:
        longest: list[int] = [1]

        def see(node: Any) -> None:
            if node.kind == tirx.ForKind.VECTORIZED:
                longest.append(int(node.extent))

        tvm_ffi.structural_walk(statement, (tirx.For, see))
        return max(longest)

    read = vector(lanes, lambda lane: tirx.BufferStore(target, tirx.Cast("float16", source[lane]), [lane]))
    written = vector(lanes, lambda lane: tirx.BufferStore(source, tirx.const(0, dtype), [lane]))
    assert found(bounded(read)) == min(wanted, 8)
    assert found(bounded(written)) == wanted
