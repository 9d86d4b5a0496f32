"""What a run of an engine is fed: inputs by name, from images or arrays.

    input             images (N, C, H, W) of float32, prepared as the network wants them; or pixels (N, H, W, C) of
                      uint8, of any size, for an engine that prepares them itself
    confidence, iou   thresholds of a graph that suppresses boxes itself
    window            (N, 4): where each image lies in the network's input, so that such a graph maps boxes to the image
    stateNNN.name     states of recurrent layers, zero at first

An engine that takes batches of one size alone gets its last image again until the batch is full. Frames of a network
with memory are no batch: each runs by itself, or as often as the batch wants, every time with the same states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dnc.errors import DncError, ImageError
from dnc.runtime.devices import is_on_device, shape_there
from dnc.runtime.images import Pixels, from_picture, read_image
from dnc.runtime.manifest import Manifest
from dnc.runtime.preprocessing import Preprocessing
from dnc.typing import Array

__all__ = ["Empty", "Feeds", "Image", "Inputs", "Prepared", "noise", "prepare", "thresholds"]

Feeds = dict[str, Array]
Empty = Callable[[Sequence[int], npt.DTypeLike], Array]
"""Gives memory for an array that is to be written, as numpy.empty."""


class _Picture(Protocol):
    """A PIL image."""

    def convert(self, mode: str, /) -> Any: ...


Image = str | PathLike[str] | bytes | Pixels | _Picture
"""A path, the bytes of an image file, pixels (H, W, C) or (H, W), or a PIL image.

