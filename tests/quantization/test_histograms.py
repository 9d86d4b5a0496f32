"""Histograms that grow are those that would have been counted at once; methods against plain implementations."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.errors import CalibrationError
from dnc.graph.quantization import Range
from dnc.quantization.histograms import BINS, METHODS, Histogram, kl_bins, mse_edges, norm_edges, percentile_bins

Counts = npt.NDArray[np.int64]


def _pieces(seed: int) -> list[npt.NDArray[np.float32]]:
    """Arrays whose ranges differ by powers of ten, with zeros and whole numbers, which lie on the borders of bins."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(generator.integers(1, 6)):
        values = generator.normal(0, 10.0 ** generator.integers(-6, 4), (3, generator.integers(1, 50)))
        values[generator.random(values.shape) < 0.2] = 0
        values = np.where(generator.random(values.shape) < 0.2, np.rint(values), values)
        made.append(values.astype(np.float32))
    return made


@given(st.integers(0, 2**32), st.booleans())
def test_growing_is_exact(seed: int, signed: bool) -> None:
    pieces = _pieces(seed)
    grown = Histogram(signed)
    for piece in pieces:
        grown.add(piece)
    values = np.concatenate([piece.reshape(-1) for piece in pieces])
    values = values[values != 0]
    assert grown.values - grown.zeros == len(values)
    assert grown.values == sum(piece.size for piece in pieces)
    bins = np.floor((values if signed else np.abs(values)).astype(np.float64) / grown.width).astype(np.int64)
    above, below = np.bincount(bins[bins >= 0]), np.bincount(-1 - bins[bins < 0])
    assert above.tolist() == grown.above.tolist()
    assert below.tolist() == grown.below.tolist()
    if len(values):
        assert BINS / 2 <= max(len(above), len(below)) <= BINS
        assert (grown.minimum, grown.maximum) == (min(p.min() for p in pieces), max(p.max() for p in pieces))


@given(st.integers(0, 2**32), st.booleans())
def test_the_order_does_not_matter(seed: int, signed: bool) -> None:
    pieces = _pieces(seed)
    one, other = Histogram(signed), Histogram(signed)
    for piece in pieces:
        one.add(piece)
    for piece in pieces[::-1]:
        other.add(piece)
    assert one.summary() == other.summary()
    assert one.above.tolist() == other.above.tolist()
    assert one.below.tolist() == other.below.tolist()


def test_arrays_larger_than_a_block_and_views() -> None:
    values = np.random.default_rng(0).normal(0, 1, (2, 300, 300)).astype(np.float32)
    histogram = Histogram()
    histogram.add(values[:, ::2])
    assert histogram.values == values[:, ::2].size
    assert histogram.above.sum() == histogram.values
    histogram.add(values[:0])
    assert histogram.values == values[:, ::2].size


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_no_numbers(number: float) -> None:
    with pytest.raises(CalibrationError, match="infinite, or none"):
        Histogram().add(np.array([1, number], np.float32))


@pytest.mark.parametrize("number", [3.4e38, 1e-38, 1e-45])
def test_the_ends_of_float32(number: float) -> None:
    histogram = Histogram()
    histogram.add(np.array([number], np.float32))
    assert histogram.range("minmax").threshold >= np.float32(number) * (1 - 2**-24)


