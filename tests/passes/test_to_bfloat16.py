"""Weights of large products in bfloat16, with a Cast; everything else as it was."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import DncError
from dnc.graph.composites import inline_composites
from dnc.graph.serialization import check, serialize_to
from dnc.passes import passes
from dnc.passes.to_bfloat16 import ToBfloat16
from tests.models import model, ops, outputs, run, same

R = np.random.default_rng(0)
ROUNDING = 1e-2
"""Each weight is rounded by 2^-9 = 2e-3 of itself at most, and the errors of 65 terms or more average out; relative to
the largest of a few results 4.5e-3 was seen."""

APPLIES = {
    "conv": ("float[1,8,5,5] x", "Conv(x, w)", (4, 8, 3, 3)),
    "conv with biases": ("float[1,8,5,5] x", "Conv(x, w, b)", (4, 8, 3, 3)),
    "grouped conv": ("float[1,16,5,5] x", "Conv <group = 2> (x, w)", (4, 8, 3, 3)),
    "gemm": ("float[2,65] x", "Gemm(x, w)", (65, 4)),
    "gemm transposed": ("float[2,65] x", "Gemm <transB = 1> (x, w)", (4, 65)),
    "matmul": ("float[2,65] x", "MatMul(x, w)", (65, 4)),
    "matmul of a batch": ("float[3,2,65] x", "MatMul(x, w)", (3, 65, 4)),
}


def build(name: str, shape: tuple[int, ...] | None = None) -> ir.Model:
    inputs, op, usual = APPLIES[name]
    rank = {"conv": 4, "grouped": 4}.get(name.split()[0], 3 if "batch" in name else 2)
    result = ",".join("ABCD"[:rank])
    constants = {"w": R.normal(0, 1, shape or usual), **({"b": R.normal(0, 1, 4)} if "b)" in op else {})}
    return model(f"agraph ({inputs}) => (float[{result}] y) {{ y = {op} }}", **constants)


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    built = build(name)
    before, plain = outputs(built), built.graph.initializers["w"].const_value
    assert plain is not None
    optimization = ToBfloat16()
    remarks = optimization.rewrite(built)
    assert [remark.text for remark in remarks.applied] == ["weights in bfloat16"]
    check(built, "to-bfloat16")
    assert ops(built)[0] == "Cast"
    same(outputs(built), before, ROUNDING)
    passes["eliminate-dead-code"]().rewrite(built)
    assert set(built.graph.initializers) - {"b"} == {"w.bfloat16"}
    tensor = built.graph.initializers["w.bfloat16"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.dtype == ir.DataType.BFLOAT16
    assert np.array_equal(tensor.numpy(), plain.numpy().astype(ml_dtypes.bfloat16))
    assert tensor.numpy() is not tensor.numpy()
    assert optimization.rewrite(built).count == 0


def test_is_the_network_of_rounded_weights() -> None:
    """To the bit, in the engine: the Cast is exact, and the arithmetic is float32's."""
    built, rounded = build("conv"), build("conv")
    for each in (built, rounded):
        value = each.graph.initializers["w"]
        value.const_value = ir.Tensor(np.random.default_rng(1).normal(0, 1, (4, 8, 3, 3)).astype(np.float32), name="w")
    value = rounded.graph.initializers["w"]
    assert value.const_value is not None
    exact = value.const_value.numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
    value.const_value = ir.Tensor(exact, name="w")
    ToBfloat16().rewrite(built)
    same(outputs(built), outputs(rounded), 0)


FEW = {
    "conv": (4, 8, 2, 4),
    "gemm": (64, 4),
    "gemm transposed": (4, 64),
    "matmul": (64, 4),
}


@pytest.mark.parametrize("name", FEW)
def test_few_terms_stay(name: str) -> None:
    inputs, op, _ = APPLIES[name]
    text = (
        f"agraph ({inputs.replace('65', '64')}) => (float[{'A,B,C,D' if name == 'conv' else 'A,B'}] y) {{ y = {op} }}"
    )
    built = model(text, w=R.normal(0, 1, FEW[name]))
    remarks = ToBfloat16().rewrite(built)
    assert remarks.count == 0
    assert [remark.text for remark in remarks.missed] == ["only 64 terms, whose errors do not average out"]


