"""Activations, and all the ways in which they are written:

relu, clip        clamps one after the other: Relu, Clip, Min and Max with numbers
leaky             LeakyRelu, Max(x, a x) for a in (0, 1), Where(x > 0, x, a x), PRelu with one slope
sigmoid           1 / (1 + e^-x)
hard sigmoid      clip(a x + b, 0, 1) = clip(x + b / a, 0, 1 / a) a
swish             x sigmoid(x) = x / (1 + e^-x)
hard swish        x hard_sigmoid(x) with a = 1/6, b = 1/2
mish              x tanh(softplus(x)) = x u / (u + 2),    u = e^x (e^x + 2), where 20 stands for any larger x: from
                  there u / (u + 2) is 1
gelu              x / 2 (1 + tanh(0.797885 (x + 0.044715 x^3))): the digits of Darknet and those of engines agree
elu               max(x, e^min(x, 0) - 1)
selu              gamma elu(x, alpha)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import onnx_ir as ir

from dnc.passes.shared.patterns import CLAMPS, Match, Numbers, Pattern, X, matches, near

__all__ = ["WRITINGS", "Activation", "Writing", "recognise"]


class Writing(NamedTuple):
    """A way of writing an activation."""

    name: str
    pattern: Pattern
    numbers: Callable[[Numbers], Numbers | None] = lambda found: found
    """The activation's numbers from those in the pattern; None if it is not the activation."""


class Activation(NamedTuple):
    """An activation that was recognised."""

    kind: str
    """A key of `WRITINGS`."""
    writing: Writing
    match: Match
    """Its numbers are the activation's; X is what it reads."""


def _slope(found: Numbers) -> Numbers | None:
    return found if 0 < found["a"] < 1 else None


def _if_hard_swish(found: Numbers | None) -> Numbers | None:
    return {} if found is not None and near(found["a"], 1 / 6) and near(found["b"], 0.5) else None


_HARD_SIGMOID = (
    Writing("HardSigmoid", ("HardSigmoid", X, {"alpha": "a", "beta": "b"})),
    Writing("clip", ("clip", ("Add", ("Mul", X, "a"), "b"), 0.0, 1.0)),
    Writing(
        "clip of a quotient",
        ("clip", ("Add", ("Div", X, "d"), "b"), 0.0, 1.0),
        lambda found: {"a": 1 / found["d"], "b": found["b"]} if found["d"] else None,
    ),
    Writing(
        "clip, divided",
        ("Div", ("clip", ("Add", X, "c"), 0.0, "d"), "d"),
        lambda found: {"a": 1 / found["d"], "b": found["c"] / found["d"]} if found["d"] else None,
    ),
    Writing(
        "clip, multiplied",
        ("Mul", ("clip", ("Add", X, "c"), 0.0, "d"), "a"),
        lambda found: {"a": found["a"], "b": found["c"] * found["a"]} if near(found["a"] * found["d"], 1) else None,
    ),
)
_RELU6 = ("clip", ("Add", X, 3.0), 0.0, 6.0)
_POWER = ("Add", ("Exp", ("Neg", X)), 1.0)
_E = ("Exp", ("Min", X, 20.0))
_U = ("Mul", _E, ("Add", _E, 2.0))
_HALF = ("Mul", X, 0.5)
_CUBE = ("Mul", ("Mul", X, X), X)
_CUBIC = ("Add", ("Mul", X, 0.797885), ("Mul", _CUBE, 0.035677))
_FACTORED = ("Mul", ("Add", ("Mul", ("Mul", X, 0.044715), X), 1.0), ("Mul", X, 0.7978845834732056))

WRITINGS: dict[str, tuple[Writing, ...]] = {
    "hard swish": (
        Writing("HardSwish", ("HardSwish", X)),
        *(
            Writing(
                f"x * {form.name}",
                ("Mul", X, form.pattern),
                lambda found, form=form: _if_hard_swish(form.numbers(found)),  # type: ignore[misc]
            )
            for form in _HARD_SIGMOID
        ),
        Writing("divided by 6", ("Div", ("Mul", X, _RELU6), 6.0)),
        Writing("multiplied by 1/6", ("Mul", ("Mul", X, _RELU6), 1 / 6)),
    ),
    "swish": (
        Writing("Sigmoid", ("Mul", X, ("Sigmoid", X))),
        Writing("quotient", ("Div", X, _POWER)),
        Writing("product", ("Mul", X, ("Div", 1.0, _POWER))),
        Writing("reciprocal", ("Mul", X, ("Reciprocal", _POWER))),
    ),
    "mish": (
        Writing("Softplus", ("Mul", X, ("Tanh", ("Softplus", X)))),
        Writing("Log", ("Mul", X, ("Tanh", ("Log", ("Add", ("Exp", X), 1.0))))),
        Writing("Exp", ("Mul", X, ("Div", _U, ("Add", _U, 2.0)))),
    ),
    "gelu": (
        Writing("factored", ("Mul", _HALF, ("Add", ("Tanh", _FACTORED), 1.0))),
        Writing("cube", ("Mul", _HALF, ("Add", ("Tanh", _CUBIC), 1.0))),
    ),
    "leaky": (
        Writing("LeakyRelu", ("LeakyRelu", X, {"alpha": "a"})),
        Writing("maximum", ("Max", X, ("Mul", X, "a")), _slope),
        Writing("PRelu", ("PRelu", X, "a")),
        Writing("where greater", ("Where", ("Greater", X, 0.0), X, ("Mul", X, "a"))),
        Writing("where greater or equal", ("Where", ("GreaterOrEqual", X, 0.0), X, ("Mul", X, "a"))),
        Writing("where less", ("Where", ("Less", X, 0.0), ("Mul", X, "a"), X)),
    ),
    "selu": (
        Writing("Selu", ("Selu", X, {"alpha": "a", "gamma": "g"})),
        Writing("Elu", ("Mul", ("Elu", X, {"alpha": "a"}), "g")),
    ),
    "elu": (
        Writing("Elu", ("Elu", X, {"alpha": "a"})),
        Writing("Exp", ("Max", X, ("Sub", ("Exp", ("Min", X, 0.0)), 1.0)), lambda found: {"a": 1.0}),
    ),
    "hard sigmoid": _HARD_SIGMOID,
    "sigmoid": (
        Writing("Sigmoid", ("Sigmoid", X)),
        Writing("quotient", ("Div", 1.0, _POWER)),
        Writing("reciprocal", ("Reciprocal", _POWER)),
    ),
    "clip": (Writing("clip", ("clip", X, "low", "high")),),
}
"""By activation, the larger before those that are parts of them. The first writing is the plain one."""

_BY_OPERATOR: dict[str, list[tuple[str, Writing]]] = {}
for _kind, _writings in WRITINGS.items():
    for _writing in _writings:
        for _operator in CLAMPS if _writing.pattern[0] == "clip" else (_writing.pattern[0],):
            _BY_OPERATOR.setdefault(_operator, []).append((_kind, _writing))


def recognise(node: ir.Node) -> Activation | None:
    """The activation whose result a node computes; None if it is none."""
    result = node.outputs[0]
    for kind, writing in _BY_OPERATOR.get(node.op_type, ()):
        for match in matches(writing.pattern, result):
            numbers, source = writing.numbers(match.numbers), match.values[X.name]
            if numbers is None or source.dtype != ir.DataType.FLOAT:
                continue
            # Numbers of more axes than x would give the result more axes.
            if source.shape is not None and result.shape is not None and len(source.shape) == len(result.shape):
                return Activation(kind, writing, match._replace(numbers=numbers))
    return None
