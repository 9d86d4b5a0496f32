"""Functions in CUDA C++ that kernels call for what TIR cannot say.

TVM puts barriers where threads of a block write and read what is shared. What these functions write it does not see, so
where they are used, `barrier` stands in the kernel.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call

from dnc.targets.cuda.schedules.threads import narrow
from dnc.targets.tvm.schedules.loops import Expr, Stmt

__all__ = [
    "TILES",
    "address",
    "arrived_last",
    "barrier",
    "commit",
    "copy",
    "gather",
    "move",
    "multiply_tf32",
    "pointer",
    "scratch",
    "store_fragment",
    "wait",
    "warp_barrier",
]

_NEITHER = 0
"""Neither read nor written, for all that TVM knows."""
TILES = 4096
"""Tiles of a kernel of which several blocks compute parts, at most."""

_COPY = """
#ifndef DNC_COPY
#define DNC_COPY
template <int N> struct dnc_word;
template <> struct dnc_word<2> { typedef unsigned short type; };
template <> struct dnc_word<4> { typedef unsigned type; };
template <> struct dnc_word<8> { typedef uint2 type; };
template <> struct dnc_word<16> { typedef uint4 type; };
template <int N, class To, class From> __device__ __forceinline__ void dnc_move(To to, From from) {
  typedef typename dnc_word<N>::type word;
  *(word*)(to) = *(word*)(from);
}
#ifndef DNC_ASYNC
template <int N> __device__ __forceinline__ void dnc_copy(void *to, const void *from, bool inside) {
#if __CUDA_ARCH__ >= 800
  unsigned place = (unsigned)__cvta_generic_to_shared(to);
  // Of size 0 nothing is read.
  int size = inside ? N : 0;
  if (N == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from), "n"(N), "r"(size) : "memory");
#else
  typedef typename dnc_word<N>::type word;
  word value = {};
  if (inside) value = *(const word *)from;
  *(word *)to = value;
#endif
}
__device__ __forceinline__ void dnc_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void dnc_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
#endif
#endif
"""
_PARTS = f"""
#ifndef DNC_PARTS
#define DNC_PARTS
__device__ unsigned dnc_arrivals[{TILES}];
__device__ __forceinline__ bool dnc_arrived_last(int tile, int parts) {{
  __shared__ unsigned before[1];
  __threadfence();
  __syncthreads();
  // The last one leaves 0 for the next kernel.
  if (threadIdx.x == 0) before[0] = atomicInc(dnc_arrivals + tile, parts - 1);
  __syncthreads();
  __threadfence();
  return before[0] == parts - 1;
}}
template <int N> struct alignas(4 * N) dnc_floats {{ float x[N]; }};
template <int N, class From>
__device__ __forceinline__ void dnc_gather(float *to, From from, int parts, int stride) {{
  typedef dnc_floats<N> floats;
  floats sum = {{}};
#pragma unroll 4
  for (int part = 0; part < parts; ++part) {{
    floats more = *(floats*)(from + part * stride);
#pragma unroll
    for (int i = 0; i < N; ++i) sum.x[i] += more.x[i];
  }}
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = sum.x[i];
}}
#endif
"""
_SCRATCH = """
// Fragments are written to multiples of 32 bytes.
alignas(256) __device__ float dnc_scratch_LOG_[1 << LOG];
__device__ __forceinline__ float *dnc_scratch_LOG(int offset) { return dnc_scratch_LOG_ + offset; }
"""
_FRAGMENTS = """
#ifndef DNC_FRAGMENTS
#define DNC_FRAGMENTS
#include <mma.h>
template <class Fragment, class To>
__device__ __forceinline__ void dnc_store_fragment(Fragment *fragments, int number, To to, int stride) {
  nvcuda::wmma::store_matrix_sync(&*(float*)(to), fragments[number], stride, nvcuda::wmma::mem_row_major);
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// What is in shared memory nvcc does not see by itself for fragments of TF32.
template <class Fragment, class From>
__device__ __forceinline__ void dnc_load_tf32_left(Fragment &to, From from, int stride) {
#ifdef __CUDA_ARCH__
  unsigned *x = reinterpret_cast<unsigned *>(to.x);
  asm volatile("wmma.load.a.sync.aligned.row.m16n16k8.shared.tf32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)), "r"(stride) : "memory");
#else
  nvcuda::wmma::load_matrix_sync(to, from, stride);
#endif
}
template <class Fragment, class From>
__device__ __forceinline__ void dnc_load_tf32_right(Fragment &to, From from, int stride) {
#ifdef __CUDA_ARCH__
  unsigned *x = reinterpret_cast<unsigned *>(to.x);
  asm volatile("wmma.load.b.sync.aligned.row.m16n16k8.shared.tf32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)), "r"(stride) : "memory");
#else
  nvcuda::wmma::load_matrix_sync(to, from, stride);
#endif
}
template <int Tall, int Wide, class Sums, class Data, class Weights>
__device__ __forceinline__ void dnc_multiply_tf32(Sums *sums, Data data, int deep, Weights weights, int broad) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 8, precision::tf32, row_major> left[Tall];
  fragment<matrix_b, 16, 16, 8, precision::tf32, row_major> right[Wide];
#pragma unroll
  for (int i = 0; i < Tall; ++i) {
    dnc_load_tf32_left(left[i], data + i * 16 * deep, deep);
#pragma unroll
    for (int e = 0; e < left[i].num_elements; ++e) left[i].x[e] = __float_to_tf32(left[i].x[e]);
  }
#pragma unroll
  for (int j = 0; j < Wide; ++j) dnc_load_tf32_right(right[j], weights + j * 16, broad);
#pragma unroll
  for (int i = 0; i < Tall; ++i)
#pragma unroll
    for (int j = 0; j < Wide; ++j) mma_sync(sums[i * Wide + j], left[i], right[j], sums[i * Wide + j]);
}
#endif
#endif
"""


def _call(name: str, *arguments: Any, source: str = "", returns: str = "void") -> Expr:
    return cuda_func_call(name, *arguments, source_code=source, return_type=returns)


def address(buffer: Any, *indices: Expr) -> Expr:
    """Address of an element of a parameter, or of a thread's own buffer."""
    return tirx.address_of(tirx.BufferLoad(buffer, list(indices)))


def pointer(buffer: Any, offset: Expr) -> Expr:
    """Pointer to an element of a flat buffer, which TVM then leaves as long as it is."""
    return buffer.access_ptr(_NEITHER, offset=offset)


def move(to: Expr, start: Expr, size: int) -> Stmt:
    """Moves 2, 4, 8 or 16 bytes at once."""
    return tirx.Evaluate(_call(f"dnc_move<{size}>", to, start, source=_COPY))


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
        to: `lanes` float32 numbers.
        start: where the first part has them, aligned to all of them.
        lanes: 1, 2 or 4.
        stride: by how many numbers they are apart.
    """
    first = address(to, tirx.IntImm("int64", 0))
    return tirx.Evaluate(_call(f"dnc_gather<{lanes}>", first, start, parts, stride, source=_PARTS))


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


def end() -> Stmt:
    """Ends the thread."""
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.thread_return"))
