"""What no output depends on goes; graph inputs, outputs, and what a graph inside a node reads, stay."""

from __future__ import annotations

import numpy as np

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.passes import passes
from tests.models import model, ops, outputs, same


def test_chains_and_initializers() -> None:
    text = """agraph (float[1,4] x, float[1,4] unused) => (float[1,4] y) {
        a = Abs(x)  dead1 = Add(a, c)  dead2 = Relu(dead1)  y = Mul(a, d)  dead3 = Neg(y)
    }"""
    built = model(text, c=np.ones((1, 4)), d=np.full((1, 4), 2.0))
    before = outputs(built)
    assert passes["eliminate-dead-code"]().rewrite(built).count == 4
    assert ops(built) == ["Abs", "Mul"]
    assert list(built.graph.initializers) == ["d"]
    assert [value.name for value in built.graph.inputs] == ["x", "unused"]
    same(outputs(built), before, 0)


def test_one_output_of_several_keeps_the_node() -> None:
    built = model("agraph (float[4] x) => (int64[2] y) { v, i = TopK <axis = 0> (x, k)  y = Abs(i) }", k=np.array([2]))
    assert passes["eliminate-dead-code"]().rewrite(built).count == 0


def test_what_an_inner_graph_reads_stays() -> None:
    text = """agraph (float[1,4] x) => (float[1,4] y) {
        b = Neg(x)
        y = If (c) <
            then_branch = t () => (float[1,4] p) { p = Add(x, b) },
            else_branch = f () => (float[1,4] q) { q = Sub(x, a) }
        >
    }"""
    built = model(text, a=np.ones((1, 4)), c=np.array(True))
    assert passes["eliminate-dead-code"]().rewrite(built).count == 0
    assert set(built.graph.initializers) == {"a", "c"}


def test_initializer_that_is_an_output_stays() -> None:
    built = model("agraph (float[4] x) => (float[4] y) { y = Add(x, a) }", a=np.ones(4))
    value = built.graph.initializers["a"]
    built.graph.outputs.append(value)
    next(iter(built.graph)).replace_input_with(1, built.graph.inputs[0])
    assert passes["eliminate-dead-code"]().rewrite(built).count == 0
    assert "a" in built.graph.initializers


def test_layers_that_nothing_reads() -> None:
    """A branch of a cfg that ends in nothing, with its weights; the heads stay, in order."""
    text = (
        "[net]\nwidth=4\nheight=4\nchannels=3\n[convolutional]\nfilters=7\n[yolo]\nclasses=2\nnum=1\nanchors=1,1\n"
        "[route]\nlayers=0\n[convolutional]\nbatch_normalize=1\nfilters=9\n"
    )
    built = lower(Network.parse(text).with_random_weights(0))
    before = outputs(built)
    assert passes["eliminate-dead-code"]().rewrite(built).count > 3
    assert not any("003_" in name for name in built.graph.initializers)
    same(outputs(built), before, 0)
