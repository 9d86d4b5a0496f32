"""Detections in the form that other libraries work with. They are imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnc.errors import DncError

if TYPE_CHECKING:
    from dnc.runtime.decoding import Detection

__all__ = ["to_supervision"]


def to_supervision(detections: Sequence[Detection]) -> Any:
    """The `supervision.Detections` of one image, for that library's annotators, trackers and zones.

    `xyxy` (N, 4) float32 are `Detection.box`, in pixels; `confidence` (N,) float32; `class_id` (N,) int;
    `data["class_name"]` (N,) the labels.

    Raises:
        DncError: supervision is not installed.
        ValueError: a detection does not know the size of its image.
    """
    try:
        import supervision
    except ImportError as error:
        raise DncError(f"supervision cannot be imported: {error}", hint="pip install supervision") from error
    return supervision.Detections(
        xyxy=np.array([detection.box for detection in detections], np.float32).reshape(-1, 4),
        confidence=np.array([detection.confidence for detection in detections], np.float32),
        class_id=np.array([detection.class_id for detection in detections], int),
        data={"class_name": np.array([detection.label for detection in detections], str)},
    )
