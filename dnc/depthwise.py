"""Which form of a depthwise convolution is fastest on a generation of NVIDIA's GPUs: for machines that have none.

`depthwise_cuda.json` holds what `benchmarks/gpu.py --table` measured, and nothing that was guessed:

    {"schema": 1, "generations": {"sm_90": [
        {"gpu": "NVIDIA H200", "driver": "…", "engine": "ONNX Runtime …", "date": "2026-11-22", "command": "…",
         "provider": "cuda", "precision": "fp16", "layout": "nchw", "batch": 1,
         "layers": [{"kind": "depthwise 3x3/2, 96 to 96 channels, 56x56", "best": "diagonalwise 32",
                     "microseconds": {"native": 41.0, "diagonalwise 32": 24.5}}]}]}}

`best` is what `dnc.autotune` decided: another form than native only where it was faster beyond the noise.

A convolution that was not measured goes by the nearest that was, in the same set: of the same kernel, stride and
outputs a channel, with at most twice as many channels, or pixels, or of both together, or half as many. What has none
that near stays native, as does all on a generation of which nothing is known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dnc.errors import DncError
from dnc.files import whole_file

__all__ = ["SCHEMA", "TABLE", "Measurements", "find", "read_table", "write_table"]

SCHEMA = 1
TABLE = Path(__file__).parent / "depthwise_cuda.json"

_KIND = re.compile(r"depthwise (\d+x\d+/\d+), (\d+) to (\d+) channels, (\d+)x(\d+)")
_NEAR, _NEAR_BATCH = 1.0, 2.0
"""The largest distances, in doublings."""


class _Shape(NamedTuple):
    """What a kind says."""

    kernel: str
    channels: int
    outputs: float
    """Of each channel."""
    pixels: int

    def distance(self, other: _Shape) -> float:
        """In doublings; infinite where another kernel would run."""
        if (self.kernel, self.outputs) != (other.kernel, other.outputs):
            return math.inf
        ratios = self.channels / other.channels, self.pixels / other.pixels
        return sum(abs(math.log2(ratio)) for ratio in ratios)


def _shape(kind: str) -> _Shape | None:
    match = _KIND.fullmatch(kind)
    if match is None:
        return None
    channels, filters, height, width = map(int, match.groups()[1:])
    return _Shape(match[1], channels, filters / channels, height * width)


@dataclass(frozen=True)
class Measurements:
    """Of one GPU under one set of conditions."""

    arch: str
    gpu: str
    date: str
    provider: str
    precision: str
    layout: str
    batch: int
    best: Mapping[str, str]
    """By kind."""

    @classmethod
    def from_json(cls, arch: str, item: Mapping[str, Any]) -> Measurements:
        """One set of the table; raises LookupError, TypeError or ValueError if it is none."""
        best = {str(layer["kind"]): str(layer["best"]) for layer in item["layers"]}
        words = {key: str(item[key]) for key in ("gpu", "date", "provider", "precision", "layout")}
        if int(item["batch"]) < 1:
            raise ValueError(f"a batch of {item['batch']}")
        return cls(arch=arch, batch=int(item["batch"]), best=best, **words)

    def fastest(self, kind: str) -> str:
        """The best form of a convolution of this kind (`dnc.autotune.Measured.kind`); empty if none is near."""
        wanted = _shape(kind)
        known = [(shape, best) for each, best in self.best.items() if (shape := _shape(each)) is not None]
        if wanted is None or not known:
            return ""
        shape, best = min(known, key=lambda item: wanted.distance(item[0]))
        return best if wanted.distance(shape) <= _NEAR else ""

    def __str__(self) -> str:
        return f"the table of {self.arch} ({self.gpu}, {self.date})"


def find(arch: str, providers: Sequence[str], precision: str, layout: str, batch: int) -> Measurements | None:
    """What was measured under these conditions; None if nothing.

    Args:
        arch: the generation.
        providers: "tensorrt", "cuda": those that may run the network, the likeliest first.
        precision, layout: as target cuda's options.
        batch: of several the nearest, if it is at most four times as large or as small.
    """

    def distance(item: Measurements) -> float:
        return abs(math.log2(item.batch / batch))

    for provider in providers:
        conditions = (provider, precision, layout)
        fitting = [item for item in _known(arch) if (item.provider, item.precision, item.layout) == conditions]
        near = min(fitting, key=distance, default=None)
        if near is not None and distance(near) <= _NEAR_BATCH:
            return near
    return None


@cache
def _known(arch: str) -> list[Measurements]:
    return [Measurements.from_json(arch, item) for item in read_table().get(arch, ())]


def read_table(path: Path | None = None) -> dict[str, list[Any]]:
    """The sets of a table by generation; dnc's own table if none is named.

    Raises:
        DncError: it is no table, or one of another schema.
    """
    place = path or TABLE
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']}, not {SCHEMA}")
        generations: dict[str, list[Any]] = content["generations"]
        for arch, sets in generations.items():
            for item in sets:
                Measurements.from_json(arch, item)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DncError(f"this is no table of depthwise convolutions: {error!r}", place, "measure it anew") from error
    return generations


def write_table(path: Path, arch: str, sets: Sequence[Mapping[str, Any]]) -> None:
    """Puts sets in place of those of the same generation and conditions; a table that is not there is made.

    Raises:
        DncError: what is there is no table, or cannot be written.
    """

    def conditions(item: Mapping[str, Any]) -> list[Any]:
        return [item[key] for key in ("provider", "precision", "layout", "batch")]

    generations = read_table(path) if path.exists() else {}
    new = [conditions(item) for item in sets]
    generations[arch] = [item for item in generations.get(arch, ()) if conditions(item) not in new] + list(sets)
    with whole_file(path) as file:
        file.write((json.dumps({"schema": SCHEMA, "generations": generations}, indent=1) + "\n").encode())
