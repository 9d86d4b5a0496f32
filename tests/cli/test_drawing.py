"""Drawing: which pixels take which color, and that nothing that a network puts out makes it fail."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.cli._drawing import PALETTE, draw
from dnc.errors import ImageError
from dnc.runtime.decoding import Detection

BLANK = np.zeros((200, 300, 3), np.uint8)


def box(class_id: int, confidence: float = 0.9, label: str = "thing") -> Detection:
    """Columns 75 to 225 and rows 100 to 150 of BLANK."""
    return Detection(class_id, label, confidence, 0.5, 0.625, 0.5, 0.25)


def test_a_frame_in_the_color_of_the_class() -> None:
    for class_id in (0, 3, 3 + len(PALETTE)):
        drawn = np.asarray(draw(BLANK, [box(class_id)]))
        color = list(PALETTE[class_id % len(PALETTE)])
        for row, column in ((100, 150), (150, 150), (125, 75), (125, 225)):
            assert drawn[row, column].tolist() == color
        # Within the frame, nothing.
        assert not drawn[110:140, 85:215].any()
    assert not BLANK.any()


@pytest.mark.parametrize(("class_id", "dark_ink"), [(2, True), (14, False)], ids=["yellow", "maroon"])
def test_the_caption_stands_above_and_is_readable(class_id: int, dark_ink: bool) -> None:
    drawn = np.asarray(draw(BLANK + np.uint8(128), [box(class_id)]))[85:99, 77:100]
    assert (drawn == PALETTE[class_id]).all(axis=2).any()
    # Letters of this size are antialiased, and need not reach black or white.
    assert (drawn.max(axis=2) < 60).any() == dark_ink
    assert (drawn.min(axis=2) > 195).any() != dark_ink


def test_the_surest_box_lies_on_top() -> None:
    below, above = box(0, 0.4), Detection(1, "thing", 0.8, 0.5, 0.625, 0.5, 0.3)
    for order in ([below, above], [above, below]):
        assert np.asarray(draw(BLANK, order))[125, 75].tolist() == list(PALETTE[1])


def test_one_box_of_two_classes_has_one_caption() -> None:
    one, two = draw(BLANK, [box(1)]), draw(BLANK, [box(4, 0.3, "other"), box(1)])
    assert np.asarray(two)[125, 75].tolist() == list(PALETTE[1])
    assert list(PALETTE[4]) not in np.asarray(two).reshape(-1, 3).tolist()

    def caption_width(picture: object) -> int:
        return int((np.asarray(picture)[90] == PALETTE[1]).all(axis=1).sum())

    assert caption_width(two) > 1.5 * caption_width(one)


def test_gray_images_are_drawn_in_color() -> None:
    drawn = draw(BLANK[:, :, 0], [box(0)])
    assert drawn.mode == "RGB"
    assert drawn.getpixel((75, 125)) == PALETTE[0]


def test_without_detections_it_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(draw(image, [])), image)


sizes = st.floats(-3, 3, width=32) | st.just(math.inf)


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(-2, 2), st.floats(-2, 2), sizes, sizes)
def test_any_box_can_be_drawn(
    width: int, height: int, center_x: float, center_y: float, box_width: float, box_height: float
) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    detection = Detection(7, "a long label", 0.5, center_x, center_y, box_width, box_height)
    assert draw(image, [detection]).size == (width, height)


def test_a_missing_pillow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImageError, match="Pillow"):
        draw(BLANK, [])
