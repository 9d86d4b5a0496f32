"""The builder, the checker, and a model written weight after weight."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import DncError, Where
from dnc.graph.builder import OPSET, WHERE, Builder, lazy, where_of
from dnc.graph.serialization import check, serialize_to, small_model
from dnc.passes import passes
from tests import ROOT
from tests.models import outputs as run
from tests.models import same
from tests.networks import NETWORKS

WIDE = Where("/some/folder/a.cfg", 7, "conv", 3)


def built(b: Builder) -> ir.Model:
    made = b.model("test", {"key": "value"})
    check(made, "the test")
    return made


def test_builder() -> None:
    b = Builder(batch=2)
    x = b.input("x", [3])
    b.enter("003_conv", WIDE)
    y = b.op("Add", x, b.constant(1.0))
    z = b.op("Add", y, b.constant(1.0))
    b.output(z, "z", [2, 3])
    made = built(b)
    assert made.opset_imports == {"": OPSET}
    assert made.metadata_props["key"] == "value"
    assert [node.name for node in made.graph] == ["003_conv/Add", "003_conv/Add_1"]
    assert [where_of(node) for node in made.graph] == ["a.cfg:7 [conv] #3"] * 2
    assert len(made.graph.initializers) == 1
    assert run(made, {"x": np.zeros((2, 3), np.float32)})["z"].tolist() == [[2, 2, 2], [2, 2, 2]]


def test_where_of_a_node_that_a_pass_made() -> None:
    assert where_of(ir.node("Abs", [], name="fused")) == "node fused"
    assert where_of(ir.node("Abs", [], metadata_props={WHERE: "a.cfg:1 [x] #0"})) == "a.cfg:1 [x] #0"


@pytest.mark.parametrize(
    ("array", "dtype"),
    [(1.5, ir.DataType.FLOAT), (2, ir.DataType.INT64), (True, ir.DataType.BOOL), (np.float32(2), ir.DataType.FLOAT)],
)
def test_constant_types(array: float, dtype: ir.DataType) -> None:
    value = Builder().constant(array)
    assert value.dtype == dtype
    assert value.shape == ir.Shape([])


def test_constants_are_shared_by_value_and_type() -> None:
    b = Builder()
    one = b.constant(1.0)
    assert b.constant(1.0) is one
    assert b.constant(np.float32(1)) is one
    others = [b.constant(1), b.constant([1.0]), b.constant([[1.0]]), b.constant(1.5), b.constant(-0.0), b.constant(0.0)]
    assert len({id(value) for value in [one, *others]}) == 7
    assert len({value.name for value in [one, *others]}) == 7
    assert b.constant(1.0, "weights") is not b.constant(1.0, "weights")


def test_outputs_have_a_producer_and_a_name_of_their_own() -> None:
    b = Builder()
    x = b.input("x", [3])
    y = b.op("Abs", x)
    for value, name in ((x, "a"), (y, "b"), (y, "c")):
        b.output(value, name, [b.batch, 3])
    made = built(b)
    assert [value.name for value in made.graph.outputs] == ["a", "b", "c"]
    assert len({id(value) for value in made.graph.outputs}) == 3


def test_unused_initializers_are_left_out() -> None:
    b = Builder()
    b.constant(np.zeros(9), "unused")
    b.output(b.op("Abs", b.input("x", [3])), "y", [b.batch, 3])
    assert list(built(b).graph.initializers) == []


def test_invalid_graphs_are_bugs() -> None:
    b = Builder()
    b.output(b.op("Add", b.input("x", [3]), b.constant(np.ones(4))), "y", [b.batch, 3])
    with pytest.raises(DncError, match=r"lowering made an invalid graph: (.|\n)*please report it"):
        check(b.model("test", {}), "lowering")
    b = Builder()
    b.output(b.op("NoSuchOperator", b.input("x", [3])), "y", [b.batch, 3])
    with pytest.raises(DncError, match="invalid graph"):
        check(b.model("test", {}), "lowering")


def test_lazy_tensors_hold_nothing() -> None:
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(6, dtype=np.float32).reshape(3, 2).T

    tensor = lazy(compute, ir.Tensor(np.zeros((2, 3), np.float32)), "name")
    assert (tuple(tensor.shape), tensor.dtype, tensor.nbytes, len(calls)) == ((2, 3), ir.DataType.FLOAT, 24, 0)
    assert tensor.numpy().tolist() == [[0, 2, 4], [1, 3, 5]]
    tensor.numpy()
    assert len(calls) == 2


def test_a_long_chain_of_lazy_tensors_is_computed_in_parts() -> None:
    """Each is one more than the one before: 1000 calls deep, and half a million in all to read each of them once."""
    computed = 0

    def more(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
        nonlocal computed
        computed += 1
        return tensor.numpy() + 1

    chain: list[ir.TensorProtocol] = [ir.Tensor(np.zeros(3, np.float32))]
    for number in range(1000):
        chain.append(lazy(partial(more, chain[-1]), chain[-1], f"t{number}"))
    for number, tensor in enumerate(chain):
        np.testing.assert_array_equal(tensor.numpy(), np.full(3, number, np.float32))
    assert computed <= 16 * 1000


def test_small_model_has_no_large_weights() -> None:
    lowered = lower(Network.parse(NETWORKS["yolo"]).with_random_weights(0))
    before = str(lowered)
    small = small_model(lowered)
    assert len(small.SerializeToString()) < 40_000
    assert max(len(tensor.raw_data) for tensor in small.graph.initializer) <= 1024
    assert str(lowered) == before


def whole(made: ir.Model) -> onnx.ModelProto:
    """onnx_ir's serialization, without the types of initializers, which they have themselves."""
    proto = ir.to_proto(made)
    infos = [info for info in proto.graph.value_info if info.name not in made.graph.initializers]
    proto.graph.ClearField("value_info")
    proto.graph.value_info.extend(infos)
    return proto


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_written_file_is_onnx_s_own(name: str, after: bool, tmp_path: Path) -> None:
    """Streamed, the file says the same as onnx_ir's serialization of the whole, and passes the full checker."""
    lowered = lower(Network.parse(NETWORKS[name]).with_random_weights(0))
    if after:
        for optimization in ("fold-constants", "fold-batchnorm", "eliminate-dead-code"):
            passes[optimization]().rewrite(lowered)
    path = tmp_path / "model.onnx"
    serialize_to(lowered, path)
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    assert written == whole(lowered)
    again = tmp_path / "again.onnx"
    serialize_to(lowered, again)
    assert again.read_bytes() == path.read_bytes()
    same(run(ir.load(path)), run(lowered), 0)


