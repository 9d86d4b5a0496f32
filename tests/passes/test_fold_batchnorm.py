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

from dnc.graph import serialize_to
from dnc.lower import lower
from dnc.network import Network
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
    "gemm": ("float[2,3] x", "float[2,4] y", "{ c = Gemm <transB=1> (x, g)  y = BN }"),
    "gemm with biases": (
        "float[2,3] x",
        "float[2,4] y",
        "{ c = Gemm <transB=1> (x, g, p)  y = BN }",
    ),
    "twice": (X, Y, "{ c = Conv(x, w) d = BatchNormalization(c, s, b, m, v) y = BatchNormalization(d, s, b, m, v) }"),
}
WEIGHTS = {"w": R.normal(0, 1, (4, 3, 1, 1)), "g": R.normal(0, 1, (4, 3)), "p": R.normal(0, 1, 4)}


def build(inputs: str, results: str, body: str, more: Mapping[str, Array] | None = None) -> ir.Model:
    arrays = {**NORM, **WEIGHTS, **(more or {})}
    body = body.replace("BN", "BatchNormalization(c, s, b, m, v)")
    used = {name: array for name, array in arrays.items() if f" {name}," in body or f" {name})" in body}
    return model(f"agraph ({inputs}) => ({results}) {body}", **used)


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    built = build(*APPLIES[name])
    before = outputs(built)
    optimization = passes["fold-batchnorm"]()
    assert optimization.rewrite(built) == (2 if name == "twice" else 1)
    assert ops(built) in (["Conv"], ["Gemm"])
    assert [value.name for value in built.graph.outputs] == ["y"]
    same(outputs(built), before, optimization.exactness)


REFUSES = {
    "read by others": (X, f"{Y}, {Y.replace('y', 'z')}", "{ c = Conv(x, w) y = BN z = Abs(c) }"),
    "an output": (X, f"{Y}, {Y.replace('y', 'c')}", "{ c = Conv(x, w)  y = BN }"),
    "no convolution": ("float[1,4,5,5] x", Y, "{ c = Abs(x)  y = BN }"),
    "the input": ("float[1,4,5,5] x", Y, "{ y = BatchNormalization(x, s, b, m, v) }"),
    "weights are computed": (X, Y, "{ n = Neg( w)  c = Conv(x, n)  y = BN }"),
    "scales are computed": (X, Y, "{ n = Neg( s)  c = Conv(x, w)  y = BatchNormalization(c, n, b, m, v) }"),
    "biases are computed": (X, Y, "{ n = Neg( p)  c = Conv(x, w, n)  y = BN }"),
    "not transposed": ("float[2,4] x", "float[2,4] y", "{ c = Gemm(x, q)  y = BN }"),
    "alpha": ("float[2,3] x", "float[2,4] y", "{ c = Gemm <transB=1, alpha=2.0> (x, g)  y = BN }"),
    "beta": ("float[2,3] x", "float[2,4] y", "{ c = Gemm <transB=1, beta=2.0> (x, g, p)  y = BN }"),
    "transposed convolution": (X, Y, "{ c = ConvTranspose(x, t)  y = BN }"),
}


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    more = {"q": R.normal(0, 1, (4, 4)), "t": R.normal(0, 1, (3, 4, 1, 1))}
    built = build(*REFUSES[name], more)
    before = outputs(built)
    assert passes["fold-batchnorm"]().rewrite(built) == 0
    same(outputs(built), before, 0)


def test_training_mode_is_refused() -> None:
    built = build(X, Y, "{ c = Conv(x, w)  y = BN }")
    norm = next(node for node in built.graph if node.op_type == "BatchNormalization")
    norm.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    assert passes["fold-batchnorm"]().rewrite(built) == 0


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
    assert passes["fold-batchnorm"]().rewrite(built) == 2
    passes["eliminate-dead-code"]().rewrite(built)
    assert len(built.graph.initializers) == 4
    same(outputs(built), before, 1e-5)


@settings(max_examples=30, deadline=None)
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
    assert optimization.rewrite(built) == 1
    same(outputs(built, seed=seed), before, optimization.exactness)


def test_can_be_written(tmp_path: Path) -> None:
    """Computed while it is written."""
    built = build(X, Y, "{ c = Conv(x, w)  y = BN }")
    passes["fold-batchnorm"]().rewrite(built)
    path = tmp_path / "model.onnx"
    serialize_to(built, path)
    same(outputs(ir.load(path)), outputs(built), 0)
