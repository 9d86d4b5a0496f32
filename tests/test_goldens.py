"""Recordings are what they were, and all of them are there."""

from __future__ import annotations

import numpy as np

from tests import goldens
from tests.golden.record import sums


def test_no_recording_changed() -> None:
    """A recording that is made anew, added or deleted shows in the text file beside them too."""
    assert sums() == (goldens.FOLDER / "SHA256SUMS").read_text(encoding="utf-8")


def test_all_are_there() -> None:
    assert len(goldens.MICRO) == 107
    assert len(goldens.WHOLE) == 3
    assert goldens.TRAINED == ["MobileNetV2-YOLOv3-Nano-coco", "yolo-fastest-1.1", "yolo-fastest-1.1-xl", "yolov3-tiny"]
    for name in goldens.TRAINED:
        assert tuple(goldens.detections(goldens.frames(name))) == goldens.IMAGES
        for image in goldens.IMAGES:
            assert len(goldens.heads(name, image)) == 2
    for name in goldens.MICRO:
        golden = goldens.micro(name)
        assert all(np.isfinite(array).all() for array in (golden.input, *golden.layers.values()))