def test_odd_tensors_are_written(tmp_path: Path) -> None:
    """Scalars, nothing at all, other types, arrays that are not contiguous, and values that were renamed."""
    b = Builder()
    x = b.input("x", [4])
    arrays: list[npt.NDArray[Any]] = [
        np.array(2, np.float32),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        np.arange(8, dtype=np.float32).reshape(2, 4).T,
        np.arange(-128, 128, dtype=np.int8),
        np.arange(4, dtype=np.float16),
        np.broadcast_to(np.float32(1), (3, 4)),
    ]
    for number, array in enumerate(arrays):
        b.output(b.op("Identity", b.constant(array, f"c{number}")), f"y{number}", array.shape)
        b.outputs[-1].type = b.constant(array, f"t{number}").type
    b.output(b.op("Abs", x), "y", [b.batch, 4])
    made = built(b)
    made.graph.initializers["c3"].name = "renamed"
    serialize_to(made, tmp_path / "model.onnx")
    written = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert written == whole(made)
    results = run(ir.load(tmp_path / "model.onnx"))
    for number, array in enumerate(arrays):
        assert np.array_equal(results[f"y{number}"], array)


def test_over_two_gib_is_refused(tmp_path: Path) -> None:
    """Before anything is computed or written."""

    def never() -> np.ndarray:
        raise AssertionError

    b = Builder()
    x = b.input("x", [16384])
    huge = b.constant(np.zeros((1, 1), np.float32), "huge")
    huge.const_value = lazy(never, ir.Tensor(np.broadcast_to(np.float32(0), (16384, 32767))), "huge")
    huge.shape = ir.Shape([16384, 32767])
    b.output(b.op("MatMul", x, huge), "y", [b.batch, 32767])
    made = built(b)
    with pytest.raises(DncError, match="over 2 GiB"):
        serialize_to(made, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_importing_is_left_to_the_compiler() -> None:
    """onnx_ir takes over a second to import; dnc, its command line and its runtime do without."""
    code = "import sys, dnc, dnc.cli, dnc.runtime.engine, dnc.darknet.network\n"
    code += "print({'onnx_ir', 'onnx'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
