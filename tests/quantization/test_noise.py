"""The noise of single layers: all at once as one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from dnc.compiler.source import preprocessing_for
from dnc.darknet.lower import lower
from dnc.darknet.network import Network
from dnc.graph.composites import inline_composites
from dnc.graph.pipeline import Pipeline
from dnc.graph.quantization import Range, attach_ranges
from dnc.graph.running import Running
from dnc.passes.shared.reduced_precision import PRODUCTS, around_products, layer_of
from dnc.quantization.noise import Quantization, enough_images, noises
from dnc.targets import find
from dnc.targets.base import Target
from dnc.targets.onnx import Onnx
from dnc.typing import Array
from tests.networks import NETWORKS, REMEMBERING

Feeds = Sequence[Mapping[str, Array]]


def feeds_for(model: ir.Model, count: int = 2) -> Feeds:
    """Random inputs, each batch of one image, as often as the batch wants."""
    generator = np.random.default_rng(0)

    def made(value: ir.Value) -> Array:
        assert value.shape is not None
        assert value.dtype is not None
        batch, *sides = value.shape
        if value.name in ("confidence", "iou"):
            return np.full(1, 0.3, np.float32)
        shape = [side if isinstance(side, int) else 20 for side in sides]
        array = generator.random((1, *shape)) if value.name != "window" else np.array([[0, 0, 1, 1]])
        array = array * 255 if value.dtype == ir.DataType.UINT8 else array
        return np.repeat(array, batch if isinstance(batch, int) else 1, axis=0).astype(value.dtype.numpy())

    return [{value.name or "": made(value) for value in model.graph.inputs} for _ in range(count)]


def ready(cfg: Path, target: Target, **options: Any) -> ir.Model:
    """A network after a target's passes, with the ranges of random inputs."""
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    every = lower(network, batch=1, layers=range(len(network.layers)))
    seen: dict[str, list[Array]] = {}
    for feed in feeds_for(every, 4):
        for name, array in {**Running(every)(feed), "input": feed["input"]}.items():
            seen.setdefault(name, []).append(array)
    ends = {name: (float(np.min(arrays)), float(np.max(arrays))) for name, arrays in seen.items()}
    ranges = {name: Range(min(low, 0), max(high, 0)) for name, (low, high) in ends.items() if low < high}
    model = lower(network, **options)
    inline_composites(model, keep=target.composites)
    attach_ranges(model, ranges)
    Pipeline(target.optimizations()).run(model)
    return model


def one_at_a_time(model: ir.Model, quantization: Quantization, feeds: Feeds, layers: Sequence[int]) -> dict[int, float]:
    """The same by its definition: a network for each layer, with all others kept in float32."""
    numbers = sorted({number for node in model.graph if (number := layer_of(node)) is not None})
    _, before, _ = around_products(list(model.graph))
    last = [node.outputs[0].name or "" for node in model.graph if node.op_type in PRODUCTS and node not in before]
    names = [value.name or "" for value in model.graph.outputs if value.name != "detections"]
    names += last if len(names) < len(model.graph.outputs) else []

    def outputs(layer: int | None) -> list[dict[str, Array]]:
        single = model.clone()
        Pipeline(quantization([str(number) for number in numbers if number != layer])).run(single)
        running = Running(single, optimize=True, integers=False, watch=last)
        return [{name: array for name, array in running(feed).items() if name in names} for feed in feeds]

    clean = outputs(None)

    def noise(layer: int) -> float:
        shares = []
        noisy = outputs(layer)
        for name in clean[0]:
            signal = sum(float(np.square(one[name], dtype=np.float64).sum()) for one in clean)
            error = sum(
                float(np.square(one[name].astype(np.float64) - other[name]).sum())
                for one, other in zip(noisy, clean, strict=True)
            )
            shares.append(error / signal if signal else math.inf if error else 0.0)
        return float(np.mean(shares))

    return {layer: noise(layer) for layer in layers}


ALL = {**NETWORKS, **REMEMBERING}


def check(model: ir.Model, target: Target) -> dict[int, float]:
    """Compares both ways, and gives the noises.

    They differ by float32's rounding: where a number lies between two integers, it decides which one it becomes, one
    step of 255.
    """
    feeds = feeds_for(model)
    found = noises(model, target.quantize, feeds)
    expected = one_at_a_time(model, target.quantize, feeds, list(found))
    assert found == pytest.approx(expected, rel=0.02, abs=1e-9)
    return found


@pytest.mark.parametrize("name", ALL)
def test_as_one_at_a_time(name: str, write: Callable[..., Path]) -> None:
    """Every section, and networks with memory."""
    target = Onnx()
    check(ready(write("net", ALL[name]), target), target)


@pytest.mark.parametrize("name", ["openvino", "tvm", "cuda"])
def test_what_other_engines_round(name: str, write: Callable[..., Path]) -> None:
    (target,) = find(name)({"backend": "onnxruntime"} if name == "cuda" else {}).candidates()
    assert any(check(ready(write("net", NETWORKS["yolo"]), target), target).values())


@pytest.mark.parametrize(
    "options",
    [{"batch": 1}, {"batch": 3}, {"decode": "graph"}, {"decode": "graph+nms"}, {"pixels": True, "batch": 2}],
    ids=str,
)
def test_forms_of_a_graph(options: dict[str, Any], write: Callable[..., Path]) -> None:
    """A batch of one size has images that are equal; detections are of any number, and no noise is measured in them."""
    target = Onnx()
    cfg = write("net", NETWORKS["yolo"])
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    model = ready(cfg, target, preprocessing=preprocessing_for(network, cfg.with_suffix(".weights")), **options)
    assert any(check(model, target).values())


JOINED = """[net]
width=16
height=16
channels=3
[convolutional]
filters=8
size=3
pad=1
activation=leaky
[convolutional]
filters=8
size=3
pad=1
activation=leaky
[convolutional]
filters=8
size=3
pad=1
activation=leaky
[avgpool]
[implicit]
filters=4
atoms=1
[route]
layers=-1,-2
[convolutional]
size=1
filters=4
activation=linear
"""


@pytest.mark.parametrize("batch", [1, "N"])
def test_constants_beside_images(batch: int | str, write: Callable[..., Path]) -> None:
    """A constant that is joined to images has one row; so has one that is as many as images are."""
    target = Onnx()
    assert any(check(ready(write("net", JOINED), target, batch=batch), target).values())


@pytest.mark.parametrize(("layers", "images"), [(1, 4), (100, 4), (150, 2), (500, 1)])
def test_a_deep_network_takes_fewer_images(layers: int, images: int) -> None:
    cfg = "[net]\nwidth=8\nheight=8\nchannels=1\n" + "[convolutional]\nfilters=1\nsize=1\nactivation=linear\n" * layers
    assert enough_images(lower(Network.parse(cfg).with_random_weights(0))) == images
