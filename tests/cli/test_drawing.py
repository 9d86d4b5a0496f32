"""Drawing: which pixels take which color, and that nothing that a network puts out makes it fail."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.cli._drawing import PALETTE, _place, draw
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


def test_captions_of_boxes_in_one_place_are_all_there() -> None:
    """Three classes, a little apart so that each is a box of its own, with captions of the same size."""
    boxes = [Detection(number, "thing", 0.9 - number / 10, 0.5, 0.625 + number / 1e3, 0.5, 0.25) for number in range(3)]
    drawn = np.asarray(draw(BLANK, boxes)).reshape(-1, 3).tolist()
    alone = [np.asarray(draw(BLANK, [each])).reshape(-1, 3).tolist() for each in boxes]
    frame = 2 * (150 + 50)
    for number, each in enumerate(alone):
        color = list(PALETTE[number])
        caption = each.count(color) - frame
        assert caption > 100
        assert drawn.count(color) >= caption


@settings(max_examples=60)
@given(st.data())
def test_no_caption_covers_another_or_leaves_the_picture(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(20, 300)), data.draw(st.integers(15, 300))
    taken: list[tuple[int, int, int, int]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        left, right = sorted(data.draw(st.lists(st.integers(0, width - 1), min_size=2, max_size=2)))
        top, bottom = sorted(data.draw(st.lists(st.integers(0, height - 1), min_size=2, max_size=2)))
        size = data.draw(st.integers(5, 20)), data.draw(st.integers(5, 15))
        place = _place((left, top, right, bottom), size, (width, height), taken)
        assert place is not None or taken
        if place is not None:
            assert (place[2] - place[0], place[3] - place[1]) == size
            assert min(place) >= 0
            assert place[2] <= width
            assert place[3] <= height
            for other in taken:
                apart = (place[2] <= other[0], other[2] <= place[0], place[3] <= other[1], other[3] <= place[1])
                assert any(apart)
            taken.append(place)


def test_a_caption_wider_than_the_picture_is_shortened() -> None:
    image = np.zeros((300, 60, 3), np.uint8)
    drawn = np.asarray(draw(image, [Detection(1, "a label that is long", 0.5, 0.5, 0.5, 0.5, 0.1)]))
    [rows] = np.nonzero((drawn == PALETTE[1]).all(axis=2).sum(axis=1) > 30)
    assert 8 < len(rows) < 40


def test_colors_of_classes_differ() -> None:
    """person and diningtable of COCO are 60 apart."""
    assert len(set(PALETTE[:80])) >= 60
    assert PALETTE[0] != PALETTE[60]


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
