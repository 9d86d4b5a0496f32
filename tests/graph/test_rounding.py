"""16-bit values are rounded where the model says so, also by an engine that would not."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime as ort

from dnc.graph.rounding import spell_out

HEAD = '<ir_version: 8, opset_import: ["": 14]>\n'
X = np.array([1.0001, 300.3, 60000, 1 / 3], np.float32)


def proto(text: str) -> onnx.ModelProto:
    """A model with the types of all its values."""
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HEAD + text))


def run(model: onnx.ModelProto, **feeds: Any) -> Any:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def test_every_result_is_rounded() -> None:
    text = """agraph (float[4] x) => (float[4] y) {
        a = Cast <to = 10> (x)  b = Mul(a, a)  c = Mul(b, a)  y = Cast <to = 1> (c)
    }"""
    model = proto(text)
    assert spell_out(model) == set()
    onnx.checker.check_model(model, full_check=True)
    half = X.astype(np.float16)
    with np.errstate(over="ignore"):
        expected = (half * half) * half
    assert np.array_equal(run(model, x=X), expected.astype(np.float32))
    assert np.isinf(run(model, x=X)[1])


def test_weights_inputs_and_outputs_become_float32() -> None:
    """bfloat16 numbers, which numpy lacks, go in as float32."""
    text = """agraph (float[4] x, bfloat16[4] w) => (float[4] y) {
        v = Cast <to = 1> (w)  u = Cast <to = 1> (k)  z = Mul(x, v)  y = Add(z, u)
    }"""
    model = onnx.parser.parse_model(HEAD + text)
    numbers = np.array([1, 2, 3, 4], ml_dtypes.bfloat16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, "k"))
    assert spell_out(model) == {"w"}
    onnx.checker.check_model(model, full_check=True)
    wide = numbers.astype(np.float32)
    assert np.array_equal(run(model, x=X, w=wide), X * wide + wide)


def test_outputs_in_half_precision() -> None:
    model = proto("agraph (float[4] x) => (float16[4] y) { a = Cast <to = 10> (x)  y = Neg(a) }")
    spell_out(model)
    assert np.array_equal(run(model, x=X), -X.astype(np.float16).astype(np.float32))


def test_float32_stays_as_it_is() -> None:
    model = proto("agraph (float[4] x) => (float[4] y) { a = Abs(x)  y = Neg(a) }")
    before = model.SerializeToString()
    assert spell_out(model) == set()
    assert model.SerializeToString() == before
