"""dnc: compiles Darknet networks (.cfg + .weights) to engines for edge devices.

    engine = dnc.compile("yolov4-tiny.cfg", "yolov4-tiny.weights", target="cpu", out="yolov4-tiny.engine")
    for box in dnc.load("yolov4-tiny.engine")("dog.jpg"): print(box)

Importing `dnc` costs next to nothing: everything is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnc.compiler import compile as compile
    from dnc.convert import to_supervision as to_supervision
    from dnc.decode import Classification as Classification
    from dnc.decode import Detection as Detection
    from dnc.errors import DncError as DncError
    from dnc.network import Network as Network
    from dnc.runtime import Engine as Engine
    from dnc.runtime import load as load

__version__ = "0.1.0"
__all__ = ["Classification", "Detection", "DncError", "Engine", "Network", "compile", "load", "to_supervision"]

_HOMES = {
    "Classification": "dnc.decode",
    "Detection": "dnc.decode",
    "DncError": "dnc.errors",
    "Engine": "dnc.runtime",
    "Network": "dnc.network",
    "compile": "dnc.compiler",
    "load": "dnc.runtime",
    "to_supervision": "dnc.convert",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dnc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
