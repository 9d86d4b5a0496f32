"""Looks into a .weights file array by array, also into one that is damaged or too short.

Darknet's file says nothing of its layout: the cfg does, array after array (see `dnc.darknet.weights`). So a file that
is not the cfg's can only be told by its length and by values that make no sense: numbers that are not finite, variances
that are negative even with the 1e-5 that Darknet adds to them before it divides, or less than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.darknet.layers.base import Layer, Shape
from dnc.darknet.layers.convolutional import BATCH_NORM_EPSILON
from dnc.darknet.weights import Header, open_floats
from dnc.tables import Table

__all__ = ["ArrayRecord", "Inspection", "inspect_weights"]

_BLOCK = 1 << 20
"""Floats that are looked at a time, so that no copy in double takes twice the file's size."""


@dataclass(frozen=True)
class ArrayRecord:
    """An array that the cfg wants, and what the file has for it."""

    layer: int
    section: str
    name: str
    shape: Shape
    offset: int
    """Where it starts, or would start, in bytes from the start of the file."""
    stored: int
    """How many of its floats the file holds."""
    min: float | None
    """The smallest of the finite values, as the next three; None if there are none."""
    max: float | None
    mean: float | None
    std: float | None
    zeros: int
    nan: int
    infinite: int
    negative: int
    """Variances of -1e-5 and less, of which no root can be taken."""
    tiny: int
    """Variances within 1e-5 of zero, which the epsilon outweighs: of channels that are nearly constant."""

    @property
    def size(self) -> int:
        """Number of floats that the cfg wants."""
        return math.prod(self.shape)

    @property
    def remarks(self) -> str:
        """Describes what is wrong or unusual."""
        counts = {
            "missing": self.size - self.stored,
            "NaN": self.nan,
            "infinite": self.infinite,
            "negative": self.negative,
            f"under {BATCH_NORM_EPSILON:g}": self.tiny,
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


@dataclass(frozen=True)
class Inspection:
    """A .weights file as the layers of a cfg divide it."""

    header: Header
    bytes: int
    arrays: tuple[ArrayRecord, ...]
    layers: int

    @property
    def wanted(self) -> int:
        """Number of floats that the cfg wants."""
        return sum(record.size for record in self.arrays)

    @property
    def floats(self) -> int:
        """Number of whole floats that the file holds."""
        return (self.bytes - len(self.header.pack())) // 4

    @property
    def fits(self) -> bool:
        """Whether the file is exactly as long as the cfg says."""
        return self.bytes == len(self.header.pack()) + 4 * self.wanted

    @property
    def length(self) -> str:
        """Compares the file's length with the cfg, in words."""
        if self.fits:
            return f"the file holds the {self.wanted:,} floats that the cfg wants"
        if misfit := self.header.misfit(self.bytes - 4 * self.wanted):
            return (
                f"the file holds the {self.wanted:,} floats that the cfg wants, but not behind such a header: {misfit}"
            )
        cut = next((record for record in self.arrays if record.stored < record.size), None)
        tail = self.bytes - len(self.header.pack()) - 4 * min(self.floats, self.wanted)
        if cut is None:
            return f"the file goes on after the last layer: {tail:,} bytes after the {self.wanted:,} floats of the cfg"
        layer = f"layer {cut.layer} [{cut.section}]"
        if not self.floats:
            place = "after the header"
        elif cut.stored or tail or any(record.layer == cut.layer and record.stored for record in self.arrays):
            place = f"within '{cut.name}' of {layer}, after {cut.stored:,} of {cut.size:,} floats"
        else:
            place = f"before {layer}, as `dnc partial` leaves it for the first {cut.layer} layers"
        missing = f"{self.wanted - self.floats:,} of {self.wanted:,} floats are missing"
        return f"the file ends at byte {self.bytes:,}, {place}; {missing}"

    @property
    def summary(self) -> tuple[str, ...]:
        """Sums up the header, the length and the values."""
        header = self.header
        version = f"format {header.major}.{header.minor}.{header.revision}, {len(header.pack())} bytes of header"
        stored = "transposed" if header.transposed else "as (outputs, inputs)"
        bad = sum(record.nan + record.infinite + record.negative for record in self.arrays)
        tiny = sum(record.tiny for record in self.arrays)
        return (
            f"{version}, {header.seen:,} images seen, fully connected matrices {stored}",
            f"{len(self.arrays)} arrays in {len({record.layer for record in self.arrays})} of {self.layers} layers, "
            f"{self.bytes:,} bytes: {self.length}",
            f"{sum(record.zeros for record in self.arrays):,} zeros, "
            f"{bad:,} numbers that are not finite or negative variances, "
            f"{tiny:,} variances under {BATCH_NORM_EPSILON:g}",
        )

    def table(self) -> Table:
        """Tabulates the arrays, a row for each."""
        titles = ("layer", "type", "array", "shape", "offset", "min", "max", "mean", "std", "zeros", "remarks")
        left = ("type", "array", "shape", "remarks")
        table = Table.of(
            *titles, right=set(titles) - {*left}, folds=["remarks"], spare=["std", "mean", "offset", "type"]
        )
        for record in self.arrays:
            values = (record.min, record.max, record.mean, record.std)
            cells = [str(record.layer), record.section, record.name, " x ".join(map(str, record.shape))]
            cells += [str(record.offset), *("" if value is None else f"{value:.4g}" for value in values)]
            cells += [f"{record.zeros:,}" if record.stored else "", record.remarks]
            bad = record.nan or record.infinite or record.negative or record.stored < record.size
            table.add(*cells, style="red" if bad else "")
        return table

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        return {
            "header": {**asdict(self.header), "bytes": len(self.header.pack()), "transposed": self.header.transposed},
            "bytes": self.bytes,
            "floats": self.floats,
            "wanted": self.wanted,
            "fits": self.fits,
            "length": self.length,
            "arrays": [{**asdict(record), "shape": list(record.shape), "size": record.size} for record in self.arrays],
        }


def inspect_weights(path: str | Path, layers: Sequence[Layer]) -> Inspection:
    """Reads all that the file holds. Raises WeightsError if there is no such file, or not even a header in it."""
    header, floats, size = open_floats(Path(path))
    start = len(header.pack())
    records: list[ArrayRecord] = []
    first = 0
    for layer in layers:
        for name, shape in layer.weights().items():
            values = floats[first : first + math.prod(shape)]
            records.append(_record(layer, name, shape, start + 4 * first, values))
            first += math.prod(shape)
    return Inspection(header, size, tuple(records), len(layers))


def _record(layer: Layer, name: str, shape: Shape, offset: int, values: npt.NDArray[np.float32]) -> ArrayRecord:
    number = zeros = nan = infinite = negative = tiny = 0
    low, high, total, squares = math.inf, -math.inf, 0.0, 0.0
    for block in _blocks(values):
        nan += int(np.isnan(block).sum())
        infinite += int(np.isinf(block).sum())
        zeros += int((block == 0).sum())
        if name.endswith("variance"):
            negative += int((block <= -BATCH_NORM_EPSILON).sum())
            tiny += int((np.abs(block) < BATCH_NORM_EPSILON).sum())
        finite = block[np.isfinite(block)]
        number += finite.size
        total += float(finite.sum())
        low, high = min(low, float(finite.min(initial=math.inf))), max(high, float(finite.max(initial=-math.inf)))
    for block in _blocks(values):
        squares += float(((block[np.isfinite(block)] - total / number) ** 2).sum()) if number else 0.0
    figures: dict[str, Any] = {"zeros": zeros, "nan": nan, "infinite": infinite, "negative": negative, "tiny": tiny}
    figures |= dict.fromkeys(("min", "max", "mean", "std"))
    if number:
        figures |= {"min": low, "max": high, "mean": total / number, "std": math.sqrt(squares / number)}
    return ArrayRecord(layer.index, layer.name, name, shape, offset, len(values), **figures)


def _blocks(values: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float64]]:
    """Yields blocks in double, in which no float32 overflows when squared."""
    for start in range(0, len(values), _BLOCK):
        yield values[start : start + _BLOCK].astype(np.float64)
