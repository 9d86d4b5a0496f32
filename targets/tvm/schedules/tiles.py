"""How many pixels and channels a kernel holds in registers at once.

A tile is `width` pixels times `blocks` vectors of output channels. Each step of the reduction loads `blocks` vectors of
weights and `width` numbers of the input, and multiplies all pairs. So it takes the largest of

    blocks width / 2        multiplications, of which the processor starts two at once
    (blocks + width) / 2    loads, likewise; by 1 on aarch64, of whose processors many start one
    (blocks width + blocks + width + 3) / 3.75
                            instructions, with those of the loop: nearly four at once. With 16 registers this decides
                            between 4 x 3 and 6 x 2, of which the first is the faster one where both fit
    2 blocks                vectors of weights from the second-level cache, where those of the whole reduction are too
                            many for the first: each has to be multiplied four times to be worth its way
    4                       the time until a sum can be added to again

cycles, and some for the loop. The tile with the fewest cycles for the whole layer is taken, of those that fit into the
registers with one vector of weights for each block and one number of the input.

A row is cut into tiles of one width but for the first and the last, which are written by themselves in any case, for
the border: 13 pixels are 4 and 5 and 4, where 6 and 6 and 6 would compute five of them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnc.targets.tvm.schedules.loops import Expr, index
from dnc.targets.tvm.schedules.machine import Machine

__all__ = ["Band", "Channels", "Tiling", "bands_of", "choose"]

_ISSUED, _STEP = 3.75, 3
_STREAM = 2.0
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
    """The width of the tiles along a row, whose first and last may be narrower, and the bands of channels."""

    width: int
    first: int
    """The width of the first tile; the last one is what is left."""
    bands: tuple[Band, ...]


def choose(columns: int, vectors: int, machine: Machine, spare: int = 0, even: bool = False, depth: int = 0) -> Tiling:
    """The best tile for rows of so many columns and so many vectors of channels, or that of the machine's rank, which
    leaves so many registers spare.

    Args:
        even: all tiles are of one width, and the last may overlap the one before.
        depth: steps of the reduction.
    """
    tilings: list[tuple[float, Tiling]] = []
    for blocks in range(1, min(_MOST_BLOCKS, vectors) + 1):
        bands = bands_of(vectors, blocks)
        widest = min((machine.registers - 1 - spare - blocks) // blocks, _LONGEST // (4 * machine.lanes), columns)
        streams = depth * blocks * 4 * machine.lanes > machine.near
        cost = [
            sum(band.count * _cycles(band.blocks, width, streams, machine.loads) for band in bands)
            for width in range(widest + 1)
        ]
        cost[0] = 0.0
        for width in range(1, widest + 1):
            if even:
                tilings.append((-(-columns // width) * cost[width], Tiling(width, width, bands)))
                continue
            best, first = min(
                (cost[first] + (columns - first) // width * cost[width] + cost[(columns - first) % width], -first)
                for first in range(1, width + 1)
            )
            tilings.append((best, Tiling(width, -first, bands)))
    # Wider tiles read each weight less often.
    tilings.sort(key=lambda entry: (entry[0], -entry[1].width))
    return tilings[min(machine.rank, len(tilings) - 1)][1]


def bands_of(vectors: int, blocks: int) -> tuple[Band, ...]:
    """Groups of `blocks` vectors, and what is left as one more."""
    count, left = divmod(vectors, blocks)
    bands = [Band(0, blocks, count)]
    if left:
        bands.append(Band(count * blocks, left, 1))
    return tuple(bands)


def _cycles(blocks: int, width: int, streams: bool, at_once: int) -> float:
    """Of a step of a tile.

    Args:
        streams: whether the weights come from the second-level cache.
        at_once: loads that the processor starts in a cycle.
    """
    products, loads = blocks * width, blocks + width
    bounds = (products / 2, loads / at_once, (products + loads + _STEP) / _ISSUED, _LATENCY, _STREAM * blocks * streams)
    return max(bounds) + _LOOP
