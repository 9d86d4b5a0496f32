"""Grouped convolutions get fewer groups, and compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import PassError
from dnc.graph.serialization import check
from dnc.passes import passes
from dnc.passes.grouped_to_dense import GroupedToDense
from tests.models import model, outputs, same

R = np.random.default_rng(0)
EXACTNESS = GroupedToDense.tolerance


def grouped(channels: int, filters: int, groups: int, more: str = "") -> ir.Model:
    """One grouped convolution, with biases."""
    text = f"agraph (float[2,{channels},6,7] x) => (float[N,M,H,W] y) {{ y = Conv <group = {groups}{more}> (x, w, b) }}"
    weights = R.normal(0, 1, (filters, channels // groups, 3, 3))
    return model(text, w=weights, b=R.normal(0, 1, filters))


def groups_of(built: ir.Model) -> list[int]:
    return [node.attributes["group"].as_int() for node in built.graph if node.op_type == "Conv"]


APPLIES = {
    # channels, filters, groups, attributes -> groups left
    "dense": (16, 24, 8, "", 1),
    "fewer": (16, 24, 8, "", 2),
    "half": (12, 12, 6, "", 3),
    "fewer filters": (18, 6, 3, "", 1),
    "one filter a group": (8, 4, 4, "", 2),
    "stride": (8, 8, 4, ", strides = [2, 3], pads = [1, 0, 0, 2], dilations = [2, 1]", 2),
}


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    channels, filters, groups, more, left = APPLIES[name]
    built = grouped(channels, filters, groups, more)
    before = outputs(built)
    optimization = GroupedToDense(groups=left)
    remarks = optimization.rewrite(built)
    assert [remark.text for remark in remarks.applied] == [f"{groups} groups -> {left}"]
    assert remarks.missed == []
    assert groups_of(built) == [left]
    check(built, "grouped-to-dense")
    same(outputs(built), before, EXACTNESS)
    assert optimization.rewrite(built).count == 0


def test_blocks() -> None:
    """The formula, entry by entry: 6 groups of 2 filters and 3 channels become 2."""
    built = grouped(18, 12, 6)
    weights = built.graph.initializers["w"].const_value
    assert weights is not None
    GroupedToDense(groups=2).rewrite(built)
    dense = built.graph.initializers["w.blocks"].const_value
    assert dense is not None
    assert dense.numpy().shape == (12, 9, 3, 3)
    for i in range(12):
        for channel in range(9):
            block = (i // 2) % 3
            inside = block * 3 <= channel < block * 3 + 3
            expected = weights.numpy()[i, channel - block * 3] if inside else np.zeros((3, 3))
            assert np.array_equal(dense.numpy()[i, channel], expected)


REFUSES = {
    "depthwise": (8, 8, 8, 1, "depthwise, which is for diagonalwise"),
    "depthwise with a multiplier": (8, 16, 8, 1, "depthwise, which is for diagonalwise"),
    "no divisor": (16, 16, 8, 3, "3 does not divide 8 groups"),
    "as many": (16, 16, 4, 4, "it has no more than 4 groups"),
    "more": (16, 16, 2, 4, "it has no more than 2 groups"),
    "too large": (4096, 2048, 256, 1, "the weights would take 302 MB, more than 67 MB"),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    channels, filters, groups, left, reason = REFUSES[name]
    built = grouped(channels, filters, groups)
    remarks = GroupedToDense(groups=left).rewrite(built)
    assert remarks.count == 0
    assert [remark.text for remark in remarks.missed] == [reason]
    assert groups_of(built) == [groups]


def test_computed_weights_are_refused() -> None:
    text = "agraph (float[1,8,9,9] x) => (float[1,8,7,7] y) { v = Neg(w)  y = Conv <group = 2> (x, v) }"
    remarks = GroupedToDense().rewrite(model(text, w=R.normal(0, 1, (8, 4, 3, 3))))
    assert [remark.text for remark in remarks.missed] == ["the weights are computed"]


def test_a_dense_convolution_is_left_alone() -> None:
    remarks = GroupedToDense().rewrite(grouped(8, 8, 1))
    assert remarks.applied == remarks.missed == []


@pytest.mark.parametrize("options", [{"groups": 0}, {"only": {"c": 0}}])
def test_no_groups(options: dict[str, Any]) -> None:
    with pytest.raises(PassError, match="groups=0 must be at least 1"):
        GroupedToDense(**options)


def test_only_the_named_ones() -> None:
    text = """agraph (float[1,8,5,5] x) => (float[1,8,1,1] y) {
        a = Conv <group = 4> (x, v)  c = Relu(a)  y = Conv <group = 4> (c, w)
    }"""
    built = model(text, v=R.normal(0, 1, (8, 2, 3, 3)), w=R.normal(0, 1, (8, 2, 3, 3)))
    for node, name in zip(built.graph, ("first", "relu", "second"), strict=True):
        node.name = name
    before = outputs(built)
    remarks = GroupedToDense(only={"second": 2, "relu": 1}).rewrite(built)
    assert [remark.text for remark in remarks.applied] == ["4 groups -> 2"]
    assert [remark.text for remark in remarks.missed] == ["no grouped convolution"]
    assert groups_of(built) == [4, 2]
    same(outputs(built), before, EXACTNESS)
    with pytest.raises(PassError, match="the graph has no node third"):
        GroupedToDense(only={"third": 1}).rewrite(built)


RESNEXT = """[net]
width=16
height=16
channels=3
[convolutional]
batch_normalize=1
filters=32
size=3
pad=1
activation=relu
[convolutional]
batch_normalize=1
filters=32
groups=8
size=3
pad=1
stride=2
activation=relu
[convolutional]
batch_normalize=1
filters=64
groups=32
size=3
pad=1
activation=leaky
[convolutional]
filters=8
size=1
activation=linear
"""


def test_both_passes_after_one_another() -> None:
    """A network with grouped and depthwise layers: each pass takes its own, and leaves nothing grouped to itself."""
    built = lower(Network.parse(RESNEXT).with_random_weights(0))
    before = outputs(built)
    passes["fold-batchnorm"]().rewrite(built)
    assert GroupedToDense().rewrite(built).count == 1
    assert passes["diagonalwise"]().rewrite(built).count == 1
    check(built, "both")
    assert groups_of(built) == [1, 1, 1, 1]
    # The weights of two layers, and fold-batchnorm's.
    same(outputs(built), before, 2 * EXACTNESS)


@settings(max_examples=40)
@given(
    left=st.integers(1, 4),
    merged=st.integers(2, 4),
    channels=st.integers(2, 4),
    filters=st.integers(1, 4),
    stride=st.integers(1, 2),
    pad=st.integers(0, 2),
)
def test_random_geometry(left: int, merged: int, channels: int, filters: int, stride: int, pad: int) -> None:
    groups = left * merged
    built = grouped(groups * channels, groups * filters, groups, f", strides = [1, {stride}], pads = [{pad}, 0, 0, 1]")
    before = outputs(built)
    assert GroupedToDense(groups=left).rewrite(built).count == 1
    assert groups_of(built) == [left]
    same(outputs(built), before, EXACTNESS)
