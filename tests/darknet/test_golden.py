"""Every layer against Darknet's own numbers: the reference, and an engine with all passes and ONNX Runtime's.

../shared/golden holds what AlexeyAB/darknet computed on its CPU: 107 tiny networks of one feature each, and the heads
of four real ones. BOUND and DEEP are relative to the largest absolute value of a layer.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dnc.compiler.compiling import compile
from dnc.darknet.layers.base import Array
from dnc.darknet.layers.convolutional import Convolutional, fold_batch_norm
from dnc.darknet.network import Network
from dnc.darknet.reference import run_all
from dnc.files import cache_dir
from dnc.runtime.engine import Engine
from dnc.runtime.preprocessing import read_image
from tests import ROOT

SHARED = ROOT.parent / "shared"
MICRO = SHARED / "golden" / "micro"
needs_shared = pytest.mark.skipif(not MICRO.is_dir(), reason="../shared, with Darknet's results, is not there")

BOUND = 2e-6
"""One or a few layers of at most some hundred terms, in float32 on both sides: 7e-7 was seen."""
DEEP = 1e-5
"""Up to 131 layers, of up to 4608 terms a sum: 4e-6 was seen."""

INVERTED = {("xnor", 0), ("xnor", 1), ("xnor", 2), ("xnor_1x1", 0)}
"""Left out of `test_micro`: these are wrong, or follow what is; see `test_xnor_of_the_library`."""


def reference(cfg: Path, weights: Path, x: Array) -> dict[int, Array]:
    """All layers of one image by the reference."""
    return {index: y[0] for index, y in run_all(Network.load(cfg, weights), x[None])}


def every_layer(engine: Engine, x: Array) -> dict[int, Array]:
    """All layers of one image by an engine with keep_layers."""
    names = [int(name.removeprefix("layer")) for name in engine.manifest.outputs]
    return {index: y[0] for index, y in zip(names, engine.forward(x[None]), strict=True)}


def outputs(cfg: Path, weights: Path, x: Array, folder: Path) -> dict[str, dict[int, Array]]:
    """All layers of one image, by both."""
    engine = compile(cfg, weights, "onnx", folder / "engine", keep_layers=True, verify=False)
    return {"reference": reference(cfg, weights, x), "engine": every_layer(engine, x)}


def difference(got: Array, golden: Array) -> float:
    """The largest one, relative to the largest value."""
    assert got.shape == golden.shape
    return float(np.abs(got - golden).max() / np.abs(golden).max())


def files(tmp_path: Path, name: str) -> tuple[Path, Path, dict[str, Array]]:
    """The cfg, the weights, and the arrays of a micro golden."""
    with np.load(MICRO / f"{name}.npz") as golden:
        cfg, weights = tmp_path / f"{name}.cfg", tmp_path / f"{name}.weights"
        cfg.write_text(str(golden["cfg"]), encoding="utf-8")
        weights.write_bytes(golden["weights"].tobytes())
        return cfg, weights, {key: golden[key] for key in golden.files if key not in ("cfg", "weights")}


@needs_shared
@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
@pytest.mark.parametrize("name", sorted(path.stem for path in MICRO.glob("*.npz")))
def test_micro(name: str, tmp_path: Path) -> None:
    cfg, weights, golden = files(tmp_path, name)
    layers = Network.load(cfg).layers
    indices = sorted(int(key.removeprefix("layer")) for key in golden if key != "input")
    assert indices == list(range(len(layers)))
    for who, got in outputs(cfg, weights, golden["input"], tmp_path).items():
        for layer in layers:
            expected, y = golden[f"layer{layer.index:03d}"], got[layer.index]
            if layer.name == "cost":
                # Darknet without a truth to compare with never fills this memory.
                assert y.shape == expected.shape
                assert not expected.any()
                continue
            if (name, layer.index) in INVERTED:
                continue
            if getattr(layer, "antialiasing", 0):
                # Recorded with the shape before the blur, whose result is at the start of that memory.
                expected = expected.ravel()[: y.size].reshape(y.shape)
            assert difference(y, expected) < BOUND, f"{who}, layer {layer.index} [{layer.name}]"


@needs_shared
@pytest.mark.parametrize("name", ["xnor", "xnor_1x1"])
def test_xnor_of_the_library(name: str, tmp_path: Path) -> None:
    """libdarknet.so is wrong where the input channels are a multiple of 32, and wrong in this way.

    Darknet inverts the bits of such weights for its CUDA kernels if gpu_index is not negative. The command line makes
    it -1 on a CPU; the library, which these numbers are from, leaves it 0. Let t be the sum of the k products of +1 and
    -1, so that (k + t) / 2 pairs of bits agree. Of the inverted weights (k - t) / 2 do, and so do none of the 32 bits
    that fill up the last 64, since k is 288 or 32. But 32 are taken off for them, as they agree otherwise. The sum,
    twice the count less k, is therefore

        2 * ((k - t) / 2 - 32) - k = -t - 64        in units of mean(|w|)

    This is asserted of each layer with the golden's own layer before it as the input; a layer with 16 channels must be
    right as it is.
    """
    cfg, weights, golden = files(tmp_path, name)
    network = Network.load(cfg, weights)
    x, exact = golden["input"][None], []
    for layer, arrays in zip(network.layers, network.arrays, strict=True):
        assert isinstance(layer, Convolutional)
        expected = golden[f"layer{layer.index:03d}"]
        linear = dataclasses.replace(layer.convolution, activation="linear").reference(x, arrays)[0]
        if layer.input_shape[0] % 32 == 0:
            folded, bias = fold_batch_norm(arrays["weights"], arrays)
            unit = np.abs(folded).mean(axis=(1, 2, 3)).reshape(-1, 1, 1)
            offset = bias.reshape(-1, 1, 1)
            linear = offset - (linear - offset) - 64 * unit
        else:
            exact.append(layer.index)
        leaky = layer.convolution.activation == "leaky" and not layer.bin_output
        assert difference(np.where(leaky & (linear < 0), 0.1 * linear, linear), expected) < BOUND
        x = expected[None]
    assert exact == ([2] if name == "xnor" else [])
    both = outputs(cfg, weights, golden["input"], tmp_path)
    for index, y in both["reference"].items():
        assert difference(both["engine"][index], y) < BOUND


@needs_shared
@pytest.mark.parametrize("name", sorted(path.stem for path in (SHARED / "golden" / "models").glob("*.npz")))
def test_models(name: str, tmp_path: Path) -> None:
    cfg, weights = SHARED / "models" / f"{name}.cfg", SHARED / "models" / f"{name}.weights"
    if not cfg.is_file():
        cfg = ROOT / "cfg" / f"{name}.cfg"
        weights = cache_dir() / f"{name}.weights"
        if not weights.is_file():
            pytest.skip(f"needs {weights}: `dnc zoo fetch {name}`")
    engine = compile(cfg, weights, "onnx", tmp_path / "engine", keep_layers=True, verify=False)
    assert engine.manifest.preprocessing is not None
    with np.load(SHARED / "golden" / "models" / f"{name}.npz") as golden:
        images = sorted({key.partition("_")[0] for key in golden.files if not key.startswith("input_")})
        assert len(images) == 3
        for image in images:
            path = SHARED / "coco128" / "images" / "val2017" / f"{image}.jpg"
            x = engine.manifest.preprocessing(read_image(path))
            if f"input_{image}" in golden:
                np.testing.assert_array_equal(x, golden[f"input_{image}"])
            both = {"reference": reference(cfg, weights, x), "engine": every_layer(engine, x)}
            keys = [key for key in golden.files if key.startswith(f"{image}_layer")]
            assert len(keys) == 4
            for who, got in both.items():
                for key in keys:
                    index = int(key[-3:])
                    assert difference(got[index], golden[key]) < DEEP, f"{who}, image {image}, layer {index}"
            # The layers in between have no golden, but two computations of them.
            for index, y in both["reference"].items():
                assert difference(both["engine"][index], y) < 2 * DEEP, f"image {image}, layer {index}"
