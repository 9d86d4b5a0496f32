"""Quantization: what is known of the numbers of a value, and how 8-bit integers stand for them.

    real = scale (integer - zero_point)

1. `Range`: what a calibration measured. `attach_ranges` puts it on the graph's values by their names; from there on it
   belongs to the value, as its shape does: clones have it, and it goes where the value's name goes
   (`dnc.graph.rewriting`).
2. `QuantSpec`: where an engine wants 8-bit numbers, and which.
3. `QuantParams`: a range as the spec wants it. `dnc.passes.quantize` puts them on the value that they hold for, and
   writes them as QuantizeLinear and DequantizeLinear, which a file keeps and engines read.

Activations are unsigned, 0 to 255, or, for engines that have no other zero point than 0, signed; a tensor has one
scale. Their range always holds 0, which stands for itself, so that padding with zeros adds no error. Weights are signed
and symmetric, with one scale for each output channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from dnc.graph.pairs import Pairing

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "DATA_MOVEMENT",
    "LEVELS",
    "Channels",
    "QuantParams",
    "QuantSpec",
    "Range",
    "as_threshold",
    "attach_ranges",
    "least_weight_scales",
    "quant_params_of",
    "range_of",
    "reals_of",
    "set_quant_params",
    "set_range",
    "set_reals",
]

DATA_MOVEMENT = frozenset({"MaxPool", "Resize", "Reshape", "Transpose", "Slice", "Split", "Gather", "Identity"})
"""Operators whose outputs are numbers of their first input, as they were; of Resize, the nearest."""
LEVELS = 127
"""The largest signed 8-bit number, and minus the smallest that engines use."""

_TINY = float(np.finfo(np.float32).tiny)
_LARGEST_BIAS = 2.0**30
"""The largest bias, in units of its scale: int32 then has room for the sum of products."""
_RANGE, _PARAMS, _REALS = "dnc.range", "dnc.quant_params", "dnc.reals"


def as_threshold(value: float) -> float:
    """The nearest threshold whose scale, a 127th of it, is a float32 and not 0."""
    return LEVELS * _float32(value / LEVELS)


def _float32(scale: float) -> float:
    """Scales are float32 in every engine and every table."""
    return max(float(np.float32(scale)), _TINY)


@dataclass(frozen=True)
class Channels:
    """What was seen in each channel of a tensor; empty where that was not measured, or holds no more."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...] = ()


@dataclass(frozen=True)
class Range:
    """The real numbers of one tensor, over all images."""

    low: float
    high: float
    """What the integers have to reach, chosen by a method of calibration; 0 lies between them."""
    minimum: float = -math.inf
    maximum: float = math.inf
    """What was seen; infinite where nobody looked."""
    channels: Channels | None = None
    """What was seen in each channel, of a tensor with height and width; None where that was not measured."""

    @classmethod
    def symmetric(cls, threshold: float, minimum: float, maximum: float) -> Self:
        """From -threshold, or 0 where `minimum` is not below it, to the threshold."""
        threshold = as_threshold(threshold)
        return cls(-threshold if minimum < 0 else 0.0, threshold, minimum, maximum)

    @property
    def threshold(self) -> float:
        """The end of the symmetric range around it."""
        return as_threshold(max(-self.low, self.high))

    @property
    def seen(self) -> Range:
        """The part in which numbers were seen: what is symmetric about 0 reaches beyond it."""
        low, high = max(self.low, min(self.minimum, 0)), min(self.high, max(self.maximum, 0))
        return Range(low, high, channels=self.channels)


@dataclass(frozen=True)
class QuantSpec:
    """Where an engine wants 8-bit numbers, and of which kind, so that it computes with them as fast as it can."""

    operators: frozenset[str]
    """The operators that it computes with integers."""
    outputs: bool = False
    """What these operators give is rounded too, and not only what they read: for an engine that has a kernel for each
    operator and fuses none, and knows by that which to take."""
    symmetric: bool = False
    """Activations are int8 with zero point 0, and the calibration has to be a symmetric one; else they are uint8."""
    unified_concat: bool = False
    """The parts of a concatenation share a scale."""
    int32_biases: bool = False
    """Biases are int32, in units of the product of the two scales; else they stay float32."""
    dense_only: bool = False
    """Products of several groups stay float32. So does what moves numbers where any that reads them is float32; else
    it moves them with the parameters of the concatenation that alone reads them."""
    thin: int = 0
    """The network's first convolutions of up to so many channels, each with a leaky behind it, stay float32: for an
    engine that rounds between the two as well, in steps as coarse as the leaky's slope is small, and that has too few
    numbers to add up there to be faster for it."""
    pairs: tuple[Pairing, ...] = ()
    """How its kernels may take products two by two to add them in 16 bits, the usual way first: weights are such that
    these sums fit (`dnc.graph.pairs`). Empty where all sums are exact."""

    def activations(self, known: Range) -> QuantParams:
        """The parameters of a tensor with this range."""
        return QuantParams.symmetric(known) if self.symmetric else QuantParams.asymmetric(known)


