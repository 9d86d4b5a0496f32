"""Functions in CUDA C++ that kernels call for what TIR cannot say; their source is in the files *.cuh.

TVM puts barriers where threads of a block write and read what is shared. What these functions write it does not see, so
where they are used, `barrier` stands in the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call

from dnc.targets.cuda.schedules.threads import narrow
from dnc.targets.tvm.schedules.loops import Expr, Stmt

__all__ = [
    "TILES",
    "address",
    "arrived_last",
    "ballot",
    "barrier",
    "commit",
    "copy",
    "gather",
    "move",
    "multiply_grouped",
    "multiply_strips",
    "multiply_tf32",
    "pairs",
    "pointer",
    "put_sums",
    "scale",
    "scratch",
    "store_fragment",
    "wait",
    "warp_barrier",
]

_NEITHER = 0
"""Neither read nor written, for all that TVM knows."""
TILES = 4096
"""Tiles of a kernel of which several blocks compute parts, at most."""


def _source(name: str) -> str:
    return "\n" + Path(__file__).with_name(f"{name}.cuh").read_text(encoding="utf-8")


_COPY, _FRAGMENTS, _SCRATCH = _source("copy"), _source("fragments"), _source("scratch")
_LANES = _COPY + _source("lanes") + _source("integers")
_MMA, _GROUPED = _LANES + _source("mma"), _LANES + _source("warpgroups")
_SCALE = _COPY + _source("scale")
_PARTS = _source("parts").replace("TILES", str(TILES))


def _call(name: str, *arguments: Any, source: str = "", returns: str = "void") -> Expr:
    return cuda_func_call(name, *arguments, source_code=source, return_type=returns)


def _kind(sums: Any) -> str:
    """CUDA's name of the type of sums."""
    return {"int32": "int", "uint32": "unsigned"}.get(str(sums.dtype), "float")


def address(buffer: Any, *indices: Expr) -> Expr:
    """Address of an element of a parameter, or of a thread's own buffer."""
    return tirx.address_of(tirx.BufferLoad(buffer, list(indices)))


def pointer(buffer: Any, offset: Expr) -> Expr:
    """Pointer to an element of a flat buffer, which TVM then leaves as long as it is."""
    return buffer.access_ptr(_NEITHER, offset=offset)


def move(to: Expr, start: Expr, size: int) -> Stmt:
    """Moves 2, 4, 8 or 16 bytes at once."""
    return tirx.Evaluate(_call(f"dnc_move<{size}>", to, start, source=_COPY))


def scale(to: Expr, factors: Expr, lanes: int, dtype: str) -> Stmt:
    """Multiplies 2 to 16 bytes of numbers in place with as many factors, both aligned to all of them."""
    kind = "half" if dtype == "float16" else "float"
    return tirx.Evaluate(_call(f"dnc_scale<{kind}, {lanes}>", to, factors, source=_SCALE))


def copy(to: Expr, start: Expr, size: int, inside: Expr | bool = True) -> Stmt:
    """Begins to copy 4, 8 or 16 bytes from global to shared memory, or where that is not inside, zeros; sm_80 on."""
    return tirx.Evaluate(_call(f"dnc_copy<{size}>", to, start, inside, source=_COPY))


def commit() -> Stmt:
    """Ends a group of copies; it may be empty."""
    return tirx.Evaluate(_call("dnc_commit", source=_COPY))


def wait(groups: int) -> Stmt:
    """Waits until all groups of the thread's copies but the last are there; for other threads, after a barrier."""
    return tirx.Evaluate(_call(f"dnc_wait<{groups}>", source=_COPY))


def barrier() -> Stmt:
    """Waits until all threads of the block are here."""
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))


def warp_barrier() -> Stmt:
    """The same for those of a warp; all warps of the block must come to as many of them."""
    return tirx.Evaluate(_call("__syncwarp"))


def ballot(truth: Expr) -> Expr:
    """A word with a bit for each lane of the warp, all of which come here: whether it is true for that."""
    return _call("__ballot_sync", tirx.const(0xFFFFFFFF, "uint32"), truth, returns="uint32")


def arrived_last(tile: Expr, parts: int) -> Expr:
    """Whether this block is the last one of some that compute parts of a tile, and sees what the others wrote.

    Args:
        tile: its number, below `TILES`.
        parts: how many blocks there are for each.
    """
    return _call("dnc_arrived_last", tirx.Cast("int32", tile), parts, source=_PARTS, returns="bool")


def gather(to: Any, start: Expr, lanes: int, parts: int | Expr, stride: int) -> Stmt:
    """The sums of what some parts have, in their order, into a local buffer.

    Args:
        to: `lanes` numbers, float32, int32 or uint32, as which it reads what is there.
        start: where the first part has them, aligned to all of them.
        lanes: 1, 2 or 4.
        stride: by how many numbers they are apart.
    """
    first = address(to, tirx.IntImm("int64", 0))
    return tirx.Evaluate(_call(f"dnc_gather<{lanes}, {_kind(to)}>", first, start, parts, stride, source=_PARTS))


def scratch(size: int, offset: Expr) -> Expr:
    """Address of a number in memory that kernels use one after the other, and that lives as long as the module.

    What TVM allocates for a function may lie elsewhere after another function wanted more; a CUDA graph would not know.

    Args:
        size: how many float32 numbers the kernel wants.
        offset: the number.
    """
    # Kernels that want about as much share it.
    bits = str((size - 1).bit_length())
    source = _SCRATCH.replace("LOG", bits)
    return _call(f"dnc_scratch_{bits}", narrow(offset), source=source, returns="handle")


