"""Targets: one file per engine, found by its name.

To add one: a file here with a registered class that derives from `Target`, and a test beside the others in
tests/targets/. The module is imported by the runtime too, so it imports its engine's library, and anything of the
compiler, inside its methods.
"""

from __future__ import annotations

from dnc.errors import TargetError, close_match
from dnc.registry import Registry
from dnc.targets.base import Option, Session, Target

__all__ = ["Option", "Session", "Target", "find", "targets"]

targets: Registry[type[Target]] = Registry("dnc.targets")


def find(name: str) -> type[Target]:
    """The target of this name, installed or not; raises TargetError if there is none."""
    if name not in targets:
        hint = close_match(name, targets) or f"one of: {', '.join(targets)}"
        raise TargetError(f"unknown target '{name}'", hint=hint)
    return targets[name]
