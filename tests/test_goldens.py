"""Recordings are what they were, all of them are there, and no test outside of tests/shared reads what is not here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests import ROOT, goldens
from tests.golden.record import sums

TESTS = ROOT / "tests"


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


def test_every_clone_runs_every_other_test() -> None:
    """Only tests/shared may want the folder beside the repository."""
    wanted = re.compile(r"""\.\./shared|parents\[\d\] / ["']shared|shared/(golden|models|coco128|imagenet)""")
    others = {*TESTS.rglob("*.py")} - {*(TESTS / "shared").iterdir(), Path(__file__).resolve()}
    assert [path for path in sorted(others) if wanted.search(path.read_text(encoding="utf-8"))] == []
