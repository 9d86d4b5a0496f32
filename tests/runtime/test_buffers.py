"""What runs on a GPU share: the right to ask it for something, and pinned memory."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from dnc.runtime.runners.cuda import buffers
from dnc.runtime.runners.cuda.buffers import Gate, Pinned


class _Interrupted:
    """In place of a lock: somebody presses Ctrl-C when it was given back for the first time."""

    def __init__(self, lock: Any) -> None:
        self._lock, self.wait_for, self.notify_all = lock, lock.wait_for, lock.notify_all
        self._pressed = False

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)
        if not self._pressed:
            self._pressed = True
            raise KeyboardInterrupt


def test_interrupted_at_the_gate() -> None:
    """Who does not come through is not inside: a graph can be recorded afterwards."""
    gate = Gate()
    gate._changed = _Interrupted(gate._changed)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt), gate.shared():
        pytest.fail("it came through")
    assert gate._inside == 0
    with gate.alone(), gate.shared(), gate.shared():
        assert gate._inside == 2


class _Taken(deque[int]):
    """Memory of which there was some when somebody looked, and none when it is taken: another thread was faster."""

    def __bool__(self) -> bool:
        return True


def test_memory_that_another_thread_takes_first() -> None:
    """There is no more of it, and no error."""
    pool = Pinned()
    pool.size = buffers._MOST
    pool._free[4096] = _Taken()
    assert not pool.grow(4096, lambda _: 1, lambda _: None)
    assert pool.size == buffers._MOST
