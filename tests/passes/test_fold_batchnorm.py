"""Batch normalisation goes into the convolution or product before it; refused wherever that would change a number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.serialization import serialize_to
from dnc.passes import passes
from tests.models import model, ops, outputs, same

Array = npt.NDArray[np.float64]
R = np.random.default_rng(0)
NORM = {
    "s": R.uniform(0.5, 2, 4),
    "b": R.normal(0, 1, 4),
    "m": R.normal(0, 1, 4),
    "v": R.uniform(0.1, 2, 4),
}
X, Y = "float[1,3,5,5] x", "float[1,4,5,5] y"

APPLIES = {
    "conv": (X, Y, "{ c = Conv(x, w)  y = BN }"),
    "conv with biases": (X, Y, "{ c = Conv(x, w, p)  y = BN }"),
    "epsilon": (X, Y, "{ c = Conv(x, w)  y = BatchNormalization <epsilon = 0.5> (c, s, b, m, v) }"),
    "depthwise": ("float[1,4,5,5] x", Y, "{ c = Conv <group=4> (x, d)  y = BN }"),
    "gemm": ("float[2,3] x", "float[2,4] y", "{ c = Gemm <transB=1> (x, g)  y = BN }"),
    "gemm with biases": ("float[2,3] x", "float[2,4] y", "{ c = Gemm <transB=1> (x, g, p)  y = BN }"),
    "gemm not transposed": ("float[2,4] x", "float[2,4] y", "{ c = Gemm(x, q)  y = BN }"),
    "twice": (X, Y, "{ c = Conv(x, w) d = BatchNormalization(c, s, b, m, v) y = BatchNormalization(d, s, b, m, v) }"),
    "route": (X, Y, "{ d = Conv(x, h)  e = Conv(x, i)  c = Concat <axis=1> (d, e)  y = BN }"),
    "route of routes": (
        X,
        Y,
        "{ d = Conv(x, i)  e = Conv(x, j, k)  f2 = Concat <axis=1> (d, e)  h2 = Conv(x, l)  "
        "c = Concat <axis=1> (f2, h2)  y = BN }",
    ),
    "before": ("float[1,4,5,5] c", "float[1,4,3,3] y", "{ n = BN  y = Conv(n, f, p) }"),
    "before groups": ("float[1,4,5,5] c", "float[1,6,5,5] y", "{ n = BN  y = Conv <group=2> (n, o) }"),
    "before gemm": ("float[2,4] c", "float[2,4] y", "{ n = BN  y = Gemm <transB=1> (n, q, p) }"),
    "before gemm not transposed": ("float[2,4] c", "float[2,4] y", "{ n = BN  y = Gemm(n, q) }"),
    "before two": (
        "float[1,4,5,5] c",
        "float[1,4,3,3] y, float[1,6,5,5] z",
        "{ n = BN  y = Conv(n, f, p)  z = Conv <group=2> (n, o) }",
    ),
    "before without shift": (
        "float[1,4,5,5] c",
        "float[1,4,5,5] y",
        "{ n = BatchNormalization(c, s, u, u, v)  y = Conv <pads=[1,1,1,1]> (n, f, p) }",
    ),
    "twice before": (
        "float[1,4,5,5] c",
        "float[1,4,3,3] y",
        "{ n = BN  m2 = BatchNormalization(n, s, b, m, v)  y = Conv(m2, f) }",
    ),
}
WEIGHTS = {
    "w": R.normal(0, 1, (4, 3, 1, 1)),
    "g": R.normal(0, 1, (4, 3)),
    "p": R.normal(0, 1, 4),
    "d": R.normal(0, 1, (4, 1, 1, 1)),
    "q": R.normal(0, 1, (4, 4)),
    "h": R.normal(0, 1, (3, 3, 1, 1)),
    "i": R.normal(0, 1, (1, 3, 1, 1)),
    "j": R.normal(0, 1, (1, 3, 1, 1)),
    "k": R.normal(0, 1, 1),
    "l": R.normal(0, 1, (2, 3, 1, 1)),
    "f": R.normal(0, 1, (4, 4, 3, 3)),
    "o": R.normal(0, 1, (6, 2, 1, 1)),
    "t": R.normal(0, 1, (3, 4, 1, 1)),
    "rows": R.normal(0, 1, (4, 1)),
    "u": np.zeros(4),
    "n4": np.array([np.nan, 1, 1, 1]),
}


def build(inputs: str, results: str, body: str, more: Mapping[str, Array] | None = None) -> ir.Model:
    arrays = {**NORM, **WEIGHTS, **(more or {})}
    body = body.replace("BN", "BatchNormalization(c, s, b, m, v)")
    used = {name: array for name, array in arrays.items() if f" {name}," in body or f" {name})" in body}
    return model(f"agraph ({inputs}) => ({results}) {body}", **used)


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    built = build(*APPLIES[name])
    before = outputs(built)
    names = [value.name for value in built.graph.outputs]
    optimization = passes["fold-batchnorm"]()
    remarks = optimization.rewrite(built)
    assert remarks.count == (2 if "twice" in name else 1)
    assert not remarks.missed
    assert "BatchNormalization" not in ops(built)
    assert [value.name for value in built.graph.outputs] == names
    same(outputs(built), before, optimization.tolerance)
    assert optimization.rewrite(built).count == 0


REFUSES = {
    "read by others": (X, f"{Y}, {Y.replace('y', 'z')}", "{ c = Conv(x, w) y = BN z = Abs(c) }", "read by others"),
    "an output": (X, f"{Y}, {Y.replace('y', 'c')}", "{ c = Conv(x, w)  y = BN }", "read by others"),
    "no convolution": ("float[1,4,5,5] x", Y, "{ c = Abs(x)  y = BN }", "no convolution"),
    "the input": ("float[1,4,5,5] c", Y, "{ y = BN }", "no convolution"),
    "weights are computed": (X, Y, "{ n = Neg( w)  c = Conv(x, n)  y = BN }", "no constants"),
    "scales are computed": (
        X,
        Y,
        "{ n = Neg( s)  c = Conv(x, w)  y = BatchNormalization(c, n, b, m, v) }",
        "statistics are no constants",
    ),
    "biases are computed": (X, Y, "{ n = Neg( p)  c = Conv(x, w, n)  y = BN }", "no constants"),
    "alpha": ("float[2,3] x", "float[2,4] y", "{ c = Gemm <transB=1, alpha=2.0> (x, g)  y = BN }", "scaled"),
    "beta": ("float[2,3] x", "float[2,4] y", "{ c = Gemm <transB=1, beta=2.0> (x, g, p)  y = BN }", "scaled"),
    "bias of another shape": (
        "float[2,3] x",
        "float[2,4] y",
        "{ c = Gemm <transB=1> (x, g, k)  y = BN }",
        "no bias per output",
    ),
    "bias per row": (
        "float[4,3] x",
        "float[4,4] y",
        "{ c = Gemm <transB=1> (x, g, rows)  y = BN }",
        "no bias per output",
    ),
    "transposed convolution": (X, Y, "{ c = ConvTranspose(x, t)  y = BN }", "no convolution"),
    "NaN": (X, Y, "{ c = Conv(x, w)  y = BatchNormalization(c, s, b, m, n4) }", "no numbers"),
    "route of an activation": (
        X,
        Y,
        "{ d = Conv(x, h)  e = Conv(x, i)  r = Relu(e)  c = Concat <axis=1> (d, r)  y = BN }",
        "not every part",
    ),
    "part read by others": (
        X,
        f"{Y}, float[1,1,5,5] z",
        "{ d = Conv(x, h)  e = Conv(x, i)  z = Relu(e)  c = Concat <axis=1> (d, e)  y = BN }",
        "convolution's result is read by others",
    ),
    "part twice": (
        X,
        Y,
        "{ dd = Conv(x, l)  c = Concat <axis=1> (dd, dd)  y = BN }",
        "convolution's result is read by others",
    ),
    "route read by others": (
        X,
        f"{Y}, {Y.replace('y', 'z')}",
        "{ d = Conv(x, h)  e = Conv(x, i)  c = Concat <axis=1> (d, e)  z = Relu(c)  y = BN }",
        "concatenation is read by others",
    ),
    "rows": (
        "float[1,3,2,5] x",
        "float[1,4,4,5] y",
        "{ d = Conv(x, w)  e = Conv(x, r4)  c = Concat <axis=2> (d, e)  y = BN }",
        "no convolution",
    ),
    "padding": ("float[1,4,5,5] c", Y, "{ n = BN  y = Conv <pads=[1,1,1,1]> (n, f) }", "padding"),
    "auto_pad": ("float[1,4,5,5] c", Y, '{ n = BN  y = Conv <auto_pad="SAME_UPPER"> (n, f) }', "padding"),
    "before and an output": (
        "float[1,4,5,5] c",
        "float[1,4,3,3] y, float[1,4,5,5] n",
        "{ n = BN  y = Conv(n, f) }",
        "no convolution",
    ),
    "before others": (
        "float[1,4,5,5] c",
        "float[1,4,3,3] y, float[1,4,5,5] z",
        "{ n = BN  y = Conv(n, f)  z = Relu(n) }",
        "other than convolutions",
    ),
    "as weights": ("float[4,4,1,1] c", "float[1,4,1,1] y", "{ n = BN  y = Conv( e4, n) }", "other than convolutions"),
    "transposed input": (
        "float[3,4] c",
        "float[4,4] y",
        "{ n = BN  y = Gemm <transA=1> (n, a4) }",
        "transposed",
    ),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    inputs, results, body, reason = REFUSES[name]
    more = {"r4": R.normal(0, 1, (4, 3, 1, 1)), "e4": R.normal(0, 1, (1, 4, 1, 1)), "a4": R.normal(0, 1, (3, 4))}
    built = build(inputs, results, body, more)
    before = outputs(built)
    remarks = passes["fold-batchnorm"]().rewrite(built)
    assert remarks.count == 0
    (remark,) = remarks.missed
    assert reason in remark.text
    for key, array in outputs(built).items():
        assert np.array_equal(array, before[key], equal_nan=True)


def test_names() -> None:
    """A value's name says what it holds: what a convolution or a part of a route computed before is no more."""
    arrays = {**NORM, "w": WEIGHTS["w"], "h": WEIGHTS["h"], "i": WEIGHTS["i"]}
    first = "layer001 = Conv(x, w)  layer002 = BatchNormalization(layer001, s, b, m, v)"
    second = (
        "layer003 = Conv(x, h)  layer004 = Conv(x, i)  layer005 = Concat <axis=1> (layer003, layer004)  "
        "layer006 = BatchNormalization(layer005, s, b, m, v)"
    )
    built = model(f"agraph ({X}) => ({Y}) {{ {first} {second} y = Add(layer002, layer006) }}", **arrays)
    assert passes["fold-batchnorm"]().rewrite(built).count == 2
    names = {value.name for node in built.graph for value in node.outputs if (value.name or "").startswith("layer")}
    assert names == {"layer002", "layer006"}


