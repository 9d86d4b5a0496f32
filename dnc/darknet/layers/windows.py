"""Sliding windows: where Darknet's convolutions and pools begin and end, in ONNX's terms and in numpy.

Darknet fixes where the first window begins and how many windows there are. ONNX fixes the padding on both sides and
derives the number of windows from it. `end_padding` translates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dnc.darknet.layers.base import Array

__all__ = ["Axis", "windows"]


@dataclass(frozen=True)
class Axis:
    """Windows along one axis: `count` windows of `size` taps, `dilation` apart, the first at -`begin`."""

    length: int
    count: int
    size: int
    stride: int
    begin: int
    dilation: int = 1

    @property
    def span(self) -> int:
        """The distance from a window's first to one past its last tap."""
        return self.dilation * (self.size - 1) + 1

    @property
    def end(self) -> int:
        """ONNX's padding at the end that gives `count` windows: never more than the last window needs."""
        return max(0, (self.count - 1) * self.stride + self.span - self.length - self.begin)

    def within(self) -> Axis:
        """The same windows without the taps that lie outside in all of them; at least one is left.

        To a pool, outside is nothing, and a window that is much larger than the map is no more work than one that
        reaches over all of it. Only for a dilation of 1.
        """
        last = (self.count - 1) * self.stride
        before = min(max(0, self.begin - last), self.size - 1)
        behind = min(max(0, self.size - self.begin - self.length), self.size - 1 - before)
        return replace(self, size=self.size - before - behind, begin=self.begin - before)


def windows(x: Array, vertical: Axis, horizontal: Axis, fill: float) -> npt.NDArray[np.float32]:
    """All windows of x (N, C, H, W) as a view of shape (N, C, rows, columns, size, size); `fill` is outside."""
    padding = [(0, 0), (0, 0), (vertical.begin, vertical.end), (horizontal.begin, horizontal.end)]
    padded = np.pad(x, padding, constant_values=fill) if any(map(any, padding)) else x
    view = np.lib.stride_tricks.sliding_window_view(padded, (vertical.span, horizontal.span), axis=(2, 3))
    view = view[:, :, :: vertical.stride, :: horizontal.stride, :: vertical.dilation, :: horizontal.dilation]
    result: npt.NDArray[np.float32] = view[:, :, : vertical.count, : horizontal.count]
    return result
