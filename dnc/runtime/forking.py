"""A fork waits until no thread is within an engine's library.

A forked child has but one thread, and of all others the locks and half-done work that they had at that moment. The
pools of threads of OpenVINO and of ONNX Runtime cope with that while they rest; a child that is forked while they work
may wait for a thread that it does not have, as soon as it opens an engine of its own. What a library would hand to a
child although its threads stay behind is let go of before, by a call that its runner leaves here (`at_rest`).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["at_work", "never_release"]


class _AtWork:
    """A `with` block of it is work that a fork waits for, as the block waits for a fork. One may be within another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = self._forking = 0
        self._own = threading.local()
        self._at_rest: list[Callable[[], None]] = []
        self._in_child: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()

    def at_rest(self, call: Callable[[], None]) -> None:
        """Has this called before each fork, in the thread that forks, when the others are at work no more."""
        self._at_rest.append(call)

    def in_child(self, thing: Any, call: Callable[[Any], None]) -> None:
        """Has this called with a thing in each forked child, as long as the thing is there."""
        self._in_child[thing] = call

    def __enter__(self) -> None:
        depth = getattr(self._own, "depth", 0)
        with self._changed:
            # Who is at work already would wait for a fork that waits for it.
            self._changed.wait_for(lambda: depth > 0 or self._forking == 0)
            self._working += 1
        self._own.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._own.depth -= 1
        with self._changed:
            self._working -= 1
            self._changed.notify_all()

    def before_fork(self) -> None:
        own = getattr(self._own, "depth", 0)
        with self._changed:
            self._forking += 1
            # A thread that forks in the middle of its own work has nobody to wait for but the others.
            self._changed.wait_for(lambda: self._working <= own)
        for call in self._at_rest:
            call()

    def after_fork_in_parent(self) -> None:
        with self._changed:
            self._forking -= 1
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        self._changed = threading.Condition()
        self._working, self._forking = getattr(self._own, "depth", 0), 0
        for thing, call in list(self._in_child.items()):
            call(thing)


def never_release(session: object) -> None:
    """Keeps a session as long as the process lives, and while Python ends it: the destructors of OpenVINO and of ONNX
    Runtime wait for threads that a forked child does not have."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


at_work = _AtWork()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=at_work.before_fork,
        after_in_parent=at_work.after_fork_in_parent,
        after_in_child=at_work.after_fork_in_child,
    )