def test_training_mode_is_refused() -> None:
    built = build(X, Y, "{ c = Conv(x, w)  y = BN }")
    norm = next(node for node in built.graph if node.op_type == "BatchNormalization")
    norm.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    assert passes["fold-batchnorm"]().rewrite(built).count == 0


def test_is_darknet_s_own_fusion() -> None:
    """fuse_conv_batchnorm: the factor in double, the product rounded once."""
    built = build(X, Y, "{ c = Conv(x, w)  y = BN }")
    passes["fold-batchnorm"]().rewrite(built)
    conv = next(iter(built.graph))
    arrays = {name: array.astype(np.float32).astype(np.float64) for name, array in {**NORM, **WEIGHTS}.items()}
    factor = arrays["s"] / np.sqrt(arrays["v"] + 1e-5)
    weights, biases = (value.const_value.numpy() for value in conv.inputs[1:] if value and value.const_value)
    assert np.array_equal(weights, (arrays["w"] * factor.reshape(4, 1, 1, 1)).astype(np.float32))
    assert np.array_equal(biases, (arrays["b"] - factor * arrays["m"]).astype(np.float32))


def test_weights_are_computed_when_they_are_read() -> None:
    """No copy is held: the array is another one each time."""
    network = Network.parse("[net]\nwidth=3\nheight=3\nchannels=3\n[convolutional]\nbatch_normalize=1\nfilters=4\n")
    built = lower(network.with_random_weights(0))
    passes["fold-batchnorm"]().rewrite(built)
    tensor = next(value.const_value for name, value in built.graph.initializers.items() if name.endswith(".folded"))
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.numpy() is not tensor.numpy()


