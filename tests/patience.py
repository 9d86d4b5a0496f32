"""The only clock that tests look at: it ends what hangs, and nothing that works comes near it.

    subprocess.run(…, timeout=PATIENCE)     another process, an event, a queue
    until(path.exists)                      what another process does
    with no_hang(): …                       work in this thread, which must not grow beyond all bounds

What a test asserts must not depend on how fast the machine is, or what else it does: tests/test_clocks.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["PATIENCE", "no_hang", "until"]

PATIENCE = 900.0
"""Seconds after which something hangs. The slowest that works takes some 10 on an idle machine."""
_WORK = 100.0
"""Seconds of the processor; what `no_hang` guards takes some 2."""


def until(done: Callable[[], bool], alive: Callable[[], bool] = lambda: True) -> None:
    """Waits for `done`; fails when it is not `alive` before, or after PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert alive() or done(), "it ended before"
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.01)


@contextmanager
def no_hang() -> Iterator[None]:
    """Fails after 100 s of the processor, however long they take: something grows with the square of its input.

    Raises:
        TimeoutError: the block is ended there.
    """

    def hang(*_: object) -> None:
        raise TimeoutError(f"not done after {_WORK:g} s of the processor")

    old = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, _WORK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
