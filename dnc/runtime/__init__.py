"""What an application installs: opens engines and runs them, with numpy and one engine's library.

Imports the ground (dnc.errors, files, registry) and nothing else of dnc.
"""

from __future__ import annotations

from dnc.runtime.engine import Engine, load
from dnc.runtime.inputs import Image, Inputs
from dnc.runtime.postprocessing import Postprocess, Result

__all__ = ["Engine", "Image", "Inputs", "Postprocess", "Result", "load"]
