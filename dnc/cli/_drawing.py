"""Draws detections onto an image, in the manner of Darknet's draw_detections_v3.

One frame for each box, in the color of its most confident class, with a caption of all the classes that it
passes for; the least confident boxes come first, so that the surest lie on top.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
PALETTE = tuple(tuple(bytes.fromhex(color)) for color in _COLORS.split())
"""RGB of class 0, 1, 2, ...; starts over after the last."""


def draw(image: Pixels, detections: Sequence[Detection]) -> Image.Image:
    """A copy of the image, (H, W, 3) RGB or (H, W) gray in uint8, with the detections drawn on it, as RGB.

    Captions are in Pillow's own font. Raises ImageError if Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImageError("drawing takes Pillow", hint="pip install pillow") from error
    picture = Image.fromarray(image).convert("RGB")
    # Darknet's line is 0.6 % of the height, its letters 3 %.
    line = max(1, round(0.006 * picture.height))
    font = ImageFont.load_default(max(10, round(0.03 * picture.height)))
    canvas = ImageDraw.Draw(picture)

    boxes: defaultdict[tuple[float, ...], list[Detection]] = defaultdict(list)
    for detection in sorted(detections, key=lambda detection: -detection.confidence):
        boxes[detection.center_x, detection.center_y, detection.width, detection.height].append(detection)
    for classes in reversed(boxes.values()):
        color = PALETTE[classes[0].class_id % len(PALETTE)]
        left, top, right, bottom = classes[0].pixels(*picture.size)
        # YOLOv1 may put out a negative width, which Pillow refuses to draw.
        canvas.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=line)
        caption = ", ".join(f"{detection.label} {detection.confidence:.0%}" for detection in classes)
        _, _, width, height = canvas.textbbox((0, 0), caption, font)
        # Above the box, or inside where there is no room above, and not beyond the right edge.
        x = max(0, min(left, picture.width - int(width) - 2 * line))
        y = top - int(height) - 2 * line if top >= height + 2 * line else top
        canvas.rectangle((x, y, x + width + 2 * line, y + height + 2 * line), fill=color)
        red, green, blue = color
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
        canvas.text((x + line, y + line), caption, ink, font)
    return picture