@dataclass(frozen=True)
class QuantParams:
    """What the integers of a tensor stand for."""

    scale: tuple[float, ...]
    """One, or one for each place of the axis; each is a float32."""
    zero_point: int = 0
    dtype: str = "int8"
    """NumPy's name of the integers' type."""
    axis: int | None = None

    @classmethod
    def asymmetric(cls, known: Range) -> Self:
        """uint8: the finest scale with which 0 to 255 cover the range."""
        low, high = min(known.low, 0.0), max(known.high, 0.0)
        scale = _float32((high - low) / 255)
        return cls((scale,), int(np.clip(np.round(-low / scale), 0, 255)), "uint8")

    @classmethod
    def symmetric(cls, known: Range) -> Self:
        """int8: -127 to 127 cover the range, and 0 stands for 0."""
        return cls((_float32(max(-known.low, known.high, 0.0) / LEVELS),))

    @classmethod
    def of_weights(cls, weights: npt.NDArray[Any], least: npt.NDArray[Any] | float = 0.0) -> Self:
        """int8, for each output channel, axis 0: its largest weight is `LEVELS`.

        Args:
            weights: float, (outputs, ...).
            least: what the scales must not be below, (outputs,).
        """
        largest = np.abs(weights.reshape(len(weights), -1)).max(axis=1, initial=0).astype(np.float64)
        scales = np.maximum(np.maximum(largest / LEVELS, least), _TINY).astype(np.float32)
        return cls(tuple(scales.tolist()), axis=0)

    @classmethod
    def read(cls, scale: npt.NDArray[Any], zero_point: npt.NDArray[Any] | None = None, axis: int | None = None) -> Self:
        """The parameters that a QuantizeLinear or DequantizeLinear has, from its inputs and its axis."""
        zeros = np.zeros(1, np.int8) if zero_point is None else zero_point
        return cls(tuple(scale.reshape(-1).tolist()), int(zeros.reshape(-1)[0]), zeros.dtype.name, axis)

    def quantize(self, reals: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The integers nearest to real numbers: rounded to even and clipped."""
        limits = np.iinfo(self.dtype)
        integers = np.round(self.steps(reals)) + self.zero_point
        clipped: npt.NDArray[Any] = np.clip(integers, limits.min, limits.max).astype(self.dtype)
        return clipped

    def steps(self, reals: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Real numbers in units of the scale, not rounded, less the zero point."""
        steps: npt.NDArray[Any] = reals / self._scales(reals.ndim)
        return steps

    def dequantize(self, integers: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The real numbers that integers stand for."""
        reals: npt.NDArray[np.float32] = integers.astype(np.float32) - np.float32(self.zero_point)
        return reals * self._scales(integers.ndim)

    def _scales(self, rank: int) -> npt.NDArray[np.float32]:
        """The scales, in a shape that multiplies a tensor of so many axes."""
        scales = np.array(self.scale, np.float32)
        return scales.reshape([-1 if axis == self.axis else 1 for axis in range(rank)] if scales.size > 1 else ())


def least_weight_scales(biases: npt.NDArray[Any], scale: float) -> npt.NDArray[Any]:
    """The least scales of weights with which the biases are int32 numbers, if the input's scale is `scale`."""
    return np.abs(biases.astype(np.float64)) / (scale * _LARGEST_BIAS)


def attach_ranges(model: ir.Model, ranges: Mapping[str, Range]) -> None:
    """Puts ranges on the values of these names: the model's input, and the output of each layer."""
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if (known := ranges.get(value.name or "")) is not None:
            set_range(value, known)


def range_of(value: ir.Value) -> Range | None:
    """The range of a value; None where none is known."""
    found: Range | None = value.meta.get(_RANGE)
    return found


def set_range(value: ir.Value, known: Range | None) -> None:
    """Gives a value its range, or takes it away."""
    value.meta[_RANGE] = known


def quant_params_of(value: ir.Value) -> QuantParams | None:
    """The parameters of the integers that a value is, or comes from; None where it is computed in float32."""
    found: QuantParams | None = value.meta.get(_PARAMS)
    return found


def set_quant_params(value: ir.Value, params: QuantParams) -> None:
    """Says which integers a value is, or comes from."""
    value.meta[_PARAMS] = params


def reals_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The real weights that rounded ones stand for; None where they were not rounded."""
    found: ir.TensorProtocol | None = value.meta.get(_REALS)
    return found


def set_reals(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Says which real weights these stand for."""
    value.meta[_REALS] = tensor
