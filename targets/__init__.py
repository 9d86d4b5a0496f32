"""Targets: one file per engine, found by its name.

To add one: a file here with a registered class that derives from `Target`, and a test beside the others in
tests/targets/. The module is imported by the runtime too, so it imports its engine's library, and anything of the
compiler, inside its methods.
"""

from __future__ import annotations

from dnc.registry import Registry
from dnc.targets.base import Session, Target

__all__ = ["Session", "Target", "targets"]

targets: Registry[type[Target]] = Registry("dnc.targets")
