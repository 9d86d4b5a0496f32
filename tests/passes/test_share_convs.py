"""1x1 convolutions of one input become one; refused wherever they differ."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.serialization import check
from dnc.passes import passes
from dnc.passes.share_convs import ShareConvs
from tests import ROOT
from tests.models import model, ops, outputs, same

R = np.random.default_rng(0)
ARRAYS = {
    "w": R.normal(0, 1, (4, 6, 1, 1)),
    "v": R.normal(0, 1, (3, 6, 1, 1)),
    "u": R.normal(0, 1, (2, 6, 1, 1)),
    "g": R.normal(0, 1, (4, 3, 1, 1)),
    "k": R.normal(0, 1, (3, 6, 3, 3)),
    "b": R.normal(0, 1, 4),
    "a": R.normal(0, 1, 3),
    "low": np.array(0.0),
    "high": np.array(6.0),
    "top": np.array(5.0),
}
TWO = "float[1,4,5,5] y, float[1,3,5,5] z"


def build(body: str, results: str = TWO) -> ir.Model:
    used = {name: array for name, array in ARRAYS.items() if f" {name}," in body or f" {name})" in body}
    return model(f"agraph (float[1,6,5,5] x) => ({results}) {{ {body} }}", **used)


def shared(built: ir.Model, count: int, pixels: int = 784) -> list[str]:
    """Runs the pass, compares, runs it again; returns the refusals."""
    before = outputs(built)
    optimization = ShareConvs(pixels=pixels)
    remarks = optimization.rewrite(built)
    assert remarks.count == count
    check(built, "the pass")
    same(outputs(built), before, optimization.tolerance)
    assert optimization.rewrite(built).count == 0
    return [remark.text for remark in remarks.missed]


def act(text: str, other: str | None = None) -> str:
    """Two convolutions, `c` and `d`, with activations: {0} is what they read, {1} what they make."""
    return f"c = Conv(x, w, b) {text.format('c', 'y')} d = Conv(x, v, a) {(other or text).format('d', 'z')}"


SWISH = "{0}s = Sigmoid({0}) {1} = Mul({0}, {0}s)"
MISH = "{0}s = Softplus({0}) {0}t = Tanh({0}s) {1} = Mul({0}, {0}t)"
APPLIES = {
    "linear": ("y = Conv(x, w, b)  z = Conv(x, v, a)", ["Conv", "Split"]),
    "without biases": ("y = Conv(x, w)  z = Conv(x, v, a)", ["Conv", "Split"]),
    "activation": (act("{1} = LeakyRelu <alpha=0.1> ({0})"), ["Conv", "LeakyRelu", "Split"]),
    "limits": (act("{1} = Clip({0}, low, high)"), ["Conv", "Clip", "Split"]),
    "swish": (act(SWISH), ["Conv", "Sigmoid", "Mul", "Split"]),
    "mish": (act(MISH), ["Conv", "Softplus", "Tanh", "Mul", "Split"]),
    "read twice": (
        "c = Conv(x, w) d = Conv(x, v) y = Add(c, c) z = Add(d, d)", ["Conv", "Split", "Add", "Add"]
    ),
    "the other stands between": (
        "c = Conv(x, w, b) d = Conv(x, v, a) z = Relu(d) y = Relu(c)", ["Conv", "Relu", "Split"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    body, left = APPLIES[name]
    built = build(body)
    assert shared(built, 1) == []
    assert ops(built) == left
    assert [value.name for value in built.graph.outputs] == ["y", "z"]


def test_three() -> None:
    built = build("y = Conv(x, w)  z = Conv(x, v)  t = Conv(x, u)", f"{TWO}, float[1,2,5,5] t")
    shared(built, 1)
    assert ops(built) == ["Conv", "Split"]


def test_two_kinds_of_two() -> None:
    body = act("{1} = Relu({0})") + " e = Conv(x, u) t = Tanh(e) f = Conv(x, u) q = Tanh(f)"
    built = build(body, f"{TWO}, float[1,2,5,5] t, float[1,2,5,5] q")
    shared(built, 2)
    assert ops(built).count("Split") == 2


ALONE = "no other convolution of its input has the same activation"
REFUSES = {
    "slopes": (act("{1} = LeakyRelu <alpha=0.1> ({0})", "{1} = LeakyRelu <alpha=0.2> ({0})"), TWO, [ALONE] * 2),
    "limits": (act("{1} = Clip({0}, low, high)", "{1} = Clip({0}, low, top)"), TWO, [ALONE] * 2),
    "activations": (act("{1} = Relu({0})", SWISH), TWO, [ALONE] * 2),
    "groups": ("y = Conv <group=2> (x, g)  z = Conv(x, v)", TWO, ["it has groups", ALONE]),
    "computed weights": ("n = Neg( w)  y = Conv(x, n)  z = Conv(x, v)", TWO, ["its weights are no constants", ALONE]),
    "3 x 3": ("y = Conv(x, w)  z = Conv <pads=[1,1,1,1]> (x, k)", TWO, []),
    "strides": (
        "y = Conv <strides=[2,2]> (x, w)  z = Conv(x, v)", "float[1,4,3,3] y, float[1,3,5,5] z", []
    ),
    "inputs": ("n = Neg(x)  y = Conv(x, w)  z = Conv(n, v)", TWO, []),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSES)
def test_refuses(name: str) -> None:
    body, results, reasons = REFUSES[name]
    built = build(body, results)
    text = str(built)
    assert shared(built, 0) == reasons
    assert str(built) == text


def test_refuses_large_maps() -> None:
    body, _ = APPLIES["linear"]
    assert shared(build(body), 0, pixels=24) == ["its map is too large for a Split to pay"] * 2
    shared(build(body), 1, pixels=25)


CSP = """[net]
width=6
height=5
channels=3
[convolutional]
batch_normalize=1
filters=6
size=3
pad=1
activation=mish
[convolutional]
batch_normalize=1
filters=4
activation=mish
[route]
layers=-2
[convolutional]
batch_normalize=1
filters=5
activation=mish
[route]
layers=-1,-3
"""


def test_of_a_cfg() -> None:
    """A CSP block; the layers' names stay with their values, and the weights are joined when they are written."""
    built = lower(Network.parse(CSP).with_random_weights(0))
    for name in ("eliminate-identity", "fold-batchnorm", "eliminate-dead-code"):
        passes[name]().rewrite(built)
    check(built, "folding")
    assert shared(built, 1) == []
    split = next(node for node in built.graph if node.op_type == "Split")
    assert [value.name for value in split.outputs] == ["layer001", "layer003"]
    passes["eliminate-dead-code"]().rewrite(built)
    (weights,) = (value.const_value for name, value in built.graph.initializers.items() if name.endswith(".shared"))
    assert isinstance(weights, ir.LazyTensor)
    assert weights.numpy().shape == (9, 6, 1, 1)
    assert weights.numpy() is not weights.numpy()


