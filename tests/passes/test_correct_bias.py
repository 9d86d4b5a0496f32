"""What rounding weights adds on average is gone, in whatever form weights and biases are, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dnc.graph.pairs import Pairing
from dnc.graph.quantization import Channels, QuantSpec, Range, attach_ranges, range_of
from dnc.graph.rewriting import Remarks
from dnc.passes.correct_bias import CorrectBias
from dnc.passes.equalize import Equalize
from dnc.passes.quantize import Quantize
from tests.models import model, ops, outputs

R = np.random.default_rng(0)
WEIGHTS = {
    "w": R.normal(0, 1, (8, 6, 1, 1)) * R.uniform(0.01, 1, (1, 6, 1, 1)),
    "b": R.normal(0, 1, 8),
    "d": R.normal(0, 1, (8, 1, 3, 3)),
    "e": R.normal(0, 1, 8),
    "g": R.normal(0, 1, (8, 4, 1, 1)),
    "v": R.normal(0, 1, (4, 8, 1, 1)),
    "u": R.normal(0, 1, (4, 16, 1, 1)),
    "f": R.normal(0, 1, 4),
}
INPUTS = QuantSpec(frozenset({"Conv", "Concat", "Relu"}))
FORMS = {
    "floats": INPUTS,
    "integers": QuantSpec(INPUTS.operators, outputs=True, int32_biases=True),
    "pairs": QuantSpec(INPUTS.operators, pairs=(Pairing.ROWS,)),
}
FIRST = "c = Conv(input, w, b)  layer000 = Relu(c)"
LAST = "p = Conv(last, v, f)  q = Conv(last, v, f)  y = Add(p, q)"
"""Two heads, so that what they read stays as it is."""
NETWORKS = {
    "pointwise": f"{FIRST}  e1 = Conv(layer000, v, f)  last = Concat <axis=1> (e1, e1)  {LAST}",
    "depthwise": f"{FIRST}  last = Conv <group=8> (layer000, d, e)  {LAST}",
    "groups": f"{FIRST}  last = Conv <group=2> (layer000, g, e)  {LAST}",
    "joined": f"{FIRST}  layer001 = Concat <axis=1> (layer000, layer000)  e1 = Conv(layer001, u, f)  "
    f"last = Concat <axis=1> (e1, e1)  {LAST}",
}
WATCHED = {"pointwise": "e1", "depthwise": "last", "groups": "last", "joined": "e1"}
IMAGES = {"input": np.abs(np.random.default_rng(1).normal(2, 1, (16, 6, 9, 9))).astype(np.float32)}


def build(name: str) -> ir.Model:
    body = NETWORKS[name]
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    text = f"agraph (float[16,6,9,9] input) => (float[16,4,N,M] y) {{ {body} }}"
    return model(text, **{key: array for key, array in WEIGHTS.items() if key in words})


def watched(built: ir.Model, names: list[str]) -> dict[str, np.ndarray]:
    copy = built.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(values[name] for name in names if not values[name].is_graph_output())
    return outputs(copy, IMAGES)


def calibrated(built: ir.Model) -> dict[str, Range]:
    names = [value.name or "" for node in built.graph for value in node.outputs]
    found = {}
    for name, array in {**watched(built, names), **IMAGES}.items():
        sides = (array.min(axis=(0, 2, 3)), array.max(axis=(0, 2, 3)), array.mean(axis=(0, 2, 3), dtype=np.float64))
        low, high = min(float(array.min()), 0), float(array.max())
        found[name] = Range(low, high, low, high, Channels(*(tuple(side.tolist()) for side in sides)))
    return found


def quantized(name: str, form: str, *, equalize: bool = False) -> ir.Model:
    built = build(name)
    attach_ranges(built, calibrated(built))
    if equalize:
        assert Equalize(outputs=FORMS[form].outputs).rewrite(built).applied
    Quantize(FORMS[form]).rewrite(built)
    return built


def shift(name: str, built: ir.Model) -> np.ndarray:
    """The mean error of each channel of what comes out of the second convolution."""
    (exact, rounded) = (watched(each, [WATCHED[name]])[WATCHED[name]] for each in (build(name), built))
    error: np.ndarray = (rounded.astype(np.float64) - exact).mean(axis=(0, 2, 3))
    return error


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "equalize"),
    # What two read cannot be equalized.
    [*((name, False) for name in NETWORKS), *((name, True) for name in NETWORKS if name != "joined")],
)
def test_the_mean_error_is_gone(name: str, form: str, equalize: bool) -> None:
    """What is left is that of rounding values, which has no mean but for chance."""
    built = quantized(name, form, equalize=equalize)
    before, nodes = shift(name, built), len(ops(built))
    remarks = CorrectBias().rewrite(built)
    assert [remark.text for remark in remarks.applied] == ["its biases make up for rounding"] * 2
    assert not remarks.missed
    after = shift(name, built)
    assert np.abs(after).max() < 0.3 * np.abs(before).max()
    assert len(ops(built)) == nodes + (2 if FORMS[form].int32_biases else 0)


def test_no_means_no_correction() -> None:
    """Of tables, and of calibrations that are older."""
    built = build("pointwise")
    ranges = {key: Range(known.low, known.high) for key, known in calibrated(built).items()}
    attach_ranges(built, ranges)
    Quantize(INPUTS).rewrite(built)
    remarks = CorrectBias().rewrite(built)
    assert {remark.text for remark in remarks.missed} == {"the means of what it reads were not calibrated"}
    assert not remarks.applied


def test_channels_of_another_number() -> None:
    built = build("pointwise")
    known = calibrated(built)["layer000"]
    wrong = Range(known.low, known.high, known.minimum, known.maximum, Channels((0.0,) * 3, (1.0,) * 3, (0.5,) * 3))
    attach_ranges(built, {**calibrated(built), "layer000": wrong})
    Quantize(INPUTS).rewrite(built)
    assert "another number of channels was calibrated" in texts(CorrectBias().rewrite(built))


def test_a_convolution_without_biases_has_none_to_correct() -> None:
    text = "agraph (float[16,6,9,9] input) => (float[16,4,N,M] y) { layer000 = Conv(input, w)  y = Conv(layer000, v) }"
    built = model(text, w=WEIGHTS["w"], v=WEIGHTS["v"])
    attach_ranges(built, calibrated(built))
    Quantize(INPUTS).rewrite(built)
    assert texts(CorrectBias().rewrite(built)) == ["it has no biases"]


def texts(remarks: Remarks) -> list[str]:
    return [remark.text for remark in remarks.missed]


def test_biases_are_lazy() -> None:
    built = quantized("pointwise", "integers")
    CorrectBias().rewrite(built)
    corrected = [value for name, value in built.graph.initializers.items() if "corrected" in name]
    assert len(corrected) == 2
    assert all(isinstance(value.const_value, ir.LazyTensor) for value in corrected)


def test_what_only_moves_numbers_has_its_own_means() -> None:
    """The largest of four is larger than their mean, though their range is one."""
    text = f"""agraph (float[16,6,9,9] input) => (float[16,4,N,M] y) {{ {FIRST}
        layer001 = MaxPool <kernel_shape=[2,2], strides=[2,2]> (layer000)
        last = Conv <group=8> (layer001, d, e)  {LAST} }}"""
    built = model(text, **{key: array for key, array in WEIGHTS.items() if key in ("w", "b", "d", "e", "v", "f")})
    ranges = calibrated(built)
    attach_ranges(built, ranges)
    Quantize(INPUTS).rewrite(built)
    read = next(node for node in built.graph if node.outputs[0].name == "last").inputs[0]
    known = None if read is None else range_of(read)
    assert known is not None
    assert known.channels == ranges["layer001"].channels != ranges["layer000"].channels
    assert known.high == ranges["layer000"].high
    assert len(CorrectBias().rewrite(built).applied) == 2
