"""Every activation against the formula of activations.h, value by value, and the three that work across channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dnc.darknet.layers.activations import ACTIVATIONS
from dnc.darknet.layers.base import Arrays
from dnc.darknet.network import Network
from dnc.errors import DncWarning

Doubles = npt.NDArray[np.float64]


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def stair(x: float) -> float:
    n = math.floor(x)
    return math.floor(x / 2) if n % 2 == 0 else (x - n) + math.floor(x / 2)


def softplus(x: float) -> float:
    if x > 20:
        return x
    return math.exp(x) if x < -20 else math.log(math.exp(x) + 1)


def lhtan(x: float) -> float:
    if x < 0:
        return 0.001 * x
    return 0.001 * (x - 1) + 1 if x > 1 else x


def plse(x: float) -> float:
    if x < -4:
        return 0.01 * (x + 4)
    return 0.01 * (x - 4) + 1 if x > 4 else 0.125 * x + 0.5


def hard_mish(x: float) -> float:
    if x > 0:
        return x
    return x * x / 2 + x if x > -2 else 0.0


SCALAR: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "logistic": logistic,
    "loggy": lambda x: 2 * logistic(x) - 1,
    "relu": lambda x: x * (x > 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "relie": lambda x: x if x > 0 else 0.01 * x,
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "revleaky": lambda x: x if x > 0 else 0.1 * x,
    "ramp": lambda x: x * (x > 0) + 0.1 * x,
    "elu": lambda x: x if x >= 0 else math.exp(x) - 1,
    "selu": lambda x: 1.0507 * x if x >= 0 else 1.0507 * 1.6732 * (math.exp(x) - 1),
    "gelu": lambda x: 0.5 * x * (1 + math.tanh(0.797885 * x + 0.035677 * x**3)),
    "tanh": math.tanh,
    "hardtan": lambda x: max(-1.0, min(1.0, x)),
    "lhtan": lhtan,
    "plse": plse,
    "stair": stair,
    "swish": lambda x: x * logistic(x),
    "mish": lambda x: x * math.tanh(softplus(x)),
    "hard_mish": hard_mish,
}


def normalize(values: Sequence[float]) -> list[float]:
    total = 1e-4 + sum(value for value in values if value > 0)
    return [value / total if value > 0 else 0.0 for value in values]


def softmax(values: Sequence[float], shift: float) -> list[float]:
    total = 1e-4 + sum(math.exp(value - shift) for value in values)
    return [math.exp(value - shift) / total for value in values]


CHANNELS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "normalize_channels": normalize,
    "normalize_channels_softmax": lambda values: softmax(values, 0.0),
    "normalize_channels_softmax_maxval": lambda values: softmax(values, max(values)),
}

SPECIAL = (0.0, -0.0, 1.0, -1.0, 2.0, -2.0, -3.0, 4.0, -4.0, 6.0, -20.0, 20.0, 88.0, -88.0, 300.0, -300.0)
"""Where the formulas change, and where exp overflows in float32."""


def test_all_are_here() -> None:
    assert {*SCALAR, *CHANNELS} == set(ACTIVATIONS)


@pytest.mark.parametrize("name", SCALAR)
def test_value_by_value(name: str, check: Callable[..., Network]) -> None:
    """Around 0, further out, and on the special values; 2e-6: a few roundings of exp and of the products with it."""

    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        return np.array([SCALAR[name](x) for x in inputs[0].ravel().tolist()]).reshape(inputs[0].shape)

    random = np.random.default_rng(5)
    for values in (random.uniform(-1.5, 1.5, (2, 4, 5, 7)), random.normal(0, 4, (2, 4, 5, 7)), [[[SPECIAL]]]):
        x = np.asarray(values, np.float32)
        _, channels, height, width = x.shape
        net = f"width={width}\nheight={height}\nchannels={channels}"
        check(f"[activation]\nactivation={name}\n", oracle, net=net, x=x, bound=2e-6)


@pytest.mark.parametrize("name", CHANNELS)
def test_across_channels(name: str, check: Callable[..., Network]) -> None:
    def oracle(inputs: Sequence[Doubles], arrays: Arrays) -> Doubles:
        y = np.empty_like(inputs[0])
        for i in range(5):
            for j in range(7):
                y[:, i, j] = CHANNELS[name](inputs[0][:, i, j].tolist())
        return y

    check(f"[activation]\nactivation={name}\n", oracle, bound=2e-6)
    check(f"[convolutional]\nfilters=3\nactivation=linear\n[activation]\nactivation={name}\n", oracle, bound=2e-6)


def test_unknown_name_is_refused(refused: Callable[..., None]) -> None:
    refused(
        "[activation]\nactivation=leeky\n", "activation=leeky is unknown", "activation=leeky", "did you mean 'leaky'?"
    )


def test_lenient_takes_relu_as_darknet_does() -> None:
    with pytest.warns(DncWarning, match="activation=leaky#x is unknown"):
        net = Network.parse("[net]\nwidth=2\nheight=2\nchannels=1\n[activation]\nactivation=leaky#x\n", lenient=True)
    assert net.layers[0].describe() == "relu"
