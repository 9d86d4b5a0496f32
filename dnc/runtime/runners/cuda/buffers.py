"""Memory that runs on a GPU share: pinned memory of the host, and the right to ask CUDA for something.

A GPU copies from and to pinned memory by itself, while everything else goes on. It is lent as arrays of numpy's: what
lies in one needs no copy on the host, and when an array and its views are no more, its memory is lent again. What is
lent beyond `_MOST` bytes is ordinary memory, which CUDA copies by a detour: nobody can pin all that a machine has.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.typing import Array

__all__ = ["Gate", "Pinned", "gate", "is_pinned", "pinned"]

_MOST = 512 << 20
"""Bytes that are pinned at the same time, at most."""
_PAGE = 4096


class Gate:
    """A lock that users of a GPU share, and that the recording of a graph holds alone.

    While somebody waits to be alone nobody else comes in: threads that take turns without a pause would keep it out for
    ever. Who is inside waits for no other thread.
    """

    def __init__(self) -> None:
        # A finalizer may come through in the very thread that records.
        self._changed = threading.Condition(threading.RLock())
        self._inside = self._waiting = 0
        self._own = threading.local()

    @contextmanager
    def shared(self, urgent: bool = False) -> Iterator[None]:
        """With others. A finalizer, which may come while its thread has anything, is `urgent`."""
        depth, inside = getattr(self._own, "depth", 0), False
        try:
            with self._changed:
                self._changed.wait_for(lambda: urgent or depth or not self._waiting)
                # Ctrl-C, which may come behind, does not leave it inside.
                self._inside, inside = self._inside + 1, True
            self._own.depth = depth + 1
            yield
        finally:
            self._own.depth = depth
            if inside:
                with self._changed:
                    self._inside -= 1
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Without any other thread."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._inside)
            finally:
                self._waiting -= 1
            self._own.depth = 1
            try:
                yield
            finally:
                self._own.depth = 0
                self._changed.notify_all()


class _Block:
    """Pinned memory that is lent to one array."""

    def __init__(self, pool: Pinned, address: int, size: int) -> None:
        self._pool, self._address, self._size, self._owner = pool, address, size, os.getpid()
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        try:
            if self._owner == os.getpid():
                self._pool.give_back(self._address, self._size)
        except KeyboardInterrupt:
            # Python would lose it here.
            _thread.interrupt_main()


class Pinned:
    """Pinned memory, of all sessions of the process."""

    def __init__(self) -> None:
        self._free: dict[int, deque[int]] = {}
        self._lock = threading.Lock()
        self.size = 0
        """Bytes that are pinned."""

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike, allocate: Callable[[int], bool]) -> Array:
        """An array for numbers that are to be written, pinned as far as there is room.

        Args:
            allocate: has `grow` called where CUDA may be asked for memory; whether there is now some of this size.
        """
        kind = np.dtype(dtype)
        wanted = int(np.prod(shape)) * kind.itemsize
        size = _rounded(wanted)
        free = self._free.setdefault(size, deque())
        while wanted:
            try:
                address = free.pop()
            except IndexError:
                if allocate(size):
                    continue
                break
            return np.asarray(_Block(self, address, size))[:wanted].view(kind).reshape(shape)
        return np.empty(shape, kind)

    def give_back(self, address: int, size: int) -> None:
        """From a finalizer: no lock is taken."""
        self._free[size].append(address)

    def grow(self, size: int, pin: Callable[[int], int], free: Callable[[int], object]) -> bool:
        """Pins memory, for which other memory that nobody has is given up; whether there was any.

        Args:
            pin: gives an address, or 0.
            free: takes an address.
        """
        with self._lock:
            for other, addresses in list(self._free.items()):
                while self.size + size > _MOST:
                    try:
                        address = addresses.pop()
                    except IndexError:
                        break  # None is left, or another thread was faster.
                    free(address)
                    self.size -= other
            address = pin(size) if self.size + size <= _MOST else 0
            if address:
                self.size += size
                self._free[size].append(address)
            return bool(address)

    def forget(self) -> None:
        """After a fork, in the child: what is pinned is the parent's."""
        self.__init__()  # type: ignore[misc]


def _rounded(size: int) -> int:
    """Bytes that are pinned for so many: images of nearly the same size share them."""
    step = max(_PAGE, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def is_pinned(array: Any) -> bool:
    """Whether an array is pinned memory, all of it one piece."""
    if not array.flags.c_contiguous:
        return False
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, _Block)


gate = Gate()
pinned = Pinned()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pinned.forget)
