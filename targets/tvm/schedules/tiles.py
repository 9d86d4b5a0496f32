"""How many pixels and channels a kernel holds in registers at once.

A tile is `width` pixels times `blocks` vectors of output channels. Each step of the reduction loads `blocks` vectors of
weights and `width` numbers of the input, and multiplies all pairs. So it takes the largest of

    blocks width / 2        multiplications, of which the processor starts two at once
    (blocks + width) / 2    loads, likewise
    4                       the time until a sum can be added to again

cycles, and some for the loop. The tile with the fewest cycles for the whole layer is taken, of those that fit into the
registers with one vector of weights for each block and one number of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnc.targets.tvm.schedules.loops import Expr, index
from dnc.targets.tvm.schedules.machine import Machine

__all__ = ["Band", "Channels", "Tiling", "choose"]

_LATENCY = 4.0
_LOOP = 0.5
_MOST_BLOCKS = 8
_LONGEST = 1020
"""Bytes of a local buffer: from 1024 on TVM takes it from the heap."""


@dataclass(frozen=True)
class Band:
    """`count` groups of `blocks` vectors each, from vector `first` on."""

    first: int
    blocks: int
    count: int


@dataclass(frozen=True)
class Channels:
    """Channels cut into vectors. The last one may overlap the one before: what both compute is equal."""

    count: int
    lanes: int

    @classmethod
    def of(cls, count: int, machine: Machine) -> Channels:
        """Vectors as the machine has them, or the longest that fit."""
        lanes = machine.lanes
        while lanes > count:
            lanes //= 2
        return cls(count, lanes)

    @property
    def vectors(self) -> int:
        """Number of vectors."""
        return -(-self.count // self.lanes)

    def start(self, vector: Expr) -> Expr:
        """The first channel of a vector."""
        if isinstance(vector, int):
            return min(vector * self.lanes, self.count - self.lanes)
        if self.count % self.lanes == 0:
            return vector * self.lanes
        from tvm import tirx

        return tirx.min(vector * self.lanes, index(self.count - self.lanes))

    def pack(self, weight: npt.NDArray[np.float32], bands: Sequence[Band]) -> npt.NDArray[np.float32]:
        """Weights (groups, K, O) -> flat (group, band, place in it, K, vector, lane)."""
        flat = weight.reshape(-1, weight.shape[-2], self.count)
        parts = []
        for band in bands:
            vectors = np.arange(band.first, band.first + band.blocks * band.count)
            starts = np.minimum(vectors * self.lanes, self.count - self.lanes)
            columns = starts[:, None] + np.arange(self.lanes)
            taken = flat[:, :, columns.reshape(-1)]
            shaped = taken.reshape(len(flat), weight.shape[-2], band.count, band.blocks * self.lanes)
            parts.append(shaped.transpose(0, 2, 1, 3).reshape(len(flat), -1))
        return np.ascontiguousarray(np.concatenate(parts, axis=1)).reshape(-1)


@dataclass(frozen=True)
class Tiling:
    """The width of the tiles, and the bands of channels."""

    width: int
    bands: tuple[Band, ...]


def choose(columns: int, vectors: int, machine: Machine, spare: int = 0) -> Tiling:
    """The best tile for rows of so many columns and so many vectors of channels, or that of the machine's rank, which
    leaves so many registers spare."""
    tilings: list[tuple[float, Tiling]] = []
    for blocks in range(1, min(_MOST_BLOCKS, vectors) + 1):
        widest = min((machine.registers - 1 - spare - blocks) // blocks, _LONGEST // (4 * machine.lanes))
        for width in range(1, min(widest, columns) + 1):
            bands = _bands(vectors, blocks)
            tiles = -(-columns // width)
            cycles = sum(tiles * band.count * _cycles(band.blocks, width) for band in bands)
            tilings.append((cycles, Tiling(width, bands)))
    # Wider tiles read each weight less often.
    tilings.sort(key=lambda entry: (entry[0], -entry[1].width))
    return tilings[min(machine.rank, len(tilings) - 1)][1]


def _bands(vectors: int, blocks: int) -> tuple[Band, ...]:
    """Groups of `blocks` vectors, and what is left as one more."""
    count, left = divmod(vectors, blocks)
    bands = [Band(0, blocks, count)]
    if left:
        bands.append(Band(count * blocks, left, 1))
    return tuple(bands)


def _cycles(blocks: int, width: int) -> float:
    return max(blocks * width / 2, (blocks + width) / 2, _LATENCY) + _LOOP
