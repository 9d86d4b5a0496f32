"""From the noise of images to what a layer loses, which kind of loss it is, and which layers are the worst.

Noise has two sizes. One is that of all of a layer's values beside their signal (`own`). Where one channel is a hundred
times as large as the others, it is nearly all of that signal, and the others may be lost without a trace in it; so the
other size is that in the middle one of its channels, each beside its own signal (`typical`). Of rounded weights it is
that of the middle one of the kernels, one for each output and input: where one input's weights, or a few, are far
larger than the others, these are rounded to nothing, whatever they read on these images.

1. The kind of a layer's loss is the one that is largest in either size.
2. Layers are ranked by the noise that they bring by themselves, and not by what has accumulated in them: that at the
   heads, and half of what the middle one of their channels loses beyond 1 % of its power. So a layer of which most is
   lost is seen even where the heads hardly read it on these images.
3. A range that is cut because one channel is so large hides what case 2 looks for. What would be lost without the cut
   counts as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dnc.diagnosis.report import CUT, PAIRS, STEP, WEIGHTS, Histogram
from dnc.quantization import histograms
from dnc.typing import Array

__all__ = ["NAMES", "Powers", "Sums", "Weighed", "by_channel", "decibels", "score", "weigh"]

Powers = npt.NDArray[np.float64]

NAMES: Mapping[str, str] = {"weights": WEIGHTS, "cut": CUT, "step": STEP, "pairs": PAIRS}
"""The kinds of loss that `dnc.diagnosis.parts.VARIANTS` tell."""
_LOST, _SHARE = 0.01, 0.5
"""Case 2."""
_LEAST = -90.0
"""dB of noise that is no loss: float32 in another order adds up to less than that in a layer."""
_BINS = 64
"""Of a histogram in a report."""


def by_channel(array: Array) -> Powers:
    """The sum of squares in each channel, (channels,); without channels (1,). The first axis is the batch."""
    if array.ndim < 3:
        return np.array([np.square(array, dtype=np.float64).sum()])
    rows = array.swapaxes(0, 1).reshape(array.shape[1], -1).astype(np.float64)
    powers: Powers = np.einsum("ij,ij->i", rows, rows)
    return powers


def decibels(noise: float, signal: float) -> float | None:
    """Noise beside the signal, in dB; None for none. Of nothing, any noise is all."""
    if not noise > 0:
        return None
    return 10 * math.log10(noise / signal) if signal > 0 else 0.0


def typical(noise: Powers, signal: Powers) -> float | None:
    """Noise in the middle one of the channels, each beside its own signal, in dB; None for none."""
    alive = (signal > 0) | (noise > 0)
    if noise.shape != signal.shape or not alive.any():
        return None
    shares = np.divide(noise, signal, out=np.ones_like(noise), where=signal > 0)[alive]
    return decibels(float(np.median(np.minimum(shares, 1))), 1.0)


@dataclass
class Sums:
    """What was seen of one result of a layer, over images."""

    signal: Powers | float = 0.0
    own: Powers | float = 0.0
    accumulated: Powers | float = 0.0
    kinds: dict[str, Powers] = field(default_factory=dict)
    """By the names of kinds."""
    seen: bool = False
    """Whether the engine has it."""
    largest_error: float = 0.0
    largest_value: float = 0.0
    values: int = 0
    beyond: int = 0
    """Values outside of the range."""
    largest: Powers | float = 0.0
    """The largest value of each channel."""
    histogram: histograms.Histogram = field(default_factory=lambda: histograms.Histogram(signed=True))

    def add(self, exact: Array, error: Array | None, own: Array | None, ends: tuple[float, float] | None) -> None:
        """Adds an image.

        Args:
            exact: the values in float32.
            error: what is added to them in the engine; None where they are nowhere in it.
            own: what the layer adds by itself; None for nothing.
            ends: of the range; None where they are not rounded.
        """
        self.signal = self.signal + by_channel(exact)
        rows = (
            np.abs(exact.swapaxes(0, 1).reshape(exact.shape[1], -1)) if exact.ndim > 2 else np.abs(exact).reshape(1, -1)
        )
        self.largest = np.maximum(self.largest, rows.max(axis=1, initial=0))
        self.largest_value = max(self.largest_value, float(rows.max(initial=0)))
        self.values += exact.size
        if np.isfinite(exact).all():
            self.histogram.add(exact)
        if ends is not None:
            self.beyond += int(np.count_nonzero((exact < ends[0]) | (exact > ends[1])))
        if own is not None:
            self.own = self.own + by_channel(own)
        if error is not None:
            self.seen = True
            self.accumulated = self.accumulated + by_channel(error)
            self.largest_error = max(self.largest_error, float(np.abs(error).max(initial=0)))

    def add_kinds(self, powers: Mapping[str, Powers]) -> None:
        """Adds the noise of each kind in an image."""
        for kind, power in powers.items():
            self.kinds[kind] = self.kinds.get(kind, np.zeros_like(power)) + power

    @property
    def whole_range(self) -> float | None:
        """dB in the middle one of the channels, if 255 steps covered all values: case 3."""
        signal = np.atleast_1d(self.signal)
        step = (max(self.histogram.maximum, 0.0) - min(self.histogram.minimum, 0.0)) / 255
        return typical(np.full_like(signal, step**2 / 12 * self.values / signal.size), signal)

    @property
    def spread(self) -> float | None:
        """How many times as large the largest channel is as the middle one."""
        largest = np.atleast_1d(self.largest)
        alive = largest[largest > 0]
        return float(alive.max() / np.median(alive)) if alive.size > 1 else None

    def drawn(self) -> Histogram | None:
        """The histogram as a report has it."""
        counted = self.histogram
        if counted.minimum > counted.maximum:
            return None
        below, above = counted.below, counted.above
        counts = np.concatenate([below[::-1], above])
        if not counts.size:
            return Histogram(0.0, 0.0, (), counted.zeros)
        # Whole bins of the finer histogram each.
        joined = -(-counts.size // _BINS)
        padded = np.pad(counts, (0, -counts.size % joined))
        low = -below.size * counted.width
        high = low + padded.size * counted.width
        return Histogram(low, high, tuple(padded.reshape(-1, joined).sum(axis=1).tolist()), counted.zeros)


@dataclass(frozen=True)
class Weighed:
    """What a layer loses, in dB; None for nothing."""

    own: float | None
    typical: float | None
    accumulated: float | None
    kind: str
    kinds: Mapping[str, float]
    hidden: float | None
    """`typical`, or what it would be in the range of all values: case 3."""


def weigh(results: Iterable[Sums], weights: Powers | None = None) -> Weighed:
    """Weighs what a layer's results lose.

    Args:
        weights: of its rounded weights, the noise of each kernel beside its power.
    """
    every = list(results)
    signal = sum(float(np.sum(item.signal)) for item in every)
    own = decibels(sum(float(np.sum(item.own)) for item in every), signal)
    accumulated = decibels(sum(float(np.sum(item.accumulated)) for item in every), signal)
    if own is None or own < _LEAST:
        return Weighed(None, None, accumulated, "", {}, None)
    kinds: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for kind in dict.fromkeys(kind for item in every for kind in item.kinds):
        having = [item for item in every if kind in item.kinds]
        loss = decibels(sum(float(item.kinds[kind].sum()) for item in having), signal)
        if loss is not None and loss >= _LEAST:
            kinds[kind] = loss
            middle = (typical(item.kinds[kind], np.atleast_1d(item.signal)) for item in having)
            sizes[kind] = max([loss, *(number for number in middle if number is not None)])
    middles = [typical(np.atleast_1d(item.own), np.atleast_1d(item.signal)) for item in every]
    if weights is not None and WEIGHTS in kinds:
        middles.append(decibels(float(np.median(np.minimum(weights, 1))), 1.0))
        sizes[WEIGHTS] = max(sizes[WEIGHTS], middles[-1] if middles[-1] is not None else sizes[WEIGHTS])
    found = max((number for number in middles if number is not None), default=None)
    steps = [item.whole_range for item in every if CUT in item.kinds]
    hidden = max((number for number in (*steps, found) if number is not None), default=None)
    return Weighed(own, found, accumulated, max(sizes, key=lambda kind: sizes[kind], default=""), kinds, hidden)


def score(at_heads: float | None, hidden: float | None) -> float:
    """What layers are ranked by, in dB, the largest first: case 2."""
    power = _power(at_heads) + _SHARE * max(0.0, _power(hidden) - _LOST)
    return 10 * math.log10(power) if power else -math.inf


def _power(loss: float | None) -> float:
    return 0.0 if loss is None else 10 ** (loss / 10)
