"""NVIDIA's CUDA runtime, as far as dnc calls it itself: streams, graphs, and how long the device takes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from dnc.errors import TargetError

__all__ = ["CUDART", "Cudart", "Stopwatch"]

CUDART = "libcudart.so.13"
"""What TVM's runtime for CUDA is linked with, and loads."""


class Cudart:
    """The functions of the library; they raise TargetError where CUDA refuses."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(CUDART)

    def __call__(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = self._library.cudaGetErrorString
            text.restype = ctypes.c_char_p
            raise TargetError(f"CUDA refuses {name}: {text(code).decode()} ({code})")

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Calls a function whose first argument is where it puts its result, and returns that."""
        made = ctypes.c_void_p()
        self(name, ctypes.byref(made), *arguments)
        return made


class Stopwatch:
    """Takes the time of the device, between two events. What the host does meanwhile counts only where the device waits
    for it."""

    def __init__(self, cuda: Cudart) -> None:
        self._cuda = cuda
        self._start, self._stop = cuda.made("cudaEventCreate"), cuda.made("cudaEventCreate")

    def seconds(self, launch: Callable[[], object], stream: ctypes.c_void_p | None = None) -> float:
        """Seconds of all that `launch` asks for, on a stream; it waits until that is done."""
        taken = ctypes.c_float()
        self._cuda("cudaEventRecord", self._start, stream)
        launch()
        self._cuda("cudaEventRecord", self._stop, stream)
        self._cuda("cudaEventSynchronize", self._stop)
        self._cuda("cudaEventElapsedTime", ctypes.byref(taken), self._start, self._stop)
        return taken.value / 1e3

    def close(self) -> None:
        """Gives back the events."""
        for event in (self._start, self._stop):
            self._cuda("cudaEventDestroy", event)
