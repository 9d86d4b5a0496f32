"""Every network of cfg/: it parses, and what it is compiled to computes what the reference does."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dnc
from dnc.darknet.layers.base import layer_value
from dnc.darknet.network import Network
from dnc.darknet.reference import run
from dnc.targets import targets
from tests import ROOT
from tests.thinning import thinned

CFGS = {path.stem: path for path in sorted((ROOT / "cfg").glob("*.cfg"))}
SHOWCASES = [name for name in CFGS if name.startswith("showcase-")]
SIDE = 64
"""Twice the largest stride. The reference is slow at full size, and the arithmetic of a layer is the same."""
SMALL = [name for name, path in CFGS.items() if Network.load(path).parameters() < 6_000_000]
"""The others take seconds, most of them to make random weights."""

LAYER = 3e-5
"""One layer on the same input: sums of up to 1e4 float32 terms in another order give 5e-7. Where random weights let
maps grow to thousands (b6, b7), a logistic of such a map has all of its error, in a number from 0 to 1: 7e-6 was seen.
"""
NETWORK = 1e-3
"""All layers of a small network. Random weights let what rounding leaves grow from layer to layer, to 4e-5 in those of
relu6, whereas a wrong layer changes the outputs by their own size. In the large ones it grows to anything."""

Write = Callable[..., Path]


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The root of its mean square, relative to that of the values: one number that a logistic turned counts little."""
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def reduced(name: str) -> str:
    """The cfg's text with an input of SIDE x SIDE."""
    return re.sub(r"^(width|height)=\d+$", rf"\1={SIDE}", CFGS[name].read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("name", CFGS)
def test_parses_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Network.load(name).layers


@pytest.mark.parametrize(
    "name", [*thinned(SMALL, 6), *(pytest.param(name, marks=pytest.mark.slow) for name in CFGS if name not in SMALL)]
)
def test_every_layer_is_the_reference(name: str, write: Write, tmp_path: Path) -> None:
    """Each layer on what the engine itself gave it."""
    cfg = write(name, reduced(name))
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    x = np.random.default_rng(0).random((1, *network.input_shape), np.float32)
    engine = dnc.compile(cfg, out=tmp_path / "engine", target="onnx", keep_layers=True, verify=False)
    values = dict(zip(engine.manifest.outputs, engine.forward(x), strict=True))
    for layer, arrays in zip(network.layers, network.arrays, strict=True):
        inputs = [x if source < 0 else values[layer_value(source)] for source in layer.sources]
        expected = layer.reference(inputs, arrays, {})
        assert difference(values[layer_value(layer.index)], expected) < LAYER, layer.where.short


@pytest.mark.parametrize("name", thinned(reversed(SMALL), 6))
def test_engine_is_the_reference(name: str, write: Write, tmp_path: Path) -> None:
    """The engine as users have it, with all that its passes do."""
    cfg = write(name, reduced(name))
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    x = np.random.default_rng(0).random((1, *network.input_shape), np.float32)
    engine = dnc.compile(cfg, out=tmp_path / "engine", target="onnx", verify=False)
    for got, expected in zip(engine.forward(x), run(network, x), strict=True):
        assert difference(got, expected) < NETWORK


@pytest.mark.filterwarnings("ignore:no GPU", "ignore:no Myriad X", "ignore:CUDA did not load")
@pytest.mark.parametrize(
    ("name", "target"),
    [
        # Target cpu builds what the others build, and takes one of it.
        pytest.param(name, target, marks=[pytest.mark.slow] if target == "cpu" and name != SHOWCASES[0] else [])
        for name in SHOWCASES
        for target in targets
    ],
)
def test_showcase_for_every_target(name: str, target: str, write: Write, tmp_path: Path) -> None:
    if missing := targets[target]().missing():
        pytest.skip(missing)
    cfg = write(name, CFGS[name].read_text(encoding="utf-8"))
    network = Network.load(cfg, cfg.with_suffix(".weights"))
    batch = targets[target]().candidates()[0].batch or 2
    x = np.random.default_rng(0).random((batch, *network.input_shape), np.float32)
    options = {"fallback": "on"} if target == "cuda" else {}
    engine = dnc.compile(cfg, out=tmp_path / "engine", target=target, options=options, verify=False)
    for got, expected in zip(engine.forward(x), run(network, x), strict=True):
        # A dozen layers, so that LAYER serves for all of them together. Myriad's have float16 weights, and read bytes.
        assert difference(got, expected) < (2e-2 if target == "myriad" else LAYER)
