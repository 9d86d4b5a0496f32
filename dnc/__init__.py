"""dnc: compiles Darknet networks (.cfg + .weights) to engines for edge devices.

    engine = dnc.compile("yolov4-tiny.cfg", "yolov4-tiny.weights", target="cpu", out="yolov4-tiny.engine")
    for box in dnc.load("yolov4-tiny.engine")("dog.jpg"): print(box)

Importing `dnc` costs next to nothing: everything is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnc.compiler.compiling import compile as compile
    from dnc.darknet.network import Network as Network
    from dnc.destinations.exporting import export as export
    from dnc.errors import DncError as DncError
    from dnc.runtime.conversions import to_supervision as to_supervision
    from dnc.runtime.decoding import Classification as Classification
    from dnc.runtime.decoding import Detection as Detection
    from dnc.runtime.engine import Engine as Engine
    from dnc.runtime.engine import load as load

__version__ = "0.1.0"
__all__ = [
    *("Classification", "Detection", "DncError", "Engine", "Network"),
    *("compile", "export", "load", "to_supervision"),
]

_HOMES = {
    "Classification": "dnc.runtime.decoding",
    "Detection": "dnc.runtime.decoding",
    "DncError": "dnc.errors",
    "Engine": "dnc.runtime.engine",
    "Network": "dnc.darknet.network",
    "compile": "dnc.compiler.compiling",
    "export": "dnc.destinations.exporting",
    "load": "dnc.runtime.engine",
    "to_supervision": "dnc.runtime.conversions",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dnc' has no attribute {name!r}")
    import importlib

    if _HOMES[name].startswith("dnc.runtime"):
        return getattr(importlib.import_module(_HOMES[name]), name)
    from dnc.files.installed import of_the_compiler

    with of_the_compiler(f"dnc.{name}"):
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    from types import ModuleType

    # Modules that were imported are part of the interface, as dnc.opencv; what this file imports for itself is not.
    own = {name for name, what in globals().items() if name.startswith("__") or isinstance(what, ModuleType)}
    return sorted({*own, *__all__})
