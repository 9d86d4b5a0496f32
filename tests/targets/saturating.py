"""What the kernels of the CPU that this runs on make of pairs of products, as JSON: a child of test_pairs.py.

python -m tests.targets.saturating TARGET

pairs   for each convolution of SHAPES, the places of two weights whose products are not added up exactly
sums    the results of a layer of large weights, by the instruction set that it was made for
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from dnc.graph.quantization import Range, attach_ranges
from dnc.passes.quantize import Quantize
from dnc.targets import Target
from dnc.targets.onnx import Onnx
from dnc.targets.openvino import Openvino
from dnc.typing import Array
from tests.models import model

TARGETS: dict[str, type[Target]] = {"onnx": Onnx, "openvino": Openvino}
SHAPES = [
    ((64, 3, 3, 3), 1),
    ((64, 8, 1, 1), 1),
    ((64, 5, 1, 1), 1),
    ((200, 6, 3, 3), 1),
    ((48, 4, 3, 3), 4),
    ((48, 3, 3, 3), 4),
    ((48, 1, 3, 3), 16),
    ((16, 1, 3, 3), 16),
    ((32, 1, 3, 3), 8),
    ((64, 1, 3, 3), 1),
    ((64, 8), 1),
]
"""Of weights, and the number of groups. The last one is a matrix product's."""


def compute(name: str, isa: str, weights: Array, groups: int) -> Array:
    """What a product makes of inputs that are all as large as can be: one result of each output."""
    outputs, inputs = len(weights), weights.shape[1] * groups
    side = "" if weights.ndim == 2 else ",5,5"
    first, last = (f"Conv <group={groups}>", f"Conv <group={outputs}>") if side else ("Gemm <transB=1>",) * 2
    built = model(
        f"agraph (float[1,{inputs}{side}] input) => (float[1,{outputs}{',N,M' if side else ''}] y) "
        f"{{ layer000 = {first} (input, w, b)  y = {last} (layer000, v) }}",
        w=weights.astype(np.float32),
        b=np.zeros(outputs, np.float32),
        v=np.ones((outputs, 1, 1, 1), np.float32) if side else np.eye(outputs, dtype=np.float32),
    )
    top = 255.0 * float(np.maximum(weights, 0).reshape(outputs, -1).sum(axis=1).max())
    attach_ranges(built, {"input": Range(0, 255), "layer000": Range(0, top)})
    target = TARGETS[name]({"precision": "int8", "isa": isa})
    spec = target.quantization()
    assert Quantize(spec).rewrite(built).count
    with tempfile.TemporaryDirectory() as scratch:
        target.build(built, Path(scratch))
        session = target.runner().open(Path(scratch), 1)
        x = np.full((1, inputs, *((5, 5) if side else ())), 255, np.float32)
        (result,) = session.run({"input": x})
    results: Array = result.reshape(outputs, -1).max(axis=1)
    return results


def pairs(name: str, shape: tuple[int, ...], groups: int) -> list[list[int]]:
    """Each output has two weights, all such pairs in turn: those outputs whose sums are cut off."""
    places = int(np.prod(shape[1:]))
    every = [(first, second) for first in range(places) for second in range(first + 1, places)]
    found: list[list[int]] = []
    for start in range(0, len(every), shape[0]):
        part = every[start : start + shape[0]]
        weights = np.zeros((shape[0], places))
        for output, pair in enumerate(part):
            weights[output, list(pair)] = 127
        # An output that has nothing to tell keeps the range.
        weights[len(part) :, 0] = 127
        results = compute(name, "avx512vnni", weights.reshape(shape), groups)
        found += [list(pair) for pair, result in zip(part, results, strict=False) if result < 1.5 * 255 * 127]
    return found


def main() -> None:
    """Prints both."""
    (name,) = sys.argv[1:]
    large = np.abs(np.random.default_rng(0).normal(0, 1, (16, 7, 3, 3)))
    print(
        json.dumps(
            {
                "pairs": [pairs(name, shape, groups) for shape, groups in SHAPES],
                "sums": {isa: compute(name, isa, large, 1).tolist() for isa in ("avx2", "avx512vnni")},
            }
        )
    )


if __name__ == "__main__":
    main()