Pixels are uint8 (0 to 255), uint16 (0 to 65535) or float32 (0 to 1, as in Darknet's own images). For a network of other
than 1 to 4 channels they come as an array or an .npy file: see `dnc.runtime.images`."""


class Prepared(NamedTuple):
    """An image that is ready for the network."""

    array: Array
    size: tuple[int, int]
    """(width, height) of the image, in pixels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array."""
        return self.array.shape


_Shaped = TypeVar("_Shaped", Pixels, Prepared)


class Inputs:
    """Makes the feeds of one engine.

        inputs = Inputs(engine.manifest)
        feeds = inputs.batch([inputs.prepare(inputs.pixels("dog.jpg"))])
        outputs = engine.session.run(feeds)

    Args:
        manifest: what engine.json says.
        where: the engine, for messages.
    """

    def __init__(self, manifest: Manifest, where: Path | str | None = None) -> None:
        self._manifest, self._where = manifest, where

    def check(self, color: str = "rgb") -> None:
        """Raises DncError if the network takes no images, or if there is no such order of channels."""
        if color not in ("rgb", "bgr"):
            raise DncError(f"color={color!r} is not known", hint="rgb, or bgr for OpenCV's frames")
        if self._manifest.preprocessing is None:
            shape = ", ".join(map(str, self._manifest.input_shape))
            hint = f"use forward() with an array (N, {shape})"
            if len(self._manifest.input_shape) == 3:
                # An older dnc knew no images of that many channels.
                hint = f"compile it again, or {hint}"
            raise DncError("this network takes no images", self._where, hint)

    def pixels(self, image: Image, color: str = "rgb", exif: bool | None = None) -> Pixels:
        """Gives the pixels (H, W, C) or (H, W) of an image, in RGB.

        Args:
            color: the order of an array's channels, if they are three or more; files and PIL images know theirs.
            exif: whether files and PIL images are turned as their EXIF says; not, and with a warning, if not said.

        Raises:
            ImageError: it cannot be read.
            DncError: as `check`.
        """
        self.check(color)
        assert self._manifest.preprocessing is not None
        channels = self._manifest.preprocessing.channels
        if isinstance(image, str | PathLike | bytes):
            return read_image(image, channels, exif=exif)
        if not isinstance(image, np.ndarray) and hasattr(image, "convert"):
            # A PIL image may be of any mode; a palette's numbers are no pixels.
            return from_picture(image, channels, exif=exif)
        if image is None:
            # Read it with dnc, or look for the file: OpenCV says no more.
            raise ImageError("None is no image", hint="cv2.imread gives None for a file that it cannot read")
        pixels: Pixels = np.asarray(image)
        if color == "bgr" and pixels.ndim == 3 and pixels.shape[2] >= 3:
            return pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]
        return pixels

    def room(self, count: int, empty: Empty) -> Array | None:
        """Memory for a batch of so many images, into which each can be prepared at its place; None where a batch is no
        more than one image, or pixels of a size that nobody knows yet."""
        manifest = self._manifest
        if manifest.carried or manifest.input_dtype != "float32":
            return None
        size = manifest.batch if isinstance(manifest.batch, int) else count
        return empty((max(size, count), *manifest.input_shape), np.float32)

    def prepare(self, pixels: Pixels, out: Array | None = None) -> Prepared:
        """The network's input for one image, written into `out` if that is given, a place of `room`; raises ImageError
        if its channels do not fit the network, or there is not enough memory."""
        assert self._manifest.preprocessing is not None
        try:
            array = prepare(pixels, self._manifest.preprocessing, self._manifest.input_dtype, out)
        except MemoryError as error:
            raise ImageError(f"there is not enough memory to prepare an image of {pixels.shape}") from error
        return Prepared(array, (pixels.shape[1], pixels.shape[0]))

    def groups(self, images: Sequence[_Shaped]) -> list[Sequence[_Shaped]]:
        """The images, prepared or not, divided into those that run together, in order.

        Those of a network with memory run one by one: each needs what the one before left.
        """
        size = 1 if self._manifest.carried else self._manifest.batch
        if isinstance(size, str):
            # Pixels of different sizes cannot be one array, which an engine with --input u8 takes.
            same = len({image.shape for image in images}) == 1
            size = len(images) if same or self._manifest.input_dtype == "float32" else 1
        return [images[start : start + size] for start in range(0, len(images), max(size, 1))]

    def batch(
        self,
        images: Sequence[Prepared],
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        states: Mapping[str, Array] | None = None,
        room: Array | None = None,
        empty: Empty = np.empty,
    ) -> Feeds:
        """The feeds for at least one image, and for no more than run together; states as for `feeds`.

        Args:
            room: what `room` gave, if the images were prepared into it, in their order.
            empty: gives memory for a batch.
        """
        size = self._manifest.batch
        count = len(images)
        images = [*images, *[images[-1]] * (size - count if isinstance(size, int) else 0)]
        if room is not None:
            x = room[: len(images)]
            x[count:] = x[count - 1]
        elif len(images) == 1:
            # One image becomes a batch without a copy.
            x = np.ascontiguousarray(images[0].array)[None]
        else:
            array = images[0].array
            x = np.stack([image.array for image in images], out=empty((len(images), *array.shape), array.dtype))
        return self.feeds(x, [image.size for image in images], confidence=confidence, iou=iou, states=states)

    def array(self, array: npt.ArrayLike) -> tuple[Array, bool]:
        """An array that somebody prepared, as a batch of the engine's type; and whether it had no batch axis. One that
        is in the memory of a GPU has one, and the engine's type. Raises DncError if it has another shape or holds no
        numbers."""
        wanted, size = self._manifest.input_shape, self._manifest.batch
        dtype = np.uint8 if self._manifest.input_dtype == "uint8" else np.float32
        there = not isinstance(array, np.ndarray) and is_on_device(array)
        try:
            x: Any = array if there else np.ascontiguousarray(array, dtype)
        except (TypeError, ValueError) as error:
            raise DncError(f"the input is no array of numbers: {error}", self._where) from error
        if dtype == np.uint8 and not there and np.asarray(array).dtype != np.uint8:
            raise DncError("the engine takes pixels, uint8", self._where, "it was compiled with --input u8")
        single = not there and x.ndim == len(wanted)
        if single:
            x = x[None]
        shape = shape_there(x) if there else x.shape
        fits = shape[1:] == wanted if dtype == np.float32 else len(shape) == 4 and shape[3] == wanted[0]
        if not shape or not fits or (isinstance(size, int) and shape[0] != size):
            sides = (size, *wanted) if dtype == np.float32 else (size, "height", "width", wanted[0])
            want = ", ".join(map(str, sides))
            raise DncError(
                f"the input has shape {np.shape(array) if not there else shape}, the engine wants ({want})", self._where
            )
        return x, single

    def feeds(
        self,
        x: Array,
        sizes: Sequence[tuple[int, int]] = (),
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        states: Mapping[str, Array] | None = None,
    ) -> Feeds:
        """Gives every input that the engine has.

        Args:
            x: the network's input, with a batch axis.
            sizes: (width, height) of each image; boxes stay fractions of the network's input if not given.
            states: states by name; those that are not given are zero.
        """
        manifest = self._manifest
        feeds = {"input": x}
        if manifest.extra_inputs:
            extra = thresholds(x.shape[0], confidence, iou)
            if manifest.preprocessing is not None and sizes:
                transforms = [manifest.preprocessing.transform(*size) for size in sizes]
                window = [(*transform.offset, *transform.ratio) for transform in transforms]
                extra["window"] = np.array(window, np.float32)
            feeds |= {name: value for name, value in extra.items() if name in manifest.extra_inputs}
        for name, shape in manifest.states.items():
            given = None if states is None else states.get(name)
            feeds[name] = np.zeros((x.shape[0], *shape), np.float32) if given is None else given
        return feeds

    def following(self, outputs: Sequence[Array]) -> dict[str, Array]:
        """Copies of the states that a run left behind, by name: what Darknet's run on the next frame takes of them."""
        left = dict(zip(self._manifest.states, outputs[len(self._manifest.outputs) :], strict=True))
        return {name: np.array(left[name]) for name in self._manifest.carried}

    @property
    def carried_places(self) -> frozenset[int]:
        """The places of what `following` reads among the outputs."""
        names = [*self._manifest.outputs, *self._manifest.states]
        return frozenset(place for place, name in enumerate(names) if name in self._manifest.carried)


def prepare(pixels: Pixels, preprocessing: Preprocessing, dtype: npt.DTypeLike, out: Array | None = None) -> Array:
    """An image as an input of this type takes it: floats (C, H, W), into `out` if that is given; or pixels (H, W, C)
    for uint8."""
    return preprocessing.to_bytes(pixels) if np.dtype(dtype) == np.uint8 else preprocessing(pixels, out)


def thresholds(count: int, confidence: float = 0.25, iou: float = 0.45) -> Feeds:
    """The further inputs of a graph that suppresses boxes; the windows of `count` images are the whole input."""
    return {
        "confidence": np.array([confidence], np.float32),
        "iou": np.array([iou], np.float32),
        "window": np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1)),
    }


def noise(shape: Sequence[int], dtype: npt.DTypeLike, generator: np.random.Generator) -> Array:
    """Random numbers as of an image: any bytes, or from 0 to 1."""
    if np.dtype(dtype) == np.uint8:
        return generator.integers(0, 256, shape, np.uint8)
    return generator.random(shape, np.float32).astype(dtype, copy=False)
