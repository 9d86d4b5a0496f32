"""What a CPU without VNNI makes of the sums of a convolution in 8 bits, computed by NumPy anywhere.

The rules are those of `dnc.graph.pairs`: products of two inputs are added in 16 bits, which end at -32768 and 32767;
these sums are added in 32 bits, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

from dnc.graph.pairs import LIMIT, Pairing, adds_pairs, places

__all__ = ["Saturation", "saturation"]

_LOW, _HIGH = -(1 << 15), (1 << 15) - 1


@dataclass(frozen=True)
class Saturation:
    """What became of the pairs of one layer."""

    pairs: int
    """The number of sums of two products."""
    saturated: int
    """The number of those that were cut off."""
    error: npt.NDArray[np.int64]
    """What that adds to each result, in units of the product of the two scales: (N, outputs, ...)."""

    @property
    def share(self) -> float:
        """The share of sums that were cut off, from 0 to 1."""
        return self.saturated / self.pairs if self.pairs else 0.0


def saturation(
    activations: npt.NDArray[np.uint8],
    weights: npt.NDArray[np.int8],
    pairing: Pairing,
    *,
    zero_point: int = 0,
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    groups: int = 1,
) -> Saturation:
    """The pairs of a convolution or, without height and width, of a matrix product.

    Only pairs that can be cut off are computed, so that it costs a small part of the convolution.

    Args:
        activations: (N, channels, ...).
        weights: (outputs, channels / groups, ...); a Gemm's with transB.
        pairing: which inputs the kernel takes together: the first of the target's `QuantSpec.pairs`.
        zero_point: the activation that stands for 0, of which borders are.
        strides, dilations: one for each axis; 1 if empty.
        pads: as ONNX has them: before each axis, then after each; 0 if empty.
        groups: the number of groups.
    """
    rank = weights.ndim - 2
    strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    kernel = weights.shape[2:]
    borders = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(activations, borders, constant_values=zero_point)
    spans = [dilation * (side - 1) for dilation, side in zip(dilations, kernel, strict=True)]
    sides = [
        (side - span - 1) // stride + 1
        for side, span, stride in zip(padded.shape[2:], spans, strides, strict=True)
    ]  # fmt: skip
    shape = (len(activations), len(weights), *sides)
    error = np.zeros(shape, np.int64)
    if not adds_pairs(weights.shape, groups):
        return Saturation(0, 0, error)
    pairs = places(weights.shape, pairing)
    rows = weights.reshape(len(weights), -1).astype(np.int32)
    channels, outputs = weights.shape[1], len(weights) // groups
    where = list(product(range(channels), *map(range, kernel)))
    saturated = 0
    for group, (first, second) in product(range(groups), pairs):
        own = slice(group * outputs, (group + 1) * outputs)
        found = np.flatnonzero(np.abs(rows[own, first] + rows[own, second]) > LIMIT) + group * outputs
        if not len(found):
            continue
        taken = []
        for place in (first, second):
            channel, *at = where[place]
            steps = [
                slice(start * dilation, start * dilation + (side - 1) * stride + 1, stride)
                for start, dilation, side, stride in zip(at, dilations, sides, strides, strict=True)
            ]
            taken.append(padded[(slice(None), group * channels + channel, *steps)].astype(np.int32))
        for output in found:
            sums = taken[0] * rows[output, first] + taken[1] * rows[output, second]
            lost = np.clip(sums, _LOW, _HIGH) - sums
            saturated += int(np.count_nonzero(lost))
            error[:, output] += lost
    return Saturation(prod(shape) * len(pairs), saturated, error)