def store_fragment(fragments: Any, number: Expr, to: Expr, stride: int) -> Stmt:
    """Writes a fragment of float32 sums row by row.

    Args:
        fragments: a buffer of them.
        to: where its first number goes, in a buffer of any type, on a multiple of 32 bytes.
        stride: numbers from one row to the next.
    """
    return tirx.Evaluate(_call("dnc_store_fragment", fragments.data, narrow(number), to, stride, source=_FRAGMENTS))


def multiply_tf32(sums: Any, shape: tuple[int, int], data: tuple[Expr, int], weights: tuple[Expr, int]) -> Stmt:
    """Adds the product of 8 columns of the data and 8 rows of the weights to fragments of sums; sm_80 on.

    Args:
        sums: fragments of 16 x 16, row by row.
        shape: how many there are below each other and side by side.
        data: where the float32 numbers begin, which are rounded to TF32, and how far apart their rows are.
        weights: the same, rounded already.
    """
    name = f"dnc_multiply_tf32<{shape[0]}, {shape[1]}>"
    return tirx.Evaluate(_call(name, sums.data, *data, *weights, source=_FRAGMENTS))


def _kinds(title: str, tile: Sequence[object], window: Sequence[int], pixels: Sequence[int]) -> str:
    """The geometry of a product as arguments of a template."""
    kinds = {title: tile, "dnc_window": window, "dnc_pixels": pixels}
    return ", ".join(f"{name}<{', '.join(map(str, values))}>" for name, values in kinds.items())


def multiply_strips(
    sums: Any,
    strips: Expr,
    matrices: tuple[Expr, Expr],
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    steps: int,
    begin: tuple[Expr, Expr],
    bfloat16: bool,
) -> Stmt:
    """All steps of a block's product: see mma.cuh, `dnc_product`.

    Args:
        sums: float32 numbers of a thread's own; or int32 numbers for products of 8 bits, two of which are one here; or
            uint32 numbers for bits, 16 of which are one.
        strips: shared memory.
        matrices: where the group's data begins, and where the weights of the block.
        geometry: what mma.cuh's `dnc_tile`, `dnc_window` and `dnc_pixels` say.
        begin: the first pixel and the first step.
        bfloat16: whether that is what the numbers are, held as uint16; else they are float16.
    """
    name = f"dnc_product<{_kinds('dnc_tile', *geometry)}, {steps}, {str(bfloat16).lower()}, {_kind(sums)}>"
    return tirx.Evaluate(_call(name, sums.data, strips, *matrices, *map(narrow, begin), source=_MMA))


def multiply_grouped(
    sums: Any,
    strips: Expr,
    matrices: tuple[Expr, Expr],
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    steps: int,
    begin: tuple[Expr, Expr],
    bfloat16: bool,
) -> Stmt:
    """The same by wgmma: see warpgroups.cuh, `dnc_grouped_product`; `strips` begin on a multiple of 1024 bytes."""
    tile, window, pixels = geometry
    kind = "bf16" if bfloat16 else "f16"
    name = f"dnc_grouped_product<{_kinds('dnc_grouped', (*tile, f'dnc_{kind}'), window, pixels)}, {steps}>"
    source = _GROUPED + _wgmma(tile[2], kind)
    return tirx.Evaluate(_call(name, sums.data, strips, *matrices, *map(narrow, begin), source=source))


def _wgmma(columns: int, kind: str) -> str:
    """`dnc_wgmma` for a number of columns: one instruction with all of a thread's sums."""
    count = columns // 2
    lines = [f"{', '.join(f'%{i}' for i in range(first, first + 8))}" for first in range(0, count, 8)]
    listed = ', "\n                 "'.join(lines)
    sums = ",\n                   ".join(
        ", ".join(f'"+f"(sums[{i}])' for i in range(first, first + 4)) for first in range(0, count, 4)
    )
    guard = f"DNC_WGMMA_{columns}_{kind.upper()}"
    return f"""
#if !defined({guard}) && !defined(DNC_PROXIES)
#define {guard}
template <> struct dnc_wgmma<{columns}, dnc_{kind}> {{
  __device__ __forceinline__ static void multiply(float *sums, unsigned long long left, unsigned long long right) {{
    asm volatile("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {{"
                 "{listed}}}, "
                 "%{count}, %{count + 1}, 1, 1, 1, 0, 0;"
                 : {sums}
                 : "l"(left), "l"(right));
  }}
}};
#endif
"""


def pairs(start: Expr) -> Expr:
    """A pointer to anything as one to pairs of bytes."""
    return _call("dnc_pairs", start, source=_LANES, returns="handle")


def put_sums(to: Expr, sums: Expr, columns: int, stride: int) -> Stmt:
    """Writes a warp's sums of 16 rows, as mma.sync leaves them.

    Args:
        to: where the lane's first two numbers go, in a buffer of any type.
        sums: the lane's own.
        columns: of the warp.
        stride: numbers from one row to the next.
    """
    return tirx.Evaluate(_call(f"dnc_put_sums<{columns // 8}>", to, sums, stride, source=_LANES))


def end() -> Stmt:
    """Ends the thread."""
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.thread_return"))
