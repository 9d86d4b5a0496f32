"""Half precision inside, float32 at the borders, and as few Casts as that takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import DncError, PassError
from dnc.graph.composites import inline_composites
from dnc.graph.pipeline import Pipeline
from dnc.graph.serialization import check, serialize_to
from dnc.graph.verification import Verifier, feeds_for
from dnc.passes import passes
from dnc.passes.to_float16 import ToFloat16
from tests import goldens
from tests.models import model, ops, outputs, same
from tests.networks import NETWORKS
from tests.thinning import thinned

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT
R = np.random.default_rng(0)
SHALLOW = 2e-3
"""One or two products: four roundings of 2^-11 = 4.9e-4 each."""
W = R.normal(0, 1, (3, 3, 3, 3))
IMAGE = "float[1,3,8,8] x"


def build(body: str, results: str = "float[A,B,C,D] y", **constants: Any) -> ir.Model:
    """A graph on an image; `w` are 3 x 3 weights of 3 filters for 3 channels."""
    arrays = {**({"w": W} if " w)" in body else {}), **constants}
    return model(f"agraph ({IMAGE}) => ({results}) {body}", **arrays)


def types(built: ir.Model) -> list[ir.DataType | None]:
    """Of the first output of each node."""
    return [node.outputs[0].dtype for node in built.graph]


def apply(built: ir.Model, *keep: str, tolerance: float = SHALLOW) -> list[str]:
    """Runs the pass, checks what holds always, and returns the refusals."""
    before, names = outputs(built), [value.name for value in built.graph.outputs]
    optimization = ToFloat16(keep=keep)
    remarks = optimization.rewrite(built)
    inferred = {value.name: value.dtype for node in built.graph for value in node.outputs}
    check(built, "to-float16")
    assert inferred == {value.name: value.dtype for node in built.graph for value in node.outputs}
    assert [value.name for value in built.graph.outputs] == names
    assert {value.dtype for value in built.graph.outputs} <= {FULL, ir.DataType.INT64}
    assert there_and_back(built) == []
    same(outputs(built), before, tolerance)
    text = str(built)
    assert optimization.rewrite(built).count == 0
    assert str(built) == text
    return [remark.text for remark in remarks.missed]


def there_and_back(built: ir.Model) -> list[str | None]:
    """Casts of a Cast, and values with two Casts to the same type."""
    found = []
    for node in built.graph:
        casts = [use.node for use in node.outputs[0].uses() if use.node.op_type == "Cast"]
        targets = {each.attributes["to"].as_int() for each in casts}
        if (node.op_type == "Cast" and casts) or len(targets) < len(casts):
            found.append(node.name)
    return found


def test_chain() -> None:
    built = build(
        "{ a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = LeakyRelu(a)  c = MaxPool <kernel_shape = [2, 2]> (b)"
        "  y = Conv(c, w) }"
    )
    assert apply(built) == []
    assert ops(built) == ["Cast", "Conv", "LeakyRelu", "MaxPool", "Conv", "Cast"]
    assert types(built) == [HALF] * 5 + [FULL]
    passes["eliminate-dead-code"]().rewrite(built)
    # Both convolutions read the same weights, and still do.
    (weights,) = built.graph.initializers.values()
    assert weights.dtype == HALF
    assert weights.const_value is not None
    assert np.array_equal(weights.const_value.numpy(), W.astype(np.float32).astype(np.float16))


def test_after_the_last_product() -> None:
    built = build("{ a = Conv(x, w)  b = Sigmoid(a)  c = Exp(b)  y = Mul(c, b) }")
    assert apply(built) == ["it comes after all products"] * 3
    assert ops(built) == ["Cast", "Conv", "Cast", "Sigmoid", "Exp", "Mul"]
    assert types(built) == [HALF, HALF, FULL, FULL, FULL, FULL]


def test_one_cast_for_all_readers() -> None:
    """The input is read by two in half precision, and the middle by two in float32 and by one in half."""
    built = build(
        "{ a = Conv(x, w)  b = Conv(x, w)  c = Add(a, b)  d = Sigmoid(c)  e = Tanh(c)  f = Add(d, e)"
        "  g = Conv(c, w)  y = ReduceSum(g)  z = ReduceSum(f) }",
        "float[A,B,C,D] y, float[E,F,G,H] z",
    )
    apply(built)
    assert ops(built).count("Cast") == 3
    assert ops(built)[:5] == ["Cast", "Conv", "Conv", "Add", "Cast"]


def test_outputs_in_the_middle() -> None:
    """They are float32 and keep their names; what goes on reads half precision."""
    built = build(
        "{ layer000 = Conv(x, w)  layer001 = Relu(layer000)  layer002 = Conv(layer001, w) }",
        "float[A,B,C,D] layer000, float[E,F,G,H] layer002",
    )
    apply(built)
    assert ops(built) == ["Cast", "Conv", "Cast", "Relu", "Conv", "Cast"]
    names = {value.name for node in built.graph for value in node.outputs}
    assert {"layer000", "layer000/float16", "layer001", "layer002"} <= names
    relu = next(node for node in built.graph if node.op_type == "Relu")
    assert relu.inputs[0] is not None
    assert relu.inputs[0].name == "layer000/float16"


def test_constants() -> None:
    """Bounds and paddings go along; the scales of Resize and shapes are of other types."""
    built = build(
        "{ a = Conv(x, w)  b = Clip(a, low, high)  c = Pad(b, p, low)  d = Resize <mode = \"nearest\"> (c, , s)"
        "  e = Reshape(d, t)  y = Conv(e, w) }",
        low=np.array(-1.0), high=np.array(2.0), p=np.array([0, 0, 1, 0, 0, 0, 0, 1]),
        s=np.array([1.0, 1.0, 2.0, 2.0]), t=np.array([0, 0, 7, -1]),
    )  # fmt: skip
    assert apply(built) == []
    assert ops(built) == ["Cast", "Conv", "Clip", "Pad", "Resize", "Reshape", "Conv", "Cast"]
    passes["eliminate-dead-code"]().rewrite(built)
    kinds = {name: value.dtype for name, value in built.graph.initializers.items()}
    integer = ir.DataType.INT64
    assert kinds == {
        "p": integer, "s": FULL, "t": integer, "w.float16": HALF, "low.float16": HALF, "high.float16": HALF
    }  # fmt: skip


def test_computed_scales_are_float32() -> None:
    """One value in both roles: the image that is resized, and where the scales come from."""
    built = build(
        """{ a = Conv(x, w)  m = GlobalMaxPool(a)  r = Reshape(m, three)  s = Concat <axis = 0> (one, r)
        d = Resize <mode = "nearest"> (a, , s)  y = Conv(d, w) }""",
        three=np.array([3]), one=np.array([1.0]),
    )  # fmt: skip
    ToFloat16().rewrite(built)
    check(built, "to-float16")
    resize = next(node for node in built.graph if node.op_type == "Resize")
    assert [value.dtype for value in resize.inputs if value is not None] == [HALF, FULL]


def test_operators_that_give_float32_of_themselves() -> None:
    """The type of EyeLike's output is an attribute."""
    text = "agraph (float[4,4] x) => (float[4,4] y) { a = MatMul(x, w)  e = EyeLike <dtype = 1> (a)  y = MatMul(e, w) }"
    built = model(text, w=R.normal(0, 1, (4, 4)))
    apply(built)
    assert ops(built) == ["Cast", "MatMul", "Cast", "EyeLike", "Cast", "MatMul", "Cast"]


