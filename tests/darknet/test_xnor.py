"""Random networks of xnor=1: one arithmetic in the reference, the composite and all that is written for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.diagnosis.parts import Parts, taken_apart
from dnc.graph.composites import BINARY_CONVOLUTION, inline_composites, is_composite
from dnc.graph.pipeline import Pipeline, Step
from dnc.graph.quantization import Range, attach_ranges
from dnc.graph.running import Running
from dnc.passes.binarize import Binarize
from dnc.quantization.noise import noises
from dnc.targets import Target, targets
from dnc.targets.onnx import Onnx, optimizations
from tests.models import run

UNIT = np.float32(1 / 8)
"""Weights are as large, biases multiples of it: all numbers are exact then, however they are joined and added up."""


@st.composite
def xnor_networks(draw: st.DrawFn, *, exact: bool = False) -> str:
    """The text of a cfg; with `exact`, of what multiplies and adds alone."""
    channels = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 16, 24, 31, 32, 33, 40, 64, 65]))
    text = f"[net]\nwidth={draw(st.integers(5, 9))}\nheight={draw(st.integers(5, 9))}\nchannels={channels}\n"
    activations = ["linear", "relu", "leaky", "swish", "logistic"][: 2 if exact else None]
    shapes: list[tuple[int, int, int]] = []
    for _ in range(draw(st.integers(1, 4))):
        filters = draw(st.sampled_from([1, 5, 8, 24, 31, 32, 33]))
        size = draw(st.integers(1, 4))
        options: dict[str, Any] = {"xnor": draw(st.sampled_from([1, 1, 1, 0])), "filters": filters, "size": size}
        if size == 3 and draw(st.booleans()):
            options |= {"pad": 1, "dilation": draw(st.integers(1, 2))}
        else:
            options |= draw(st.sampled_from([{"pad": 1}, {"padding": 2}, {"padding": 3}]))
        options |= draw(st.sampled_from([{}, {}, {"stride": 2}, {"stride_x": 2}, {"stride_y": 3}]))
        options |= draw(st.sampled_from([{}, {}, {"antialiasing": 1}, {"bin_output": 1}, {"binary": 1}]))
        if not exact:
            options |= draw(st.sampled_from([{}, {"batch_normalize": 1}]))
        kernel = (filters, channels, size)
        if kernel in shapes and draw(st.booleans()):
            options["share_index"] = shapes.index(kernel)
        shapes.append(kernel)
        options["activation"] = draw(st.sampled_from(activations))
        text += "[convolutional]\n" + "".join(f"{key}={value}\n" for key, value in options.items())
        channels = filters
    return text


def of_units(network: Network, seed: int) -> Network:
    """The network with weights and biases of which all sums are exact; many of these are 0, whose sign is -1."""
    generator = np.random.default_rng(seed)
    made: list[dict[str, Any]] = []
    for layer, arrays in zip(network.layers, network.arrays, strict=True):
        signs = generator.choice([-UNIT, UNIT], arrays["weights"].shape)
        biases = UNIT * generator.integers(-2, 3, arrays["biases"].shape).astype(np.float32)
        own = {"weights": signs, "biases": biases}
        made.append(made[layer.weights_of] if layer.weights_of != layer.index else own)
    return network.with_arrays(tuple(made))


def inputs(network: Network, seed: int) -> np.ndarray:
    """Eighths around 0, some of them 0 and -0."""
    generator = np.random.default_rng(seed)
    x = UNIT * generator.integers(-4, 5, (2, *network.input_shape)).astype(np.float32)
    return np.where(generator.random(x.shape) < 0.1, np.float32(-0.0), x)


def every_layer(built: ir.Model, x: np.ndarray, expected: list[np.ndarray], tolerance: float) -> None:
    found = run(built, {"input": x})
    for index, values in enumerate(expected):
        got = found[f"layer{index:03d}"]
        bound = tolerance * float(np.abs(values).max(initial=0))
        np.testing.assert_allclose(got, values, rtol=0, atol=bound, err_msg=f"layer {index}")


def built_and_run(network: Network, target: str, x: np.ndarray, skip: str = "") -> np.ndarray:
    """What an engine gives."""
    (chosen,) = targets[target]().candidates()
    pipeline = chosen.pipeline()
    built = lower(network)
    inline_composites(built, keep=chosen.composites | pipeline.expanded([skip]))
    pipeline.run(built, skip=[skip])
    assert not [node for node in built.graph if is_composite(node)]
    with TemporaryDirectory() as folder:
        chosen.build(built, Path(folder))
        (found,) = chosen.runner().open(Path(folder), 1).run({"input": x})
    return found


@given(text=xnor_networks(), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_forms(text: str, seed: int) -> None:
    """Layer by layer, the composite and what takes its place, as a batch of any size."""
    network = Network.parse(text).with_random_weights(seed)
    x = np.random.default_rng(seed).normal(0, 1, (2, *network.input_shape)).astype(np.float32)
    x[:, :, 1] = 0
    # Logistic is rounded differently by each library.
    expected = [values for _, values in run_all(network, x)]
    built = lower(network, layers=range(len(network.layers)))
    every_layer(built, x, expected, 2e-6)
    whole = run(built, {"input": x})
    for form in ("signs", "bits", "integer"):
        copy = built.clone()
        if form == "signs":
            inline_composites(copy)
        else:
            Binarize(form=form).rewrite(copy)
        assert not [node for node in copy.graph if is_composite(node)]
        assert not copy.functions
        for name, values in run(copy, {"input": x}).items():
            assert np.array_equal(values, whole[name]), (form, name)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@given(text=xnor_networks(exact=True), seed=st.integers(0, 9))
@settings(max_examples=8)
def test_engines(target: str, text: str, seed: int) -> None:
    """To the bit, with all that the engines' libraries fuse."""
    pytest.importorskip("openvino" if target == "openvino" else "onnxruntime")
    network = of_units(Network.parse(text).with_random_weights(seed), seed)
    x = inputs(network, seed)
    *_, (_, expected) = run_all(network, x)
    np.testing.assert_array_equal(built_and_run(network, target, x), expected)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("form", ["", "binarize"])
