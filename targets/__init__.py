"""Targets: one file per engine, found by its name.

To add one: a file here with a registered class that derives from `Target`, and a test beside the others in
tests/targets/. What opens and runs its engines is a `Runner` of dnc.runtime.runners. Engines' libraries are imported
inside methods.
"""

from __future__ import annotations

from dnc.errors import TargetError, close_match
from dnc.registry import Registry
from dnc.targets.base import Target

__all__ = ["Target", "find", "targets"]

targets: Registry[type[Target]] = Registry("dnc.targets")


def find(name: str) -> type[Target]:
    """The target of this name, installed or not; raises TargetError if there is none."""
    if name not in targets:
        hint = close_match(name, targets) or f"one of: {', '.join(targets)}"
        raise TargetError(f"unknown target '{name}'", hint=hint)
    return targets[name]