def test_constants_that_both_read() -> None:
    built = build("{ a = Conv(x, w)  b = Mul(a, k)  c = Conv(b, w)  y = Mul(c, k) }", k=np.array(3.0))
    apply(built)
    assert {"k", "k.float16"} <= set(built.graph.initializers)


def test_inputs_with_a_default_are_no_constants() -> None:
    """Whoever runs the model gives them in float32."""
    built = build("{ a = Conv(x, w)  b = Mul(a, k)  y = Conv(b, w) }", k=np.array(3.0))
    built.graph.inputs.append(built.graph.initializers["k"])
    ToFloat16().rewrite(built)
    check(built, "to-float16")
    assert ops(built) == ["Cast", "Conv", "Cast", "Mul", "Conv", "Cast"]


@pytest.mark.parametrize("name", ["weights", "biases", "factor"])
def test_numbers_out_of_range_stay(name: str) -> None:
    """The operator that reads them is computed in float32; its neighbours are not."""
    arrays: dict[str, Any] = {"weights": np.ones((3, 3, 1, 1)), "biases": np.ones(3), "factor": np.ones((1, 3, 1, 1))}
    arrays[name].reshape(-1)[1] = -65520
    body = "{ a = Conv(x, w)  b = Mul(a, factor)  c = Conv(b, weights, biases)  d = Conv(x, w)  y = Conv(c, w) }"
    built = build(body, **arrays)
    before = outputs(built)
    remarks = ToFloat16().rewrite(built)
    assert [remark.text for remark in remarks.missed] == [f"{name} has a number over 65504"]
    check(built, "to-float16")
    (node,) = (node for node in built.graph if any(value is not None and value.name == name for value in node.inputs))
    assert node.outputs[0].dtype == FULL
    assert types(built).count(HALF) == 6
    # What comes after it reads numbers that may be out of range themselves.
    assert list(outputs(built)) == list(before)


