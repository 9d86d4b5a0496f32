"""Winograd's minimal filtering: convolutions of 3 x 3 taps with fewer multiplications, and what that costs in accuracy.

A tile of m x m outputs is computed from n x n inputs, n = m + 2, with as many products for each pair of channels:

    V = B' d B      of each tile d, for each input channel
    U = G g G'      of each filter g, when the network is compiled, in float64
    M = sum of U V  over the input channels, element by element
    y = A' M A

where the definition takes 9 m m: F(2 x 2, 3 x 3) takes 16 for 36, F(4 x 4, 3 x 3) 36 for 144. (A. Lavin, S. Gray: Fast
Algorithms for Convolutional Neural Networks, arXiv 1509.09308.)

The matrices are Toom and Cook's: tile and filter are taken for polynomials, whose product is known by its values at
n - 1 points and by its highest coefficient, "at infinity". Points +p and -p share most of their work. Any points will
do, but they decide how large the numbers become that are subtracted from each other in the end. Of 0, +-p and +-q those
with p q near 1 are best: 3/4 and 3/2, whose powers float32 holds exactly, round a fourth as much as 1 and 2, the points
of the paper (1.9e-6 and 6.9e-6 of the largest output, for 256 channels of positive noise).

Where an input is infinite or no number, all outputs of its tiles are none, not its neighbours alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.typing import Array

__all__ = ["FORMS", "WINOGRAD", "Form"]

WINOGRAD = "dnc.winograd"
"""Metadata of a node of the graph, and the annotation of a block of loops, that is to be computed so: m."""

_Number = Any
"""An array, or an expression of TVM's."""
_CHUNK = 256
"""Tiles that are computed at once."""


