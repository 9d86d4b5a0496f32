"""What runs engines: one file or folder for each engine library, found by the name of its target.

To add one: a file here with a registered class that derives from `Runner`; the target that compiles for it names it
(`Target.runs`). Libraries are imported inside methods, so that finding a runner costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnc.errors import TargetError
from dnc.registry import Registry
from dnc.runtime.runners.base import Pending, Runner, Session

__all__ = ["Pending", "Runner", "Session", "find", "runners"]

runners: Registry[type[Runner]] = Registry(
    "dnc.runtime.runners", "target", TargetError, otherwise="a newer dnc made it"
)


def find(target: str, given: Mapping[str, str]) -> type[Runner]:
    """Finds the runner of a target's engines with these options; raises TargetError if there is none."""
    return runners.find(target).select(given)