def test_sums_of_zero(target: str, form: str) -> None:
    """Without biases, layers add up to 0 in many places, whose sign is -1, and not to what is left of scales that were
    multiplied into weights. With the pass and without it."""
    pytest.importorskip("openvino" if target == "openvino" else "onnxruntime")
    layer = "[convolutional]\nxnor=1\nfilters={}\nsize=3\npad=1\nactivation=linear\n"
    text = "[net]\nwidth=8\nheight=8\nchannels=16\n" + layer.format(24) + layer.format(8)
    network = Network.parse(text).with_random_weights(0)
    arrays = [{**own, "biases": np.zeros_like(own["biases"])} for own in network.arrays]
    network = network.with_arrays(tuple(arrays))
    x = np.random.default_rng(0).normal(0, 1, (2, 16, 8, 8)).astype(np.float32)
    (_, between), (_, expected) = run_all(network, x)
    assert (between == 0).mean() > 0.03
    np.testing.assert_array_equal(built_and_run(network, target, x, skip=form), expected)


class Whole(Onnx):
    """ONNX Runtime, which runs the composite as it is."""

    composites = frozenset({BINARY_CONVOLUTION})

    def optimizations(self) -> Sequence[Step]:
        return optimizations("onnxruntime", "")


AMONG_OTHERS = """[net]
width=8
height=8
channels=3
[convolutional]
filters=32
size=3
pad=1
activation=leaky
[convolutional]
filters=32
size=3
pad=1
xnor=1
batch_normalize=1
activation=swish
[convolutional]
filters=24
groups=8
size=3
pad=1
activation=leaky
[convolutional]
filters=16
size=3
pad=1
xnor=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[convolutional]
filters=4
activation=linear
"""


def ready(target: Target, precisely: bool = True) -> ir.Model:
    network = Network.parse(AMONG_OTHERS).with_random_weights(0)
    built = lower(network, batch=1)
    pipeline = target.pipeline() if precisely else Pipeline(target.optimizations())
    inline_composites(built, keep=target.composites | pipeline.expanded())
    names = ["input", *(f"layer{layer.index:03d}" for layer in network.layers)]
    attach_ranges(built, dict.fromkeys(names, Range(-1, 2)))
    pipeline.run(built)
    return built


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_among_other_layers(precision: str) -> None:
    """What is around a composite is rounded as around the operators that stand for it; so are both, but for float16,
    in which it does not compute."""
    x = np.random.default_rng(0).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)
    dense, whole = (ready(kind({"precision": precision})) for kind in (Onnx, Whole))
    assert sum(is_composite(node) for node in whole.graph) == 2
    found, expected = run(whole, {"input": x})["layer006"], run(dense, {"input": x})["layer006"]
    bound = 2e-3 * np.abs(expected).max() if precision == "fp16" else 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_noise_goes_through_it() -> None:
    """Layers that are rounded alone, as rows of one batch, are measured as they are around operators."""
    feeds = [{"input": np.random.default_rng(0).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}]
    targets = [kind({"precision": "int8"}) for kind in (Onnx, Whole)]
    dense, whole = (noises(ready(target, precisely=False), target.quantize, feeds) for target in targets)
    assert set(whole) >= {0, 2, 5}
    assert whole == pytest.approx(dense, rel=1e-3)


def test_taken_apart_with_it() -> None:
    """A diagnosis has the same noise of each layer."""
    x = np.random.default_rng(0).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)
    found = []
    for kind in (Onnx, Whole):
        target = kind({"precision": "int8"})
        exact = ready(target, precisely=False)
        rounded = exact.clone()
        Pipeline(target.quantize([])).run(rounded)
        parts = Parts(exact, rounded)
        apart = taken_apart(parts, [layer for layer in parts.by_layer if layer >= 0])
        results = {**Running(exact, watch=parts.results)({"input": x}), "input": x}
        found.append(run(apart, {value.name or "": results[value.name or ""] for value in apart.graph.inputs}))
    dense, whole = found
    assert {f"layer00{layer}/all/output" for layer in (0, 1, 3, 5)} <= set(whole)
    for name, noise in whole.items():
        np.testing.assert_allclose(noise, dense[name], rtol=1e-5, atol=1e-9, err_msg=name)
