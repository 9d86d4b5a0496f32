"""Darknet's activations (activations.c), each in ONNX operators and in numpy.

The formulas are those that Darknet's documentation and its GPU code intend. Its CPU build forgets some: relu6 is zero
everywhere, and swish, mish, hard_mish and relu6 are zero in [activation], [shortcut], [scale_channels] and [sam].
The three normalize_channels kinds work across the channels of one position (arXiv 1911.09516, ASFF); every other is
element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dnc.darknet.cfg import Section
from dnc.darknet.layers.base import Array, Builder, Value

__all__ = ["ACTIVATIONS", "activate", "emit_activation", "parse_activation"]

_EPSILON = 1e-4
"""Added to the sums of the normalize_channels kinds."""


class Activation(NamedTuple):
    """An activation in both forms."""

    emit: Callable[[Builder, Value], Value]
    reference: Callable[[Array], Array]


def parse_activation(section: Section, default: str) -> str:
    """The name of a known activation; under lenient an unknown one is relu, as in Darknet, unless it is a known one by
    the name that others have for it."""
    return section.choice("activation", default, ACTIVATIONS, fallback="relu", same=_SAME, meant=_MEANT)


def emit_activation(b: Builder, x: Value, name: str) -> Value:
    """Adds the activation's nodes; channels are axis 1."""
    return ACTIVATIONS[name].emit(b, x)


def activate(x: Array, name: str) -> Array:
    """The activation of x, channels on axis 1."""
    with np.errstate(over="ignore"):
        return ACTIVATIONS[name].reference(x).astype(np.float32, copy=False)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x))).astype(np.float32, copy=False)


def _affine(b: Builder, x: Value, scale: float, shift: float) -> Value:
    return b.op("Add", b.op("Mul", x, b.constant(scale)), b.constant(shift))


def _clip(b: Builder, x: Value, low: float, high: float) -> Value:
    return b.op("Clip", x, b.constant(low), b.constant(high))


def _leaky(slope: float) -> Activation:
    return Activation(
        lambda b, x: b.op("LeakyRelu", x, alpha=slope), lambda x: np.where(x > 0, x, np.float32(slope) * x)
    )


def _piecewise_linear(low: float, high: float, inner: float, shift: float, outer: float) -> Activation:
    """`inner` * x + shift between low and high, continued with the slope `outer` on both sides."""

    def emit(b: Builder, x: Value) -> Value:
        middle = _clip(b, x, low, high)
        outside = b.op("Mul", b.op("Sub", x, middle), b.constant(outer))
        return b.op("Add", _affine(b, middle, inner, shift), outside)

    def reference(x: Array) -> Array:
        middle = np.clip(x, low, high)
        return middle * inner + shift + (x - middle) * outer

    return Activation(emit, reference)


def _emit_stair(b: Builder, x: Value) -> Value:
    # Flat on [2n, 2n+1), a ramp of slope 1 on [2n+1, 2n+2).
    half = b.op("Floor", b.op("Mul", x, b.constant(0.5)))
    ramp = b.op("Sub", b.op("Sub", x, b.op("Mul", half, b.constant(2.0))), b.constant(1.0))
    return b.op("Add", half, b.op("Relu", ramp))


def _stair(x: Array) -> Array:
    floor = np.floor(x)
    half = np.floor(x / 2)
    return np.where(floor % 2 == 0, half, x - floor + half)


def _emit_gelu(b: Builder, x: Value) -> Value:
    cube = b.op("Mul", b.op("Mul", x, x), x)
    inner = b.op("Add", b.op("Mul", x, b.constant(0.797885)), b.op("Mul", cube, b.constant(0.035677)))
    return b.op("Mul", b.op("Mul", x, b.constant(0.5)), b.op("Add", b.op("Tanh", inner), b.constant(1.0)))


def _emit_hard_mish(b: Builder, x: Value) -> Value:
    low = _clip(b, x, -2.0, 0.0)
    square = b.op("Mul", b.op("Mul", low, low), b.constant(0.5))
    return b.op("Add", b.op("Add", square, low), b.op("Relu", x))


def _emit_normalize(b: Builder, positive: Value) -> Value:
    return b.op("Div", positive, b.op("Add", b.reduce_sum(positive, 1), b.constant(_EPSILON)))


def _normalize(positive: Array) -> Array:
    total: Array = positive.sum(axis=1, keepdims=True) + np.float32(_EPSILON)
    return positive / total


