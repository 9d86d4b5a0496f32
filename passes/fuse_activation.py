"""Recognises activations in whatever operators they are written, and writes each as the target runs it fastest.

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

The same patterns recognise and write. What each engine does with them was seen in its own optimized graphs:

    onnx          the plain operators of opset 14; what an engine fuses, it fuses from these.
    onnxruntime   on the CPU. Relu, LeakyRelu, Clip, Sigmoid, Tanh, HardSigmoid and HardSwish go into its convolutions;
                  Mul(x, Sigmoid(x)) becomes QuickGelu and the gelu above FastGelu. Softplus costs as much as 100
                  additions, and Elu as 20: their forms by Exp do not.
    openvino      leaves HardSigmoid and Selu outside of convolutions; Clip, Elu and x tanh(softplus(x)) go in.
    myriad        knows neither HardSigmoid nor Selu.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from dnc.graph.rewriting import Remarks, add_initializer, add_node, attribute, constant_scalar, replace_uses, sole_user
from dnc.passes import Pass, passes
from dnc.runtime.options import Option, one_of

__all__ = ["FORMS", "FuseActivation", "recognise"]

Pattern = Any
"""X, the name of a number that is read, a number, or (operator, *inputs) or (operator, *inputs, {attribute: pattern});
the operator clip stands for any clamps one after the other, its second and third input are the bounds."""
Numbers = dict[str, float]

X = "x"
_COMMUTATIVE = ("Add", "Mul", "Max", "Min")
_DEFAULTS = {"LeakyRelu": {"alpha": 0.01}, "Elu": {"alpha": 1.0}, "HardSigmoid": {"alpha": 0.2, "beta": 0.5}}
_DEFAULTS["Selu"] = {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}


class _Writing(NamedTuple):
    """A way of writing an activation."""

    name: str
    pattern: Pattern
    numbers: Callable[[Numbers], Numbers | None] = lambda found: found
    """The activation's numbers from those in the pattern; None if it is not the activation."""


def _near(a: float, b: float) -> bool:
    """Whether two numbers are the same float32, give or take its last digits."""
    return math.isclose(a, b, rel_tol=1e-6)


def _slope(found: Numbers) -> Numbers | None:
    return found if 0 < found["a"] < 1 else None


def _if_hard_swish(found: Numbers | None) -> Numbers | None:
    return {} if found is not None and _near(found["a"], 1 / 6) and _near(found["b"], 0.5) else None


_HARD_SIGMOID = (
    _Writing("HardSigmoid", ("HardSigmoid", X, {"alpha": "a", "beta": "b"})),
    _Writing("clip", ("clip", ("Add", ("Mul", X, "a"), "b"), 0.0, 1.0)),
    _Writing(
        "clip of a quotient",
        ("clip", ("Add", ("Div", X, "d"), "b"), 0.0, 1.0),
        lambda found: {"a": 1 / found["d"], "b": found["b"]} if found["d"] else None,
    ),
    _Writing(
        "clip, divided",
        ("Div", ("clip", ("Add", X, "c"), 0.0, "d"), "d"),
        lambda found: {"a": 1 / found["d"], "b": found["c"] / found["d"]} if found["d"] else None,
    ),
    _Writing(
        "clip, multiplied",
        ("Mul", ("clip", ("Add", X, "c"), 0.0, "d"), "a"),
        lambda found: {"a": found["a"], "b": found["c"] * found["a"]} if _near(found["a"] * found["d"], 1) else None,
    ),
)
_RELU6 = ("clip", ("Add", X, 3.0), 0.0, 6.0)
_POWER = ("Add", ("Exp", ("Neg", X)), 1.0)
_E = ("Exp", ("Min", X, 20.0))
_U = ("Mul", _E, ("Add", _E, 2.0))
_HALF = ("Mul", X, 0.5)
_CUBE = ("Mul", ("Mul", X, X), X)

