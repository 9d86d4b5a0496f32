"""Random networks of xnor=1 in target tvm, on every kind of kernel that this machine runs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

pytest.importorskip("tvm.relax", exc_type=ImportError)

from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.graph.composites import inline_composites
from dnc.targets.tvm.target import Tvm
from tests.darknet.test_xnor import inputs, of_units, xnor_networks
from tests.targets.tvm.schedules.harness import machine


@pytest.mark.parametrize("mcpu", ["host", "x86-64-v3", "x86-64"])
@given(text=xnor_networks(exact=True), seed=st.integers(0, 9))
@settings(max_examples=2)
def test_random(mcpu: str, text: str, seed: int) -> None:
    """To the bit, for a batch."""
    compared(mcpu, text, seed)


def test_few_numbers() -> None:
    """TVM holds them on the stack, where LLVM could not join vectors of four to those whose signs are taken."""
    text = "[net]\nwidth=1\nheight=5\nchannels=8\n"
    text += "[convolutional]\nfilters=40\nsize=1\npadding=2\nstride=3\nactivation=linear\n"
    compared("x86-64-v2", text + "[convolutional]\nxnor=1\nfilters=9\nsize=1\nactivation=relu\n", 0)


def compared(mcpu: str, text: str, seed: int) -> None:
    """An engine's numbers with the reference's."""
    machine(mcpu)
    network = of_units(Network.parse(text).with_random_weights(seed), seed)
    x = inputs(network, seed)
    *_, (_, expected) = run_all(network, x)
    target = Tvm({"mcpu": mcpu})
    built = lower(network)
    inline_composites(built, keep=target.composites)
    target.pipeline().run(built)
    with TemporaryDirectory() as folder:
        target.build(built, Path(folder))
        (found,) = target.runner().open(Path(folder), 1).run({"input": x})
    np.testing.assert_array_equal(found, expected)
