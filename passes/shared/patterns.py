"""Finds subgraphs by what they compute, and writes them. A pattern is data, and serves for both:

    X, Value("y")                 any value: the same one wherever the name stands
    Value("y", ("Greater", X, 0.0))   one that is computed so, under a name
    "a"                           a constant of one element: its number, the same one wherever the name stands
    0.5                           a constant of one element that is this number
    ("Mul", X, "a")               what a node of this operator computes of exactly these inputs, in either order where
                                  the operator commutes
    ("Elu", X, {"alpha": "a"})    the same with numbers in attributes; one that is left out is ONNX's default
    ("clip", X, "low", "high")    clamps one after the other, Relu, Clip, Min and Max with numbers: the bounds of all

Numbers are the same where they are one float32, give or take its last digits. Matching goes from a result to what it is
computed of; `Match.closed` says whether anything else reads what lies in between, without which nothing may be removed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx.defs
import onnx.helper
import onnx_ir as ir

from dnc.graph.rewriting import add_initializer, add_node, attribute, constant_scalar, sole_user

__all__ = ["CLAMPS", "Match", "Numbers", "Pattern", "Value", "Writer", "X", "match", "matches", "near", "operators"]

Pattern = Any
"""See above."""
Numbers = dict[str, float]


@dataclass(frozen=True)
class Value:
    """A value under a name, and how it has to be computed, if that matters."""

    name: str
    of: Pattern = None


X = Value("x")
CLAMPS = ("Relu", "Clip", "Min", "Max")
"""The operators that clip stands for."""
_COMMUTATIVE = ("Add", "Mul", "Max", "Min")


class Match(NamedTuple):
    """What a pattern's names stand for, and the nodes, each once, the one that computes the result first."""

    values: Mapping[str, ir.Value] = {}
    numbers: Numbers = {}
    nodes: tuple[ir.Node, ...] = ()

    @property
    def closed(self) -> bool:
        """Whether nothing but the nodes themselves reads what they compute on the way to the result."""
        inner = [value for node in self.nodes[1:] for value in node.outputs]
        readers = [use.node for value in inner for use in value.uses()]
        return (
            not any(value.is_graph_output() for value in inner)
            and all(node in self.nodes for node in readers)
            and all(node.graph is self.nodes[0].graph for node in self.nodes)
        )


def match(pattern: Pattern, value: ir.Value | None) -> Match | None:
    """The first way in which the value is computed as the pattern says; None if it is not."""
    return next(matches(pattern, value), None)


def matches(pattern: Pattern, value: ir.Value | None) -> Iterator[Match]:
    """All ways in which it is."""
    for found in _find(pattern, value, Match()):
        yield found._replace(nodes=tuple(dict.fromkeys(found.nodes)))


def _find(pattern: Pattern, value: ir.Value | None, found: Match) -> Iterator[Match]:
    """All ways in which the value is the pattern, each with what was found before."""
    if isinstance(pattern, Value):
        if value is not None and found.values.get(pattern.name, value) is value:
            named = found._replace(values={**found.values, pattern.name: value})
            yield from [named] if pattern.of is None else _find(pattern.of, value, named)
    elif isinstance(pattern, str | float):
        number = constant_scalar(value)
        if number is not None:
            yield from _find_number(pattern, number, found)
    elif value is not None and pattern[0] == "clip":
        yield from _find_clamps(pattern, value, found)
    elif value is not None:
        node = value.producer()
        if node is not None and node.op_type == pattern[0] and not node.domain:
            yield from _find_node(pattern, node, found._replace(nodes=(*found.nodes, node)))


def _find_number(pattern: str | float, number: float, found: Match) -> Iterator[Match]:
    known = found.numbers.get(pattern) if isinstance(pattern, str) else pattern
    if known is None:
        yield found._replace(numbers={**found.numbers, str(pattern): number})
    elif known == number or near(known, number):
        yield found


def near(a: float, b: float) -> bool:
    """Whether two numbers are the same float32, give or take its last digits."""
    return math.isclose(a, b, rel_tol=1e-6)


