"""NVIDIA's CUDA runtime, as far as dnc calls it itself: copies, streams, graphs, and how long the device takes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dnc.errors import TargetError

__all__ = ["CUDART", "ON_DEVICE", "TO_DEVICE", "TO_HOST", "Cudart", "Stopwatch"]

CUDART = "libcudart.so.13"
"""What TVM's runtime for CUDA is linked with, and loads."""


TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3
"""Kinds of copies: cudaMemcpyKind."""
_NOT_READY = 600
_NO_TIMES, _BLOCKS = 2, 1
"""Flags of events: nobody asks when they were; who waits for one leaves the processor to others."""
_NON_BLOCKING = 1
"""Flag of a stream that does not wait for the legacy default stream."""


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

    def copy(self, to: int, origin: int, size: int, kind: int, stream: ctypes.c_void_p | None) -> None:
        """Asks for a copy of so many bytes, from one address to another."""
        if size:
            addresses = ctypes.c_void_p(to), ctypes.c_void_p(origin)
            self("cudaMemcpyAsync", *addresses, ctypes.c_size_t(size), kind, stream)

    def stream(self) -> ctypes.c_void_p:
        """A new stream, which waits for others only where it is told to."""
        return self.made("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def event(self, blocks: bool = False) -> ctypes.c_void_p:
        """A new event; `blocks`: who waits for it leaves the processor to others, and wakes up later."""
        return self.made("cudaEventCreateWithFlags", _NO_TIMES | _BLOCKS * blocks)

    def is_done(self, event: ctypes.c_void_p) -> bool:
        """Whether all is done that was asked for before an event."""
        code = self._library.cudaEventQuery(event)
        if code not in (0, _NOT_READY):
            self("cudaEventQuery", event)
        return bool(code == 0)

    def device(self) -> int:
        """The number of the GPU that this thread's calls are about."""
        number = ctypes.c_int()
        self("cudaGetDevice", ctypes.byref(number))
        return number.value

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Calls of this thread are about a GPU; afterwards about the one from before."""
        before = self.device()
        self("cudaSetDevice", device)
        try:
            yield
        finally:
            self("cudaSetDevice", before)

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU that are free, and all."""
        free, every = ctypes.c_size_t(), ctypes.c_size_t()
        self("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(every))
        return free.value, every.value

    def pin(self, size: int) -> int:
        """Address of so many bytes of the host that are pinned; 0 where CUDA has none."""
        address = ctypes.c_void_p()
        code = self._library.cudaMallocHost(ctypes.byref(address), ctypes.c_size_t(size))
        if code:
            self._library.cudaGetLastError()
        return address.value or 0

    def unpin(self, address: int) -> None:
        """Gives back what `pin` gave."""
        self("cudaFreeHost", ctypes.c_void_p(address))

    def wait(self, stream: int | ctypes.c_void_p | None, other: int | ctypes.c_void_p | None) -> None:
        """Makes a stream wait until all is done that another one was asked for until now."""
        event = self.event()
        self("cudaEventRecord", event, _handle(other))
        self("cudaStreamWaitEvent", _handle(stream), event, 0)
        self("cudaEventDestroy", event)

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Calls a function whose first argument is where it puts its result, and returns that."""
        made = ctypes.c_void_p()
        self(name, ctypes.byref(made), *arguments)
        return made


def _handle(stream: int | ctypes.c_void_p | None) -> ctypes.c_void_p | None:
    return ctypes.c_void_p(stream) if isinstance(stream, int) else stream


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
