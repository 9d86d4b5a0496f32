"""One histogram per tensor, of values that come one image after the other, and the range that a method reads from it.

Bins are a power of two wide, and the first 2048 of them reach past the largest |x| seen. A value that lies farther out
doubles the width until they do: two neighbours become one, and hold exactly the values that the wider bin would have
counted, because floor(floor(x / w) / 2) = floor(x / 2w) and dividing a float by a power of two is exact. The histogram
is thus the same whatever the order of the images is, in one pass, and in memory that does not grow with them. Between
1025 and 2048 of the bins are used.

Zeros are counted by themselves: any scale holds them, and those that a ReLU makes would drown what has to be weighed.

Methods, of the histogram of |x| (`symmetric`) or of either side. That of |x| is had from one of both sides, whose bins
are added; a negative number that lies on the edge of two counts in the other one then than if |x| had been counted.

    norm        the range with the least sum of |error| ** 2.4, see `norm_edges`
    kl          "8-bit Inference with TensorRT" (Szymon Migacz, GTC 2017, S7310), see `kl_bins`
    percentile  the smallest range that holds a share of all values, zeros too; half of the rest on each side
    mse         the range with the least squared error of rounding and clipping, of 256 tried
    minmax      what was seen
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.errors import CalibrationError
from dnc.graph.quantization import LEVELS, Range

__all__ = ["BINS", "METHODS", "PERCENTILE", "Histogram", "kl_bins", "mse_edges", "norm_edges", "percentile_bins"]

BINS = 2048
"""Of |x|, or on each side of 0."""
METHODS = ("norm", "kl", "percentile", "mse", "minmax")
"""The first is the default: see benchmarks/int8.md."""
PERCENTILE = 99.99

_NORM = 2.4
"""The power of an error; 2 leaves out more of the few large numbers, on which detections depend."""

_KL_LEVELS = 128
_TIE = 1e-10
"""Divergences that differ by less are equal: float64 gives them to about 1e-13."""
_TRIED = 256
_BLOCK = 1 << 15
"""Values that are binned at a time: they and their indices stay in the cache."""
_SKETCH = 32
_SMALLEST = -100
"""The exponent of the narrowest range, so that 1 / width is a float32."""

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


class Histogram:
    """Counts the values of one tensor.

    Args:
        signed: bins on both sides of 0, not of |x|.
    """

    def __init__(self, signed: bool = False) -> None:
        self.signed = signed
        self.minimum = math.inf
        self.maximum = -math.inf
        self.zeros = 0
        self._exponent = _SMALLEST
        """The bins of one side reach to 2 ** exponent."""
        self._counts: Counts = np.zeros(BINS * (1 + signed), np.int64)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self._exponent) / BINS

    @property
    def values(self) -> int:
        """The number of values that were counted, zeros too."""
        return self.zeros + int(self._counts.sum())

    @property
    def above(self) -> Counts:
        """The used bins of |x|, from 0 on; of a signed histogram those above 0."""
        return _used(self._counts[-BINS:])

    @property
    def below(self) -> Counts:
        """The used bins below 0, from 0 on; none where the histogram is not signed."""
        return _used(self._counts[:-BINS][::-1])

    @property
    def magnitudes(self) -> Counts:
        """The used bins of |x|, from 0 on."""
        below = self._counts[:-BINS][::-1]
        return _used(self._counts[-BINS:] + below if below.size else self._counts[-BINS:])

    def add(self, array: npt.NDArray[np.float32]) -> None:
        """Counts the values of a float32 array of any shape; raises CalibrationError if one of them is no number."""
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError("the network computes numbers that are infinite, or none")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._widen(max(-low, high))
        factor = np.float32(math.ldexp(BINS, -self._exponent))
        scaled, indices = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
        zeros = 0
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            part, index = scaled[: block.size], indices[: block.size]
            if self.signed:
                np.multiply(block, factor, out=part)
                np.floor(part, out=part)
                np.add(part, np.float32(BINS), out=index, casting="unsafe")
            else:
                np.abs(block, out=part)
                np.multiply(part, factor, out=index, casting="unsafe")
            self._counts += np.bincount(index, minlength=self._counts.size)
            zeros += int(np.count_nonzero(block == 0))
        self.zeros += zeros
        self._counts[-BINS] -= zeros

    def merge(self, other: Histogram) -> None:
        """Counts what another one has counted, which is `signed` as well, or is not: exactly what counting all of it
        here would have given, because both are brought to the wider bins first."""
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.zeros += other.zeros
        self._widen_to(other._exponent)
        self._counts += _widened(other._counts, self._exponent - other._exponent, self.signed)

    def __getstate__(self) -> dict[str, Any]:
        """Without the empty bins at both ends, and in as few bytes as hold the largest count: workers send it."""
        used = np.flatnonzero(self._counts)
        first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        part = self._counts[first:end]
        dtype = np.min_scalar_type(int(part.max(initial=0)))
        return {**vars(self), "_counts": (first, part.astype(dtype))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        first, part = state["_counts"]
        self.__dict__ = {**state, "_counts": np.zeros(BINS * (1 + state["signed"]), np.int64)}
        self._counts[first : first + len(part)] = part

    def _widen(self, largest: float) -> None:
        self._widen_to(math.frexp(largest)[1])

    def _widen_to(self, exponent: int) -> None:
        self._counts = _widened(self._counts, exponent - self._exponent, self.signed)
        self._exponent = max(self._exponent, exponent)

    def range(self, method: str = METHODS[0], *, symmetric: bool = True, percentile: float = PERCENTILE) -> Range:
        """The range that a method of `METHODS` chooses.

        A tensor that holds nothing but zeros gets a range of 1: any would do.

        Args:
            symmetric: one threshold for both sides, from the histogram of |x|; else (of a signed one) two.
            percentile: the share of values that "percentile" keeps, in percent.
        """
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if low == high:
            return Range.symmetric(1.0, low, high)
        if symmetric:
            return Range.symmetric(self._threshold(method, percentile), low, high)
        if method == "kl":
            chosen = [_kl_side(side) * self.width for side in (self.below, self.above)]
        elif method == "percentile":
            # Half of what is left out is left out on each side.
            share = 0.5 + percentile / 200
            chosen = [
                percentile_bins(side, share, self.values - int(side.sum())) * self.width
                for side in (self.below, self.above)
            ]
        elif method in _EDGES:
            chosen = [edge * self.width for edge in _EDGES[method](self.below, self.above)]
        else:
            chosen = [-low, high]
        # Where no value is, no method has anything to say.
        below, above = chosen[0] if low else 0.0, chosen[1] if high else 0.0
        if not below and not above:
            below, above = -low, high
        return Range(-below, above, low, high)

    def _threshold(self, method: str, percentile: float) -> float:
        if method == "kl":
            return (kl_bins(self.magnitudes) + 0.5) * self.width
        if method == "percentile":
            bins = percentile_bins(self.magnitudes, percentile / 100, self.zeros)
            return bins * self.width or max(-self.minimum, self.maximum)
        if method in _EDGES:
            return _EDGES[method](None, self.magnitudes)[1] * self.width
        return max(-self.minimum, self.maximum)

    def summary(self) -> dict[str, Any]:
        """The number of used bins on each side and their width, and of the counted values and the zeros among them;
        `sketch`: the values but for those zeros, in 32 parts of all used bins from the lowest one on."""
        sides = {"bins": len(self.above)} if not self.signed else {"below": len(self.below), "above": len(self.above)}
        every = np.concatenate([self.below[::-1], self.above])
        parts = np.array_split(every, min(_SKETCH, len(every)) or 1)
        sketch = " ".join(str(int(part.sum())) for part in parts)
        return {**sides, "width": self.width, "values": self.values, "zeros": self.zeros, "sketch": sketch}

    def cut(self, known: Range) -> int:
        """How many values lie beyond a range; those in the bins where it ends are taken for held."""
        sides = [(self.above, known.high)] + [(self.below, -known.low)] * self.signed
        return sum(int(side[math.floor(end / self.width) + 1 :].sum()) for side, end in sides)


def _widened(counts: Counts, doublings: int, signed: bool) -> Counts:
    """The counts of bins whose width is doubled so many times; as they are if that is below 1."""
    # So many doublings bring everything into the bins beside 0.
    for _ in range(min(doublings, BINS.bit_length()) if counts.any() else 0):
        pairs = counts.reshape(-1, 2).sum(axis=1)
        counts = np.pad(pairs, (pairs.size // 2 if signed else 0, 0))
        counts = np.pad(counts, (0, BINS * (1 + signed) - counts.size))
    return counts


def _used(counts: Counts) -> Counts:
    used = np.flatnonzero(counts)
    return counts[: used[-1] + 1] if used.size else counts[:0]


@lru_cache(maxsize=4)
def _edges(bins: int) -> npt.NDArray[np.int64]:
    """Row i - 128: where each of the 128 levels of the first i bins starts, and where the last one ends."""
    candidates = np.arange(_KL_LEVELS, bins + 1)[:, None]
    return -(np.arange(_KL_LEVELS + 1) * -candidates // _KL_LEVELS)


def kl_bins(counts: npt.ArrayLike) -> int:
    """The m of the slides, whose threshold is (m + 0.5) * width.

    For i = 128 … len(counts), P is the first i bins, the last of which also gets all counts beyond; Q is the first i
    bins without those, merged into 128 levels (bin j into level floor(128 j / i)), each of which is spread evenly over
    those of its bins that are not empty. Both are normalised, and m is the i with the least KL(P || Q): the first, if
    there are several. Where Q is 0 and P is not, the divergence is infinite; nothing is smoothed.

    All i are computed at once. With sums over the bins j < i, over the levels l, which hold L_l counts in K_l bins, and
    with N counts in all, of which S lie inside and R beyond,

        N KL = sum P log P - sum L_l log(L_l / K_l) - R log(L_127 / K_127) - N log N + N log S

    so that running sums of h, of h > 0 and of h log h are all that is read.

    Args:
        counts: a histogram of |x| from 0 on; fewer than 128 bins are kept whole.
    """
    h = np.asarray(counts, np.float64)
    bins, total = len(h), float(h.sum())
    if bins <= _KL_LEVELS or not total:
        return bins
    inside = np.concatenate([[0.0], np.cumsum(h)])
    filled = np.concatenate([[0], np.cumsum(h > 0)])
    entropy = np.concatenate([[0.0], np.cumsum(_x_log_x(h))])
    edges = _edges(max(bins, BINS))[: bins + 1 - _KL_LEVELS]
    held, kept = inside[edges], filled[edges]
    levels, sizes = np.diff(held, axis=1), np.diff(kept, axis=1)
    logs = np.log(np.maximum(levels, 1)) - np.log(np.maximum(np.arange(sizes.max() + 1), 1))[sizes]
    candidates = np.arange(_KL_LEVELS, bins + 1)
    last, within = h[candidates - 1], inside[candidates]
    beyond = total - within
    own = entropy[candidates - 1] + _x_log_x(last + beyond)
    cross = np.einsum("ij,ij->i", levels, logs) + beyond * logs[:, -1]
    divergence = (own - cross) / total - math.log(total) + np.log(np.maximum(within, 1))
    divergence[(beyond > 0) & (last == 0)] = np.inf
    return int(candidates[np.argmax(divergence <= divergence.min() + _TIE)])


def _x_log_x(x: Floats) -> Floats:
    return x * np.log(np.where(x > 0, x, 1))


def _kl_side(counts: Counts) -> float:
    return kl_bins(counts) + 0.5 if counts.size else 0.0


def percentile_bins(counts: npt.ArrayLike, share: float, inner: int = 0) -> int:
    """The fewest bins that, with `inner` more values nearer to 0, hold a share of all."""
    held = np.cumsum(np.concatenate([[inner], np.asarray(counts, np.int64)]))
    return int(np.argmax(held >= share * held[-1]))


def mse_edges(below: npt.ArrayLike | None, above: npt.ArrayLike) -> tuple[float, float]:
    """The ranges (below, above), in bins, with the least squared error.

    A value is taken for the middle of its bin, rounded to a step of 255 (with `below`; the two sides are then chosen in
    turn until neither changes) or to one of 127 on each side (of |x|), and clipped.
    """
    positive = np.asarray(above, np.float64)
    if below is None:
        tried = _tried(len(positive))
        high = tried[np.argmin(_errors(np.arange(len(positive)) + 0.5, positive, -tried, tried, 2 * LEVELS))]
        return float(high), float(high)
    negative = np.asarray(below, np.float64)
    middles = np.concatenate([-np.arange(len(negative))[::-1] - 0.5, np.arange(len(positive)) + 0.5])
    counts = np.concatenate([negative[::-1], positive])
    edges = [float(len(negative)), float(len(positive))]
    seen = None
    while seen != edges:
        seen = list(edges)
        for side, size in enumerate((len(negative), len(positive))):
            if size:
                tried = _tried(size)
                other = np.full_like(tried, edges[1 - side])
                low, high = (tried, other) if side == 0 else (other, tried)
                edges[side] = float(tried[np.argmin(_errors(middles, counts, -low, high, 2 * LEVELS + 1))])
    return edges[0], edges[1]


def _tried(bins: int) -> Floats:
    """256 ranges of up to so many bins, evenly spaced."""
    return np.arange(1, _TRIED + 1, dtype=np.float64) * (bins / _TRIED)


def _errors(middles: Floats, counts: Floats, low: Floats, high: Floats, steps: int) -> Floats:
    """The squared error of each range: of all counts, rounded to whole steps between low and high."""
    scale = ((high - low) / steps)[:, None]
    first = np.rint(low[:, None] / scale)
    rounded = np.clip(np.rint(middles / scale), first, first + steps) * scale
    error: Floats = ((middles - rounded) ** 2) @ counts
    return error


def norm_edges(below: npt.ArrayLike | None, above: npt.ArrayLike) -> tuple[float, float]:
    """The ranges (below, above), in bins, with the least p-norm of the error, p = 2.4.

    With e and f whole bins, of (up to) 256 on each side, c counts and d the step, (e + f) / 255, or of |x| f / 127:

        sum c (m - f)^p for the middles m beyond f, likewise for e;  and within  sum c * (d / 2)^p / (p + 1),

    which is the mean of |error|^p where numbers lie anywhere between two steps. Among all pairs of e and f the least is
    taken. The norm is that of "Loss Aware Post-Training Quantization" (Nahshan et al., Machine Learning 110, 2021),
    which finds p by the loss; 2.4 is what BRECQ (Li et al., ICLR 2021) takes for all networks.
    """
    edges, clipped, within = _clipped(np.asarray(above, np.float64))
    if below is None:
        best = np.argmin(clipped + within * (edges / LEVELS / 2) ** _NORM / (_NORM + 1))
        return float(edges[best]), float(edges[best])
    low, clipped_low, within_low = _clipped(np.asarray(below, np.float64))
    steps = (low[:, None] + edges) / (2 * LEVELS + 1)
    error = clipped_low[:, None] + clipped + (within_low[:, None] + within) * (steps / 2) ** _NORM / (_NORM + 1)
    best, other = np.unravel_index(np.argmin(error), error.shape)
    return float(low[best]), float(edges[other])


def _clipped(counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Ends of one side, in bins; what each cuts off, as the sum of its p-th powers, and how many numbers it holds."""
    if not counts.size:
        return np.zeros(1), np.zeros(1), np.zeros(1)
    edges = np.unique(np.ceil(_tried(len(counts))).astype(np.int64))
    powers = (np.arange(len(counts)) + 0.5) ** _NORM
    clipped = np.array([counts[edge:] @ powers[: len(counts) - edge] for edge in edges])
    return edges.astype(np.float64), clipped, np.cumsum(counts)[edges - 1]


_EDGES = {"mse": mse_edges, "norm": norm_edges}
