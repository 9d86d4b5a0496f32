"""Darknet's layers: one file per section, found by the section's name.

To add one: a file here with a class that derives from `Layer`, which makes it a frozen dataclass, and is registered;
and a test beside the others in tests/darknet/layers/.
"""

from __future__ import annotations

from dnc.darknet.layers.base import Context, Layer, Shape
from dnc.registry import Registry

__all__ = ["Context", "Layer", "Shape", "layers"]

layers: Registry[type[Layer]] = Registry("dnc.darknet.layers")
