"""`supervision.Detections` of what an engine found: from the library if it is installed, else from a stand-in."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dnc
from dnc.errors import DncError

FOUND = [
    dnc.Detection(1, "dog", 0.75, 0.5, 0.5, 0.5, 0.25, (200, 100)),
    dnc.Detection(0, "cat", 0.5, 0.05, 0.5, 0.5, 0.25, (200, 100)),
]


@pytest.fixture(params=["fake", "real"])
def supervision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "real":
        return pytest.importorskip("supervision")
    fake = SimpleNamespace(Detections=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "supervision", fake)
    return fake


def test_boxes(supervision: Any) -> None:
    """In pixels, clipped to the image."""
    found = dnc.to_supervision(FOUND)
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, np.array([[50, 37.5, 150, 62.5], [0, 37.5, 60, 62.5]], np.float32))
    np.testing.assert_array_equal(found.confidence, np.array([0.75, 0.5], np.float32))
    np.testing.assert_array_equal(found.class_id, [1, 0])
    assert list(found.data["class_name"]) == ["dog", "cat"]
    assert found.xyxy.dtype == np.float32


def test_no_boxes(supervision: Any) -> None:
    found = dnc.to_supervision([])
    assert found.xyxy.shape == (0, 4)
    assert found.class_id.shape == (0,)


def test_a_box_of_an_unknown_image(supervision: Any) -> None:
    with pytest.raises(ValueError, match="the size of the image is not known"):
        dnc.to_supervision([dnc.Detection(1, "dog", 0.75, 0.5, 0.5, 0.5, 0.25)])


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DncError, match="supervision cannot be imported") as caught:
        dnc.to_supervision(FOUND)
    assert caught.value.hint == "pip install supervision"
