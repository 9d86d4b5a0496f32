"""The image of a Myriad X blob: bytes, whose scale and order the compiler put into the network."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["IMAGE", "Pixels"]

IMAGE = "input"


class Pixels(NamedTuple):
    """Conversion of a blob's image to the network's input: x = byte scale[c] + shift[c], channels reordered."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    order: tuple[int, ...]
    """For each channel of the network's input the one of the blob's."""

    def bytes_of(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The image (N, C, H, W) that the blob is given in place of an input of the network, in whole numbers."""
        sides = (1, -1, 1, 1)
        scale, shift = (np.array(numbers, np.float32).reshape(sides) for numbers in (self.scale, self.shift))
        whole = np.clip(np.rint((x - shift) / scale), 0, 255)
        return np.ascontiguousarray(whole[:, np.argsort(self.order)], np.float32)

    def input_of(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The inverse, exact up to the rounding to whole numbers."""
        sides = (1, -1, 1, 1)
        scale, shift = (np.array(numbers, np.float32).reshape(sides) for numbers in (self.scale, self.shift))
        return np.ascontiguousarray(image[:, list(self.order)] * scale + shift, np.float32)
