"""8-bit numbers where the spec has them: which nodes, in which form, with which parameters, and what they compute."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.errors import DncError
from dnc.graph.pairs import Pairing
from dnc.graph.quantization import (
    DATA_MOVEMENT,
    Channels,
    QuantParams,
    QuantSpec,
    Range,
    attach_ranges,
    quant_params_of,
    range_of,
)
from dnc.graph.rewriting import Remarks
from dnc.graph.serialization import check
from dnc.passes import passes
from dnc.passes.equalize import Equalize
from dnc.passes.quantize import Quantize
from dnc.quantization.saturation import saturation
from dnc.targets import targets
from dnc.typing import Array
from tests.models import model, ops, outputs
from tests.networks import NETWORKS
from tests.thinning import thinned

R = np.random.default_rng(0)
INPUTS = QuantSpec(frozenset({"Conv", "Gemm", "Concat"}) | DATA_MOVEMENT, unified_concat=True)
OUTPUTS = QuantSpec(
    frozenset({"Conv", "Gemm", "Add", "LeakyRelu", "Concat", "Mul"}) | DATA_MOVEMENT, outputs=True, int32_biases=True
)
DENSE = QuantSpec(INPUTS.operators, unified_concat=True, dense_only=True)
WEIGHTS = {
    "w": R.normal(0, 1, (4, 3, 1, 1)),
    "b": R.normal(0, 1, 4),
    "d": R.normal(0, 1, (4, 1, 3, 3)),
    "v": R.normal(0, 1, (4, 4, 1, 1)),
    "u": R.normal(0, 1, (4, 8, 1, 1)),
    "g": R.normal(0, 1, (4, 3)),
    "h": R.normal(0, 1, (2, 4)),
    "k": np.array(2.0),
}
HEAD = "y = Conv(last, v)"


def build(body: str, inputs: str = "float[1,3,6,6] input", results: str = "float[1,4,N,M] y") -> ir.Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return model(f"agraph ({inputs}) => ({results}) {{ {body} }}", **{n: a for n, a in WEIGHTS.items() if n in words})


def calibrated(built: ir.Model) -> dict[str, Range]:
    """The ranges of the input and of the layers on random numbers."""
    copy = built.clone()
    wanted = [v for n in copy.graph for v in n.outputs if (v.name or "").startswith("layer")]
    before = list(copy.graph.outputs)
    copy.graph.outputs.extend(value for value in wanted if value not in before)
    found = {name: array for name, array in outputs(copy).items() if name.startswith("layer")}
    feeds = {"input": np.random.default_rng(0).normal(0, 1, [s if isinstance(s, int) else 2 for s in shape(built)])}
    return {
        name: Range(min(float(array.min()), -1e-3), float(array.max()), float(array.min()), float(array.max()))
        for name, array in {**found, **feeds}.items()
    }


def shape(built: ir.Model) -> list[object]:
    value = built.graph.inputs[0]
    assert value.shape is not None
    return list(value.shape)


def quantize(built: ir.Model, ranges: dict[str, Range], spec: QuantSpec, keep: tuple[str, ...] = ()) -> Remarks:
    attach_ranges(built, ranges)
    return Quantize(spec, keep=keep).rewrite(built)


def noise(built: ir.Model, spec: QuantSpec) -> float:
    """Of the quantized model, relative to the signal."""
    before = outputs(built)
    assert quantize(built, calibrated(built), spec).count
    check(built, "quantize")
    after = outputs(built)
    assert list(after) == list(before)
    return max(float(np.linalg.norm(after[n] - before[n]) / np.linalg.norm(before[n])) for n in before)


BODIES = {
    "leaky": f"c = Conv(input, w, b)  layer000 = LeakyRelu <alpha=0.1> (c)  last = Conv(layer000, v)  {HEAD}",
    "relu": f"c = Conv(input, w, b)  layer000 = Relu(c)  last = Conv(layer000, v)  {HEAD}",
    "swish": f"c = Conv(input, w)  s = Sigmoid(c)  layer000 = Mul(c, s)  last = Conv(layer000, v, b)  {HEAD}",
    "depthwise": f"layer000 = Conv(input, w, b)  last = Conv <group=4, pads=[1,1,1,1]> (layer000, d, b)  {HEAD}",
    "shortcut": "layer000 = Conv(input, w, b)  layer001 = Conv(layer000, v)  layer002 = Add(layer001, layer000)  "
    f"last = Conv(layer002, v, b)  {HEAD}",
    "route": "layer000 = Conv(input, w, b)  layer001 = Conv(layer000, v)  "
    "layer002 = Concat <axis=1> (layer001, layer000)  "
    f"last = Conv(layer002, u, b)  {HEAD}",
    "pool": "layer000 = Conv(input, w, b)  layer001 = MaxPool <kernel_shape=[2,2], strides=[2,2]> (layer000)  "
    f"last = Conv(layer001, v)  {HEAD}",
}


@pytest.mark.parametrize("spec", [INPUTS, OUTPUTS, DENSE], ids=["inputs", "outputs", "dense"])
@pytest.mark.parametrize("name", BODIES)
def test_applies(name: str, spec: QuantSpec) -> None:
    """Two or three roundings, each by up to 1/510 of a tensor's range, which is a few deviations wide: some percent.
    A wrong scale, zero or bias is tens of them."""
    built = build(BODIES[name])
    assert noise(built, spec) < 0.04
    text = str(built)
    ranges = calibrated(build(BODIES[name]))
    assert quantize(built, ranges, spec).count == 0
    assert str(built) == text
    head = list(built.graph)[-1]
    assert head.op_type == "Conv"
    assert head.inputs[1] is not None
    assert head.inputs[1].name == "v"


def test_inputs_are_rounded_and_weights_integers() -> None:
    built = build(BODIES["leaky"])
    quantize(built, calibrated(built), INPUTS)
    pair = ["QuantizeLinear", "DequantizeLinear"]
    weights = ["DequantizeLinear", "Conv"]
    assert ops(built) == [*pair, *weights, "LeakyRelu", *pair, *weights, "Conv"]
    first, second = (np.abs(each.const_value.numpy()).max() for each in _integers(built))  # type: ignore[union-attr]
    assert (first, second) == (127, 127)


def _integers(built: ir.Model) -> list[ir.Value]:
    return [value for value in built.graph.initializers.values() if value.dtype == ir.DataType.INT8]


@pytest.mark.parametrize("name", BODIES)
def test_signed(name: str) -> None:
    """0 is the zero of every tensor, and the integers are signed; half of them may stand for nothing, so that a
    rounding is by up to 1/254 of the range."""
    built = build(BODIES[name])
    assert noise(built, QuantSpec(frozenset({"Conv", "Gemm"}), symmetric=True)) < 0.08
    kinds = {value.dtype for value in built.graph.initializers.values()}
    assert ir.DataType.INT8 in kinds
    assert not kinds & {ir.DataType.UINT8, ir.DataType.INT32}
    zeros = [value for name, value in built.graph.initializers.items() if name.endswith(".zero")]
    assert zeros
    assert all(value.const_value is not None and not value.const_value.numpy().any() for value in zeros)
    rounded = [node.outputs[0] for node in built.graph if node.op_type == "DequantizeLinear"]
    assert {use.node.op_type for value in rounded for use in value.uses()} == {"Conv"}


def test_outputs_are_rounded_and_biases_integers() -> None:
    built = build(BODIES["leaky"].replace("last", "layer001"))
    quantize(built, calibrated(built), OUTPUTS)
    pair = ["QuantizeLinear", "DequantizeLinear"]
    first = [*pair, "DequantizeLinear", "DequantizeLinear", "Conv", *pair, "LeakyRelu"]
    assert ops(built) == [*first, *pair, "DequantizeLinear", "Conv", *pair, "Conv"]
    conv = next(node for node in built.graph if node.op_type == "Conv")
    data, weights, biases = ([*value.producer().inputs] for value in conv.inputs)  # type: ignore[union-attr]
    assert biases[0] is not None
    assert biases[0].dtype == ir.DataType.INT32
    # Engines add biases to the sums of products, whose unit is that of both.
    units = [each[1].const_value.numpy() for each in (data, weights, biases)]
    np.testing.assert_allclose(units[2], units[0] * units[1], rtol=1e-6, err_msg="rounding of float32")


def test_relu_stands_before_the_rounding() -> None:
    """Engines know it as that of the convolution."""
    built = build("c = Conv(input, w, b)  layer000 = Relu(c)  layer001 = Conv(layer000, v)  y = Conv(layer001, v)")
    quantize(built, calibrated(built), OUTPUTS)
    relu = next(node for node in built.graph if node.op_type == "Relu")
    value = relu.inputs[0]
    assert value is not None
    producer = value.producer()
    assert producer is not None
    assert producer.op_type == "Conv"


def params(built: ir.Model) -> list[QuantParams]:
    """Those of all activations, which the values have and the pairs say."""
    found = []
    for node in built.graph:
        if node.op_type == "QuantizeLinear":
            (back,) = node.outputs[0].uses()
            scale, zero_point = (value.const_value.numpy() for value in node.inputs[1:])  # type: ignore[union-attr]
            found.append(QuantParams.read(scale, zero_point))
            assert quant_params_of(node.outputs[0]) == quant_params_of(back.node.outputs[0]) == found[-1]
    return found


def test_params() -> None:
    built = build(BODIES["leaky"])
    ranges = {"input": Range(-1, 1, -0.25, 1), "layer000": Range(-0.5, 2.05, -9, 9)}
    quantize(built, ranges, INPUTS)
    # What is symmetric reaches no further than what was seen.
    assert params(built) == [QuantParams.asymmetric(Range(-0.25, 1)), QuantParams.asymmetric(Range(-0.5, 2.05))]
    built = build(BODIES["leaky"].replace("last", "layer001"))
    quantize(built, {**ranges, "layer001": Range(-1, 1)}, OUTPUTS)
    # Before the activation: -0.5 / 0.1.
    assert params(built)[1] == QuantParams.asymmetric(Range(-0.5 / float(np.float32(0.1)), 2.05))


def test_parts_of_a_unified_concatenation_share_their_parameters() -> None:
    built = build(BODIES["route"])
    ranges = {name: Range(-1, 1) for name in ("input", "layer000", "layer002")}
    quantize(built, {**ranges, "layer001": Range(-3, 3), "layer002": Range(-4, 4)}, INPUTS)
    concat = next(node for node in built.graph if node.op_type == "Concat")
    scales = [value.producer().inputs[1].const_value.numpy() for value in concat.inputs]  # type: ignore[union-attr]
    assert scales == [np.float32(8 / 255)] * 2


def test_pools_are_reached_through() -> None:
    built = build(BODIES["pool"])
    quantize(built, calibrated(built), INPUTS)
    pool = next(node for node in built.graph if node.op_type == "MaxPool")
    value = pool.inputs[0]
    assert value is not None
    before = value.producer()
    assert before is not None
    assert before.op_type == "DequantizeLinear"
    assert [use.node.op_type for use in pool.outputs[0].uses()] == ["Conv"]


def test_what_moves_numbers_for_float32_does_not_round_them() -> None:
    """With a spec for dense products: a pool before a depthwise convolution."""
    pool = "p = MaxPool <kernel_shape=[2,2]> (layer000)"
    depthwise = f"layer000 = Conv(input, w, b)  {pool}  layer001 = Conv <group=4> (p, d)"
    built = build(f"{depthwise}  last = Conv(layer001, v)  {HEAD}")
    remarks = quantize(built, calibrated(built), DENSE)
    assert remarks.count == 2
    assert [remark.text for remark in remarks.missed][:2] == ["it is read in float32", "it has several groups"]
    assert [node.op_type for node in built.graph].count("QuantizeLinear") == 2


def test_what_moves_numbers_into_a_concatenation_has_its_parameters() -> None:
    """With a spec for dense products, they are rounded once."""
    pool = "p = MaxPool <kernel_shape=[1,1]> (layer000)"
    built = build(f"layer000 = Conv(input, w, b)  {pool}  layer001 = Concat <axis=1> (p, layer000)  "
                  f"last = Conv(layer001, u)  {HEAD}")  # fmt: skip
    ranges = calibrated(built) | {"layer001": Range(-9, 9)}
    quantize(built, ranges, DENSE)
    assert params(built) == [QuantParams.asymmetric(ranges["input"]), QuantParams.asymmetric(Range(-9, 9))]


ROWS = dataclasses.replace(OUTPUTS, pairs=(Pairing.ROWS,))


def integers(built: ir.Model) -> dict[str, Array]:
    """The weights in 8 bits, by their names."""
    return {value.name or "": value.const_value.numpy() for value in _integers(built) if value.const_value is not None}


@pytest.mark.parametrize("spec", [INPUTS, OUTPUTS], ids=["inputs", "outputs"])
@pytest.mark.parametrize("pairing", [Pairing.ROWS, Pairing.CHANNELS])
def test_pairs_fit(spec: QuantSpec, pairing: Pairing) -> None:
    """Large weights side by side: with the finest scales they are cut off where inputs are large, and then they are
    not."""
    body = "layer000 = Conv(input, w, b)  layer001 = Conv <pads=[1,1,1,1]> (layer000, e, b)  y = Conv(layer001, v)"
    weights = np.random.default_rng(0).normal(0, 1, (4, 4, 3, 3))
    weights[:3] = np.abs(weights[:3])
    weights[0] *= 100
    weights[2, :, 1, 1] *= 100
    weights[3] = 0
    weights[3, 0, 0, 0] = 1

    def quantized(pairs: tuple[Pairing, ...]) -> tuple[Remarks, Array]:
        built = model(
            f"agraph (float[1,3,6,6] input) => (float[1,4,N,M] y) {{ {body} }}",
            **{name: WEIGHTS[name] for name in "wbv"},
            e=weights,
        )
        remarks = quantize(
            built, {**calibrated(built), "layer000": Range(0, 4)}, dataclasses.replace(spec, pairs=pairs)
        )
        return remarks, integers(built)["e.int8"]

    full = np.full((1, 4, 6, 6), 255, np.uint8)
    _, before = quantized(())
    assert saturation(full, before, pairing, pads=[1] * 4).share > 0.05
    remarks, after = quantized((pairing,))
    assert saturation(full, after, pairing, pads=[1] * 4).share == 0
    assert remarks.applied[-1].text.startswith("8 bits: weights of 7.")
    # What fitted keeps its scale.
    np.testing.assert_array_equal(after[3], before[3])


def test_pairs_that_fit_change_nothing() -> None:
    """To the bit; nor does what kernels multiply one by one."""
    depthwise = "layer001 = Conv <group=4, pads=[1,1,1,1]> (layer000, d, b)"
    body = f"layer000 = Conv(input, x, b)  {depthwise}  y = Conv(layer001, v)"
    weights = np.random.default_rng(0).normal(0, 1, (4, 3, 1, 1))
    weights[:, 1] = 0
    texts, remarks = [], Remarks()
    for spec in (OUTPUTS, ROWS):
        built = model(
            f"agraph (float[1,3,6,6] input) => (float[1,4,N,M] y) {{ {body} }}",
            **{name: WEIGHTS[name] for name in "dbv"},
            x=weights,
        )
        remarks = quantize(built, calibrated(built), spec)
        texts.append([array.tobytes() for array in integers(built).values()])
    assert texts[0] == texts[1]
    assert [remark.text for remark in remarks.applied] == ["8 bits: its pairs fit", "8 bits"]


ONE = "float[1,3,1,1] input"
REFUSES = {
    "no product comes after it": ("y = Conv(input, w)", "float[1,3,6,6] input", INPUTS, ()),
    "it computes a single pixel": ("last = Conv(input, w)  " + HEAD, ONE, INPUTS, ()),
    "no range of e was calibrated": ("e = Exp(input)  last = Conv(e, w)  " + HEAD, None, INPUTS, ()),
    "no range of its result last was calibrated": ("last = Conv(input, w)  " + HEAD, None, OUTPUTS, ()),
    "Conv is kept in float32": ("last = Conv(input, w)  " + HEAD, None, INPUTS, ("Conv",)),
    "it reads a constant": (
        "c = Conv(input, w)  layer000 = Relu(c)  layer001 = Mul(layer000, k)  last = Conv(layer001, v)  " + HEAD,
        None,
        OUTPUTS,
        (),
    ),
}


@pytest.mark.parametrize("reason", REFUSES)
def test_refuses(reason: str) -> None:
    body, inputs, spec, keep = REFUSES[reason]
    built = build(body, inputs or "float[1,3,6,6] input")
    ranges = {name: Range(-4, 4) for name in ("input", "layer000", "layer001")}
    remarks = quantize(built, ranges, spec, keep)
    assert reason in [remark.text for remark in remarks.missed]


def test_computed_weights_are_refused() -> None:
    text = "agraph (float[1,3,6,6] input, float[4,3,1,1] w) => (float[1,4,6,6] y) { a = Conv(input, w) y = Conv(a, v) }"
    built = model(text, v=WEIGHTS["v"])
    remarks = quantize(built, {"input": Range(-1, 1)}, INPUTS)
    assert [remark.text for remark in remarks.missed] == [
        "weights or biases are no constants",
        "no product comes after it",
    ]


def test_matrix_products() -> None:
    body = "layer000 = Gemm <transB=1> (input, g, b)  y = Gemm <transB=1> (layer000, h)"
    built = build(body, "float[1,3] input", "float[1,2] y")
    assert noise(built, INPUTS) < 0.04


def test_weights_are_lazy_and_read_by_two_stored_once() -> None:
    built = build("layer000 = Conv(input, w)  layer001 = Conv(layer000, v)  last = Conv(layer001, v)  " + HEAD)
    quantize(built, calibrated(built), INPUTS)
    integers = _integers(built)
    assert all(isinstance(value.const_value, ir.LazyTensor) for value in integers)
    assert len(integers) == 2


def test_unknown_layer_to_keep() -> None:
    with pytest.raises(DncError, match="neither a layer nor an operator"):
        Quantize(keep=["36x"])


def _channels(array: np.ndarray) -> Channels | None:
    ends = (array.min(axis=(0, 2, 3)), array.max(axis=(0, 2, 3))) if array.ndim == 4 else None
    return None if ends is None else Channels(*(tuple(end.tolist()) for end in ends))


_FORMS = [*((name, "plain") for name in NETWORKS), *(("yolo", each) for each in ("keep", "pixels", "graph"))]


@pytest.mark.parametrize("target", thinned(["onnx", "openvino", "tvm", "cuda"], 2))
@pytest.mark.parametrize(
    ("name", "options"),
    _FORMS,
)
def test_networks(name: str, options: str, target: str) -> None:
    """Valid and near, with names kept, in whatever form the graph is."""
    from dnc.runtime.preprocessing import Preprocessing

    network = Network.parse(NETWORKS[name]).with_random_weights(0)
    preprocessing = Preprocessing(network.input_shape[2], network.input_shape[1]) if options == "pixels" else None
    lowered = lower(
        network,
        layers=range(len(network.layers)) if options == "keep" else (),
        pixels=options == "pixels",
        preprocessing=preprocessing,
        decode="graph" if options == "graph" else "host",
    )
    every = lower(network, layers=range(len(network.layers)))
    found = outputs(every)
    found["input"] = np.array([-5.0, 5.0])
    ranges = {
        key: Range(min(float(a.min()), -1e-3), max(float(a.max()), 1e-3), float(a.min()), float(a.max()), _channels(a))
        for key, a in found.items()
    }
    chosen = targets[target]().candidates()[0]
    spec = chosen.quantization()
    assert spec is not None
    attach_ranges(lowered, ranges)
    for step in chosen.optimizations():
        step.rewriting.rewrite(lowered)
        check(lowered, step.name)
    for value in (*lowered.graph.inputs, *(value for node in lowered.graph for value in node.outputs)):
        # They went with the names.
        assert range_of(value) == ranges.get(value.name or "")
    before = outputs(lowered)
    Equalize(outputs=spec.outputs).rewrite(lowered)
    check(lowered, "equalize")
    Quantize(spec).rewrite(lowered)
    check(lowered, "quantize")
    passes["eliminate-dead-code"]().rewrite(lowered)
    after = outputs(lowered)
    assert list(after) == list(before)
    for key in before:
        assert after[key].shape == before[key].shape
        assert np.isfinite(after[key]).all()
    if options == "plain" and name in ("tiny", "yolo"):
        for key in before:
            # A few layers deep: the noises of some roundings by 1/510 of a range.
            assert np.linalg.norm(after[key] - before[key]) < 0.1 * np.linalg.norm(before[key])


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_random_geometry(groups: int, own: int, side: int, outputs_too: bool, seed: int) -> None:
    """The last convolution passes every channel on: a sum of channels that nearly cancel would leave little signal."""
    generator = np.random.default_rng(seed)
    channels, pad = groups * own, side // 2
    text = (
        f"agraph (float[1,2,6,6] input) => (float[1,K,N,M] y) {{ c = Conv(input, w, b)  layer000 = LeakyRelu "
        f"<alpha=0.1> (c)  layer001 = Conv <group={groups}, pads=[{pad},{pad},{pad},{pad}]> (layer000, v)  "
        f"y = Conv(layer001, u) }}"
    )
    built = model(
        text,
        w=generator.normal(0, 1, (channels, 2, 1, 1)),
        b=generator.normal(0, 1, channels),
        v=generator.normal(0, 1, (groups * 2, own, side, side)),
        u=np.eye(groups * 2)[:, :, None, None],
    )
    assert noise(built, OUTPUTS if outputs_too else INPUTS) < 0.25


@pytest.mark.parametrize(
    ("body", "float32"),
    [
        ("{first} p = Conv(layer000, v) layer001 = LeakyRelu(p) last = Neg(layer001)", 2),
        ("{first} p = Conv<group=4, pads=[1,1,1,1]>(layer000, d) layer001 = LeakyRelu(p) last = Neg(layer001)", 2),
        ("{first} p = Conv(layer000, v) layer001 = LeakyRelu(p) r = Conv(layer001, v) last = Neg(r)", 2),
        ("{first} p = Conv(layer000, v) layer001 = Relu(p) last = Neg(layer001)", 0),
        ("{first} last = MaxPool<kernel_shape=[2,2]>(layer000)", 0),
        ("{first} p = Conv(layer000, v) layer001 = LeakyRelu(p) last = Add(layer001, layer000)", 0),
    ],
)
def test_thin_convolutions_at_the_start(body: str, float32: int) -> None:
    """With their leaky: the first of all where only such read it."""
    built = build(f"{body.format(first='c = Conv(input, w, b) layer000 = LeakyRelu(c)')} {HEAD}")
    attach_ranges(built, calibrated(built))
    spec = QuantSpec(frozenset({"Conv", "LeakyRelu", "Add", "MaxPool"}), outputs=True, thin=4)
    remarks = Quantize(spec).rewrite(built)
    assert sum("few channels" in remark.text for remark in remarks.missed) == 2 * float32