_WRITINGS: dict[str, tuple[_Writing, ...]] = {
    "hard swish": (
        _Writing("HardSwish", ("HardSwish", X)),
        *(
            _Writing(
                f"x * {each.name}",
                ("Mul", X, each.pattern),
                lambda found, each=each: _if_hard_swish(each.numbers(found)),  # type: ignore[misc]
            )
            for each in _HARD_SIGMOID
        ),
        _Writing("divided by 6", ("Div", ("Mul", X, _RELU6), 6.0)),
        _Writing("multiplied by 1/6", ("Mul", ("Mul", X, _RELU6), 1 / 6)),
    ),
    "swish": (
        _Writing("Sigmoid", ("Mul", X, ("Sigmoid", X))),
        _Writing("quotient", ("Div", X, _POWER)),
        _Writing("product", ("Mul", X, ("Div", 1.0, _POWER))),
        _Writing("reciprocal", ("Mul", X, ("Reciprocal", _POWER))),
    ),
    "mish": (
        _Writing("Softplus", ("Mul", X, ("Tanh", ("Softplus", X)))),
        _Writing("Log", ("Mul", X, ("Tanh", ("Log", ("Add", ("Exp", X), 1.0))))),
        _Writing("Exp", ("Mul", X, ("Div", _U, ("Add", _U, 2.0)))),
    ),
    "gelu": (
        _Writing(
            "factored",
            (
                "Mul",
                _HALF,
                (
                    "Add",
                    ("Tanh", ("Mul", ("Add", ("Mul", ("Mul", X, 0.044715), X), 1.0), ("Mul", X, 0.7978845834732056))),
                    1.0,
                ),
            ),
        ),
        _Writing(
            "cube",
            ("Mul", _HALF, ("Add", ("Tanh", ("Add", ("Mul", X, 0.797885), ("Mul", _CUBE, 0.035677))), 1.0)),
        ),
    ),
    "leaky": (
        _Writing("LeakyRelu", ("LeakyRelu", X, {"alpha": "a"})),
        _Writing("maximum", ("Max", X, ("Mul", X, "a")), _slope),
        _Writing("PRelu", ("PRelu", X, "a")),
        _Writing("where greater", ("Where", ("Greater", X, 0.0), X, ("Mul", X, "a"))),
        _Writing("where greater or equal", ("Where", ("GreaterOrEqual", X, 0.0), X, ("Mul", X, "a"))),
        _Writing("where less", ("Where", ("Less", X, 0.0), ("Mul", X, "a"), X)),
    ),
    "selu": (
        _Writing("Selu", ("Selu", X, {"alpha": "a", "gamma": "g"})),
        _Writing("Elu", ("Mul", ("Elu", X, {"alpha": "a"}), "g")),
    ),
    "elu": (
        _Writing("Elu", ("Elu", X, {"alpha": "a"})),
        _Writing("Exp", ("Max", X, ("Sub", ("Exp", ("Min", X, 0.0)), 1.0)), lambda found: {"a": 1.0}),
    ),
    "hard sigmoid": _HARD_SIGMOID,
    "sigmoid": (
        _Writing("Sigmoid", ("Sigmoid", X)),
        _Writing("quotient", ("Div", 1.0, _POWER)),
        _Writing("reciprocal", ("Reciprocal", _POWER)),
    ),
    "clip": (_Writing("clip", ("clip", X, "low", "high")),),
}
"""By activation, the larger before those that are parts of them. The first writing is the plain one."""

FORMS: dict[str, dict[str, str]] = {
    "onnx": {},
    "onnxruntime": {"mish": "Exp", "elu": "Exp"},
    "openvino": {"hard sigmoid": "clip", "selu": "Elu"},
    "myriad": {"hard sigmoid": "clip", "selu": "Elu"},
}
"""By target, the writing of each activation where it is not the first."""


