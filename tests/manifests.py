"""Manifests of engines that nobody compiled."""

from __future__ import annotations

from typing import Any

from dnc.runtime.manifest import Manifest

__all__ = ["manifest"]


def manifest(**fields: Any) -> Manifest:
    """One with these fields; the others are those of some network without heads."""
    others: dict[str, Any] = {
        "name": "net",
        "target": "openvino",
        "network": {},
        "input_shape": (3, 32, 48),
        "batch": "N",
        "outputs": ("out",),
        "output_shapes": ((1,),),
        "preprocessing": None,
    }
    return Manifest(**{**others, **fields})
