"""Which nodes a kernel computes, once FuseOps has joined them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.composites import inline_composites
from dnc.graph.rewriting import constant_array
from dnc.graph.serialization import check
from dnc.graph.work import place_of
from dnc.runtime.preprocessing import Preprocessing
from dnc.targets.tvm.target import Tvm
from tests.models import model
from tests.networks import NETWORKS

pytest.importorskip("tvm.relax", exc_type=ImportError)

from dnc.targets.tvm.compile import fused
from dnc.targets.tvm.emit import emit
from dnc.targets.tvm.provenance import kernels_of
from dnc.targets.tvm.schedules.rewriting import calls

TWICE = """[net]
width=8
height=8
channels=3
[convolutional]
filters=4
activation=leaky
[maxpool]
size=2
stride=1
[route]
layers=-2
[maxpool]
size=2
stride=1
[shortcut]
from=-3
activation=linear
"""
"""Two pools that are the same."""

_Mark = tuple[int, float, float, float]
"""What tells weights from others in any layout: how many, the first, the smallest and the largest."""


def _mark(array: Any) -> _Mark:
    return array.size, float(array.flat[0]), float(array.min()), float(array.max())


def _mark_of(call: Any) -> _Mark | None:
    """Of the largest constant that a call is given."""
    from tvm.ir import GenericConst

    constants = [each.value.numpy() for each in call.args[1] if isinstance(each, GenericConst)]
    largest = max(constants, key=lambda each: each.size, default=None)
    return None if largest is None or not largest.size else _mark(largest)


@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_tell_the_same(name: str, write: Callable[..., Path]) -> None:
    """A kernel that is given the weights of a section names it; and no section is lost that computes something."""
    cfg = write(name)
    built = lower(Network.load(cfg, cfg.with_suffix(".weights")), batch=1)
    for step in Tvm().optimizations():
        step.rewriting.rewrite(built)
    check(built, "the test")
    module = fused(emit(built))
    kernels = kernels_of(module)
    # Sections may share weights.
    by_weights: dict[Any, set[str]] = {}
    for node in built.graph:
        weights = constant_array(node.inputs[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if weights is not None:
            by_weights.setdefault(_mark(weights.numpy()), set()).add(place_of(node.name or ""))
    found = set()
    for call, (function, nodes) in zip(calls(module), kernels, strict=True):
        assert call.args[0].name_hint == function
        mark = _mark_of(call)
        if mark in by_weights:
            found.add(mark)
            assert by_weights[mark] & {place_of(node) for node in nodes.split("+")}
    assert found == by_weights.keys()
    named = {place_of(node) for _, nodes in kernels for node in nodes.split("+")}
    constant = {"Constant", "Shape", "Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}
    assert {place_of(node.name or "") for node in built.graph if node.op_type not in constant} <= named


def test_equal_kernels(write: Callable[..., Path]) -> None:
    """Of two that compute the same, each has its own section, unless TVM computes it once."""
    cfg = write("twice", TWICE)
    module = fused(emit(lower(Network.load(cfg, cfg.with_suffix(".weights")), batch=1)))
    pools = [nodes.partition("+")[0] for function, nodes in kernels_of(module) if "pool" in function]
    assert pools in (["001_maxpool/MaxPool", "003_maxpool/MaxPool"], ["001_maxpool/MaxPool"])


def test_steps_that_are_no_section(write: Callable[..., Path]) -> None:
    """Pixels and suppression go by the names of these steps."""
    cfg = write("yolo")
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    preprocessing = Preprocessing(32, 32)
    built = lower(network, batch=1, preprocessing=preprocessing, pixels=True, decode="graph+nms")
    inline_composites(built, keep=Tvm.composites)
    kernels = kernels_of(fused(emit(built)))
    named = [function for function, nodes in kernels if nodes == "preprocessing/"]
    assert named == ["samples", "samples1", "pixels"]
    assert [function for function, nodes in kernels if nodes == "nms/"] == ["suppress", "count", "take"]


def test_several_results() -> None:
    """A kernel that gives a value in real numbers and rounded: what reads either keeps its own node."""
    built = model(
        "g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] a, float[1, 8, 4, 4] b) "
        "{ y = Exp(x) q = QuantizeLinear(y, s, z) d = DequantizeLinear(q, s, z) "
        "e = MaxPool<kernel_shape: ints = [2, 2], pads: ints = [0, 0, 1, 1]>(d) a = Neg(e) b = Sqrt(y) }",
        s=np.array(0.1, np.float32),
        z=np.array(0, np.uint8),
    )
    for number, node in enumerate(built.graph):
        node.name = f"{number:03d}_section/{node.op_type}"
    kernels = kernels_of(fused(emit(built)))
    assert not [nodes for _, nodes in kernels if not nodes]
    named = {place_of(node) for _, nodes in kernels for node in nodes.split("+")}
    assert {"#0", "#3", "#4", "#5"} <= named