def _slides(counts: list[int]) -> int:
    """S7310 word by word, one bin after the other."""
    divergences = {}
    for i in range(128, len(counts) + 1):
        source = counts[:i]
        reference = [float(count) for count in source]
        reference[i - 1] += sum(counts[i:])
        levels: list[list[int]] = [[] for _ in range(128)]
        for j in range(i):
            levels[j * 128 // i].append(j)
        candidate = [0.0] * i
        for level in levels:
            filled = [j for j in level if source[j]]
            for j in filled:
                candidate[j] = sum(source[k] for k in level) / len(filled)
        divergences[i] = _divergence(reference, candidate)
    least = min(divergences.values())
    # Of equal ones the first; so near, rounding decides.
    return next(i for i, divergence in divergences.items() if divergence <= least + 1e-10)


def _divergence(reference: list[float], candidate: list[float]) -> float:
    p_sum, q_sum = math.fsum(reference), math.fsum(candidate)
    terms = []
    for p, q in zip(reference, candidate, strict=True):
        if p and not q:
            return math.inf
        if p:
            terms.append(p / p_sum * math.log((p / p_sum) / (q / q_sum)))
    return math.fsum(terms)


def _counts(kind: str, bins: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    if kind == "smooth":
        counts = generator.poisson(1e5 * np.exp(-np.arange(bins) / (bins / generator.uniform(2, 12))))
    elif kind == "random":
        counts = generator.integers(0, 1000, bins)
    elif kind == "spiky":
        counts = generator.poisson(3.0, bins)
        counts[generator.integers(0, bins, 5)] = 10**6
    elif kind == "sparse":
        counts = np.where(generator.random(bins) < 0.03, generator.integers(1, 100, bins), 0)
    else:
        counts = np.zeros(bins, np.int64)
        counts[bins // 2 :] = generator.integers(1, 50, bins - bins // 2)
    counts[-1] = max(counts[-1], 1)
    return [int(count) for count in counts]


@pytest.mark.parametrize("kind", ["smooth", "random", "spiky", "sparse", "far"])
@settings(max_examples=12)
@given(bins=st.integers(129, 420), seed=st.integers(0, 2**32))
def test_kl_is_that_of_the_slides(kind: str, bins: int, seed: int) -> None:
    counts = _counts(kind, bins, seed)
    assert kl_bins(counts) == _slides(counts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smooth", "random", "spiky", "sparse", "far"])
@pytest.mark.parametrize("bins", [1025, 2048, 2500])
def test_kl_of_whole_histograms(kind: str, bins: int) -> None:
    counts = _counts(kind, bins, bins)
    assert kl_bins(counts) == _slides(counts)


def test_kl_of_few_bins_keeps_all() -> None:
    assert kl_bins([1] * 100) == 100
    assert kl_bins([]) == 0
    assert kl_bins([0] * 300) == 300


def test_kl_of_one_value_is_the_first_of_many_equals() -> None:
    """Whatever lies beyond it, one spike is represented exactly; the slides have no smaller candidate than 128."""
    assert kl_bins([0] * 50 + [7] + [0] * 1000) == 128


def test_the_swish_of_the_literature() -> None:
    """N(0, 2) through swish: 5.99 was measured with 2048 bins up to the largest number. Bins are wider here."""
    x = np.random.default_rng(0).normal(0, 2, 10**5)
    histogram = Histogram()
    histogram.add((x / (1 + np.exp(-x))).astype(np.float32))
    assert histogram.range("kl").threshold == pytest.approx(5.99, abs=0.3)


@given(st.integers(0, 2**32), st.floats(0.01, 1))
def test_percentile_is_the_smallest_range(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    counts, inner = generator.integers(0, 5, generator.integers(1, 40)), int(generator.integers(0, 50))
    counts[-1] += 1
    found = percentile_bins(counts, share, inner)
    wanted = share * (inner + counts.sum())
    assert inner + counts[:found].sum() >= wanted
    assert found == 0 or inner + counts[: found - 1].sum() < wanted


def _squared_error(values: npt.NDArray[Any], counts: Counts, low: float, high: float, steps: int) -> float:
    scale = (high - low) / steps
    first = round(low / scale)
    rounded = [min(max(round(value / scale), first), first + steps) * scale for value in values.tolist()]
    pairs = zip(values.tolist(), rounded, counts.tolist(), strict=True)
    return math.fsum(count * (value - near) ** 2 for value, near, count in pairs)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_mse_is_the_least_of_what_is_tried(seed: int) -> None:
    counts = np.array(_counts("smooth", 300, seed))
    counts[-1] = np.random.default_rng(seed).integers(1, 1000)
    high = mse_edges(None, counts)[1]
    middles = np.arange(300) + 0.5
    tried = [300 * k / 256 for k in range(1, 257)]
    errors = [_squared_error(middles, counts, -edge, edge, 254) for edge in tried]
    # Sums of squares in another order.
    assert _squared_error(middles, counts, -high, high, 254) == pytest.approx(min(errors), rel=1e-9)


def test_mse_of_two_sides_is_no_worse_than_what_was_seen() -> None:
    generator = np.random.default_rng(0)
    below, above = (np.bincount(np.minimum(generator.exponential(s, 9999), 400).astype(int)) for s in (9, 40))
    low, high = mse_edges(below, above)
    middles = np.concatenate([-np.arange(len(below)) - 0.5, np.arange(len(above)) + 0.5])
    counts = np.concatenate([below, above])
    best = _squared_error(middles, counts, -low, high, 255)
    assert best < _squared_error(middles, counts, -len(below), len(above), 255)
    for edge in (0.9, 1.1):
        assert best <= _squared_error(middles, counts, -low, high * edge, 255)


def _norm(below: npt.NDArray[Any], above: npt.NDArray[Any], low: float, high: float, steps: int) -> float:
    """The sum of |error| ** 2.4, number by number, where numbers in range are as far from a step as any."""
    inside = ((low + high) / steps / 2) ** 2.4 / 3.4
    parts = [
        count * (max(number + 0.5 - end, 0) ** 2.4 if number >= end else inside)
        for side, end in ((below, low), (above, high))
        for number, count in enumerate(side.tolist())
    ]
    return math.fsum(parts)


@pytest.mark.parametrize("below", [0, 60, 256])
def test_norm_is_the_least_of_all_pairs(below: int) -> None:
    """A long tail is cut where that costs less than a finer step wins."""
    generator = np.random.default_rng(below)
    sides = [generator.integers(0, 9999, size) // (1 + np.arange(size) ** 2) for size in (below, 256)]
    for side in sides:
        side[-1:] = 1
    low, high = norm_edges(sides[0], sides[1])
    ends = itertools.product(range(min(below, 1), below + 1, 9), range(1, 257, 9))
    negative, positive = sides
    least = min(_norm(negative, positive, *pair, 255) for pair in ends)
    assert _norm(negative, positive, low, high, 255) <= least * (1 + 1e-9)
    assert (low == 0) is (below == 0)
    assert 0 < high < 256
    both = norm_edges(None, sides[1])
    assert both[0] == both[1]
    least = min(_norm(sides[0][:0], sides[1], 0, end, 127) for end in range(1, 257))
    assert _norm(sides[0][:0], sides[1], 0, both[1], 127) == pytest.approx(least, rel=1e-9)


def test_norm_keeps_more_of_large_numbers_than_mse() -> None:
    """The few on which detections depend."""
    values = np.random.default_rng(0).laplace(0, 1, 200_000)
    norm, mse = (_histogram(values, signed=True).range(method, symmetric=False) for method in ("norm", "mse"))
    assert norm.low < mse.low < 0 < mse.high < norm.high < norm.maximum


def _histogram(values: npt.ArrayLike, signed: bool = False) -> Histogram:
    histogram = Histogram(signed)
    histogram.add(np.asarray(values, np.float32))
    return histogram


def test_minmax() -> None:
    """Thresholds are rounded to 127 times a float32."""
    values = [-1.5, 0.25, 4]
    found = _histogram(values).range("minmax")
    assert (found.low, found.high) == (-found.threshold, found.threshold)
    assert found.threshold == pytest.approx(4, rel=2**-24)
    assert (found.minimum, found.maximum) == (-1.5, 4)
    both = _histogram(values, signed=True).range("minmax", symmetric=False)
    assert (both.low, both.high) == (-1.5, 4)
    assert both.threshold == pytest.approx(4, rel=2**-24)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_side(method: str, symmetric: bool) -> None:
    x = np.random.default_rng(0).normal(0, 1, 20000)
    positive = _histogram(np.maximum(x, 0), not symmetric).range(method, symmetric=symmetric)
    assert positive.low == 0 < 2 < positive.high
    negative = _histogram(np.minimum(x, 0), not symmetric).range(method, symmetric=symmetric)
    assert negative.low < -2
    assert negative.high == (negative.threshold if symmetric else 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_alone_have_a_range(method: str, symmetric: bool) -> None:
    found = _histogram([0, 0], not symmetric).range(method, symmetric=symmetric)
    assert found.low <= 0 < found.high
    assert found.threshold == pytest.approx(1, rel=2**-24)


@pytest.mark.parametrize("method", ["norm", "kl", "percentile", "mse"])
def test_zeros_of_a_relu_do_not_drown_the_rest(method: str) -> None:
    """What is clipped does not depend on how many zeros there are, but for the share that percentile counts."""
    x = np.abs(np.random.default_rng(0).normal(0, 1, 20000))
    few, many = _histogram(x), _histogram(np.concatenate([x, np.zeros(200_000)]))
    assert many.zeros == 200_000
    few_range, many_range = few.range(method, percentile=99), many.range(method, percentile=99)
    assert (few_range.threshold == many_range.threshold) is (method != "percentile")


def test_percentile_counts_both_sides() -> None:
    """10 of 1000 numbers are left out: on each side 5."""
    values = np.concatenate([np.arange(1, 501), -np.arange(1, 501)]).astype(np.float32)
    both = _histogram(values, signed=True).range("percentile", symmetric=False, percentile=99)
    assert both.high == pytest.approx(495, abs=0.5)
    assert both.low == pytest.approx(-495, abs=0.5)
    assert _histogram(values).range("percentile", percentile=99).threshold == pytest.approx(495, abs=0.5)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_magnitudes_of_both_sides(seed: int) -> None:
    """Of numbers on no edge, which have no last bit, bins of |x| are those that were counted as such."""
    pieces = [(piece.view(np.int32) | 1).view(np.float32) for piece in _pieces(seed)]
    signed, plain = Histogram(True), Histogram(False)
    for piece in pieces:
        signed.add(piece)
        plain.add(piece)
    assert signed.magnitudes.tolist() == plain.above.tolist() == plain.magnitudes.tolist()
    for method in ("kl", "percentile", "mse", "minmax"):
        assert signed.range(method, symmetric=True) == plain.range(method, symmetric=True)


@pytest.mark.parametrize("signed", [True, False])
def test_cut_and_sketch(signed: bool) -> None:
    x = np.linspace(-1, 3, 4001, dtype=np.float32)
    found = _histogram(x, signed)
    summary = found.summary()
    counts = list(map(int, summary["sketch"].split()))
    assert len(counts) == 32
    assert sum(counts) == summary["values"] - summary["zeros"] == 4000
    # To a bin of 4 / 2048, in which 2 values are.
    expected = np.count_nonzero((x < -0.5) | (x > 2)) if signed else np.count_nonzero(np.abs(x) > 2)
    assert abs(found.cut(Range(-0.5, 2.0)) - expected) <= 2
    assert found.cut(Range(-1.0, 3.0)) == 0


def test_sketch_of_little() -> None:
    assert Histogram().summary()["sketch"] == "0"
    assert _histogram([1.0, 2.0], False).summary()["sketch"].count("1") == 2


@given(st.integers(0, 2**32), st.booleans(), st.integers(0, 5))
def test_merging_is_counting(seed: int, signed: bool, cut: int) -> None:
    """Of any two parts, in either order, after a journey as bytes."""
    pieces = _pieces(seed)
    whole, first, second = (Histogram(signed) for _ in range(3))
    for place, piece in enumerate(pieces):
        whole.add(piece)
        (first if place < cut else second).add(piece)
    for one, other in ((first, second), (second, first)):
        sent, kept = (pickle.loads(pickle.dumps(histogram)) for histogram in (one, other))
        assert vars(sent)["_counts"].tolist() == vars(one)["_counts"].tolist()
        kept.merge(sent)
        assert kept.summary() == whole.summary()
        assert (kept.minimum, kept.maximum) == (whole.minimum, whole.maximum)
        assert vars(kept)["_counts"].tolist() == vars(whole)["_counts"].tolist()
