"""What a network with memory keeps of the frames that it has seen: the states of its recurrent layers.

A sequence of frames has one `Memory`, zero at its start. A run reads the states and leaves their successors, as
Darknet's layers do in one process, so frames of a sequence run one after the other: a memory is one caller's at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from dnc.typing import Array

__all__ = ["Memory", "States", "carried_states"]

States = dict[str, Array]
"""By name; what is not there is zero."""


def carried_states(names: Iterable[str]) -> tuple[str, ...]:
    """Those of a network's states that go on from one image to the next: all but the frames of [history], which Darknet
    shifts in training alone, so that at inference each image is the first one for it."""
    return tuple(name for name in names if not name.endswith(".frames"))


class Memory:
    """The states that one sequence of frames has left behind."""

    def __init__(self) -> None:
        self._states: States = {}
        self._turns = 0
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, number: int | None = None) -> Iterator[States]:
        """Gives the states, to be replaced by their successors, to one caller after the other.

        A caller that fails leaves them as they were.

        Args:
            number: how many turns must have been before; as many as there were by then if not given.
        """
        with self._changed:
            self._changed.wait_for(lambda: number is None or number == self._turns)
            try:
                states = dict(self._states)
                yield states
                self._states = states
            finally:
                self._turns += 1
                self._changed.notify_all()

    def reset(self) -> None:
        """Sets the states to zero, after whoever has them now."""
        with self._changed:
            self._states = {}
