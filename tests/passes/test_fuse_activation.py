"""Activations are recognised in every form, and written as each target wants them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.layers.activations import ACTIVATIONS
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import PassError
from dnc.passes import passes
from dnc.passes.fuse_activation import FORMS, FuseActivation
from tests.models import model, ops, outputs, same
from tests.networks import NETWORKS

Y = "float[2,64] y"
RANGE = {"x": np.linspace(-30, 30, 128, dtype=np.float32).reshape(2, 64)}
CONSTANTS = {
    "k0": 0.0,
    "k1": 1.0,
    "k2": 2.0,
    "k3": 3.0,
    "k6": 6.0,
    "k20": 20.0,
    "sixth": 1 / 6,
    "half": 0.5,
    "slope": 0.1,
    "steep": 2.0,
    "minus": -1.0,
    "g1": 0.044715,
    "g2": 0.7978845834732056,
    "d1": 0.797885,
    "d2": 0.035677,
    "gamma": 1.0507,
    "row": [[0.1, 0.2] * 32],
    "deep": [[[0.5]]],
}


def build(body: str, results: str = Y, inputs: str = "float[2,64] x") -> ir.Model:
    used = {name: np.array(value) for name, value in CONSTANTS.items() if f"{name})" in body or f"{name}," in body}
    used = {name: array for name, array in used.items() if any(f" {name}{end}" in body for end in "),")}
    return model(f"agraph ({inputs}) => ({results}) {{ {body.replace('( ', '(')} }}", **used)


POWER = "n = Neg(x)  e = Exp(n)  p = Add(e, k1)"
RELU6 = "a = Add(x, k3)  c = Clip(a, k0, k6)"
U = "m = Min(x, k20)  e = Exp(m)  f = Add(e, k2)  u = Mul(e, f)"
GELU = "t = Tanh(i)  s = Add(t, k1)  h = Mul(x, half)  y = Mul(h, s)"
CUBE = "q = Mul(x, x)  c = Mul(q, x)  a = Mul(x, d1)  b = Mul(c, d2)  i = Add(a, b)"
FACTORED = "a = Mul(x, g1)  b = Mul(a, x)  c = Add(b, k1)  d = Mul(x, g2)  i = Mul(c, d)"

APPLIES = {
    # nodes, the operators that the plain form has
    "relu as max": ("y = Max(x, k0)", "Relu"),
    "relu as clip": ("y = Clip(x, k0)", "Relu"),
    "relu6 as min of relu": ("r = Relu(x)  y = Min(r, k6)", "Clip"),
    "relu6 as relu of min": ("r = Min( k6, x)  y = Relu(r)", "Clip"),
    "relu6 as max of min": ("r = Min(x, k6)  y = Max( k0, r)", "Clip"),
    "clips": ("r = Clip(x, minus, k6)  s = Clip(r, k0, k20)  y = Relu(s)", "Clip"),
    "clips apart": ("r = Clip(x, k2, k3)  y = Clip(r, k6, k20)", "Clip"),
    "upper bound alone": ("y = Min(x, k6)", "Clip"),
    "lower bound alone": ("y = Max(x, minus)", "Clip"),
    "leaky as max": ("m = Mul(x, slope)  y = Max(x, m)", "LeakyRelu"),
    "leaky as max, turned": ("m = Mul( slope, x)  y = Max(m, x)", "LeakyRelu"),
    "leaky as where": ("m = Mul(x, steep)  g = Greater(x, k0)  y = Where(g, x, m)", "LeakyRelu"),
    "leaky as where not less": ("m = Mul(x, slope)  g = GreaterOrEqual(x, k0)  y = Where(g, x, m)", "LeakyRelu"),
    "leaky as where less": ("m = Mul(x, slope)  g = Less(x, k0)  y = Where(g, m, x)", "LeakyRelu"),
    "leaky as PRelu": ("y = PRelu(x, slope)", "LeakyRelu"),
    "sigmoid": (f"{POWER}  y = Div( k1, p)", "Sigmoid"),
    "sigmoid as reciprocal": (f"{POWER}  y = Reciprocal(p)", "Sigmoid"),
    "hard sigmoid": ("a = Mul(x, slope)  b = Add(a, half)  y = Clip(b, k0, k1)", "HardSigmoid"),
    "hard sigmoid of a quotient": ("a = Div(x, k6)  b = Add(a, half)  y = Clip(b, k0, k1)", "HardSigmoid"),
    "hard sigmoid, divided": (f"{RELU6}  y = Div(c, k6)", "HardSigmoid"),
    "hard sigmoid, multiplied": (f"{RELU6}  y = Mul(c, sixth)", "HardSigmoid"),
    "hard swish": (f"{RELU6}  d = Div(c, k6)  y = Mul(x, d)", "HardSwish"),
    "hard swish, multiplied": (f"{RELU6}  d = Mul( sixth, c)  y = Mul(d, x)", "HardSwish"),
    "hard swish, product divided": (f"{RELU6}  d = Mul(x, c)  y = Div(d, k6)", "HardSwish"),
    "hard swish, product multiplied": (f"{RELU6}  d = Mul(c, x)  y = Mul(d, sixth)", "HardSwish"),
    "hard swish of min and relu": (
        "a = Add( k3, x)  b = Relu(a)  c = Min(b, k6)  d = Mul(x, c)  y = Div(d, k6)",
        "HardSwish",
    ),
    "hard swish of hard sigmoid": ("h = HardSigmoid <alpha = 0.16666667> (x)  y = Mul(x, h)", "HardSwish"),
    "hard swish of clip": ("a = Mul(x, sixth)  b = Add(a, half)  c = Clip(b, k0, k1)  y = Mul(x, c)", "HardSwish"),
    "swish": (f"{POWER}  y = Div(x, p)", "Sigmoid Mul"),
    "swish as product": (f"{POWER}  s = Div( k1, p)  y = Mul(x, s)", "Sigmoid Mul"),
    "swish as reciprocal": (f"{POWER}  s = Reciprocal(p)  y = Mul(s, x)", "Sigmoid Mul"),
    "mish": ("e = Exp(x)  f = Add( k1, e)  l = Log(f)  t = Tanh(l)  y = Mul(t, x)", "Softplus Tanh Mul"),
    "mish by exp": (f"{U}  d = Add(u, k2)  q = Div(u, d)  y = Mul(x, q)", "Softplus Tanh Mul"),
    "gelu": (f"{CUBE}  {GELU}", "Mul Mul Add Mul Mul Tanh Add Mul Mul"),
    "selu": ("e = Elu <alpha = 1.6732> (x)  y = Mul(e, gamma)", "Selu"),
    "elu": ("m = Min(x, k0)  e = Exp(m)  s = Sub(e, k1)  y = Max(x, s)", "Elu"),
}


@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str) -> None:
    body, left = APPLIES[name]
    built = build(body)
    before = outputs(built, RANGE)
    optimization = passes["fuse-activation"]()
    remarks = optimization.rewrite(built)
    assert remarks.count == 1
    assert not remarks.missed
    assert sorted(ops(built)) == sorted(left.split())
    assert [value.name for value in built.graph.outputs] == ["y"]
    same(outputs(built, RANGE), before, optimization.tolerance)
    text = str(built)
    assert optimization.rewrite(built).count == 0
    assert str(built) == text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", APPLIES)
def test_forms_lead_to_each_other(name: str, form: str) -> None:
    """What one target's form is made of is recognised by another's."""
    body, left = APPLIES[name]
    built = build(body)
    before = outputs(built, RANGE)
    optimization = FuseActivation(form=form)
    optimization.rewrite(built)
    assert optimization.rewrite(built).count == 0
    same(outputs(built, RANGE), before, optimization.tolerance)
    passes["fuse-activation"]().rewrite(built)
    assert sorted(ops(built)) == sorted(left.split())
    same(outputs(built, RANGE), before, optimization.tolerance)


WRITES = {
    # nodes, form, the operators of that form
    "mish": ("s = Softplus(x)  t = Tanh(s)  y = Mul(x, t)", "onnxruntime", "Min Exp Add Mul Add Div Mul"),
    "elu": ("y = Elu(x)", "onnxruntime", "Min Exp Sub Max"),
    "elu of another slope": ("y = Elu <alpha = 0.5> (x)", "onnxruntime", "Elu"),
    "hard swish": (f"{RELU6}  d = Div(c, k6)  y = Mul(x, d)", "openvino", "HardSwish"),
    "hard sigmoid": ("y = HardSigmoid(x)", "myriad", "Mul Add Clip"),
    "no hard swish": ("h = HardSigmoid <alpha = 0.16666667, beta = 0.4> (x)  y = Mul(x, h)", "onnx", "HardSigmoid Mul"),
    "selu": ("y = Selu <alpha = 1.6732, gamma = 1.0507> (x)", "openvino", "Elu Mul"),
    "selu without numbers": ("y = Selu(x)", "myriad", "Elu Mul"),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes(name: str) -> None:
    body, form, left = WRITES[name]
    built = build(body)
    before = outputs(built, RANGE)
    optimization = FuseActivation(form=form)
    optimization.rewrite(built)
    assert sorted(ops(built)) == sorted(left.split())
    same(outputs(built, RANGE), before, optimization.tolerance)


STAYS = {
    "already plain": "r = Relu(x)  s = Tanh(r)  t = Clip(s, k0, k6)  u = LeakyRelu(t)  v = Sigmoid(u)  y = Mul(u, v)",
    "steep maximum": "m = Mul(x, steep)  y = Max(x, m)",
    "maximum of another": "n = Abs(x)  m = Mul(n, slope)  y = Max(x, m)",
    "where of another": "n = Abs(x)  m = Mul(x, slope)  g = Greater(n, k0)  y = Where(g, x, m)",
    "where of the wrong side": "m = Mul(x, slope)  g = Greater(x, k0)  y = Where(g, m, x)",
    "where above one": "m = Mul(x, slope)  g = Greater(x, k1)  y = Where(g, x, m)",
    "slopes": "y = PRelu(x, row)",
    "maximum of numbers": "y = Max(x, row)",
    "maximum of three": "y = Max(x, k0, k1)",
    "clip upside down": "y = Clip(x, k6, k0)",
    "clip upside down within": "r = Clip(x, k6, k0)  y = Relu(r)",
    "gate": "n = Abs(x)  s = Sigmoid(n)  y = Mul(x, s)",
    "not six": "a = Add(x, k3)  c = Clip(a, k0, k6)  y = Div(c, k2)",
    "not the same six": "a = Add(x, k3)  c = Clip(a, k0, k6)  d = Mul(x, c)  y = Div(d, k3)",
    "not the softplus": "e = Exp(x)  f = Add(e, k2)  l = Log(f)  t = Tanh(l)  y = Mul(x, t)",
    "not the gelu": f"q = Mul(x, x)  c = Mul(q, x)  a = Mul(x, d1)  b = Mul(c, d1)  i = Add(a, b)  {GELU}",
    "computed bounds": "n = Abs( k6)  y = Clip(x, k0, n)",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    built = build(STAYS[name])
    text = str(built)
    for form in FORMS:
        remarks = FuseActivation(form=form).rewrite(built)
        assert not remarks.applied
        assert not remarks.missed
    assert str(built) == text


def test_operators_of_other_domains_stay() -> None:
    built = build("y = Max(x, k0)")
    next(iter(built.graph)).domain = "another"
    assert FuseActivation(form="myriad").rewrite(built).count == 0
    built = build("r = Max(x, k0)  y = Min(r, k6)")
    next(iter(built.graph)).domain = "another"
    assert FuseActivation(form="myriad").rewrite(built).count == 1
    assert ops(built) == ["Max", "Clip"]


def test_more_axes_stay() -> None:
    """A number of three axes gives the result a third one."""
    built = build("m = Mul(x, deep)  y = Max(x, m)", "float[1,2,64] y")
    assert passes["fuse-activation"]().rewrite(built).count == 0


@pytest.mark.parametrize(
    ("body", "results"),
    [
        (f"{POWER}  y = Div(x, p)  z = Abs(e)", f"{Y}, float[2,64] z"),
        (f"{POWER}  y = Div(x, p)", f"{Y}, float[2,64] e"),
    ],
)
def test_inner_values_refuse(body: str, results: str) -> None:
    built = build(body, results)
    text = str(built)
    remarks = passes["fuse-activation"]().rewrite(built)
    assert remarks.count == 0
    assert [remark.text for remark in remarks.missed] == ["an inner value of the swish is read by others"]
    assert str(built) == text


def test_clamps_end_where_others_read() -> None:
    built = build("r = Min(x, k20)  s = Max(r, minus)  y = Relu(s)  z = Abs(r)", f"{Y}, float[2,64] z")
    before = outputs(built, RANGE)
    passes["fuse-activation"]().rewrite(built)
    assert sorted(ops(built)) == ["Abs", "Clip", "Relu"]
    same(outputs(built, RANGE), before, 0)


def test_names() -> None:
    """A layer's name stays with its numbers."""
    built = build(f"{POWER}  layer003 = Div(x, p)  y = Abs(layer003)")
    passes["fuse-activation"]().rewrite(built)
    assert [node.outputs[0].name for node in built.graph][1:] == ["layer003", "y"]


