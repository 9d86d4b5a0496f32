"""Constants that are multiplied and added go into the weights; padding, readers and names of layers refuse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.passes import passes
from dnc.runtime.preprocessing import Preprocessing
from tests.models import model, ops, outputs, same
from tests.networks import NETWORKS, TINY

R = np.random.default_rng(0)
ARRAYS = {
    "w": R.normal(0, 1, (4, 3, 3, 3)),
    "w1": R.normal(0, 1, (4, 3, 1, 1)),
    "v1": R.normal(0, 1, (2, 3, 1, 1)),
    "wg": R.normal(0, 1, (6, 2, 1, 1)),
    "wd": R.normal(0, 1, (3, 1, 3, 3)),
    "bias": R.normal(0, 1, 4),
    "g": R.normal(0, 1, (4, 3)),
    "gt": R.normal(0, 1, (3, 4)),
    "two": np.array(2.0),
    "one": np.array([[[[-3.0]]]]),
    "zero": np.array(0.0),
    "many": np.array([[[[[2.0]]]]]),
    "k": R.uniform(0.5, 2, (1, 4, 1, 1)),
    "k3": R.uniform(0.5, 2, (3, 1, 1)),
    "k4": R.normal(0, 1, (1, 4, 1, 1)),
    "kb": np.repeat(R.normal(0, 1, (1, 4, 1, 1)), 2, axis=0),
    "kn": R.normal(0, 1, (2, 4, 1, 1)),
    "row": R.normal(0, 1, (1, 4)),
    "map": R.normal(0, 1, (1, 1, 5, 5)),
    "i": R.normal(0, 1, (4, 1, 1)),
    "sides": np.array([2, 4, 1, 1]),
    "wide": np.array([2, 4, 5, 5]),
    "m": R.normal(0, 1, (1, 3, 1, 1)),
    "one1": np.array(0.5),
    "index3": np.array([2, 1, 0]),
    "index": np.array([2, 1, 0, 0]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "pads1": np.array([0, 1, 0, 0, 0, 0, 0, 0]),
    "shape": np.array([0, 3, 5, 5]),
    "flat": np.array([0, -1]),
    "nan": np.array(np.nan),
}
X, Y = "float[2,3,5,5] x", "float[2,4,5,5] y"
Y3 = "float[2,4,3,3] y"
PADDED = "<pads=[1,1,1,1]>"


def build(inputs: str, results: str, body: str) -> ir.Model:
    used = {name: array for name, array in ARRAYS.items() if f" {name}," in body or f" {name})" in body}
    body = body.replace("( ", "(")
    return model(f"agraph ({inputs}) => ({results}) {body}", **used)


APPLIES = {
    # inputs, outputs, nodes, how often it applies, the operators that are left
    "mul": (X, Y, f"{{ c = Conv {PADDED} (x, w, bias)  y = Mul(c, two) }}", 1, "Conv"),
    "mul from the left": (X, Y, f"{{ c = Conv {PADDED} (x, w, bias)  y = Mul( two, c) }}", 1, "Conv"),
    "div": (X, Y, f"{{ c = Conv {PADDED} (x, w)  y = Div(c, k) }}", 1, "Conv"),
    "add": (X, Y, f"{{ c = Conv {PADDED} (x, w)  y = Add(c, k) }}", 1, "Conv"),
    "sub": (X, Y, f"{{ c = Conv {PADDED} (x, w, bias)  y = Sub(c, k) }}", 1, "Conv"),
    "sub from a constant": (X, Y, f"{{ c = Conv {PADDED} (x, w, bias)  y = Sub( k, c) }}", 1, "Conv"),
    "chain": (X, Y, "{ c = Conv(x, w1)  d = Mul(c, k)  e = Add(d, one)  y = Div(e, two) }", 3, "Conv"),
    "rank 4 scalar": (X, Y, "{ c = Conv(x, w1, bias)  y = Mul(c, one) }", 1, "Conv"),
    "zero": (X, Y, "{ c = Conv(x, w1, bias)  y = Mul(c, zero) }", 1, "Conv"),
    "repeated for the batch": (X, Y, "{ c = Conv(x, w1, bias)  y = Mul(c, kb) }", 1, "Conv"),
    "implicit": (X, Y, "{ c = Conv(x, w1, bias)  e = Expand( i, sides)  y = Add(c, e) }", 1, "Conv Expand"),
    "gemm": ("float[2,3] x", "float[2,4] y", "{ c = Gemm <transB=1> (x, g)  y = Mul(c, row) }", 1, "Gemm"),
    "gemm not transposed": ("float[2,3] x", "float[2,4] y", "{ c = Gemm(x, gt, bias)  y = Add(c, row) }", 1, "Gemm"),
    "route": (
        X,
        "float[2,4,5,5] y",
        "{ c = Conv(x, v1)  d = Conv(x, v1)  e = Concat <axis=1> (c, d)  y = Mul(e, k) }",
        1,
        "Conv Conv Concat",
    ),
    "before": (X, Y, f"{{ c = Mul(x, k3)  y = Conv {PADDED} (c, w, bias) }}", 1, "Conv"),
    "before, a constant first": (X, Y, f"{{ c = Mul( two, x)  y = Conv {PADDED} (c, w) }}", 1, "Conv"),
    "div before": (X, Y, f"{{ c = Div(x, k3)  y = Conv {PADDED} (c, w) }}", 1, "Conv"),
    "before depthwise": (X, "float[2,3,3,3] y", "{ c = Sub(x, m)  y = Conv <group=3> (c, wd) }", 1, "Conv"),
    "before groups": (
        "float[2,4,5,5] x",
        "float[2,6,5,5] y",
        "{ c = Add(x, k)  y = Conv <group=2> (c, wg) }",
        1,
        "Conv",
    ),
    "normalization": (X, Y3, "{ c = Sub(x, m)  d = Div(c, k3)  y = Conv(d, w, bias) }", 2, "Conv"),
    "before gemm": ("float[2,4] x", "float[2,3] y", "{ c = Sub( row, x)  y = Gemm <transB=1> (c, gt) }", 1, "Gemm"),
    "before both": (X, f"{Y}, float[2,2,5,5] z", "{ c = Sub(x, m)  y = Conv(c, w1)  z = Conv(c, v1) }", 1, "Conv Conv"),
    "gather": (
        X,
        "float[2,4,5,4] y",
        "{ c = Div(x, two)  d = Gather <axis=3> (c, index)  y = Conv(d, w1) }",
        1,
        "Gather Conv",
    ),
    "sum": (
        X,
        Y,
        "{ c = Div(x, two)  d = Transpose <perm=[0,1,3,2]> (c)  e = Add(c, d)  y = Conv(e, w1) }",
        1,
        "Transpose Add Conv",
    ),
    "data": (
        f"{X}, float[2,1,5,5] z",
        Y,
        "{ c = Div(x, two)  d = Mul(c, z)  e = Div(d, z)  y = Conv(e, w1) }",
        1,
        "Mul Div Conv",
    ),
    "pad": (
        X,
        "float[2,4,7,7] y",
        "{ c = Mul(x, two)  d = Pad(c, pads, one1)  y = Conv(d, w1, bias) }",
        1,
        "Pad Conv",
    ),
    "pad with zeros": (X, "float[2,4,7,7] y", "{ c = Mul(x, two)  d = Pad(c, pads)  y = Conv(d, w1) }", 1, "Pad Conv"),
    "mean between": (
        X,
        Y,
        f"{{ c = Div(x, two)  d = Sub(c, m)  e = Div(d, k3)  y = Conv {PADDED} (e, w) }}",
        2,
        "Sub Conv",
    ),
    "reshape": (X, Y, f"{{ c = Mul(x, k3)  d = Reshape(c, shape)  y = Conv {PADDED} (d, w) }}", 1, "Reshape Conv"),
}


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    inputs, results, body, count, left = APPLIES[name]
    built = build(inputs, results, body)
    before = outputs(built)
    names = [value.name for value in built.graph.outputs]
    optimization = passes["fold-scale"]()
    remarks = optimization.rewrite(built)
    assert remarks.count == count
    passes["eliminate-dead-code"]().rewrite(built)
    assert sorted(ops(built)) == sorted(left.replace("Expand", "").split())
    assert [value.name for value in built.graph.outputs] == names
    same(outputs(built), before, optimization.tolerance)
    assert optimization.rewrite(built).count == 0


BEFORE = "convolutions and matrix products"
REFUSES = {
    # inputs, outputs, nodes, the reason; empty where the node is none of the pass's business
    "padding": (X, Y, f"{{ c = Sub(x, m)  y = Conv {PADDED} (c, w) }}", "padding"),
    "read by others": (
        X,
        f"{Y}, float[2,4,5,5] z",
        "{ c = Conv(x, w1)  y = Mul(c, two)  z = Relu(c) }",
        "read by others",
    ),
    "an output": (X, f"{Y}, float[2,4,5,5] c", "{ c = Conv(x, w1)  y = Mul(c, two) }", "read by others"),
    "computed weights": (X, Y, "{ n = Neg( w1)  c = Conv(x, n)  y = Mul(c, two) }", "no constants"),
    "a map": (X, Y, "{ c = Conv(x, w1)  y = Mul(c, map) }", ""),
    "another for each image": (X, Y, "{ c = Conv(x, w1)  y = Mul(c, kn) }", ""),
    "expanded over the pixels": (X, Y, "{ c = Conv(x, w1)  e = Expand( i, wide)  y = Mul(c, e) }", ""),
    "data": (f"{X}, float[2,4,1,1] z", Y, "{ c = Conv(x, w1)  y = Mul(c, z) }", ""),
    "a divisor": (X, Y, "{ c = Conv(x, w1)  y = Div( two, c) }", ""),
    "division by zero": (X, Y, "{ c = Conv(x, w1)  y = Div(c, zero) }", ""),
    "NaN": (X, Y, "{ c = Conv(x, w1)  y = Mul(c, nan) }", "no numbers"),
    "more axes": (X, "float[1,2,4,5,5] y", "{ c = Conv(x, w1)  y = Mul(c, many) }", ""),
    "more channels": ("float[2,1,5,5] x", "float[2,4,5,5] y", "{ c = Abs(x)  y = Mul(c, k) }", ""),
    "nothing beside it": (X, "float[2,3,5,5] y", "{ y = Mul(x, two) }", ""),
    "an activation between": (X, Y, "{ c = Mul(x, two)  d = Tanh(c)  y = Conv(d, w1) }", ""),
    "another reader": (X, f"{Y}, float[2,3,5,5] z", "{ c = Mul(x, two)  y = Conv(c, w1)  z = Tanh(c) }", BEFORE),
    "as weights": ("float[4,3,1,1] x", "float[1,4,1,1] y", "{ c = Mul(x, two)  y = Conv( m, c) }", BEFORE),
    "before and an output": (X, f"{Y}, float[2,3,5,5] c", "{ c = Mul(x, two)  y = Conv(c, w1) }", "no convolution"),
    "unscaled sum": (X, Y, "{ c = Mul(x, two)  d = Add(c, x)  y = Conv(d, w1) }", ""),
    "squared": (X, Y, "{ c = Mul(x, two)  d = Mul(c, c)  y = Conv(d, w1) }", ""),
    "multiplied by itself": (
        X,
        Y,
        "{ c = Mul(x, two)  d = Transpose <perm=[0,1,3,2]> (c)  e = Mul(c, d)  y = Conv(e, w1) }",
        "",
    ),
    "divides": (f"{X}, float[2,3,5,5] z", Y, "{ c = Mul(x, two)  d = Div(z, c)  y = Conv(d, w1) }", ""),
    "a shift through others": (
        X,
        "float[2,4,5,4] y",
        "{ c = Add(x, two)  d = Gather <axis=3> (c, index)  y = Conv(d, w1) }",
        "",
    ),
    "zero and a constant": (
        X,
        "float[2,4,6,5] y",
        "{ c = Mul(x, zero)  d = Add(c, two)  y = Conv <pads=[0,0,1,0]> (d, w1) }",
        "padding",
    ),
    "channels gathered": (X, Y, "{ c = Mul(x, k3)  d = Gather <axis=1> (c, index3)  y = Conv(d, w1) }", ""),
    "channels padded": (X, "float[2,6,5,5] y", "{ c = Mul(x, k3)  d = Pad(c, pads1)  y = Conv <group=2> (d, wg) }", ""),
    "a layer": (X, Y, "{ c = Div(x, two)  layer000 = Transpose <perm=[0,1,3,2]> (c)  y = Conv(layer000, w1) }", ""),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    inputs, results, body, reason = REFUSES[name]
    built = build(inputs, results, body)
    before, text = outputs(built), str(built)
    remarks = passes["fold-scale"]().rewrite(built)
    assert remarks.count == 0
    assert str(built) == text
    if reason:
        (remark,) = remarks.missed
        assert reason in remark.text
    else:
        assert not remarks.missed
    for key, array in outputs(built).items():
        assert np.array_equal(array, before[key], equal_nan=True)


@pytest.mark.parametrize("mean", [(0.0,), (0.1, 0.2, 0.3)])
@pytest.mark.parametrize("mode", ["resize", "letterbox", "resize-half-pixel", "center-crop"])
def test_pixels(mode: str, mean: tuple[float, ...]) -> None:
    """x / 255 of uint8 graphs goes through the resampling, the standard deviation behind it too; the mean stays."""
    preprocessing = Preprocessing(16, 16, mode=mode, mean=mean, std=(0.5, 0.6, 0.7) if any(mean) else (1.0,))
    built = lower(Network.parse(TINY).with_random_weights(0), pixels=True, preprocessing=preprocessing)
    pixels = {"input": R.integers(0, 256, (2, 23, 31, 3)).astype(np.uint8)}
    before = outputs(built, pixels)
    optimization = passes["fold-scale"]()
    assert optimization.rewrite(built).count == (2 if any(mean) else 1)
    same(outputs(built, pixels), before, optimization.tolerance)
    floats = [node for node in built.graph if node.op_type == "Div" and node.outputs[0].dtype == ir.DataType.FLOAT]
    assert all(len(node.outputs[0].shape or ()) < 4 for node in floats)


def test_implicit_layers() -> None:
    """A learned factor for each channel, of any number of images."""
    text = (
        "[net]\nwidth=4\nheight=4\nchannels=3\n[convolutional]\nfilters=4\nactivation=linear\n[implicit]\nfilters=4\n"
        "[scale_channels]\nfrom=-2\n[convolutional]\nfilters=2\nsize=3\npad=1\nactivation=linear\n"
    )
    built = lower(Network.parse(text).with_random_weights(0))
    before = outputs(built)
    assert passes["fold-scale"]().rewrite(built).count == 1
    passes["eliminate-dead-code"]().rewrite(built)
    assert ops(built) == ["Conv", "Conv"]
    assert next(iter(built.graph)).outputs[0].name == "layer002"
    same(outputs(built), before, 1e-5)


def test_squeeze_and_excitation_stays() -> None:
    built = lower(Network.parse(NETWORKS["attention"]).with_random_weights(0))
    count = ops(built).count("Mul")
    remarks = passes["fold-scale"]().rewrite(built)
    assert count - ops(built).count("Mul") == sum("Mul" in remark.text for remark in remarks.applied)
    assert ops(built).count("Mul") >= 3


def test_weights_are_computed_when_they_are_read() -> None:
    """No copy is held, and biases that depend on weights wait too."""
    built = build(X, Y3, "{ c = Sub(x, m)  d = Div(c, k3)  y = Conv(d, w, bias) }")
    passes["fold-scale"]().rewrite(built)
    (conv,) = built.graph
    for value in conv.inputs[1:]:
        assert value is not None
        assert isinstance(value.const_value, ir.LazyTensor)


@settings(max_examples=30)
@given(
    filters=st.integers(1, 4),
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
    pad=st.integers(0, 1),
    op=st.sampled_from(["Mul", "Div", "Add", "Sub"]),
    channels=st.booleans(),
    after=st.booleans(),
    log=st.floats(-6, 6),
)
def test_random_layers(
    filters: int, groups: int, size: int, pad: int, op: str, channels: bool, after: bool, log: float
) -> None:
    """Any geometry and any size of the factors: it applies but where a shift meets padding."""
    inputs, results = 2 * groups, filters * groups
    sides = 5 + 2 * pad - size + 1
    count = results if after else inputs
    factors = 10**log * R.uniform(0.5, 2, (count, 1, 1) if channels else (1,))
    kernel, bias = R.normal(0, 1, (results, 2, size, size)), R.normal(0, 1, results)
    conv = f"Conv <group={groups}, pads=[{pad},{pad},{pad},{pad}]>"
    body = f"c = {conv} (x, w, b)  y = {op}(c, k)" if after else f"c = {op}(x, k)  y = {conv} (c, w, b)"
    text = f"agraph (float[1,{inputs},5,5] x) => (float[1,{results},{sides},{sides}] y) {{ {body} }}"
    built = model(text, w=kernel, b=bias, k=factors)
    before = outputs(built)
    optimization = passes["fold-scale"]()
    assert optimization.rewrite(built).count == (after or op in ("Mul", "Div") or not pad)
    same(outputs(built), before, optimization.tolerance)
