"""What depends on constants alone is computed; what is too large, or no constant, is not."""

from __future__ import annotations

import numpy as np
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.passes import passes
from tests.models import model, ops, outputs, same

APPLIES = {
    # the output, the nodes, what is left of them
    "add": ("float[1,4] y", "{ b = Add(a, a)  y = Mul(x, b) }", ["Mul"]),
    "chain": ("float[1,4] y", "{ b = Add(a, a)  c = Relu(b)  d = Exp(c)  y = Mul(x, d) }", ["Mul"]),
    "two": ("float[1,4] y", "{ v, i = TopK <axis = 1> (a, k)  c = Expand(v, e)  y = Mul(x, c) }", ["Mul"]),
    "shape": ("int64[2] y", "{ s = Shape(x)  y = Abs(s) }", ["Abs"]),
    "twice": ("float[1,4] y", "{ b = Neg(a)  c = Add(x, b)  d = Mul(c, b)  y = Sub(d, b) }", ["Add", "Mul", "Sub"]),
}


def constants(body: str) -> dict[str, np.ndarray]:
    """The constants that the body reads."""
    known = {"a": np.arange(4.0).reshape(1, 4), "k": np.array([1]), "e": np.array([1, 4])}
    return {name: array for name, array in known.items() if f"{name})" in body or f"({name}," in body}


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    result, body, left = APPLIES[name]
    built = model(f"agraph (float[1,4] x) => ({result}) {body}", **constants(body))
    before = outputs(built)
    assert passes["fold-constants"]().rewrite(built).count > 0
    assert ops(built) == left
    same(outputs(built), before, 1e-6)


REFUSES = {
    "depends on the input": ("float[1,4] x", "float[1,4] y", "{ b = Add(x, a)  y = Relu(b) }"),
    "is an output": ("float[1,4] x", "float[1,4] y, float[1,4] z", "{ z = Relu(a)  y = Relu(x) }"),
    "unknown sides": ("float[N,4] x", "int64[2] y", "{ s = Shape(x)  y = Abs(s) }"),
    "an input may override": ("float[1,4] x, float[1,4] b", "float[1,4] y", "{ c = Relu(b)  y = Add(x, c) }"),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    inputs, results, body = REFUSES[name]
    built = model(f"agraph ({inputs}) => ({results}) {body}", **constants(body))
    if name == "an input may override":
        import onnx_ir as ir

        built.graph.inputs[1].const_value = ir.Tensor(np.ones((1, 4), np.float32), name="b")
    before = ops(built)
    assert passes["fold-constants"]().rewrite(built).count == 0
    assert ops(built) == before


def test_large_results_stay_computed() -> None:
    """An Expand of a small constant, before it is computed: 16 GiB would not fit."""
    text = "agraph (float[1,1] x) => (float[N,M] y) { b = Expand(a, e)  c = ReduceSum(b)  y = Mul(x, c) }"
    built = model(text, a=np.ones((1, 1)), e=np.array([65536, 65536]))
    assert passes["fold-constants"]().rewrite(built).count == 0
    assert "Expand" in ops(built)


def test_results_no_larger_than_their_inputs_are_folded() -> None:
    """Over 1 MiB, but a weight stays a weight."""
    text = "agraph (float[1,1] x) => (float[600,600] y) { b = Transpose(a)  y = Mul(x, b) }"
    built = model(text, a=np.ones((600, 600)))
    assert passes["fold-constants"]().rewrite(built).count == 1
    assert ops(built) == ["Mul"]


def test_graphs_inside_nodes_stay() -> None:
    """A loop is left alone, and what it reads from outside is still there."""
    text = """agraph (float[1,4] x) => (float[1,4] y) {
        b = Neg(a)
        y = If (c) <
            then_branch = t () => (float[1,4] p) { p = Add(x, b) },
            else_branch = f () => (float[1,4] q) { q = Sub(x, b) }
        >
    }"""
    built = model(text, a=np.arange(4.0).reshape(1, 4), c=np.array(True))
    before = outputs(built)
    assert passes["fold-constants"]().rewrite(built).count == 1
    same(outputs(built), before, 0)


def test_layer_values_survive() -> None:
    """A layer that is a constant, for a fixed batch, keeps its name as an initializer."""
    text = "[net]\nwidth=3\nheight=3\nchannels=1\n[implicit]\nfilters=3\n[implicit]\nfilters=3\n[shortcut]\nfrom=-2\n"
    network = Network.parse(text).with_random_weights(0)
    built = lower(network, batch=2)
    before = outputs(built)
    assert passes["fold-constants"]().rewrite(built).count > 0
    assert {"layer000", "layer001"} <= set(built.graph.initializers)
    assert [value.name for value in built.graph.outputs] == ["layer002"]
    same(outputs(built), before, 0)
    free = lower(network)
    passes["fold-constants"]().rewrite(free)
    assert "Expand" in ops(free)