def test_the_largest_number_and_infinity_are_in_range() -> None:
    built = build("{ a = Conv(x, w)  b = Clip(a, low, high)  y = Conv(b, w) }",
                  low=np.array(-np.inf), high=np.array(65504.0))  # fmt: skip
    assert apply(built) == []


def test_activations_out_of_range_are_caught() -> None:
    """No pass can see them; the comparison after it does, and names it."""
    body = "{ a = Conv(x, w)  b = Conv(a, big)  y = Conv(b, w) }"
    built = model(f"agraph ({IMAGE.replace('x', 'input')}) => (float[A,B,C,D] y) {body.replace('(x', '(input')}",
                  w=W, big=np.full((3, 3, 1, 1), 30000.0))  # fmt: skip
    with pytest.raises(PassError, match="pass to-float16: it changed the outputs"):
        Pipeline([ToFloat16()]).run(built, verify=Verifier(feeds_for(built, images=1)))


def test_keep() -> None:
    built = build("{ a = Conv(x, w)  b = Sigmoid(a)  c = Mul(a, b)  y = Conv(c, w) }")
    assert apply(built, "Sigmoid") == ["Sigmoid is kept in float32"]
    assert ops(built) == ["Cast", "Conv", "Cast", "Sigmoid", "Cast", "Mul", "Conv", "Cast"]
    with pytest.raises(DncError, match="neither a layer nor an operator"):
        ToFloat16(keep=["sigmoid "])


def test_keep_layers() -> None:
    built = lower(Network.parse(NETWORKS["yolo"]).with_random_weights(0))
    passes["fold-batchnorm"]().rewrite(built)
    check(built, "fold-batchnorm")
    apply(built, "2-6")
    for node in built.graph:
        layer = int((node.name or "")[:3]) if node.op_type == "Conv" else 2
        assert node.op_type != "Conv" or node.outputs[0].dtype == (FULL if 2 <= layer <= 6 else HALF)


def test_what_an_inner_graph_reads_is_float32() -> None:
    text = f"""agraph ({IMAGE}) => (float[A,B,C,D] y) {{
        b = Conv(x, w)
        c = If (k) <
            then_branch = t () => (float[N,M,H,W] p) {{ p = Neg(b) }},
            else_branch = f () => (float[N,M,H,W] q) {{ q = Abs(b) }}
        >
        y = Conv(c, w)
    }}"""
    built = model(text, w=W, k=np.array(True))
    apply(built)
    assert ops(built) == ["Cast", "Conv", "Cast", "If", "Cast", "Conv", "Cast"]


@pytest.mark.parametrize("whole", [False, True])
def test_signs_are_those_of_float32(whole: bool) -> None:
    """xnor=1 takes the sign of its input, so all before it stays; the convolution of signs does not, as operators. As a
    composite it computes in float32."""
    text = (
        "[net]\nwidth=9\nheight=9\nchannels=3\n[convolutional]\nfilters=16\nsize=3\nactivation=leaky\n"
        "[convolutional]\nxnor=1\nfilters=16\nsize=3\nactivation=leaky\n[convolutional]\nfilters=4\n"
    )
    built = lower(Network.parse(text).with_random_weights(0))
    if not whole:
        inline_composites(built)
    refused = apply(built)
    assert refused.count("a comparison depends on it") == (2 if whole else 3)
    found = [node.outputs[0].dtype for node in built.graph if node.op_type in ("BinaryConvolution", "Conv")]
    assert found == [FULL, FULL if whole else HALF, HALF]