def _emit_shifted_exp(b: Builder, x: Value) -> Value:
    return b.op("Exp", b.op("Sub", x, b.op("ReduceMax", x, axes=[1], keepdims=1)))


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda b, x: x, lambda x: x),
    "logistic": Activation(lambda b, x: b.op("Sigmoid", x), sigmoid),
    "loggy": Activation(lambda b, x: _affine(b, b.op("Sigmoid", x), 2.0, -1.0), lambda x: 2 * sigmoid(x) - 1),
    "relu": Activation(lambda b, x: b.op("Relu", x), lambda x: np.maximum(x, 0)),
    "relu6": Activation(lambda b, x: _clip(b, x, 0.0, 6.0), lambda x: np.clip(x, 0, 6)),
    "relie": _leaky(0.01),
    "leaky": _leaky(0.1),
    "revleaky": _leaky(0.1),
    "ramp": Activation(
        lambda b, x: b.op("Add", b.op("Relu", x), b.op("Mul", x, b.constant(0.1))),
        lambda x: x * (x > 0) + np.float32(0.1) * x,
    ),
    "elu": Activation(lambda b, x: b.op("Elu", x, alpha=1.0), lambda x: np.where(x >= 0, x, np.expm1(x))),
    "selu": Activation(
        lambda b, x: b.op("Selu", x, alpha=1.6732, gamma=1.0507),
        lambda x: np.float32(1.0507) * np.where(x >= 0, x, np.float32(1.6732) * np.expm1(x)),
    ),
    "gelu": Activation(
        _emit_gelu,
        lambda x: np.float32(0.5) * x * (1 + np.tanh(np.float32(0.797885) * x + np.float32(0.035677) * x * x * x)),
    ),
    "tanh": Activation(lambda b, x: b.op("Tanh", x), np.tanh),
    "hardtan": Activation(lambda b, x: _clip(b, x, -1.0, 1.0), lambda x: np.clip(x, -1, 1)),
    "lhtan": _piecewise_linear(0.0, 1.0, inner=1.0, shift=0.0, outer=0.001),
    "plse": _piecewise_linear(-4.0, 4.0, inner=0.125, shift=0.5, outer=0.01),
    "stair": Activation(_emit_stair, _stair),
    "swish": Activation(lambda b, x: b.op("Mul", x, b.op("Sigmoid", x)), lambda x: x * sigmoid(x)),
    "mish": Activation(
        lambda b, x: b.op("Mul", x, b.op("Tanh", b.op("Softplus", x))), lambda x: x * np.tanh(np.logaddexp(0, x))
    ),
    "hard_mish": Activation(
        _emit_hard_mish, lambda x: np.where(x > 0, x, np.where(x > -2, x * x / 2 + x, np.float32(0)))
    ),
    "normalize_channels": Activation(
        lambda b, x: _emit_normalize(b, b.op("Relu", x)), lambda x: _normalize(np.maximum(x, 0))
    ),
    "normalize_channels_softmax": Activation(
        lambda b, x: _emit_normalize(b, b.op("Exp", x)), lambda x: _normalize(np.exp(x))
    ),
    "normalize_channels_softmax_maxval": Activation(
        lambda b, x: _emit_normalize(b, _emit_shifted_exp(b, x)),
        lambda x: _normalize(np.exp(x - x.max(axis=1, keepdims=True))),
    ),
}

_SAME = {
    "silu": "swish",
    "sigmoid": "logistic",
    "hardtanh": "hardtan",
    "gelutanh": "gelu",
    **dict.fromkeys(("identity", "none", "id"), "linear"),
}
"""Other frameworks' names of the same functions."""
_NONE = "Darknet has none like it; it has " + ", ".join(ACTIVATIONS)
_MEANT = {
    **dict.fromkeys(("leakyrelu", "lrelu"), "leaky has the slope 0.1, relie 0.01"),
    **dict.fromkeys(("hardswish", "hswish", "hardsigmoid", "hsigmoid", "logsigmoid", "tanhshrink", "quickgelu"), _NONE),
    **dict.fromkeys(("prelu", "rrelu", "frelu", "crelu", "srelu", "relu1", "relu2", "celu"), _NONE),
    **dict.fromkeys(("glu", "geglu", "reglu", "swiglu"), _NONE),
}
"""What looks like one of Darknet's and is another."""