def test_every_layer_an_output() -> None:
    network = Network.parse(CSP).with_random_weights(0)
    built = lower(network, layers=range(len(network.layers)))
    for name in ("eliminate-identity", "fold-batchnorm", "eliminate-dead-code"):
        passes[name]().rewrite(built)
    check(built, "folding")
    # What both read is an output itself, so the route in between is a node of its own.
    shared(built, 0)


@settings(max_examples=30)
@given(
    filters=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    activations=st.lists(st.sampled_from(["leaky", "mish", "linear"]), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_random_branches(filters: list[int], activations: list[str], seed: int) -> None:
    text = "[net]\nwidth=4\nheight=5\nchannels=3\n[convolutional]\nfilters=6\nactivation=relu\n"
    for number, count in enumerate(filters):
        text += f"[route]\nlayers=0\n[convolutional]\nfilters={count}\nactivation={activations[number]}\n"
    text += f"[route]\nlayers={','.join(str(2 * number + 2) for number in range(len(filters)))}\n"
    built = lower(Network.parse(text).with_random_weights(seed))
    passes["eliminate-identity"]().rewrite(built)
    check(built, "another pass")
    kinds = activations[: len(filters)]
    shared(built, sum(kinds.count(kind) > 1 for kind in set(kinds)))


@pytest.mark.parametrize(("name", "pairs"), [("yolov7-tiny", 9)])
def test_real_networks(name: str, pairs: int) -> None:
    path = ROOT / "cfg" / f"{name}.cfg"
    built = lower(Network.load(path).with_random_weights(0))
    for each in ("eliminate-identity", "fold-batchnorm"):
        passes[each]().rewrite(built)
    assert ShareConvs(pixels=1 << 20).rewrite(built).count == pairs
    check(built, "the pass")
