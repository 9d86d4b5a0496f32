"""Optimization passes: one file per pass, found by its name.

To add one: a file here with a registered class that derives from `Pass`, and a test beside the others in tests/passes/.
A target lists the passes that it wants, in order (`Target.passes`).
"""

from __future__ import annotations

from dnc.errors import PassError
from dnc.graph.rewriting import Pass
from dnc.registry import Registry

__all__ = ["Pass", "find", "passes"]

_MEANT = {"winograd": "it is no pass but an option of target tvm, off unless --option winograd=ERROR asks for it"}
"""What the documentation speaks of besides."""

passes: Registry[type[Pass]] = Registry("dnc.passes", "pass", PassError, meant=_MEANT, otherwise="see `dnc passes`")
find = passes.find