def test_parts_are_computed_once_and_constants_shared() -> None:
    built = build("s = Softplus(x)  t = Tanh(s)  z = Mul(x, t)  q = Softplus(z)  r = Tanh(q)  y = Mul(z, r)")
    FuseActivation(form="onnxruntime").rewrite(built)
    assert ops(built).count("Exp") == 2
    assert len(built.graph.initializers) == 2


def test_unknown_form() -> None:
    with pytest.raises(PassError, match="form=tvm of pass fuse-activation is not one of onnx, onnxruntime"):
        FuseActivation(form="tvm")


def test_own_form() -> None:
    """A writing by activation."""
    built = build("s = Softplus(x)  t = Tanh(s)  y = Mul(x, t)")
    FuseActivation(form={"mish": "Log"}).rewrite(built)
    assert ops(built) == ["Exp", "Add", "Log", "Tanh", "Mul"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if not name.startswith("normalize")])
def test_activations_of_darknet(activation: str, form: str) -> None:
    """Every form computes Darknet's activation, also where an exponential overflows."""
    text = f"[net]\nwidth=64\nheight=2\nchannels=1\n[activation]\nactivation={activation}\n"
    built = lower(Network.parse(text).with_random_weights(0))
    numbers = np.concatenate([np.linspace(-9, 9, 120), [-1e4, -100, -30, 0, 30, 60, 100, 1e4]])
    FuseActivation(form=form).rewrite(built)
    x = numbers.astype(np.float32).reshape(1, 1, 2, 64)
    (found,) = outputs(built, {"input": x}).values()
    with np.errstate(over="ignore"):
        expected = ACTIVATIONS[activation].reference(x.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_mish_is_exact_everywhere() -> None:
    """The form by Exp against float64: relative to each value, down to where Softplus itself has no digits left."""
    built = build("s = Softplus(x)  t = Tanh(s)  y = Mul(x, t)")
    FuseActivation(form="onnxruntime").rewrite(built)
    x = np.concatenate([np.linspace(-20, 25, 126), [19.999999, 20.000002]]).astype(np.float32).reshape(2, 64)
    wide = x.astype(np.float64)
    expected = wide * np.tanh(np.log1p(np.exp(wide)))
    np.testing.assert_allclose(outputs(built, {"x": x})["y"], expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network: str, form: str) -> None:
    """Each form on every small network."""
    built = lower(Network.parse(NETWORKS[network]).with_random_weights(0))
    before = outputs(built)
    optimization = FuseActivation(form=form)
    optimization.rewrite(built)
    same(outputs(built), before, optimization.tolerance)


@settings(max_examples=50)
@given(
    clamps=st.lists(
        st.tuples(st.sampled_from(["Relu", "Clip", "Min", "Max"]), st.integers(-9, 5)), min_size=1, max_size=5
    )
)
def test_random_clamps(clamps: list[tuple[str, int]]) -> None:
    """Any clamps one after the other are one."""
    bounds = {f"b{number}": np.array(float(bound)) for number, (_, bound) in enumerate(clamps)}
    values = ["x", *(f"v{number}" for number in range(1, len(clamps))), "y"]
    nodes = []
    for number, (op, _) in enumerate(clamps):
        rest = {"Relu": "", "Clip": f", b{number}, six"}.get(op, f", b{number}")
        nodes.append(f"{values[number + 1]} = {op}({values[number]}{rest})")
    body = "  ".join(nodes)
    used = {name: bound for name, bound in {**bounds, "six": np.array(6.0)}.items() if f", {name}" in body}
    built = model(f"agraph (float[2,64] x) => ({Y}) {{ {body} }}", **used)
    before = outputs(built, RANGE)
    passes["fuse-activation"]().rewrite(built)
    assert len(ops(built)) == 1
    same(outputs(built, RANGE), before, 0)
