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
from tests.models import ops, outputs, run, same

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
    assert ops(built) == ["Greater", "Cast", "Conv", "Round", "Mul", "Add", "LeakyRelu"]
    conv = next(node for node in built.graph if node.op_type == "Conv")
    assert list(conv.attributes["pads"].as_ints()) == [1, 1, 1, 1]


def test_integers() -> None:
    built = lower(network(LAYER))
    assert binarized(built, "integer", 1) == ["on integers"]
    assert ops(built) == ["Greater", "Cast", "ConvInteger", "Cast", "Add", "Mul", "Add", "LeakyRelu"]


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


def test_signs_that_something_else_reads_stay() -> None:
    """The values that signs are taken of, that is."""
    built = lower(network(LAYER, LAYER.replace("=8", "=32"), "filters=4 activation=linear"), layers=[0])
    binarized(built, "bits", 2)


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
