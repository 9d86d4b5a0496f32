"""Draws detections onto an image, in the manner of Darknet's draw_detections_v3.

One frame for each box, in the color of its most confident class, with a caption of all the classes that it
passes for; the least confident boxes come first, so that the surest lie on top. Captions lie above all boxes, inside
the picture, and none covers another: each stands at its own box, where there is room, the surest first. One that has no
room there is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from dnc.errors import ImageError
from dnc.runtime.decoding import Detection
from dnc.runtime.images import Pixels

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PALETTE", "draw"]

_COLORS = (
    "e6194b 3cb44b ffe119 0082c8 f58230 911eb4 46f0f0 f032e6 d2f53c fabed4 "
    "008080 dcbeff aa6e28 fffac8 800000 aaffc3 808000 ffd7b4 000080 808080"
)
PALETTE = tuple(
    tuple(bytes.fromhex(color)[channel] for channel in order)
    for order in permutations(range(3))
    for color in _COLORS.split()
)
"""RGB of class 0, 1, 2, ...; starts over after the last. Twenty colors, and the same with channels exchanged."""

_LEAST_LETTERS = 12
"""Pixels: smaller ones cannot be read."""

Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom; right and bottom are outside."""


def draw(image: Pixels, detections: Sequence[Detection]) -> Image.Image:
    """A copy of the image, (H, W, 3) RGB or (H, W) gray in uint8, with the detections drawn on it, as RGB.

    Captions are in Pillow's own font. Raises ImageError if Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImageError("drawing takes Pillow", hint="pip install pillow") from error
    picture = Image.fromarray(image).convert("RGB")
    # Darknet's line is 0.6 % of the height, its letters 3 %. Of an upright picture, it is the width that has to do.
    side = min(picture.size)
    line = max(1, round(0.006 * side))
    font = ImageFont.load_default(max(_LEAST_LETTERS, round(0.03 * side)))
    canvas = ImageDraw.Draw(picture)

    def extent(text: str) -> tuple[int, int]:
        _, _, width, height = canvas.textbbox((0, 0), text, font)
        return int(width) + 2 * line, int(height) + 2 * line

    boxes: defaultdict[tuple[float, ...], list[Detection]] = defaultdict(list)
    for detection in sorted(detections, key=lambda detection: -detection.confidence):
        boxes[detection.center_x, detection.center_y, detection.width, detection.height].append(detection)
    captions: list[tuple[Rectangle, str, Detection]] = []
    for classes in boxes.values():
        caption = ", ".join(f"{detection.label} {detection.confidence:.0%}" for detection in classes)
        while caption and extent(caption)[0] > picture.width:
            caption = caption.removesuffix("…")[:-1] + "…" if len(caption) > 2 else ""
        taken = [place for place, _, _ in captions]
        place = _place(classes[0].pixels(*picture.size), extent(caption), picture.size, taken) if caption else None
        if place is not None:
            captions.append((place, caption, classes[0]))

    for classes in reversed(boxes.values()):
        left, top, right, bottom = classes[0].pixels(*picture.size)
        # YOLOv1 may put out a negative width, which Pillow refuses to draw.
        corners = (left, top, max(left, right), max(top, bottom))
        canvas.rectangle(corners, outline=_color(classes[0]), width=line)
    for (left, top, right, bottom), caption, detection in captions:
        color = red, green, blue = _color(detection)
        canvas.rectangle((left, top, right - 1, bottom - 1), fill=color)
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
        canvas.text((left + line, top + line), caption, ink, font)
    return picture


def _color(detection: Detection) -> tuple[int, ...]:
    return PALETTE[detection.class_id % len(PALETTE)]


def _place(
    box: tuple[int, int, int, int], size: tuple[int, int], picture: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle | None:
    """Where a caption of this size stands: at its box, in the picture, and on no other caption. None if it cannot.

    Above the box first, as Darknet's; then along its upper edge inside, below it, and downwards on each side.
    """
    left, top, right, bottom = box
    width, height = size
    columns = (left, right - width + 1, (left + right - width) // 2)
    rows = range(top, bottom - height + 2, max(1, height // 2))
    spots = [(x, y) for y in (top - height, top, bottom + 1) for x in columns]
    spots += [(x, y) for y in (*rows, bottom - height + 1) for x in (*columns, left - width, right + 1)]
    # At an edge of the picture, what reaches out moves in.
    x, y = np.array(spots).T
    x, y = np.clip(x, 0, picture[0] - width), np.clip(y, 0, picture[1] - height)
    free = np.ones(len(spots), bool) if height <= picture[1] else np.zeros(len(spots), bool)
    for other in taken:
        free &= (x >= other[2]) | (x + width <= other[0]) | (y >= other[3]) | (y + height <= other[1])
    if not free.any():
        return None
    first = int(np.argmax(free))
    return int(x[first]), int(y[first]), int(x[first]) + width, int(y[first]) + height
