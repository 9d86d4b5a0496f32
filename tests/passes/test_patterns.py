"""Patterns: what matches, what is remembered, and that nothing else reads what lies in between."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import onnx_ir as ir
import pytest

import dnc.passes
from dnc.passes import passes
from dnc.passes.shared.patterns import Match, Value, Writer, X, match, matches, operators
from tests.models import model, ops, outputs, same

POWER = ("Add", ("Exp", ("Neg", X)), 1.0)


def build(body: str, results: str = "float[2,4] y") -> ir.Model:
    text = f"agraph (float[2,4] x, float[2,4] z) => ({results}) {{ {body} }}"
    return model(text, one=np.float32(1), two=np.float32(2), half=np.float32(0.5), rows=np.ones((2, 1)))


def found(pattern: object, body: str, results: str = "float[2,4] y") -> Match | None:
    return match(pattern, build(body, results).graph.outputs[0])


FITS = {
    "a value": (X, "y = Abs(x)"),
    "a number": (("Mul", X, 2.0), "y = Mul(x, two)"),
    "in another order": (("Mul", X, 2.0), "y = Mul(two, x)"),
    "twice the same value": (("Mul", X, ("Sigmoid", X)), "s = Sigmoid(x)  y = Mul(s, x)"),
    "twice the same number": (("Div", ("Mul", X, "a"), "a"), "m = Mul(x, two)  y = Div(m, two)"),
    "the default of an attribute": (("LeakyRelu", X, {"alpha": 0.01}), "y = LeakyRelu(x)"),
    "clamps": (("clip", X, 0.0, 1.0), "r = Relu(x)  y = Min(r, one)"),
    "one way of several": (("Add", ("Exp", X), Value("other")), "e = Exp(x)  f = Exp(z)  y = Add(f, e)"),
    "a value that is computed so": (
        ("Mul", Value("gate", ("Sigmoid", X)), Value("gate")),
        "s = Sigmoid(x)  y = Mul(s, s)",
    ),
}
MISSES = {
    "another operator": (("Mul", X, 2.0), "y = Add(x, two)"),
    "another number": (("Mul", X, 2.0), "y = Mul(x, half)"),
    "no number": (("Mul", X, "a"), "y = Mul(x, rows)"),
    "another order": (("Div", X, 2.0), "y = Div(two, x)"),
    "two values": (("Mul", X, ("Sigmoid", X)), "s = Sigmoid(z)  y = Mul(s, x)"),
    "two numbers": (("Div", ("Mul", X, "a"), "a"), "m = Mul(x, two)  y = Div(m, half)"),
    "another attribute": (("LeakyRelu", X, {"alpha": 0.1}), "y = LeakyRelu(x)"),
    "more inputs": (("Max", X, 2.0), "y = Max(x, two, z)"),
    "other bounds": (("clip", X, 0.0, 2.0), "r = Relu(x)  y = Min(r, one)"),
    "a value that is computed otherwise": (("Mul", Value("gate", ("Tanh", X)), X), "s = Sigmoid(x)  y = Mul(s, s)"),
}


@pytest.mark.parametrize("name", FITS)
def test_fits(name: str) -> None:
    assert found(*FITS[name]) is not None


@pytest.mark.parametrize("name", MISSES)
def test_misses(name: str) -> None:
    assert found(*MISSES[name]) is None


def test_what_is_remembered() -> None:
    way = found(
        ("Mul", ("clip", ("Add", X, "shift"), 0.0, "top"), "a"),
        "s = Add(x, one)  r = Relu(s)  c = Min(two, r)  y = Mul(half, c)",
    )
    assert way is not None
    assert {name: value.name for name, value in way.values.items()} == {"x": "x"}
    assert way.numbers == {"shift": 1, "top": 2, "a": 0.5}
    assert [node.op_type for node in way.nodes] == ["Mul", "Min", "Relu", "Add"]
    assert way.closed


def test_all_ways() -> None:
    built = build("y = Add(x, z)")
    ways = matches(("Add", X, Value("other")), built.graph.outputs[0])
    assert [[value.name for value in way.values.values()] for way in ways] == [["x", "z"], ["z", "x"]]


@pytest.mark.parametrize(
    ("body", "results"),
    [
        ("s = Sigmoid(x)  y = Mul(x, s)", "float[2,4] y, float[2,4] s"),
        ("s = Sigmoid(x)  y = Mul(x, s)  w = Abs(s)", "float[2,4] y, float[2,4] w"),
    ],
)
def test_what_others_read_is_not_closed(body: str, results: str) -> None:
    way = found(("Mul", X, ("Sigmoid", X)), body, results)
    assert way is not None
    assert not way.closed


def test_writes() -> None:
    """What is found can be written in another form: each part once, with the numbers that were read."""
    built = build("e = Neg(x)  f = Exp(e)  g = Add(f, one)  y = Div(two, g)")
    before = outputs(built)
    result = built.graph.outputs[0]
    way = match(("Div", "a", POWER), result)
    assert way is not None
    pattern = ("clip", ("Mul", ("Sigmoid", X), "a"), 0.0, 6.0)
    written = Writer(built.graph).write(pattern, way.nodes[0], way)
    assert operators(pattern, way.numbers) == ["Sigmoid", "Mul", "Clip"]
    built.graph.outputs[0] = written
    built.graph.remove(way.nodes, safe=True)
    assert ops(built) == ["Sigmoid", "Mul", "Clip"]
    same({"y": outputs(built)[written.name or ""]}, before, 1e-6)


def test_every_file_is_a_pass() -> None:
    """What several share is in a folder of its own, so that a newcomer sees the passes."""
    modules = [module for module in pkgutil.iter_modules(dnc.passes.__path__) if not module.ispkg]
    for module in modules:
        name = module.name.replace("_", "-")
        assert passes[name].__module__ == importlib.import_module(f"dnc.passes.{module.name}").__name__
    assert len(passes) == len(modules)