@passes.register
class FuseActivation(Pass):
    """Writes activations as the target fuses them. `form` may also be a mapping: the writing by activation."""

    name: ClassVar[str] = "fuse-activation"
    tolerance: ClassVar[float] = 1e-4
    """The forms are equal but for gelu, whose digits are 1e-5 off Darknet's (2.3e-5 was seen of a small output);
    each rounds in its own way, some 1e-7 a layer, which depth adds up."""

    applies_to: ClassVar[str] = "relu, relu6, leaky, elu, selu, hard-sigmoid, hard-swish, swish, mish, gelu in any form"
    known_options: ClassVar[Sequence[Option]] = (
        Option("form", "onnx", f"how they are written: {', '.join(FORMS)}", lambda text: FORMS[one_of(*FORMS)(text)]),
    )

    def rewrite(self, model: ir.Model) -> Remarks:
        """Goes from the outputs to the inputs, so that the largest pattern is seen first."""
        graph, remarks = model.graph, Remarks()
        writer = _Writer(graph)
        done: set[ir.Node] = set()
        for node in reversed(list(graph)):
            if node in done:
                continue
            found = recognise(node)
            if found is None:
                continue
            kind, writing, match = found
            wanted = self._wanted(kind, match.numbers)
            if writing.name == wanted.name and (kind != "clip" or _is_plain_clip(match)):
                done.update(match.nodes)
            elif not _is_closed(match.nodes, node, graph):
                remarks.miss(node, f"an inner value of the {kind} is read by others")
            else:
                done.update(match.nodes)
                result = node.outputs[0]
                new = writer.write(wanted.pattern, node, match)
                replace_uses(result, new, graph)
                graph.remove(match.nodes, safe=True)
                remarks.apply(node, f"{kind} written as {_operators(wanted.pattern, match.numbers)}")
        remarks.applied.reverse()
        remarks.missed.reverse()
        return remarks

    def _wanted(self, kind: str, numbers: Numbers) -> _Writing:
        """The form's writing, or the plain one where its numbers do not fit into that."""
        writings = _WRITINGS[kind]
        for writing in writings:
            if writing.name == self.options["form"].get(kind):
                given = writing.numbers(numbers)
                if given is not None and all(_near(given[name], numbers[name]) for name in numbers):
                    return writing
        return writings[0]


class _Match(NamedTuple):
    """A pattern that was found: what is x, the numbers, and the nodes, the last one first."""

    source: ir.Value | None = None
    numbers: Numbers = {}
    nodes: tuple[ir.Node, ...] = ()


def recognise(node: ir.Node) -> tuple[str, _Writing, _Match] | None:
    result = node.outputs[0]
    for kind, writing in _BY_OPERATOR.get(node.op_type, ()):
        for match in _find(writing.pattern, result, _Match()):
            numbers = writing.numbers(match.numbers)
            source = match.source
            if numbers is None or source is None or source.dtype != ir.DataType.FLOAT:
                continue
            # Numbers of more axes than x would give the result more axes.
            if source.shape is not None and result.shape is not None and len(source.shape) == len(result.shape):
                return kind, writing, match._replace(numbers=numbers, nodes=tuple(dict.fromkeys(match.nodes)))
    return None


_CLAMPS = ("Relu", "Clip", "Min", "Max")
_BY_OPERATOR: dict[str, list[tuple[str, _Writing]]] = {}
for _kind, _writings in _WRITINGS.items():
    for _each in _writings:
        for _operator in _CLAMPS if _each.pattern[0] == "clip" else (_each.pattern[0],):
            _BY_OPERATOR.setdefault(_operator, []).append((_kind, _each))


def _find(pattern: Pattern, value: ir.Value | None, found: _Match) -> Iterator[_Match]:
    """All ways in which the value is the pattern, each with what was found before."""
    if pattern == X:
        if value is not None and found.source in (None, value):
            yield found._replace(source=value)
        return
    if isinstance(pattern, str | float):
        number = constant_scalar(value)
        if number is not None:
            yield from _find_number(pattern, number, found)
        return
    operator, *inputs = pattern
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain:
        return
    if operator == "clip":
        source, low, high, nodes = _clamp(value)
        if nodes:
            for match in _find_number(inputs[1], low, found._replace(nodes=(*found.nodes, *nodes))):
                for second in _find_number(inputs[2], high, match):
                    yield from _find(inputs[0], source, second)
        return
    if node.op_type != operator:
        return
    matches: Sequence[_Match] = [found._replace(nodes=(*found.nodes, node))]
    if isinstance(inputs[-1], dict):
        for name, expected in inputs.pop().items():
            number = float(attribute(node, name, _DEFAULTS[operator][name]))
            matches = [each for match in matches for each in _find_number(expected, number, match)]
    if len(inputs) != len(node.inputs):
        return
    orders = itertools.permutations(node.inputs) if operator in _COMMUTATIVE else [tuple(node.inputs)]
    for order in orders:
        tried = matches
        for expected, given in zip(inputs, order, strict=True):
            tried = [each for match in tried for each in _find(expected, given, match)]
        yield from tried


def _find_number(pattern: str | float, number: float, found: _Match) -> Iterator[_Match]:
    known = found.numbers.get(pattern) if isinstance(pattern, str) else pattern
    if known is None:
        yield found._replace(numbers={**found.numbers, str(pattern): number})
    elif known == number or _near(known, number):
        yield found


