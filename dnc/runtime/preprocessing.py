"""From an image to the input of a network, and from the network's boxes back to the image.

Darknet's preprocessing is not in the cfg: each of its front ends has its own, and a wrong one costs accuracy.

    resize             `detector test`, `detector map`: resize_image, the corners of both images coincide
    resize-half-pixel  `detector demo` and the C++ `Detector` class: cv::resize INTER_LINEAR, 8-bit result
    letterbox          with `-letter_box`: letterbox_image keeps the aspect ratio and pads with gray
    center-crop        `classifier predict`: resize_min to the network's width, crop_image from the middle; with a
                       `crop` below 1, which Darknet lacks, resize_min to width / crop, as other classifiers want

Every mode is Darknet's bilinear interpolation, separable and in float32: the columns first, then the rows,

    part[x]   = (1 - dx) * row[ix]  + dx * row[ix + 1]        ix = int(sx), dx = sx - ix
    output[y] = (1 - dy) * part[iy] + dy * part[iy + 1]       iy = int(sy), dy = sy - iy

so a mode is no more than where its columns and rows are sampled (`_Samples`) and where the result is put. The
arithmetic is Darknet's operation for operation: given the same decoded pixels, the result has the same bits.

Pixels are uint8 (white is 255), uint16 (65535) or float32 (1, as in Darknet's own `image`, whose floats are the bytes
of a file over 255), of any number of channels. All of their precision counts. (Darknet has no arrays of 16 bits, and
of a file of 16 bits keeps the upper byte: that differs by less than 1 of 255.) As cv::resize gives pixels of the type
that it was given, resize-half-pixel rounds to whole numbers of 8 or 16 bits, and floats not at all.

Classifiers of other frameworks may want center-crop with `interpolation` bicubic, which Darknet lacks. That is Pillow's
Image.resize(BICUBIC) bit for bit: Keys' cubic (a = -1/2) at half-pixel centers, widened by the ratio of the sizes
where the image shrinks, so that nothing aliases; weights of a sum of 1, rounded to 22 bits after the point; the columns
first, then the rows, and pixels of 8 bits after either. (From 13 on, Pillow takes the rows first where an image is at
least twice as tall as wide: one value in five of a photograph then differs, nearly always by 1 of 255.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dnc.errors import BundleError, ImageError, warn
from dnc.runtime.images import PIXELS, Pixels, matched, upper_bytes

__all__ = [
    "COLORS",
    "CUBIC_ONE",
    "INTERPOLATIONS",
    "MIN_CROP",
    "MODES",
    "BoxTransform",
    "Preprocessing",
    "as_picture",
]

MODES = ("resize", "resize-half-pixel", "letterbox", "center-crop")
COLORS = ("rgb", "bgr", "gray")
INTERPOLATIONS = ("bilinear", "bicubic")
CUBIC_ONE = 2.0**22
"""The weight 1 of a bicubic interpolation: as whole numbers, weights and their sums are exact in double."""
MIN_CROP = 0.1
"""What is cropped from less than that is no picture of anything; classifiers take 0.8 to 1."""

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class BoxTransform:
    """Maps boxes on the network's input to boxes on the image, both in fractions: correct_yolo_boxes.

    `offset` is where the image starts in the input, `ratio` how much of the input it spans, both as (x, y)
    fractions of the input; a cropped image starts before it and spans more than it.
    """

    offset: tuple[float, float] = (0.0, 0.0)
    ratio: tuple[float, float] = (1.0, 1.0)

    def __call__(self, boxes: Floats) -> Floats:
        """Boxes (K, 4) as center x, center y, width, height; returns new ones of the same shape, float32."""
        # Darknet divides the centers in double, but multiplies the sizes by a float reciprocal.
        ratio = np.array(self.ratio, np.float32)
        centers = (boxes[:, :2].astype(np.float64) - np.array(self.offset)) / ratio.astype(np.float64)
        sizes = boxes[:, 2:] * np.reciprocal(ratio)
        return np.hstack([centers, sizes]).astype(np.float32)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network of `width` x `height` pixels and `channels` channels.

    A value of the input is (pixel * scale - mean) / std, for pixels whose white is 255; `mean` and `std` hold one
    number, or one for each channel of the input. Darknet's own networks take mean 0 and std 1. `color` is gray for 1
    channel; rgb is the order in which channels come, whatever they are, and bgr, of 3 or more, has the first and the
    third one exchanged. The padding of a letterbox is half of white, 0.5 at Darknet's scale. `crop` is the share of the
    short side that center-crop keeps, `interpolation` how it resizes; the other modes keep all, and are bilinear.

    Raises ValueError where a field makes no sense.
    """

    width: int
    height: int
    channels: int = 3
    mode: str = "resize"
    color: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop: float = 1.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.channels) < 1:
            raise ValueError(f"an input of {self.width}x{self.height}x{self.channels} is empty")
        for what, value, known in (
            ("mode", self.mode, MODES),
            ("color", self.color, COLORS),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} '{value}'; known: {', '.join(known)}")
        if (self.color == "gray") != (self.channels == 1) or (self.color == "bgr" and self.channels < 3):
            raise ValueError(f"color '{self.color}' does not fit {self.channels} channels")
        if not {len(self.mean), len(self.std)} <= {1, self.channels}:
            raise ValueError(f"mean and std take 1 number or one for each of {self.channels} channels")
        if not all(0 < number < np.inf for number in (self.scale, *self.std)) or not np.isfinite(self.mean).all():
            raise ValueError("scale and std are positive, and mean is finite")
        if not MIN_CROP <= self.crop <= 1:
            raise ValueError(f"a crop is from {MIN_CROP} to 1, not {self.crop}")
        if self.crop != 1 and self.mode != "center-crop":
            raise ValueError(f"a crop of {self.crop} is for center-crop, not for {self.mode}")
        if self.interpolation != "bilinear" and self.mode != "center-crop":
            raise ValueError(f"{self.interpolation} interpolation is for center-crop, not for {self.mode}")

    @property
    def short_side(self) -> int:
        """What center-crop brings the image's short side to, in pixels."""
        return round(self.width / self.crop)

    def __call__(self, image: Pixels, out: Floats | None = None) -> Floats:
        """The input (channels, height, width) for an image (H, W, C) or (H, W), written into `out` if that is given.

        Raises ImageError as `match_channels` does.
        """
        image = self.match_channels(image)
        if self.color == "bgr":
            image = image[:, :, [2, 1, 0, *range(3, self.channels)]]
        output = np.empty((self.channels, self.height, self.width), np.float32) if out is None else out
        if self.interpolation == "bicubic":
            np.divide(self._bicubic(image).astype(np.float32), self._divisor(image.dtype), out=output)
        else:
            self._bilinear(image, output)
        if any(self.mean) or set(self.std) != {1.0}:
            output -= np.array(self.mean, np.float32)[:, None, None]
            output /= np.array(self.std, np.float32)[:, None, None]
        return output

    def _divisor(self, dtype: np.dtype[Any]) -> np.float32:
        # Division by 255 rounds as Darknet's does; multiplication by 1/255 would not.
        return np.float32(PIXELS[dtype.name] / 255 / self.scale)

    def _bilinear(self, image: Pixels, output: Floats) -> None:
        geometry, divisor = self._geometry(image.shape[1], image.shape[0]), self._divisor(image.dtype)
        image = image[geometry.used_rows]
        bottom, right = geometry.top + len(geometry.rows.first), geometry.left + len(geometry.columns.first)
        if (bottom - geometry.top, right - geometry.left) != output.shape[1:]:
            output[...] = np.float32(127.5) / self._divisor(np.dtype(np.uint8))
        for channel, plane in enumerate(output[:, geometry.top : bottom, geometry.left : right]):
            if self.mode == "resize-half-pixel" and image.dtype != np.float32:
                # cv::resize gives whole pixels. Its own arithmetic, of 11 bits, differs by 1 here and there.
                _interpolate(image[:, :, channel], geometry, np.float32(1), plane)
                np.floor(plane + np.float32(0.5), out=plane)
                plane /= divisor
            else:
                _interpolate(image[:, :, channel], geometry, divisor, plane)

    def _bicubic(self, image: Pixels) -> Pixels:
        width, height = _covering(self.short_side, image.shape[1], image.shape[0])
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        columns = _resize_cubic(planes, width, _middle(width, self.width))
        return _resize_cubic(columns.swapaxes(1, 2), height, _middle(height, self.height)).swapaxes(1, 2)

    def match_channels(self, image: Pixels) -> Pixels:
        """The image as (H, W, channels) of its own type, with the channels that the network has, in RGB order yet.

        An image with the network's number of channels is taken as it is. Otherwise gray, RGB and RGBA are matched with
        networks of up to 4 channels as stb_image does for Darknet's load_image: gray is repeated, RGB becomes gray by
        (77 R + 150 G + 29 B) / 256, rounded down where pixels are whole numbers, a missing alpha is opaque, a
        superfluous one is dropped; of 2 channels, the second is alpha. An image of 2 channels itself may be anything,
        and is taken by a network of 2 alone.

        Raises ImageError if the image is empty, of another type, has channels that cannot be matched, or numbers that
        are not finite. Warns of floats that cannot be meant to be from 0 to 1.
        """
        if image.dtype.name not in PIXELS or image.ndim not in (2, 3) or not image.size:
            kinds = ", ".join(f"{name} of 0 to {white}" for name, white in PIXELS.items())
            raise ImageError(
                f"an image is (H, W) or (H, W, C) of uint8, uint16 or float32, not {image.shape} of {image.dtype}",
                hint=f"pixels are {kinds}; the preprocessing scales them",
            )
        if not image.dtype.isnative:
            image = image.astype(image.dtype.newbyteorder("="))
        if image.ndim == 2:
            image = image[:, :, None]
        have, want = image.shape[2], self.channels
        if have != want and (have not in (1, 3, 4) or want > 4):
            raise ImageError(f"the image has {have} channels, the network takes {want}")
        if image.dtype == np.float32:
            _check_floats(image)
        return matched(image, want)

    def to_bytes(self, image: Pixels) -> npt.NDArray[np.uint8]:
        """As `match_channels`, of uint8: what an engine takes that does its own preprocessing.

        Of 16 bits the upper byte is kept, as of files; floats are rounded and clipped.
        """
        image = self.match_channels(image)
        if image.dtype == np.float32:
            image = np.clip(np.floor(image * np.float32(255) + np.float32(0.5)), np.float32(0), np.float32(255))
        return upper_bytes(image)

    def transform(self, image_width: int, image_height: int) -> BoxTransform:
        """How boxes on the input of an image of this size, in pixels, map back to the image."""
        return self._geometry(image_width, image_height).transform

    def _geometry(self, image_width: int, image_height: int) -> _Geometry:
        return _geometry(self.mode, self.width, self.height, self.short_side, image_width, image_height)

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        fields = {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}
        if self.crop == 1:
            # A dnc that knows no crop refuses the key; so with the interpolation.
            del fields["crop"]
        if self.interpolation == "bilinear":
            del fields["interpolation"]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`; raises BundleError for fields that are missing, unknown or nonsense."""
        try:
            return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"unusable preprocessing: {error}",
                hint="a newer dnc made this engine: update dnc, or build the engine again",
            ) from error


class _Samples(NamedTuple):
    """Where an axis is sampled: output i is the weighted sum of the inputs first[i] and second[i]."""

    first: Indices
    second: Indices
    first_weight: Floats
    second_weight: Floats

    def select(self, places: Indices | slice) -> _Samples:
        return _Samples(self.first[places], self.second[places], self.first_weight[places], self.second_weight[places])


class _Geometry(NamedTuple):
    """What is sampled, where the result lies in the input, and the way back for boxes."""

    columns: _Samples
    used_rows: Indices
    rows: _Samples
    """Among the used ones: of a large image, most rows are not."""
    left: int
    top: int
    transform: BoxTransform


@lru_cache(maxsize=64)
def _geometry(mode: str, width: int, height: int, short: int, image_width: int, image_height: int) -> _Geometry:
    left = top = 0
    offset = 0.0, 0.0
    new_width, new_height = width, height
    if mode == "resize":
        columns, rows = _aligned_columns(image_width, width), _aligned_rows(image_height, height)
    elif mode == "resize-half-pixel":
        columns, rows = _half_pixel(image_width, width), _half_pixel(image_height, height)
    elif mode == "letterbox":
        # Where Darknet rounds the short side of an extremely narrow image to nothing, a pixel of it stays.
        if np.float32(width) / np.float32(image_width) < np.float32(height) / np.float32(image_height):
            new_height = max(1, image_height * width // image_width)
        else:
            new_width = max(1, image_width * height // image_height)
        # The picture is put at a whole pixel, but correct_yolo_boxes halves the padding exactly: where that
        # is odd, Darknet's boxes are half an input pixel off, and so are these.
        left, top = (width - new_width) // 2, (height - new_height) // 2
        offset = (width - new_width) / 2 / width, (height - new_height) / 2 / height
        columns, rows = _aligned_columns(image_width, new_width), _aligned_rows(image_height, new_height)
    else:
        new_width, new_height = _covering(short, image_width, image_height)
        offset = -_crop_start(new_width, width) / width, -_crop_start(new_height, height) / height
        columns = _aligned_columns(image_width, new_width).select(_middle(new_width, width))
        rows = _aligned_rows(image_height, new_height).select(_middle(new_height, height))
    used, places = np.unique([rows.first, rows.second], return_inverse=True)
    first, second = places.reshape(2, -1)
    rows = _Samples(first, second, rows.first_weight, rows.second_weight)
    transform = BoxTransform(offset, (new_width / width, new_height / height))
    return _Geometry(columns, used, rows, left, top, transform)


def _aligned(source: int, target: int) -> _Samples:
    scale = np.float32(source - 1) / np.float32(max(target - 1, 1))
    position = np.arange(target, dtype=np.float32) * scale
    first = position.astype(np.intp)
    second_weight = position - first.astype(np.float32)
    return _Samples(first, np.minimum(first + 1, source - 1), np.float32(1) - second_weight, second_weight)


def _aligned_columns(source: int, target: int) -> _Samples:
    """The columns of resize_image, which copies the last one."""
    samples = _aligned(source, target)
    samples.first[-1], samples.first_weight[-1], samples.second_weight[-1] = source - 1, 1, 0
    return samples


def _aligned_rows(source: int, target: int) -> _Samples:
    """The rows of resize_image, which adds no second row to the last one.

    Where (source - 1) / (target - 1) * (target - 1) rounds to less than source - 1, as from 240 rows to 416,
    the last row is thus the last but one times almost zero: black. One height in fifteen or so is like that.
    """
    samples = _aligned(source, target)
    samples.second_weight[-1] = 0
    return samples


def _half_pixel(source: int, target: int) -> _Samples:
    """cv::resize INTER_LINEAR: pixel centers at half, the border repeated."""
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    first = position.astype(np.intp)
    second_weight = (position - first).astype(np.float32)
    return _Samples(first, np.minimum(first + 1, source - 1), np.float32(1) - second_weight, second_weight)


def _covering(short: int, image_width: int, image_height: int) -> tuple[int, int]:
    """The width and height with this short side: resize_min, which takes the network's width whatever its height."""
    if image_width < image_height:
        return short, image_height * short // image_width
    return image_width * short // image_height, short


def _crop_start(length: int, kept: int) -> int:
    # C's division truncates.
    return int((length - kept) / 2)


def _middle(length: int, kept: int) -> Indices:
    """The middle `kept` places of `length`: crop_image, which repeats the border where there are fewer."""
    start = _crop_start(length, kept)
    return np.clip(np.arange(start, start + kept), 0, length - 1)


_BAND = 64
"""As many rows of a channel are made at a time: temporaries as small as this stay in the cache, and in memory
that the process holds already. The whole image at once takes four times as long."""


def _interpolate(plane: Pixels, geometry: _Geometry, divisor: np.float32, output: Floats) -> None:
    """Resamples the used rows of a channel, divided by `divisor`."""
    columns = geometry.columns
    for start in range(0, len(output), _BAND):
        rows = geometry.rows.select(slice(start, start + _BAND))
        top = rows.first[0]
        strip = np.ascontiguousarray(plane[top : rows.second[-1] + 1])
        part = np.divide(strip.take(columns.first, axis=1), divisor)
        part *= columns.first_weight
        right = np.divide(strip.take(columns.second, axis=1), divisor)
        right *= columns.second_weight
        part += right
        above = part.take(rows.first - top, axis=0)
        above *= rows.first_weight[:, None]
        below = part.take(rows.second - top, axis=0)
        below *= rows.second_weight[:, None]
        np.add(above, below, out=output[start : start + _BAND])


_BLOCK = 16
"""As many columns are made by one product of matrices: more of them have fewer pixels of the image in common."""


def _resize_cubic(pixels: Pixels, target: int, places: Indices) -> Pixels:
    """Of (C, H, W) resized to (C, H, target), the columns at `places`, which ascend."""
    output = np.empty((*pixels.shape[:2], len(places)), pixels.dtype)
    for start in range(0, len(places), _BLOCK):
        first, weights = _cubic(pixels.shape[2], target, places[start : start + _BLOCK])
        block = pixels[:, :, first : first + weights.shape[1]].astype(np.float64, order="C")
        if pixels.dtype == np.float32:
            # Their sums are rounded, so the order counts: from the left to the right.
            sums = np.zeros((*pixels.shape[:2], len(weights)))
            for tap, weight in enumerate(weights.T):
                sums += block[:, :, tap, None] * weight
            output[:, :, start : start + _BLOCK] = sums / CUBIC_ONE
        else:
            rounded = np.floor(block @ weights.T / CUBIC_ONE + 0.5)
            output[:, :, start : start + _BLOCK] = np.clip(rounded, 0, PIXELS[pixels.dtype.name])
    return output


def _cubic(source: int, target: int, places: Indices) -> tuple[int, npt.NDArray[np.float64]]:
    """(first, weights): column i is the sum of the source's from `first` on, weighted by weights[i] / CUBIC_ONE."""
    ratio = source / target
    wide = max(ratio, 1.0)
    centers = (places + 0.5) * ratio
    first, last = max(int(centers[0] - 2 * wide), 0), min(int(centers[-1] + 2 * wide) + 1, source)
    x = np.abs(np.arange(first, last) + 0.5 - centers[:, None]) / wide
    near, far = ((1.5 * x - 2.5) * x) * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return first, np.rint(weights / weights.sum(axis=1, keepdims=True) * CUBIC_ONE)


_BRIGHT = 16.0
"""No picture whose white is 1 has floats over that; one whose white is 255 has."""


def _check_floats(image: Pixels) -> None:
    low, high = float(image.min()), float(image.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("the image has numbers that are not finite", hint="numpy.nan_to_num replaces them")
    if high > _BRIGHT:
        what = f"the image is of float32 with numbers up to {high:g}, where 1 is white, as in Darknet"
        warn(ImageError(what, hint="divide by 255, or give uint8"))


def as_picture(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """What can be shown of pixels with any number of channels: the first three, (H, W, 3), or the first, (H, W)."""
    channels = 1 if pixels.ndim == 2 or pixels.shape[2] < 3 else 3
    shown = pixels if pixels.ndim == 2 else pixels[:, :, :channels]
    color = "gray" if channels == 1 else "rgb"
    picture = Preprocessing(shown.shape[1], shown.shape[0], channels, color=color).to_bytes(shown)
    return picture if channels == 3 else picture[:, :, 0]