def test_computed_weights_stay() -> None:
    text = "agraph (float[1,8,5,5] x, float[4,8,3,3] w) => (float[1,4,3,3] y) { y = Conv(x, w) }"
    remarks = ToBfloat16().rewrite(model(text))
    assert remarks.applied == remarks.missed == []


def test_shared_weights_are_stored_once() -> None:
    text = "agraph (float[1,8,5,5] x) => (float[1,8,1,1] y) { a = Conv(x, w)  y = Conv(a, w) }"
    built = model(text, w=R.normal(0, 1, (8, 8, 3, 3)))
    assert ToBfloat16().rewrite(built).count == 2
    assert ops(built) == ["Cast", "Conv", "Conv"]


NET = """[net]
width=8
height=8
channels=8
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[convolutional]
filters=16
groups=16
size=3
pad=1
activation=leaky
[convolutional]
filters=8
size=3
pad=1
activation=linear
"""


def test_keep() -> None:
    """By layer; the places of the refusals are those of the cfg."""
    built = lower(Network.parse(NET).with_random_weights(0))
    remarks = ToBfloat16(keep=["2"]).rewrite(built)
    assert [remark.where.rpartition("#")[2] for remark in remarks.applied] == ["0"]
    assert [remark.text for remark in remarks.missed] == [
        "only 9 terms, whose errors do not average out",
        "layer 2 is kept in float32",
    ]
    with pytest.raises(DncError, match="neither a layer nor an operator"):
        ToBfloat16(keep=["two"])


@pytest.mark.parametrize("whole", [False, True])
def test_signs_are_those_of_float32(whole: bool) -> None:
    """What xnor=1 takes the sign of is not rounded."""
    text = NET.replace("filters=8\n", "filters=8\nxnor=1\n") + "[convolutional]\nfilters=4\nsize=3\nactivation=linear\n"
    built = lower(Network.parse(text).with_random_weights(0))
    if not whole:
        inline_composites(built)
    before = outputs(built)
    remarks = ToBfloat16().rewrite(built)
    assert [remark.text for remark in remarks.missed].count("a comparison depends on it") == 2
    assert remarks.count == (1 if whole else 2)
    same(outputs(built), before, 2 * ROUNDING)


def test_the_file_is_half_as_large(tmp_path: Path) -> None:
    text = NET.replace("filters=16", "filters=160").replace("groups=16", "groups=160")
    built = lower(Network.parse(text).with_random_weights(0))
    before = outputs(built)
    serialize_to(built, tmp_path / "full.onnx")
    ToBfloat16().rewrite(built)
    passes["eliminate-dead-code"]().rewrite(built)
    path = tmp_path / "half.onnx"
    serialize_to(built, path)
    assert path.stat().st_size < 0.6 * (tmp_path / "full.onnx").stat().st_size
    loaded = ir.load(path)
    check(loaded, "the file")
    after = run(loaded, {"input": np.random.default_rng(0).normal(0, 1, (2, 8, 8, 8)).astype(np.float32)})
    same(after, before, 2 * ROUNDING)


@settings(max_examples=25)
@given(
    channels=st.integers(1, 12),
    filters=st.integers(1, 4),
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
    log=st.integers(-30, 30),
)
def test_random_layers(channels: int, filters: int, groups: int, size: int, log: int) -> None:
    """Any geometry, weights far outside float16's range."""
    text = f"agraph (float[1,{channels * groups},4,4] x) => (float[A,B,C,D] y) {{ y = Conv <group = {groups}> (x, w) }}"
    built = model(text, w=R.normal(0, 1, (filters * groups, channels, size, size)) * 10.0**log)
    before = outputs(built)
    assert ToBfloat16().rewrite(built).count == (channels * size * size > 64)
    same(outputs(built), before, ROUNDING)