def _clamp(value: ir.Value) -> tuple[ir.Value, float, float, list[ir.Node]]:
    """Clamps one after the other as one: what they clamp, to where, and their nodes, the last one first.

    clip(clip(x, l, h), low, high) = clip(x, clip(l, low, high), clip(h, low, high))
    """
    low, high, nodes = -math.inf, math.inf, list[ir.Node]()
    while True:
        node = value.producer()
        bounds = None if node is None or (nodes and sole_user(value) is None) else _bounds(node)
        if node is None or bounds is None:
            return value, low, high, nodes
        value, inner_low, inner_high = bounds
        low, high = min(max(inner_low, low), high), min(max(inner_high, low), high)
        nodes.append(node)


def _bounds(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """What one node clamps, and to where; None if it clamps nothing."""
    first = node.inputs[0] if node.inputs else None
    if node.op_type not in _CLAMPS or node.domain or first is None:
        return None
    if node.op_type == "Relu":
        return first, 0.0, math.inf
    if node.op_type == "Clip":
        given = [*node.inputs[1:], None, None][:2]
        low, high = (
            default if value is None else constant_scalar(value)
            for value, default in zip(given, (-math.inf, math.inf), strict=True)
        )
        return None if low is None or high is None or low > high else (first, low, high)
    if len(node.inputs) != 2:
        return None
    for source, other in (node.inputs, reversed(node.inputs)):
        number = constant_scalar(other)
        if source is not None and number is not None:
            return (source, -math.inf, number) if node.op_type == "Min" else (source, number, math.inf)
    return None


def _is_plain_clip(match: _Match) -> bool:
    """Whether it is one node, and that is Relu for 0 and no upper bound, and Clip for others."""
    (first, *others), numbers = match.nodes, match.numbers
    relu = numbers["low"] == 0 and numbers["high"] == math.inf
    return not others and first.op_type == ("Relu" if relu else "Clip")


def _is_closed(nodes: Sequence[ir.Node], last: ir.Node, graph: ir.Graph) -> bool:
    """Whether nothing but the nodes themselves reads what they compute on the way to the last one's output."""
    for node in nodes:
        if node.graph is not graph:
            return False
        for output in node.outputs if node is not last else ():
            if output.is_graph_output() or any(user not in nodes for user, _ in output.uses()):
                return False
    return True


def _operators(pattern: Pattern, numbers: Numbers) -> str:
    """What the log says of a writing."""
    if pattern[0] == "clip" and pattern[1] == X:
        return "Relu" if numbers["low"] == 0 and numbers["high"] == math.inf else "Clip"
    names = list[str]()

    def collect(part: Pattern) -> None:
        if isinstance(part, tuple):
            for each in part[1:]:
                collect(each)
            name = part[0].capitalize() if part[0] == "clip" else part[0]
            if name not in names:
                names.append(name)

    collect(pattern)
    return ", ".join(names)


class _Writer:
    """Makes nodes of patterns."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._constants: dict[float, ir.Value] = {}

    def write(self, pattern: Pattern, before: ir.Node, match: _Match) -> ir.Value:
        """The value that the pattern computes. Parts that it has twice are computed once."""
        values: dict[str, ir.Value] = {}
        source = match.source
        assert source is not None

        def number(part: str | float) -> float:
            return match.numbers[part] if isinstance(part, str) else part

        def value(part: Pattern) -> ir.Value | None:
            if part == X:
                return source
            if not isinstance(part, tuple):
                return self._constant(number(part))
            key = repr(part)
            if key not in values:
                operator, *inputs = part
                attributes = inputs.pop() if isinstance(inputs[-1], dict) else {}
                if operator == "clip":
                    bounds = number(inputs[1]), number(inputs[2])
                    operator = "Relu" if bounds == (0, math.inf) else "Clip"
                    inputs = inputs[: {"Relu": 1, "Clip": 3 if math.isfinite(bounds[1]) else 2}[operator]]
                given = {name: number(each) for name, each in attributes.items()}
                node = add_node(self._graph, before, operator, [value(each) for each in inputs], given)
                (values[key],) = node.outputs
                values[key].shape, values[key].type = source.shape, source.type
            return values[key]

        result = value(pattern)
        assert result is not None
        return result

    def _constant(self, number: float) -> ir.Value | None:
        if math.isinf(number):
            return None
        if number not in self._constants:
            tensor = ir.Tensor(np.array(number, np.float32), name=f"constant_float32__{np.float32(number)}")
            self._constants[number] = add_initializer(self._graph, tensor)
        return self._constants[number]