def _find_node(pattern: Pattern, node: ir.Node, found: Match) -> Iterator[Match]:
    operator, *inputs = pattern
    ways: Sequence[Match] = [found]
    if isinstance(inputs[-1], dict):
        known = onnx.defs.get_schema(operator).attributes
        for name, expected in inputs.pop().items():
            number = float(attribute(node, name, onnx.helper.get_attribute_value(known[name].default_value)))
            ways = [more for way in ways for more in _find_number(expected, number, way)]
    if len(inputs) != len(node.inputs):
        return
    orders = itertools.permutations(node.inputs) if operator in _COMMUTATIVE else [tuple(node.inputs)]
    for order in orders:
        tried = ways
        for expected, given in zip(inputs, order, strict=True):
            tried = [more for way in tried for more in _find(expected, given, way)]
        yield from tried


def _find_clamps(pattern: Pattern, value: ir.Value, found: Match) -> Iterator[Match]:
    """Clamps one after the other are one:

    clip(clip(x, l, h), low, high) = clip(x, clip(l, low, high), clip(h, low, high))
    """
    low, high, nodes = -math.inf, math.inf, list[ir.Node]()
    while (node := value.producer()) is not None and (not nodes or sole_user(value) is not None):
        bounds = _bounds(node)
        if bounds is None:
            break
        value, inner_low, inner_high = bounds
        low, high = min(max(inner_low, low), high), min(max(inner_high, low), high)
        nodes.append(node)
    if nodes:
        _, source, *expected = pattern
        for way in _find_number(expected[0], low, found._replace(nodes=(*found.nodes, *nodes))):
            for more in _find_number(expected[1], high, way):
                yield from _find(source, value, more)


def _bounds(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """What one node clamps, and to where; None if it clamps nothing."""
    first = node.inputs[0] if node.inputs else None
    if node.op_type not in CLAMPS or node.domain or first is None:
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


def operators(pattern: Pattern, numbers: Numbers) -> list[str]:
    """The operators that the pattern is written with, each once, in order."""
    found: dict[str, None] = {}
    if isinstance(pattern, tuple):
        for part in pattern[1:]:
            found |= dict.fromkeys(operators(part, numbers))
        found[_operator(pattern, numbers)] = None
    return list(found)


def _operator(pattern: Pattern, numbers: Numbers) -> str:
    if pattern[0] != "clip":
        return str(pattern[0])
    low, high = (numbers[bound] if isinstance(bound, str) else bound for bound in pattern[2:])
    return "Relu" if (low, high) == (0, math.inf) else "Clip"


class Writer:
    """Adds nodes to a graph that compute patterns. Its constants are shared by all of them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._constants: dict[float, ir.Value] = {}

    def write(self, pattern: Pattern, before: ir.Node, match: Match) -> ir.Value:
        """The value that the pattern computes of what a match found, elementwise of X, by nodes that stand before one.

        Parts that the pattern has twice are computed once.
        """
        written: dict[str, ir.Value] = {}
        source = match.values[X.name]

        def number(part: str | float) -> float:
            return match.numbers[part] if isinstance(part, str) else part

        def value(part: Pattern) -> ir.Value | None:
            if isinstance(part, Value):
                return match.values[part.name]
            if not isinstance(part, tuple):
                return self._constant(number(part))
            key = repr(part)
            if key not in written:
                inputs = list(part[1:])
                attributes = inputs.pop() if isinstance(inputs[-1], dict) else {}
                operator = _operator(part, match.numbers)
                if part[0] == "clip":
                    inputs = inputs[: 1 if operator == "Relu" else 3 if math.isfinite(number(inputs[2])) else 2]
                given = {name: number(item) for name, item in attributes.items()}
                node = add_node(self._graph, before, operator, [value(item) for item in inputs], given)
                (written[key],) = node.outputs
                written[key].shape, written[key].type = source.shape, source.type
            return written[key]

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