def test_shared_weights_are_folded_for_each() -> None:
    """share_index: two convolutions with the same weights; the new ones have names of their own."""
    text = (
        "[net]\nwidth=4\nheight=4\nchannels=4\n[convolutional]\nbatch_normalize=1\nfilters=4\n"
        "[convolutional]\nbatch_normalize=1\nfilters=4\nshare_index=0\n"
    )
    built = lower(Network.parse(text).with_random_weights(0))
    before = outputs(built)
    assert passes["fold-batchnorm"]().rewrite(built).count == 2
    passes["eliminate-dead-code"]().rewrite(built)
    assert len(built.graph.initializers) == 4
    same(outputs(built), before, 1e-5)


@settings(max_examples=30)
@given(
    filters=st.integers(1, 6),
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
    kind=st.sampled_from(["convolutional", "connected"]),
    log=st.floats(-8, 4),
    seed=st.integers(0, 99),
)
def test_random_layers(filters: int, groups: int, size: int, kind: str, log: float, seed: int) -> None:
    """Any geometry, variances from dead channels to huge ones."""
    section = f"[convolutional]\nfilters={filters * groups}\nsize={size}\ngroups={groups}\nbatch_normalize=1\n"
    if kind == "connected":
        section = f"[connected]\noutput={filters}\nbatch_normalize=1\n"
    network = Network.parse(f"[net]\nwidth=4\nheight=5\nchannels={2 * groups}\n{section}").with_random_weights(seed)
    (own,) = network.arrays
    network = network.with_arrays(({**own, "variance": (own["variance"] * 10**log).astype(np.float32)},))
    built = lower(network)
    before = outputs(built, seed=seed)
    optimization = passes["fold-batchnorm"]()
    assert optimization.rewrite(built).count == 1
    # Where all terms cancel, one layer loses as much as a deep network: 1.03 times the declared error was seen.
    same(outputs(built, seed=seed), before, 3 * optimization.tolerance)


@pytest.mark.parametrize("name", ["conv", "before", "route"])
def test_can_be_written(name: str, tmp_path: Path) -> None:
    """Computed while it is written."""
    built = build(*APPLIES[name])
    passes["fold-batchnorm"]().rewrite(built)
    path = tmp_path / "model.onnx"
    serialize_to(built, path)
    same(outputs(ir.load(path)), outputs(built), 0)
