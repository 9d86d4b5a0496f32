"""What a rule makes of a segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dnc.targets.tvm.schedules.loops import Stmt
from dnc.typing import Array

__all__ = ["Kernel", "Packed"]


@dataclass(frozen=True)
class Packed:
    """A parameter that the kernel wants in another form."""

    given: Any
    """The buffer of the function as it was."""
    wanted: Any
    """The buffer that takes its place."""
    pack: Callable[[Array], Array]
    """Makes the one of the other."""


@dataclass(frozen=True)
class Kernel:
    """Loops that compute a segment."""

    rule: str
    """The rule that wrote them, for a report."""
    body: Stmt
    packed: tuple[Packed, ...] = ()
    replaces: tuple[Any, ...] = field(default=())
    """Buffers that need not be computed any more."""
