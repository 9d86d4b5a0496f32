"""Convolutions of signs, in both forms: the same to the bit as what was lowered, and as the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.errors import PassError
from dnc.graph.serialization import check, serialize_to
from dnc.passes import passes
from dnc.passes.binarize import Binarize
from tests.models import model, ops, outputs, run, same

FORMS = ("bits", "integer")
R = np.random.default_rng(0)


def network(*sections: str, channels: int = 32, size: int = 7) -> Network:
    text = f"[net]\nwidth={size}\nheight={size + 1}\nchannels={channels}\n"
    for section in sections:
        text += "[convolutional]\n" + "\n".join(section.split()) + "\n"
    return Network.parse(text).with_random_weights(1)


def binarized(built: ir.Model, form: str, count: int) -> list[str]:
    """Runs the pass, compares to the bit, runs it again; returns what it says."""
    before = outputs(built)
    optimization = Binarize(form=form)
    remarks = optimization.rewrite(built)
    assert remarks.count == count
    check(built, "the pass")
    same(outputs(built), before, 0)
    text = str(built)
    assert optimization.rewrite(built).count == 0
    assert str(built) == text
    return [remark.text for remark in remarks.applied + remarks.missed]


LAYER = "xnor=1 filters=8 size=3 pad=1 batch_normalize=1 activation=leaky"


def test_bits() -> None:
    built = lower(network(LAYER))
    assert binarized(built, "bits", 1) == ["on bits"]
    assert ops(built) == ["Greater", "Cast", "Conv", "Mul", "Add", "LeakyRelu"]
    conv = next(node for node in built.graph if node.op_type == "Conv")
    assert list(conv.attributes["pads"].as_ints()) == [1, 1, 1, 1]


def test_integers() -> None:
    built = lower(network(LAYER))
    assert binarized(built, "integer", 1) == ["on integers"]
    assert ops(built) == ["Greater", "Cast", "ConvInteger", "Cast", "Add", "Mul", "Add", "LeakyRelu"]


def test_few_channels_stay_floats() -> None:
    built = lower(network(LAYER, channels=23))
    assert binarized(built, "integer", 1) == ["on bits"]


def test_unknown_form() -> None:
    with pytest.raises(PassError, match="form=bit of pass binarize is not one of bits, integer") as caught:
        Binarize(form="bit")
    assert caught.value.hint == "did you mean 'bits'?"


CHAINS = {
    "bin_output": [LAYER + " bin_output=1", LAYER, "filters=4 activation=linear"],
    "1 x 1": ["xnor=1 filters=40 activation=linear", LAYER],
    "strides and dilation": [LAYER + " stride=2", LAYER + " dilation=2"],
    "a padding of its own": ["xnor=1 filters=8 size=3 padding=2 activation=leaky"],
    "shared weights": [LAYER.replace("=8", "=32"), LAYER.replace("=8", "=32") + " share_index=0"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str, form: str) -> None:
    built = lower(network(*CHAINS[name]))
    binarized(built, form, sum("xnor" in section for section in CHAINS[name]))


@pytest.mark.parametrize("form", FORMS)
def test_is_the_reference_to_the_bit(form: str) -> None:
    """Whole numbers have no rounding, so no engine can see another sign; one layer after the other."""
    net = network(LAYER + " bin_output=1", LAYER.replace("leaky", "linear"), size=9)
    built = lower(net)
    Binarize(form=form).rewrite(built)
    x = R.normal(0, 1, (1, 32, 10, 9)).astype(np.float32)
    *_, (_, expected) = run_all(net, x)
    (got,) = run(built, {"input": x}).values()
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("form", FORMS)
def test_zero_is_negative(form: str) -> None:
    """sign(0) is -1, of inputs and of sums."""
    built = lower(network(LAYER))
    before = outputs(built, {"input": np.zeros((1, 32, 8, 7), np.float32)})
    Binarize(form=form).rewrite(built)
    same(outputs(built, {"input": np.zeros((1, 32, 8, 7), np.float32)}), before, 0)


SIGNS = "g = Greater(x, zero)  s = Where(g, one, minus) "
BODIES = {
    "weights are no signs": (SIGNS + "y = Conv(s, r)", ["its weights are no signs"]),
    "weights are computed": (SIGNS + "n = Neg( w)  y = Conv(s, n)", ["its weights are no signs"]),
    "biases": (SIGNS + "y = Conv(s, w, b)", ["it has biases, which are not whole numbers"]),
    "zero padding": (SIGNS + "z = Conv <pads=[1,1,1,1]> (s, w)  y = Slice(z, i1, i3, i2)",
                     ["padding counts as 0, which is no sign"]),
    "padded by +1": (SIGNS + "z = Pad(s, sides, one)  y = Conv(z, w)", []),
    "padded channels": (SIGNS + "z = Pad(s, deep, minus)  y = Conv(z, w5)", []),
    "another threshold": (SIGNS.replace("zero", "one") + "y = Conv(s, w)", []),
    "other numbers": (SIGNS.replace("minus", "zero") + "y = Conv(s, w)", []),
    "no signs": ("y = Conv(x, w)", []),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_refuses(name: str) -> None:
    body, reasons = BODIES[name]
    signs = R.choice([-1.0, 1.0], (4, 5, 3, 3))
    arrays = {
        "zero": np.array(0.0), "one": np.array(1.0), "minus": np.array(-1.0), "w": signs[:, :3], "w5": signs,
        "r": R.normal(0, 1, (4, 3, 3, 3)), "b": R.normal(0, 1, 4), "sides": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "deep": np.array([0, 1, 0, 0, 0, 1, 0, 0]), "i1": np.array([1]), "i2": np.array([2]), "i3": np.array([3]),
    }  # fmt: skip
    used = {key: array for key, array in arrays.items() if f" {key}," in body or f" {key})" in body}
    rows = {"zero padding": 2, "padded by +1": 5}.get(name, 3)
    columns = 5 if rows != 3 else 3
    built = model(f"agraph (float[1,3,5,5] x) => (float[1,4,{rows},{columns}] y) {{ {body} }}", **used)
    text = str(built)
    assert binarized(built, "bits", 0) == reasons
    assert str(built) == text


def test_signs_that_something_else_reads_stay() -> None:
    text = f"agraph (float[1,3,5,5] x) => (float[1,4,3,3] y, float[1,3,5,5] z) {{ {SIGNS} y = Conv(s, w)  z = Neg(s) }}"
    arrays = {"zero": 0.0, "one": 1.0, "minus": -1.0}
    built = model(text, w=R.choice([-1.0, 1.0], (4, 3, 3, 3)), **arrays)
    binarized(built, "bits", 1)
    assert ops(built) == ["Greater", "Where", "Cast", "Conv", "Neg"]


def test_unequal_padding() -> None:
    text = f"agraph (float[1,3,5,5] x) => (float[1,4,4,5] y) {{ {SIGNS} z = Pad(s, sides, minus)  y = Conv(z, w) }}"
    sides = np.array([0, 0, 1, 0, 0, 0, 0, 2])
    built = model(text, w=R.choice([-1.0, 1.0], (4, 3, 3, 3)), zero=0.0, one=1.0, minus=-1.0, sides=sides)
    binarized(built, "bits", 1)


@pytest.mark.parametrize("form", FORMS)
def test_holds_no_copy_and_can_be_written(form: str, tmp_path: Path) -> None:
    built = lower(network(LAYER))
    Binarize(form=form).rewrite(built)
    ends = {"bits": ".doubled", "integer": ".integers"}[form]
    (weights,) = (value.const_value for name, value in built.graph.initializers.items() if name.endswith(ends))
    assert isinstance(weights, ir.LazyTensor)
    assert weights.numpy() is not weights.numpy()
    assert weights.nbytes == 8 * 32 * 9 * {"bits": 4, "integer": 1}[form]
    serialize_to(built, tmp_path / "model.onnx")
    same(outputs(ir.load(tmp_path / "model.onnx")), outputs(built), 0)


@settings(max_examples=30)
@given(
    channels=st.integers(1, 40),
    filters=st.integers(1, 6),
    size=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    normalize=st.integers(0, 1),
    form=st.sampled_from(FORMS),
)
def test_random_layers(
    channels: int, filters: int, size: int, stride: int, padding: int, normalize: int, form: str
) -> None:
    section = f"xnor=1 filters={filters} size={size} stride={stride} padding={padding} batch_normalize={normalize}"
    binarized(lower(network(section + " activation=leaky", channels=channels)), form, 1)


def test_is_in_the_registry() -> None:
    assert passes["binarize"] is Binarize
