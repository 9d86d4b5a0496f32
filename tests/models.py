"""ONNX models written as text, and what ONNX Runtime computes with them: for the tests of passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir

from dnc.graph.running import run
from dnc.graph.serialization import check

__all__ = ["model", "ops", "outputs", "run", "same"]


def model(text: str, **initializers: npt.ArrayLike) -> ir.Model:
    """A model from the text of its graph (onnx.parser) and the arrays that are its initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 14]>\n{text}')
    for name, array in initializers.items():
        data = np.asarray(array)
        data = data.astype(np.float32) if data.dtype == np.float64 else data
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    built = ir.from_proto(proto)
    check(built, "the test")
    return built


def ops(built: ir.Model) -> list[str]:
    """The operators in order."""
    return [node.op_type for node in built.graph]


def outputs(built: ir.Model, feeds: Mapping[str, npt.NDArray[Any]] | None = None, seed: int = 0) -> dict[str, Any]:
    """`run` on random numbers for every input that `feeds` lacks; a side without a number is 2."""
    generator = np.random.default_rng(seed)
    given = dict(feeds or {})
    for value in built.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        sides = [side if isinstance(side, int) else 2 for side in value.shape]
        if value.dtype == ir.DataType.UINT8:
            given.setdefault(value.name, generator.integers(0, 256, sides).astype(np.uint8))
        else:
            given.setdefault(value.name, generator.normal(0, 1, sides).astype(np.float32))
    return run(built, given)


def same(after: Mapping[str, Any], before: Mapping[str, Any], tolerance: float) -> None:
    """The same outputs of the same names, within `tolerance` of the largest value of each; 0 is equal bits."""
    assert list(after) == list(before)
    for name, expected in before.items():
        assert after[name].shape == expected.shape
        bound = tolerance * float(np.abs(expected).max(initial=0))
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=bound, err_msg=name)
