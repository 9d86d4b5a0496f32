"""Runs a model.so of kernels on an NVIDIA GPU: needs numpy, tvm_ffi, TVM's runtime with its part for CUDA, and NVIDIA's
CUDA runtime (libcudart), nothing of a compiler.

One virtual machine has the weights and the memory of the device, and one thread of its own, in which all runs take
turns: a GPU computes one after the other anyway.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.errors import TargetError
from dnc.targets.base import Session
from dnc.tvm.gpu.device import runs_on
from dnc.tvm.processor import architecture
from dnc.tvm.session import ABOUT, MODEL, find_library, load_runtime, reason

__all__ = ["CUDA_RUNTIME", "GpuSession"]

CUDA_RUNTIME = "libtvm_runtime_cuda.so"
"""The part of TVM's runtime that is for NVIDIA's GPUs."""
_AGAIN = "build the engine again"
_CPU, _CUDA = 1, 2
"""DLPack's device types."""
_POOLED = 2
"""The allocator of TVM that keeps memory for the next run."""
_EXISTS, _CAPABILITY, _NAME = 0, 4, 5
"""What TVM's runtime.GetDeviceAttr tells."""
_CUDART = "libcudart.so.13"
"""What TVM's runtime for CUDA is linked with."""


class GpuSession(Session):
    """model.so on a GPU.

    Args:
        folder: the engine folder.
        device: the number of the GPU.

    Raises:
        TargetError: there is no driver, no such GPU, or one that the engine is not for; or a library is missing.
    """

    def __init__(self, folder: Path, device: int = 0) -> None:
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            machine = architecture(about["triple"])
            archs, ptx = [str(arch) for arch in about["archs"]], str(about["ptx"])
            self._inputs = {each["name"]: np.dtype(each["dtype"]) for each in about["inputs"]}
            versions = dict(about["versions"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TargetError(f"cannot read {ABOUT}: {error}", folder, _AGAIN) from error
        if machine != architecture():
            raise TargetError(f"the engine is for {machine}, this machine is {architecture()}", folder, _AGAIN)
        self._ffi = load_runtime(folder, versions)
        _load_cuda(self._ffi, folder, versions)
        ask = self._ffi.get_global_func("runtime.GetDeviceAttr")
        if not ask(_CUDA, device, _EXISTS):
            raise TargetError(f"there is no GPU {device} that CUDA can use", folder, "nvidia-smi lists the GPUs")
        capability, name = str(ask(_CUDA, device, _CAPABILITY)), str(ask(_CUDA, device, _NAME))
        if not runs_on(archs, ptx, capability):
            mine = f"sm_{capability.replace('.', '')}"
            what = f"the engine is for {', '.join(archs or [ptx])}, and this GPU, {name}, is {mine}"
            raise TargetError(what, folder, f"{_AGAIN} with --option arch={mine}")
        self.device = f"{name} (CUDA, TVM)"
        self._place = device
        self._owner = os.getpid()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dnc-cuda")
        self._thread.submit(self._open, folder / MODEL).result()

    def _open(self, path: Path) -> None:
        try:
            # The machine does not keep the library.
            self._library = self._ffi.load_module(str(path))
            self._machine = self._library["vm_load_executable"]()
            self._machine["vm_initialization"](_CUDA, self._place, _POOLED, _CPU, 0, _POOLED)
            self._main = self._machine["main"]
        except Exception as error:
            # tvm_ffi raises the builtin class that TVM's message names.
            raise TargetError(f"TVM refuses the engine: {reason(error)}", path, _AGAIN) from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Copies to the device, runs there, and copies back."""
        if inputs.keys() != self._inputs.keys():
            raise TargetError(f"TVM failed: the inputs are {', '.join(self._inputs)}, not {', '.join(inputs)}")
        for name, dtype in self._inputs.items():
            if not isinstance(inputs[name], np.ndarray) or inputs[name].dtype != dtype:
                raise TargetError(f"TVM failed: input {name} is no array of {dtype}")
        if self._owner != os.getpid():
            raise TargetError(
                "CUDA cannot be used in a process that forked after the engine was opened", hint="open it there"
            )
        return self._thread.submit(self._run, [inputs[name] for name in self._inputs]).result()

    def _run(self, arrays: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        copy, ffi = self._ffi.get_global_func("runtime.TVMTensorCopyFromTo"), self._ffi
        device = ffi.device("cuda", self._place)
        try:
            given = []
            for array in arrays:
                there = self._empty(array.shape, str(array.dtype), device)
                copy(_readable(ffi, array), there)
                given.append(there)
            results = []
            for output in self._main(*given):
                array = np.empty(tuple(output.shape), np.dtype(str(output.dtype)))
                # From the device to ordinary memory, CUDA returns when all is done.
                copy(output, ffi.from_dlpack(array))
                results.append(array)
            return results
        except Exception as error:
            raise TargetError(f"TVM failed: {reason(error)}") from error

    def _empty(self, shape: Sequence[int], dtype: str, device: Any) -> Any:
        allocate = self._ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        return allocate(self._ffi.Shape(shape), self._ffi.dtype(dtype), device, None)


def _readable(ffi: ModuleType, array: npt.NDArray[Any]) -> Any:
    """The array for TVM: numpy hands out nothing that may not be written."""
    usable = array.flags.c_contiguous and array.flags.writeable
    return ffi.from_dlpack(array if usable else np.array(array, order="C"))


def _load_cuda(ffi: ModuleType, folder: Path, versions: Mapping[str, str]) -> None:
    """TVM's runtime for CUDA in the process."""
    if ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    found = find_library(CUDA_RUNTIME, folder, versions)
    try:
        for place in _cudart():
            # PyPI's package is not on the loader's path; where it is not installed, the loader looks by itself.
            ctypes.CDLL(str(place), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(found), ctypes.RTLD_LOCAL)
    except OSError as error:
        if "libcuda.so" in str(error):
            hint = "install NVIDIA's driver; containers need --gpus all, or --runtime nvidia"
            raise TargetError("there is no NVIDIA driver: libcuda.so.1 cannot be loaded", folder, hint) from error
        hint = "pip install nvidia-cuda-runtime" if "libcudart" in str(error) else _AGAIN
        raise TargetError(f"TVM's runtime for CUDA cannot be loaded: {error}", found, hint) from error


def _cudart() -> list[Path]:
    """libcudart of PyPI's nvidia-cuda-runtime."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return [path for place in places for path in sorted(Path(place).glob(f"*/lib/{_CUDART}"))][:1]