@dataclass(frozen=True)
class Form:
    """F(m x m, 3 x 3), by the points 0, +p and -p for each p of `pairs`, and infinity."""

    pairs: tuple[float, ...]

    @property
    def outputs(self) -> int:
        """m, the side of a tile of outputs."""
        return 2 * len(self.pairs)

    @property
    def inputs(self) -> int:
        """n, the side of a tile of inputs."""
        return self.outputs + 2

    @property
    def products(self) -> int:
        """Products of a tile for each pair of channels, and numbers that a filter becomes."""
        return self.inputs**2

    def __str__(self) -> str:
        return f"F({self.outputs}x{self.outputs})"

    def weights(self, weights: Array) -> npt.NDArray[np.float64]:
        """U (n n, I, O) of filters (3, 3, I, O).

        Row i of G is (1, p, p p) at point i over the product of its distances from the others, by which B' leaves its
        values too large; of infinity, (0, 0, 1).
        """
        points = (0.0, *(sign * p for p in self.pairs for sign in (1, -1)))
        rows = [np.power(p, range(3)) / np.prod([p - q for q in points if q != p]) for p in points]
        g = np.array([*rows, [0.0, 0.0, 1.0]])
        columns = np.tensordot(g, weights.astype(np.float64), (1, 0))
        both = np.moveaxis(np.tensordot(g, columns, (1, 1)), 0, 1)
        return both.reshape(self.products, *weights.shape[2:])

    def of_data(self, d: Sequence[_Number], constant: Callable[[float], _Number]) -> list[_Number]:
        """B' d, of n numbers: each is the polynomial that is zero at all finite points but its own, as coefficients.

        Args:
            constant: a number in the type of the others.
        """

        def even(values: Sequence[_Number], pairs: Sequence[float]) -> _Number:
            """The product of (x x - p p), of every second value."""
            coefficients = np.atleast_1d(np.poly([p * p for p in pairs]))[::-1]
            total = values[2 * len(pairs)]
            for value, coefficient in zip(values[::2], coefficients[:-1], strict=False):
                total = total + value * constant(float(coefficient))
            return total

        made = [even(d, self.pairs)]
        for p in self.pairs:
            others = [q for q in self.pairs if q != p]
            both, odd = even(d[2:], others), even(d[1:], others)
            odd = odd if p == 1 else odd * constant(p)
            made += [both + odd, both - odd]
        return [*made, even(d[1:], self.pairs)]

    def of_sums(self, sums: Sequence[_Number], constant: Callable[[float], _Number]) -> list[_Number]:
        """A' M, of n numbers: m, the sum over all points of their powers times what was computed there."""
        made = []
        for power in range(self.outputs):
            terms = [sums[0]] if power == 0 else []
            for place, p in enumerate(self.pairs):
                plus, minus = sums[2 * place + 1], sums[2 * place + 2]
                both = plus - minus if power % 2 else plus + minus
                terms.append(both if p**power == 1 else both * constant(p**power))
            if power == self.outputs - 1:
                terms.append(sums[-1])
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            made.append(total)
        return made

    def error(self, data: Array, weights: Array, pads: Sequence[int], bias: Array | None = None) -> float:
        """By how much a convolution that is computed so is off: the largest difference from the exact result, relative
        to the largest number of that.

        It is computed here as the kernel does, in float32, and in float64, which is exact to 1e-14: the two differ by
        the rounding of the weights, of both transforms and of the sums, which are added up one after the other here and
        there. NaN where there is no number.

        Args:
            data: (N, C, H, W).
            weights: (O, C, 3, 3).
            pads: above, left, below and right.
            bias: (O,): what is added to the result.
        """
        top, left, bottom, right = pads
        side, n = self.outputs, self.inputs
        given = np.pad(data.transpose(0, 2, 3, 1), ((0, 0), (top, bottom), (left, right), (0, 0)))
        images, height, width = given.shape[:3]
        rows, columns = height - 2, width - 2
        down, across = -(-rows // side), -(-columns // side)
        given = np.pad(given, ((0, 0), (0, down * side + 2 - height), (0, across * side + 2 - width), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(given, (n, n), (1, 2))[:, ::side, ::side]
        places = np.array(list(np.ndindex(images, down, across)))
        off, largest = 0.0, 0.0
        # Numbers that are none make the error none.
        with np.errstate(invalid="ignore", over="ignore"):
            exact = self.weights(weights.transpose(2, 3, 1, 0))
            for first in range(0, len(places), _CHUNK):
                image, y, x = places[first : first + _CHUNK].T
                tiles = windows[image, y, x].transpose(2, 3, 0, 1)
                wide, short = (self._tiles(tiles.astype(u.dtype), u) for u in (exact, exact.astype(np.float32)))
                # What lies behind the end of the output is none of it.
                grid = np.arange(side)
                inside = (y * side + grid[:, None] < rows)[:, None] & (x * side + grid[:, None] < columns)[None]
                wide = wide[inside] if bias is None else wide[inside] + bias
                short = short[inside] if bias is None else short[inside] + bias.astype(np.float32)
                off = float(np.maximum(off, np.abs(short - wide).max()))
                largest = float(np.maximum(largest, np.abs(wide).max()))
        return off / largest if largest else off

    def _tiles(self, tiles: Array, weights: Array) -> Array:
        """The outputs (m, m, tiles, O) of tiles (n, n, tiles, I), in the type of the weights (n n, I, O)."""
        n = self.inputs
        transformed = _both_sides(lambda d: self.of_data(d, weights.dtype.type), tiles)
        sums = np.matmul(transformed.reshape(n * n, *tiles.shape[2:]), weights)
        return _both_sides(lambda m: self.of_sums(m, weights.dtype.type), sums.reshape(n, n, *sums.shape[1:]))


def _both_sides(transform: Callable[[Sequence[Array]], list[Array]], tiles: Array) -> Array:
    columns = np.stack(transform(list(tiles)))
    return np.stack(transform(list(columns.swapaxes(0, 1)))).swapaxes(0, 1)


FORMS = {form.outputs: form for form in (Form((1.0,)), Form((0.75, 1.5)))}
"""By m."""
