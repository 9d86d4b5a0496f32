"""The emulated GPU notices what a GPU does wrong in silence: kernels with a known fault, each in its own process."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.targets.cuda.emulation import environment, make_driver, make_kernels

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

_HEAD = """extern "C" __global__ void __launch_bounds__(64) {}(float* __restrict__ x_ptr, float* __restrict__ y_ptr) {{
{}
}}
"""
_SHARED = "  __shared__ alignas(64) float s_ptr[32];\n"
_LARGE = "  __shared__ alignas(64) float s_ptr[64];\n  s_ptr[threadIdx.x] = 1;\n"
_OWN = "  alignas(64) float t_ptr[8];\n"
_KERNELS = {
    # By name: what stands in the kernel, and what is said of it.
    "right": (
        _SHARED + "  s_ptr[threadIdx.x] = x_ptr[threadIdx.x];\n  __syncthreads();\n"
        "  y_ptr[blockIdx.x * 32 + threadIdx.x] = s_ptr[31 - threadIdx.x];",
        "",
    ),
    "vectors": (
        "  if (threadIdx.x < 8) *(float4*)(y_ptr + blockIdx.x * 32 + threadIdx.x * 4) = "
        "*(float4*)(x_ptr + threadIdx.x * 4);",
        "",
    ),
    "reads_outside": ("  y_ptr[threadIdx.x] = x_ptr[threadIdx.x + 1];", "a read outside of the memory"),
    "writes_outside": ("  y_ptr[(int)threadIdx.x - 1] = x_ptr[0];", "a write outside of the memory"),
    "shared_outside": (_SHARED + "  s_ptr[threadIdx.x * 2] = 0;", "a write outside of the shared array"),
    "not_aligned": ("  float4 v = *(float4*)(x_ptr + 2); y_ptr[0] = v.x;", "a vector that is not aligned"),
    "no_barrier": (
        _SHARED + "  s_ptr[threadIdx.x] = 1;\n  y_ptr[threadIdx.x] = s_ptr[31 - threadIdx.x];",
        # Which of these comes first is a matter of order.
        "shared memory is read that nobody has written",
    ),
    "no_second_barrier": (
        _SHARED + "  s_ptr[threadIdx.x] = 1;\n  __syncthreads();\n  float v = s_ptr[31 - threadIdx.x];\n"
        "  s_ptr[threadIdx.x] = v;",
        "no barrier between",
    ),
    "not_written": (_SHARED + "  if (threadIdx.x) s_ptr[threadIdx.x] = 1;\n  __syncthreads();\n  y_ptr[0] = s_ptr[0];",
                    "shared memory is read that nobody has written"),
    "same_place": ("  y_ptr[threadIdx.x / 2] = 1;", "it is written here, and in another thread"),
    "between_blocks": ("  y_ptr[threadIdx.x] = blockIdx.x;", "it is written here, and in another thread"),
    "read_after_write": (
        "  y_ptr[threadIdx.x + 32 * blockIdx.x] = y_ptr[threadIdx.x];",
        "and written in another thread, with no barrier between",
    ),
    "own": (
        _OWN + "  for (int u = 0; u < 8; ++u) t_ptr[u] = x_ptr[u];\n  *(float4*)(t_ptr + 4) = *(float4*)(t_ptr + 0);\n"
        "  y_ptr[blockIdx.x * 32 + threadIdx.x] = max(t_ptr[7], t_ptr[1]);",
        "",
    ),
    "own_outside": (_OWN + "  for (int u = 0; u < 9; ++u) t_ptr[u] = 1;", "a write outside of the thread's array"),
    "own_before": (_OWN + "  y_ptr[0] = t_ptr[(int)threadIdx.x - 1];", "a read outside of the thread's array"),
    "own_vector_outside": (_OWN + "  *(float4*)(t_ptr + 8) = *(float4*)(x_ptr + 0);", "outside of the thread's array"),
    "own_not_aligned": (_OWN + "  *(float4*)(t_ptr + 2) = *(float4*)(x_ptr + 0);", "a vector that is not aligned"),
    "own_not_written": (_OWN + "  t_ptr[0] = 1;\n  float2 v = *(float2*)(t_ptr + 0);", "which it has not written"),
    "truths": (
        "  alignas(64) bool t_ptr[4];\n  ushort4 v = make_ushort4(1, 0, 1, 0);\n  *(ushort4*)(t_ptr + 0) = v;",
        "a write outside of the thread's array",
    ),
    "vector_outside": ("  float4 v = *(float4*)(x_ptr + 32); y_ptr[0] = v.x;", "a read outside of the memory"),
    "vector_written_outside": ("  *(float2*)(y_ptr + 64) = make_float2(0, 0);", "a write outside of the memory"),
    "shared_vector_outside": (_SHARED + "  *(float4*)(s_ptr + 32) = *(float4*)(x_ptr + 0);", "of the shared array"),
    "shared_not_aligned": (_SHARED + "  *(float2*)(s_ptr + 1) = make_float2(0, 0);", "a vector that is not aligned"),
    "within_a_warp": (_SHARED + "  s_ptr[threadIdx.x] = 1;\n  __syncwarp();\n  float v = s_ptr[31 - threadIdx.x];\n"
                      "  __syncwarp();\n  s_ptr[threadIdx.x] = v;", ""),
    "between_warps": (_LARGE + "  __syncwarp();\n  y_ptr[threadIdx.x] = s_ptr[63 - threadIdx.x];",
                      "written in another thread, with no barrier between"),
    "votes": ("  if (__ballot_sync(~0u, threadIdx.x % 3 == 0) != 0x49249249 || __popc(0x70f) != 7) y_ptr[-1] = 0;", ""),
    "half_a_vote": ("  if (threadIdx.x < 16) __ballot_sync(~0u, true);", "only some threads of the block come to"),
    "few_voters": ("  __ballot_sync(0xffff, true);", "only some lanes of a warp are asked"),
    "half_a_barrier": ("  if (threadIdx.x < 16) __syncthreads();", "a barrier that only some threads"),
}  # fmt: skip
_RUN = """
import sys
from tests.targets.cuda.test_emulator import main
main(*sys.argv[1:])
"""


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    ]


class Gpu:
    """The driver, from Python."""

    def __init__(self, code: str) -> None:
        self.library = ctypes.CDLL("libcudart.so.13")
        self.module = ctypes.c_void_p()
        assert self.library.cuModuleLoadData(ctypes.byref(self.module), Path(code).read_bytes()) == 0

    def memory(self, count: int) -> ctypes.c_void_p:
        """Floats of the device."""
        made = ctypes.c_void_p()
        assert self.library.cudaMalloc(ctypes.byref(made), ctypes.c_size_t(4 * count)) == 0
        return made

    def launch(
        self, name: str, x: ctypes.c_void_p, y: ctypes.c_void_p, grid: tuple[int, ...] = (2, 1, 1), threads: int = 32,
        stream: ctypes.c_void_p | None = None, shared: int = 0,
    ) -> int:  # fmt: skip
        """CUDA's error, or 0."""
        function = ctypes.c_void_p()
        assert self.library.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode()) == 0
        if shared:
            assert self.library.cuFuncSetAttribute(function, 8, shared) == 0
        given = (ctypes.c_void_p * 2)(ctypes.addressof(x), ctypes.addressof(y))
        config = _Launch((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(threads, 1, 1), shared, stream, None, 0)
        return int(self.library.cuLaunchKernelEx(ctypes.byref(config), function, given, None))

    def copy(self, to: object, source: object, count: int, kind: int, stream: object = None) -> int:
        """The same of cudaMemcpyAsync: kind 1 is to the device, 2 from it."""
        return int(self.library.cudaMemcpyAsync(to, source, ctypes.c_size_t(4 * count), kind, stream))

    def wait(self) -> None:
        """For all that was asked for."""
        self.library.cudaStreamSynchronize(None)


def main(code: str) -> None:
    """Prints what became of each case: the status of its process, and what that said."""
    found = {}
    for name in (*_KERNELS, "launches", "graphs"):
        with tempfile.TemporaryFile("w+") as said:
            child = os.fork()
            if not child:
                os.dup2(said.fileno(), 2)
                status = 1
                try:
                    _try(code, name)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            found[name] = (status, said.read())
    print(json.dumps(found))


def _try(code: str, name: str) -> None:
    """Runs a kernel, or several in a way that CUDA refuses."""
    gpu = Gpu(code)
    x, y = gpu.memory(32), gpu.memory(64)
    host = np.arange(32, dtype=np.float32)
    assert gpu.copy(x, host.ctypes, 32, 1) == 0
    if name in _KERNELS:
        assert gpu.launch(name, x, y, threads=64 if name == "between_warps" else 32) == 0
        gpu.wait()
        found = np.zeros(32, np.float32)
        assert gpu.copy(found.ctypes, y, 32, 2) == 0
        if name == "right":
            np.testing.assert_array_equal(found, host[::-1])
        return
    if name == "launches":
        assert gpu.launch("right", x, y, threads=65)
        assert gpu.launch("right", x, y, (1, 65536, 1))
        assert gpu.launch("right", x, y, (0, 1, 1))
        # Not before somebody waits.
        pinned = ctypes.c_void_p()
        assert gpu.library.cudaMallocHost(ctypes.byref(pinned), ctypes.c_size_t(128)) == 0
        view = np.ndarray(32, np.float32, memoryview((ctypes.c_float * 32).from_address(pinned.value or 0)))
        view[...] = -1
        assert gpu.launch("right", x, y) == 0
        assert gpu.copy(pinned, y, 32, 2) == 0
        assert view[0] == -1
        gpu.wait()
        np.testing.assert_array_equal(view, host[::-1])
        return
    stream, graph, run = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    assert gpu.library.cudaStreamBeginCapture(None, 0)
    gpu.library.cudaStreamCreate(ctypes.byref(stream))
    spoils: dict[str, Callable[[], int]] = {
        "nothing": lambda: 0,
        "copy": lambda: gpu.copy(x, host.ctypes, 32, 1, stream),
        "memory": lambda: gpu.library.cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(4)),
        "waiting": lambda: gpu.library.cudaStreamSynchronize(None),
        "another stream": lambda: gpu.launch("right", x, y),
    }
    for what, spoil in spoils.items():
        assert gpu.library.cudaStreamBeginCapture(stream, 0) == 0
        assert gpu.launch("right", x, y, stream=stream) == 0
        assert bool(spoil()) is (what != "nothing")
        ended = gpu.library.cudaStreamEndCapture(stream, ctypes.byref(graph))
        assert bool(ended) is (what != "nothing"), what
        if what == "nothing":
            assert gpu.library.cudaGraphInstantiate(ctypes.byref(run), graph, ctypes.c_ulonglong(0)) == 0
            for shift in (1, 2):
                # The arguments are those that were recorded, what lies there is not.
                more = host + np.float32(shift)
                assert gpu.copy(x, more.ctypes, 32, 1) == 0
                assert gpu.library.cudaGraphLaunch(run, None) == 0
                found = np.zeros(32, np.float32)
                assert gpu.copy(found.ctypes, y, 32, 2) == 0
                np.testing.assert_array_equal(found, more[::-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What became of each."""
    folder = make_driver(tmp_path_factory.mktemp("emulator"))
    source = "".join(_HEAD.format(name, body) for name, (body, _) in _KERNELS.items())
    code = folder / "code"
    code.write_bytes(make_kernels(source, folder / "code.so", folder))
    command = [sys.executable, "-c", _RUN, str(code)]
    done = subprocess.run(command, cwd=ROOT, env=environment(folder), stdout=subprocess.PIPE, check=True, text=True)
    return {name: (status, said) for name, (status, said) in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", _KERNELS)
def test_kernels(name: str, found: dict[str, tuple[int, str]]) -> None:
    """Of those that are right nothing is said, and they compute."""
    status, said = found[name]
    wanted = _KERNELS[name][1]
    assert (status == 0) is (not wanted), said
    assert wanted in said
    assert (f"kernel {name}, block" in said) is bool(wanted)


@pytest.mark.parametrize("name", ["launches", "graphs"])
def test_driver(name: str, found: dict[str, tuple[int, str]]) -> None:
    """Launches that CUDA refuses, what is done later, and captures that are spoilt."""
    status, said = found[name]
    assert status == 0, said
