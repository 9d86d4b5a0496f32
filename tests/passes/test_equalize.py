"""Channels become equally large, the network stays what it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.graph.quantization import Channels, Range, attach_ranges, range_of
from dnc.graph.rewriting import Remarks
from dnc.passes.equalize import Equalize
from tests.models import model, ops, outputs, same

R = np.random.default_rng(0)
X, Y = "float[1,3,6,6] x", "float[1,4,6,6] y"
FIRST = "c = Conv(x, w, b)"
WEIGHTS = {
    "w": R.normal(0, 1, (4, 3, 1, 1)) * np.array([100, 1, 0.1, 1]).reshape(-1, 1, 1, 1),
    "b": R.normal(0, 1, 4) * np.array([100, 1, 0.1, 1]),
    "d": R.normal(0, 1, (4, 1, 3, 3)),
    "p": R.normal(0, 1, (4, 4, 1, 1)),
    "g": R.normal(0, 1, (4, 2, 3, 3)),
    "t": R.normal(0, 1, (4, 2, 1, 1)),
}
DEPTHWISE = "Conv <group=4, pads=[1,1,1,1]> (layer000, d)"


def build(body: str, results: str = Y) -> ir.Model:
    used = {name: array for name, array in WEIGHTS.items() if f" {name}" in body}
    return model(f"agraph ({X}) => ({results}) {{ {body} }}", **used)


def calibrated(built: ir.Model, name: str = "layer000") -> dict[str, Range]:
    """What the value is on random numbers."""
    copy = built.clone()
    value = next(value for node in copy.graph for value in node.outputs if value.name == name)
    copy.graph.outputs.append(value)
    array = outputs(copy)[name]
    low, high = float(array.min()), float(array.max())
    channels = Channels(tuple(array.min(axis=(0, 2, 3)).tolist()), tuple(array.max(axis=(0, 2, 3)).tolist()))
    return {name: Range(min(low, 0), high, low, high, channels)}


def equalize(built: ir.Model, ranges: dict[str, Range], outputs: bool = False) -> Remarks:
    attach_ranges(built, ranges)
    return Equalize(outputs=outputs).rewrite(built)


def equalized(built: ir.Model) -> Range:
    """The range of the tensor that layer000 has become."""
    value = next(value for node in built.graph for value in node.outputs if value.name == "equalized/layer000")
    found = range_of(value)
    assert found is not None
    return found


APPLIES = {
    "leaky, depthwise": f"{FIRST}  layer000 = LeakyRelu <alpha=0.1> (c)  y = {DEPTHWISE}",
    "relu, depthwise": f"{FIRST}  layer000 = Relu(c)  y = {DEPTHWISE}",
    "linear, depthwise": f"layer000 = Conv(x, w, b)  y = {DEPTHWISE}",
    "leaky, pointwise": f"{FIRST}  layer000 = LeakyRelu <alpha=0.1> (c)  y = Conv(layer000, p)",
    "leaky, groups": f"{FIRST}  layer000 = LeakyRelu <alpha=0.1> (c)  y = Conv <group=2, pads=[1,1,1,1]> (layer000, g)",
}


@pytest.mark.parametrize("outputs_too", [False, True])
@pytest.mark.parametrize("name", APPLIES)
def test_applies(name: str, outputs_too: bool) -> None:
    built = build(APPLIES[name])
    ranges = calibrated(built)
    before = outputs(built)
    applied = equalize(built, ranges, outputs_too).applied
    assert [remark.text for remark in applied] == ["its channels are equally large"]
    same(outputs(built), before, Equalize.tolerance)
    assert equalize(built, ranges, outputs_too).count == 0
    assert "layer000" not in {value.name for node in built.graph for value in node.outputs}


@pytest.mark.parametrize("slope", ["leaky", "relu"])
def test_channels_before_a_depthwise_layer_are_equally_large(slope: str) -> None:
    built = build(APPLIES[f"{slope}, depthwise"])
    equalize(built, calibrated(built))
    own = calibrated(built, "equalized/layer000")["equalized/layer000"]
    found = own.channels
    assert found is not None
    size = np.maximum(-np.array(found.minimum), found.maximum)
    alive = size[size > 0]
    assert len(alive) >= 3
    np.testing.assert_allclose(alive, alive[0], rtol=1e-5, err_msg="rounding of float32")
    # On the same numbers that it was calibrated on.
    assert equalized(built).low == pytest.approx(own.low, rel=1e-5, abs=1e-9)
    assert equalized(built).high == pytest.approx(own.high, rel=1e-5)


def test_before_a_leaky_activation_the_tensor_counts_too() -> None:
    """Negative values count ten times, and half of that."""
    built = build(APPLIES["leaky, depthwise"])
    channels = Channels((-0.2, -0.4, 0, -0.1), (0.1, 1.0, 0.5, 1.0))
    equalize(built, {"layer000": Range(-1, 1, -1, 1, channels)}, outputs=True)
    # Sizes are 1, 2, 0.5 and 1 of 2.
    assert equalized(built).low == pytest.approx(-0.4)
    assert equalized(built).high == pytest.approx(2.0)


REFUSES = {
    "its channels were not calibrated": f"{FIRST}  l = Relu(c)  y = Conv <group=4, pads=[1,1,1,1]> (l, d)",
    "it is 0": f"z = Conv(x, w, b)  layer000 = Relu(z)  y = {DEPTHWISE}",
    "another number of channels was calibrated": f"layer000 = Conv(x, w, b)  y = {DEPTHWISE}",
}


@pytest.mark.parametrize("reason", REFUSES)
def test_refuses(reason: str) -> None:
    built = build(REFUSES[reason])
    count = 3 if reason.startswith("another") else 4
    top = 0.0 if reason == "it is 0" else 1.0
    remarks = equalize(built, {"layer000": Range(0, 1, 0, 1, Channels((0.0,) * count, (top,) * count))})
    assert remarks.count == 0
    assert [remark.text for remark in remarks.missed] == [reason]


@pytest.mark.parametrize(
    "body",
    [
        f"{FIRST}  layer000 = Clip(c, zero, six)  y = {DEPTHWISE}",
        f"{FIRST}  layer000 = Relu(c)  e = {DEPTHWISE}  y = Add(e, layer000)",
        f"{FIRST}  layer000 = Sigmoid(c)  y = {DEPTHWISE}",
    ],
)
def test_stays(body: str) -> None:
    """Where the activation is not proportional, or others read the tensor."""
    used = {name: array for name, array in WEIGHTS.items() if f" {name}" in body}
    more = {"zero": np.array(0.0), "six": np.array(6.0)} if "six" in body else {}
    built = model(f"agraph ({X}) => ({Y}) {{ {body} }}", **used, **more)
    text = ops(built)
    assert equalize(built, calibrated(built)).count == 0
    assert ops(built) == text


def test_an_output_stays() -> None:
    built = build(f"{FIRST}  layer000 = Relu(c)  y = {DEPTHWISE}", f"{Y}, float[1,4,6,6] layer000")
    assert equalize(built, calibrated(build(APPLIES["relu, depthwise"]))).count == 0


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.01, 0.1, 0.9]), st.integers(0, 99))
def test_random_geometry(groups: int, own: int, slope: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    channels = groups * own
    text = (
        f"agraph (float[1,2,5,5] x) => (float[1,{groups * 2},3,3] y) {{ c = Conv(x, w, b)  layer000 = LeakyRelu "
        f"<alpha={slope}> (c)  y = Conv <group={groups}> (layer000, v) }}"
    )
    built = model(
        text,
        w=generator.normal(0, 1, (channels, 2, 1, 1)) * 10.0 ** generator.integers(-3, 3, (channels, 1, 1, 1)),
        b=generator.normal(0, 1, channels),
        v=generator.normal(0, 1, (groups * 2, own, 3, 3)),
    )
    before = outputs(built)
    assert equalize(built, calibrated(built)).count == 1
    same(outputs(built), before, Equalize.tolerance)
