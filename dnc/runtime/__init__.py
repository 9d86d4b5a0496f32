"""What an application installs: opens engines and runs them, with numpy and one engine's library.

Imports the ground (dnc.errors, files, registry) and nothing else of dnc.
"""

from __future__ import annotations

from dnc.runtime.engine import Engine, Image, Result, load

__all__ = ["Engine", "Image", "Result", "load"]
