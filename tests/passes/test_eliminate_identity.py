"""Nodes that do nothing go; names, and nodes that only look like it, stay."""

from __future__ import annotations

import numpy as np
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.passes import passes
from tests.models import model, ops, outputs, same

X = "float[1,4] x"
Y = "float[1,4] y"

APPLIES = {
    "identity": "{ a = Abs(x)  b = Identity(a)  y = Relu(b) }",
    "identity of the input": "{ b = Identity(x)  y = Relu(b) }",
    "chain": "{ a = Identity(x)  b = Identity(a)  c = Identity(b)  y = Relu(c) }",
    "identity to the output": "{ a = Abs(x)  y = Identity(a) }",
    "dropout": "{ a = Abs(x)  b = Dropout(a)  y = Relu(b) }",
    "concat of one": "{ a = Abs(x)  b = Concat <axis = 1> (a)  y = Relu(b) }",
    "reshape": "{ a = Abs(x)  b = Reshape(a, s)  y = Relu(b) }",
    "read twice": "{ a = Abs(x)  b = Identity(a)  c = Relu(b)  d = Neg(b)  y = Add(c, d) }",
}


def shaped(text: str) -> dict[str, np.ndarray]:
    """The constant `s`, where the text has it."""
    return {"s": np.array([1, 4])} if "s)" in text else {}


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    text = f"agraph ({X}) => ({Y}) {APPLIES[name]}"
    built = model(text, **shaped(text))
    before = outputs(built)
    count = len(ops(built))
    removed = passes["eliminate-identity"]().rewrite(built).count
    assert removed == count - len(ops(built)) > 0
    assert not {"Identity", "Dropout", "Concat", "Reshape"} & set(ops(built))
    same(outputs(built), before, 0)


REFUSES = {
    "between input and output": (X, Y, "{ y = Identity(x) }"),
    "between outputs": (X, f"{Y}, float[1,4] z", "{ y = Abs(x)  z = Identity(y) }"),
    "mask is read": (X, f"{Y}, bool[1,4] m", "{ y, m = Dropout(x) }"),
    "another shape": (X, "float[2,2] y", "{ a = Abs(x)  y = Reshape(a, t) }"),
    "concat of two": (X, "float[1,8] y", "{ a = Abs(x)  y = Concat <axis = 1> (a, x) }"),
    "unknown sides": ("float[1,4] x, int64[2] s", "float[A,B] y", "{ a = Abs(x)  y = Reshape(a, s) }"),
    "unknown sides twice": (
        "float[1,4] x, int64[2] s, int64[2] r",
        "float[A,B] y",
        "{ a = Reshape(x, s)  b = Reshape(a, r)  y = Relu(b) }",
    ),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    inputs, results, body = REFUSES[name]
    constants = {"t": np.array([2, 2])} if "t)" in body else {}
    built = model(f"agraph ({inputs}) => ({results}) {body}", **constants)
    before = ops(built)
    assert passes["eliminate-identity"]().rewrite(built).count == 0
    assert ops(built) == before


@pytest.mark.parametrize("section", ["[dropout]", "[empty]", "[activation]\nactivation=linear", "[route]\nlayers=0"])
def test_first_and_last_layers(section: str) -> None:
    """A network that begins and ends with nothing: `input` and the last layer keep their names."""
    first = "[dropout]" if section.startswith("[route]") else section
    text = f"[net]\nwidth=3\nheight=3\nchannels=1\n{first}\n[convolutional]\nfilters=2\n{section}\n"
    built = lower(Network.parse(text).with_random_weights(0))
    before = outputs(built)
    assert passes["eliminate-identity"]().rewrite(built).count >= 1
    assert [value.name for value in built.graph.inputs] == ["input"]
    assert [value.name for value in built.graph.outputs] == ["layer002"]
    same(outputs(built), before, 0)


def test_network_of_nothing() -> None:
    built = lower(Network.parse("[net]\nwidth=3\nheight=3\nchannels=1\n[dropout]\n").with_random_weights(0))
    passes["eliminate-identity"]().rewrite(built)
    assert ops(built) == ["Dropout"] or ops(built) == ["Identity"]


def test_layer_values_survive() -> None:
    """Of a layer that does nothing and the one before, the name of the one before stays."""
    text = (
        "[net]\nwidth=3\nheight=3\nchannels=1\n[convolutional]\nfilters=2\n[dropout]\n[convolutional]\nfilters=1\n"
        "[convolutional]\nfilters=2\n"
    )
    built = lower(Network.parse(text).with_random_weights(0))
    passes["eliminate-identity"]().rewrite(built)
    names = {value.name for node in built.graph for value in node.outputs}
    assert {"layer000", "layer002", "layer003"} <= names
