"""Every layer against Darknet's own numbers: the reference, and an engine with all passes and ONNX Runtime's.

tests/golden/ holds what AlexeyAB/darknet computed on its CPU: 107 tiny networks of one feature each, and the heads of
three whole ones. BOUND and DEEP are relative to the largest absolute value of a layer.
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
from dnc.runtime.images import read_image
from tests import goldens
from tests.goldens import difference, differences, every_layer, reference

BOUND = 2e-6
"""One or a few layers of at most some hundred terms, in float32 on both sides: 7e-7 was seen."""
DEEP = 1e-5
"""Up to 146 layers, of up to 4608 terms a sum: 4e-6 was seen."""


def outputs(cfg: Path, weights: Path, x: Array, folder: Path) -> dict[str, dict[int, Array]]:
    """All layers of one image, by both."""
    engine = compile(cfg, weights, "onnx", folder / "engine", keep_layers=True, verify=False)
    return {"reference": reference(Network.load(cfg, weights), x), "engine": every_layer(engine, x)}


@pytest.mark.filterwarnings("ignore::dnc.errors.DncWarning")
@pytest.mark.parametrize("name", goldens.MICRO)
def test_micro(name: str, tmp_path: Path) -> None:
    golden = goldens.micro(name)
    for who, got in outputs(*golden.write(tmp_path), golden.input, tmp_path).items():
        for layer, apart in differences(golden, got):
            assert apart < BOUND, f"{who}, {layer}"


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
    golden = goldens.micro(name)
    cfg, weights = golden.write(tmp_path)
    network = Network.load(cfg, weights)
    x, exact = golden.input[None], []
    for layer, arrays in zip(network.layers, network.arrays, strict=True):
        assert isinstance(layer, Convolutional)
        expected = golden.layers[layer.index]
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
    both = outputs(cfg, weights, golden.input, tmp_path)
    for index, y in both["reference"].items():
        assert difference(both["engine"][index], y) < BOUND


@pytest.mark.parametrize("name", goldens.WHOLE)
def test_whole_networks(name: str, tmp_path: Path) -> None:
    """From the file of an image to the heads."""
    golden = goldens.whole(name)
    cfg, weights = golden.write(tmp_path)
    engine = compile(cfg, weights, "onnx", tmp_path / "engine", keep_layers=True, verify=False)
    assert engine.manifest.preprocessing is not None
    x = engine.manifest.preprocessing(read_image(goldens.PHOTOGRAPH))
    both = {"reference": reference(Network.load(cfg, weights), x), "engine": every_layer(engine, x)}
    for who, got in both.items():
        for index, expected in golden.layers.items():
            assert difference(got[index], expected) < DEEP, f"{who}, layer {index}"
    # The layers in between have no golden, but two computations of them.
    for index, y in both["reference"].items():
        assert difference(both["engine"][index], y) < 2 * DEEP, f"layer {index}"
