"""Optimization passes: one file per pass, found by its name.

To add one: a file here with a registered class that derives from `Pass`, and a test beside the others in tests/passes/.
A target lists the passes that it wants, in order (`Target.passes`).
"""

from __future__ import annotations

from dnc.errors import PassError, close_match
from dnc.graph.rewriting import Pass
from dnc.registry import Registry

__all__ = ["Pass", "find", "passes"]

passes: Registry[type[Pass]] = Registry("dnc.passes")


def find(name: str) -> type[Pass]:
    """The pass of a name; raises PassError if there is none."""
    if name not in passes:
        raise PassError(f"unknown pass '{name}'", hint=close_match(name, passes) or "see `dnc passes`")
    return passes[name]
