"""Depthwise convolutions become block-diagonal ones: the same numbers, other groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import PassError
from dnc.graph.serialization import check, serialize_to
from dnc.graph.verification import Verifier, feeds_for
from dnc.passes import passes
from dnc.passes.diagonalwise import Diagonalwise
from dnc.passes.shared.block_diagonal import LIMIT
from tests import goldens
from tests.models import model, outputs, same

R = np.random.default_rng(0)
EXACTNESS = Diagonalwise.tolerance


def depthwise(channels: int, more: str = "", multiplier: int = 1, size: int = 3, side: int = 9) -> ir.Model:
    """One depthwise convolution, with biases."""
    text = (
        f"agraph (float[2,{channels},{side},{side}] x) => (float[N,M,H,W] y) "
        f"{{ y = Conv <group = {channels}{more}> (x, w, b) }}"
    )
    weights = R.normal(0, 1, (channels * multiplier, 1, size, size))
    return model(text, w=weights, b=R.normal(0, 1, channels * multiplier))


def conv(built: ir.Model) -> tuple[int, tuple[int, ...]]:
    """Groups and the shape of the weights of the only convolution."""
    (node,) = (node for node in built.graph if node.op_type == "Conv")
    weights = node.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    assert weights.const_value.numpy().shape == tuple(weights.const_value.shape)
    return node.attributes["group"].as_int(), weights.const_value.numpy().shape


APPLIES: dict[str, tuple[int, int, str, dict[str, Any], tuple[int, int]]] = {
    # channels, multiplier, attributes; width -> groups left, channels of a group
    "default": (64, 1, "", {}, (2, 32)),
    "narrow": (64, 1, "", {"width": 8}, (8, 8)),
    "pairs": (6, 1, "", {"width": 2}, (3, 2)),
    "all": (48, 1, "", {"width": None}, (1, 48)),
    "fewer channels than a block": (6, 1, "", {}, (1, 6)),
    "two channels": (2, 1, "", {}, (1, 2)),
    "largest divisor": (144, 1, "", {"width": 32}, (6, 24)),
    "least divisor": (44, 1, "", {"width": 10}, (11, 4)),
    "multiplier": (12, 3, "", {"width": 4}, (3, 4)),
    "stride": (16, 1, ", strides = [2, 1], pads = [1, 0, 2, 1]", {"width": 8}, (2, 8)),
    "dilation": (16, 2, ", dilations = [2, 3], pads = [2, 3, 2, 3]", {"width": 8}, (2, 8)),
    "same padding": (16, 1, ', auto_pad = "SAME_UPPER"', {"width": 8}, (2, 8)),
}


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    channels, multiplier, more, options, (groups, width) = APPLIES[name]
    built = depthwise(channels, more, multiplier)
    before = outputs(built)
    optimization = Diagonalwise(**options)
    remarks = optimization.rewrite(built)
    assert [remark.text for remark in remarks.applied] == [f"blocks of {width} channels: {channels} groups -> {groups}"]
    assert remarks.missed == []
    assert conv(built) == (groups, (channels * multiplier, width, 3, 3))
    check(built, "diagonalwise")
    same(outputs(built), before, EXACTNESS)
    assert optimization.rewrite(built).count == 0


def test_without_biases_in_one_dimension() -> None:
    text = "agraph (float[1,8,9] x) => (float[1,8,7] y) { y = Conv <group = 8> (x, w) }"
    built = model(text, w=R.normal(0, 1, (8, 1, 3)))
    before = outputs(built)
    assert Diagonalwise(width=4).rewrite(built).count == 1
    assert conv(built) == (2, (8, 4, 3))
    same(outputs(built), before, EXACTNESS)


def test_blocks() -> None:
    """The formula, entry by entry."""
    built = depthwise(6, multiplier=2)
    weights = built.graph.initializers["w"].const_value
    assert weights is not None
    Diagonalwise(width=3).rewrite(built)
    dense = built.graph.initializers["w.blocks"].const_value
    assert dense is not None
    for i in range(12):
        for j in range(3):
            expected = weights.numpy()[i, 0] if j == (i // 2) % 3 else np.zeros((3, 3))
            assert np.array_equal(dense.numpy()[i, j], expected)


REFUSES: dict[str, tuple[int, dict[str, Any], str]] = {
    "a prime": (37, {"width": 32}, "37 channels have no divisor from 4 to 32"),
    "odd": (15, {"width": 2}, "15 channels have no divisor from 2 to 2"),
    "three times a prime": (3 * 37, {"width": 32}, "111 channels have no divisor from 4 to 32"),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    channels, options, reason = REFUSES[name]
    built = depthwise(channels)
    remarks = Diagonalwise(**options).rewrite(built)
    assert remarks.count == 0
    assert [remark.text for remark in remarks.missed] == [reason]
    assert conv(built) == (channels, (channels, 1, 3, 3))


def test_computed_weights_are_refused() -> None:
    text = "agraph (float[1,8,9,9] x) => (float[1,8,7,7] y) { v = Neg(w)  y = Conv <group = 8> (x, v) }"
    remarks = Diagonalwise().rewrite(model(text, w=R.normal(0, 1, (8, 1, 3, 3))))
    assert [remark.text for remark in remarks.missed] == ["the weights are computed"]


def test_what_would_grow_too_large_is_refused() -> None:
    """All channels of a late layer of EfficientNet in one block: 133 MB, never computed. 32 are fine."""
    built = depthwise(1152, ", pads = [2, 2, 2, 2]", size=5, side=3)
    remarks = Diagonalwise(width=None).rewrite(built)
    assert [remark.text for remark in remarks.missed] == ["the weights would take 133 MB, more than 67 MB"]
    assert 1152 * 1152 * 25 * 4 > LIMIT > 1152 * 32 * 25 * 4
    assert Diagonalwise().rewrite(built).count == 1


@pytest.mark.parametrize("groups", [1, 4])
def test_other_convolutions_are_left_alone(groups: int) -> None:
    """A grouped one is for `grouped-to-dense`; neither is a refusal."""
    text = f"agraph (float[1,8,5,5] x) => (float[1,8,3,3] y) {{ y = Conv <group = {groups}> (x, w) }}"
    remarks = Diagonalwise().rewrite(model(text, w=R.normal(0, 1, (8, 8 // groups, 3, 3))))
    assert remarks.applied == remarks.missed == []


@pytest.mark.parametrize("options", [{"width": 1}, {"width": 0}, {"only": {"c": 1}}])
def test_widths_that_rewrite_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(PassError, match="must be at least 2"):
        Diagonalwise(**options)


TWO = """agraph (float[1,32,5,5] x) => (float[1,32,1,1] y) {
    a = Conv <group = 32> (x, w)  c = Relu(a)  y = Conv <group = 32> (c, w)
}"""


def named_two() -> ir.Model:
    """Two depthwise convolutions with the same weights, called first and second."""
    built = model(TWO, w=R.normal(0, 1, (32, 1, 3, 3)))
    nodes = list(built.graph)
    nodes[0].name, nodes[1].name, nodes[2].name = "first", "relu", "second"
    return built


def test_only_the_named_ones() -> None:
    """Weights that both read stay for the other."""
    built = named_two()
    before = outputs(built)
    optimization = Diagonalwise(only={"second": 8, "relu": None})
    remarks = optimization.rewrite(built)
    assert remarks.count == 1
    assert [remark.text for remark in remarks.missed] == ["no depthwise convolution"]
    assert [node.attributes["group"].as_int() for node in built.graph if node.op_type == "Conv"] == [32, 4]
    same(outputs(built), before, EXACTNESS)
    assert optimization.rewrite(built).count == 0


def test_none_are_named() -> None:
    assert Diagonalwise(only={}).rewrite(named_two()).count == 0


def test_names_that_are_not_there() -> None:
    with pytest.raises(PassError, match="the graph has no node third"):
        Diagonalwise(only={"third": 8}).rewrite(named_two())


def test_shared_weights_are_rewritten_for_each() -> None:
    built = named_two()
    before = outputs(built)
    assert Diagonalwise().rewrite(built).count == 2
    passes["eliminate-dead-code"]().rewrite(built)
    assert sorted(built.graph.initializers) == ["w.blocks", "w.blocks_1"]
    same(outputs(built), before, EXACTNESS)


def test_weights_are_computed_when_they_are_read(tmp_path: Path) -> None:
    """Nothing of the new size is held, and the file has it."""
    built = depthwise(64)
    before = outputs(built)
    Diagonalwise().rewrite(built)
    tensor = built.graph.initializers["w.blocks"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.numpy() is not tensor.numpy()
    serialize_to(built, tmp_path / "model.onnx")
    same(outputs(ir.load(tmp_path / "model.onnx")), before, EXACTNESS)


def test_after_half_precision() -> None:
    """The type of the weights is kept."""
    built = depthwise(8)
    passes["to-float16"]().rewrite(built)
    Diagonalwise(width=4).rewrite(built)
    check(built, "diagonalwise")
    tensor = built.graph.initializers["w.float16.blocks"].const_value
    assert tensor is not None
    assert tensor.dtype == ir.DataType.FLOAT16
    assert tensor.numpy().dtype == np.float16


@settings(max_examples=40)
@given(
    channels=st.integers(2, 40),
    multiplier=st.integers(1, 3),
    size=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 2),
    width=st.none() | st.integers(2, 40),
)
def test_random_geometry(
    channels: int, multiplier: int, size: int, stride: int, dilation: int, pad: int, width: int | None
) -> None:
    """Rewritten to a width that was asked for at most, or refused."""
    more = f", strides = [{stride}, 1], dilations = [1, {dilation}], pads = [{pad}, 0, 1, {pad}]"
    built = depthwise(channels, more, multiplier, size, side=6)
    before = outputs(built)
    remarks = Diagonalwise(width=width).rewrite(built)
    assert remarks.count + len(remarks.missed) == 1
    groups, (_, block, *_) = conv(built)
    assert groups * block == channels
    assert block == 1 if remarks.missed else 2 <= block <= min(width or channels, channels)
    same(outputs(built), before, EXACTNESS)


@pytest.mark.parametrize("width", [8, 32])
def test_whole_network(width: int, tmp_path: Path) -> None:
    """17 depthwise layers in a row, on noise and a photograph; tests/shared does this with trained weights."""
    built = lower(Network.load(*goldens.whole("mobilenetv2-leaky").write(tmp_path)))
    passes["fold-batchnorm"]().rewrite(built)
    verifier = Verifier(feeds_for(built))
    verifier.start(built)
    optimization = Diagonalwise(width=width)
    assert optimization.rewrite(built).count == 17
    check(built, "diagonalwise")
    assert 0 < verifier.compare(built, EXACTNESS) < EXACTNESS / 2
