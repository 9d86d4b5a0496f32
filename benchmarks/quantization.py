"""What each method of quantizing is worth: the noise that 8 bits bring into the heads, in dB under their signal.

    python -m benchmarks.quantization --calibrate IMAGES --measure OTHERS [--variants V,…] NET.cfg[=NET.weights]…

A variant is a method of calibration and passes that are left out: `kl`, `norm`, `norm-correct-bias`. One run over the
images calibrates all of them. The graph, as the passes of each target leave it, runs on ONNX Runtime, which computes
it as the engine does where it adds 8-bit products exactly (VNNI, or `python -m benchmarks.held` to see what another
CPU makes of it). Signal and noise are what the heads read: no sigmoid or softmax hides any. With several heads, the
mean of their dB. For classifiers also the share of images, in percent, whose best class is that of float32.

Accuracy on labels moves by half a point with any disturbance of 128 images; dB of the same images do not. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from dnc.compiler.options import CompileOptions
from dnc.compiler.preparing import lowered, prepare
from dnc.compiler.source import Source
from dnc.darknet.layers.base import layer_value
from dnc.evaluation.datasets import images
from dnc.graph.running import Running
from dnc.quantization.collecting import measure
from dnc.quantization.histograms import METHODS
from dnc.runtime.decoding import ClassifierHead
from dnc.runtime.images import read_image
from dnc.targets import Target, targets
from dnc.typing import Array

VARIANTS = ("kl", "percentile", "mse", "minmax", "norm-correct-bias", "norm-equalize", "norm")


def noise(exact: Sequence[Array], rounded: Sequence[Array]) -> float:
    """In dB."""
    signal = sum(float(np.square(array, dtype=np.float64).sum()) for array in exact)
    error = sum(
        float(np.square(other.astype(np.float64) - array).sum()) for array, other in zip(exact, rounded, strict=True)
    )
    return float("inf") if error == 0 else 10 * float(np.log10(signal / error))


def best(outputs: Sequence[Array]) -> Array:
    """The class of each image."""
    return np.array([array.argmax() for array in outputs])


def watched(source: Source) -> list[str]:
    """What the heads read."""
    return [
        layer_value(layer.sources[0] if layer.head() is not None and layer.sources[0] >= 0 else layer.index)
        for layer in source.network.outputs
    ]


def outputs(model: ir.Model, source: Source, inputs: Sequence[Array]) -> dict[str, list[Array]]:
    """What the heads read on each image, by its name."""
    names = watched(source)
    running = Running(model, optimize=True, watch=names, spin=False)
    runs = [running({"input": array[None]}) for array in inputs]
    return {name: [run[name] for run in runs] for name in names}


def quantized(source: Source, target: Target, skip: Sequence[str]) -> ir.Model:
    """The graph of an int8 engine."""
    options = CompileOptions(target=target.name, skip=skip)
    model = lowered(source, options, 1)
    return prepare(target, source, model, options, 1, verifier=None, dump=None, progress=lambda _: None).model


def rows(text: str, arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """For each target, a figure for each variant."""
    cfg, _, weights = text.partition("=")
    plain = targets["onnx"]({})
    source = Source.read(cfg, weights or None, CompileOptions(target="onnx"), [plain])
    preprocessing = source.preprocessing
    assert preprocessing is not None
    seen = measure(source.network, preprocessing, images(arguments.calibrate, limit=arguments.count))
    apart = [path for path in images(arguments.measure) if path.name not in set(seen.images["files"])]
    # From all over the list: those of an ImageNet are in the order of their classes.
    chosen = apart[:: max(len(apart) // arguments.limit, 1)][: arguments.limit]
    inputs = [preprocessing(read_image(path, preprocessing.channels)) for path in chosen]
    exact = outputs(quantized(source, plain, ()), source, inputs)
    for name in arguments.targets.split(","):
        found = []
        for variant in arguments.variants.split(","):
            method, *skip = split(variant)
            calibrated = dataclasses.replace(source, calibration=seen.calibration(method))
            rounded = outputs(quantized(calibrated, targets[name]({"precision": "int8"}), skip), source, inputs)
            figure = f"{np.mean([noise(exact[key], rounded[key]) for key in exact]):.1f}"
            if any(isinstance(head, ClassifierHead) for head in source.heads):
                same = [np.mean(best(exact[key]) == best(rounded[key])) for key in exact]
                figure += f" ({100 * float(np.mean(same)):.1f})"
            found.append(figure)
        yield f"{Path(cfg).stem}, {name}", found


def split(variant: str) -> list[str]:
    """The method, and the passes that are left out."""
    method = next(known for known in METHODS if variant.startswith(known))
    known = ("correct-bias", "equalize")
    return [method, *(name for name in known if name in variant.removeprefix(method))]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NET.cfg[=NET.weights]")
    parser.add_argument("--calibrate", nargs="+", required=True, metavar="IMAGES")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--measure", nargs="+", required=True, metavar="IMAGES")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--targets", default="onnx,openvino,tvm")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    arguments = parser.parse_args()
    print("| network, target |", " | ".join(arguments.variants.split(",")), "|")
    print("| --- |" + " --- |" * len(arguments.variants.split(",")))
    for network in arguments.networks:
        for title, found in rows(network, arguments):
            print(f"| {title} |", " | ".join(found), "|", flush=True)


if __name__ == "__main__":
    main()