def test_places_of_the_casts() -> None:
    """`dnc explain` and the errors of engines name the section."""
    built = lower(Network.parse(NETWORKS["tiny"]).with_random_weights(0))
    apply(built)
    assert all("dnc.where" in node.metadata_props for node in built.graph if node.op_type == "Cast")


def test_weights_are_computed_when_they_are_read(tmp_path: Path) -> None:
    built = build("{ a = Conv(x, w)  y = Conv(a, w) }")
    before = outputs(built)
    ToFloat16().rewrite(built)
    tensor = built.graph.initializers["w.float16"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.numpy() is not tensor.numpy()
    passes["eliminate-dead-code"]().rewrite(built)
    serialize_to(built, tmp_path / "model.onnx")
    same(outputs(ir.load(tmp_path / "model.onnx")), before, SHALLOW)


BOXES = ("attention", "tiny", "yolo", "yolo2")


@pytest.mark.parametrize(("name", "decode"), [*((n, "host") for n in NETWORKS), *((n, "graph") for n in BOXES)])
def test_networks(name: str, decode: str) -> None:
    """Every section: valid types, few Casts, float32 outside."""
    network = Network.parse(NETWORKS[name]).with_random_weights(0)
    built = lower(network, decode=decode)
    passes["fold-batchnorm"]().rewrite(built)
    check(built, "fold-batchnorm")
    # Recurrent layers put more than ten products after one another.
    apply(built, tolerance=5 * SHALLOW)
    assert {value.dtype for value in built.graph.inputs} == {FULL}
    # And as it is, with every optimization, ONNX Runtime has kernels for all of it.
    ort.InferenceSession(ir.to_proto(built).SerializeToString(), providers=["CPUExecutionProvider"])


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    layers=st.lists(st.sampled_from(["conv", "depthwise", "maxpool", "upsample", "route", "shortcut"]), max_size=6),
    activation=st.sampled_from(
        ["linear", "leaky", "mish", "swish", "relu6", "normalize_channels_softmax", "hard_mish"]
    ),
    keep=st.lists(st.sampled_from(["0", "0-1", "Conv", "Mul", "Concat", "MaxPool"]), max_size=2),
)
def test_random_networks(layers: list[str], activation: str, keep: list[str]) -> None:
    """Any order of layers, with any of it kept."""
    conv = f"[convolutional]\nfilters=8\nsize=3\npad=1\nactivation={activation}\n"
    kinds = {
        "conv": conv,
        "depthwise": conv + "groups=8\n",
        "maxpool": "[maxpool]\nsize=2\nstride=1\n",
        "upsample": "[maxpool]\nsize=2\nstride=2\n[upsample]\nstride=2\n",
        "route": "[route]\nlayers=-1,0\n" + conv,
        "shortcut": "[shortcut]\nfrom=0\nactivation=leaky\n",
    }
    text = "[net]\nwidth=8\nheight=8\nchannels=3\n" + conv + "".join(kinds[kind] for kind in layers) + conv
    built = lower(Network.parse(text).with_random_weights(1))
    # Up to eight products in a row.
    apply(built, *keep, tolerance=4 * SHALLOW)


@pytest.mark.parametrize("name", goldens.WHOLE)
@pytest.mark.parametrize("half", thinned(["to-float16", "to-bfloat16"]))
def test_whole_networks(name: str, half: str, tmp_path: Path) -> None:
    """Within what is declared, by as much as that is meant to leave room; three quarters of the graph at least.
    tests/shared does this with trained weights."""
    built = lower(Network.load(*goldens.whole(name).write(tmp_path)))
    order = ["eliminate-identity", "fold-constants", "fold-batchnorm", "eliminate-dead-code", half]
    # Noise and the photograph are what the declared numbers were measured on, among others.
    applied = Pipeline([passes[each]() for each in order]).run(built, verify=Verifier(feeds_for(built)))
    assert applied[-1].error is not None
    assert 1e-4 < applied[-1].error < passes[half].tolerance / 1.5
    if half == "to-float16":
        assert applied[-1].count > 2 * len(applied[-1].remarks.missed) - 1
        assert ops(built).count("Cast") == 1 + len(built.graph.outputs)
