"""How long an app waits for its first boxes: dnc's runtime against the engine's own library by itself.

    python benchmarks/startup.py ENGINE… [--rounds 20]

Each measurement is a process of its own, from its start to its end, on a warm file cache; the candidates take turns.

    python      Python with numpy, which both need
    library     imports the engine's library, opens the model as dnc does, runs an array of zeros
    dnc         import dnc, load, forward an array of zeros: the same, engine.json, its checks, and dnc's own modules
    dnc image   instead of the array a photograph: decoding, preprocessing and boxes besides
    package     the same as dnc image from the file that `dnc package` makes, unpacked before

Ratios are medians over the rounds with 95 % intervals. OpenVINO's cache is on, in both. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import dnc
from dnc.runtime.package import package
from dnc.runtime.timing import interleave

PHOTOGRAPH = Path(dnc.__file__).parent / "graph" / "photograph.jpg"
LIBRARY = {
    "onnx": """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
session.run(None, {"input": np.zeros((1, *map(int, sys.argv[3].split(","))), np.float32)})
""",
    "openvino": """
import sys, numpy as np, openvino
config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": sys.argv[4]}
config |= {"CACHE_MODE": "OPTIMIZE_SIZE", "WEIGHTS_PATH": sys.argv[1] + "/model.bin"}
core = openvino.Core()
model = core.read_model(sys.argv[1] + "/model.xml")
shape = [1, *map(int, sys.argv[3].split(","))]
model.reshape({"input": shape})
compiled = core.compile_model(model, "CPU", config)
compiled.create_infer_request().infer({"input": np.zeros(shape, np.float32)}, share_inputs=True)
""",
}
ARRAY = """
import sys, numpy as np, dnc
dnc.load(sys.argv[1]).forward(np.zeros([*map(int, sys.argv[3].split(","))], np.float32))
"""
IMAGE = "import sys, dnc; dnc.load(sys.argv[1]).detect(sys.argv[2])"


def process(code: str, *arguments: object) -> Callable[[], object]:
    """Runs code in a Python of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return lambda: subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """A table for the engines that are given."""
    parser = argparse.ArgumentParser(description="Time to the first result.")
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    print("| engine | MB | python | library | dnc | dnc / library | dnc image / library | package / dnc image |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder in arguments.engines:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["DNC_CACHE"] = scratch
            engine = dnc.load(folder)
            shape = ",".join(map(str, engine.manifest.input_shape))
            rest = PHOTOGRAPH, shape, f"{scratch}/library"
            packed = package(folder, Path(scratch) / "engine.dnc")
            candidates = {
                "python": process("import numpy"),
                "library": process(LIBRARY[engine.manifest.target], folder, *rest),
                "dnc": process(ARRAY, folder, *rest),
                "dnc image": process(IMAGE, folder, *rest),
                "package": process(IMAGE, packed, *rest),
            }
            timings = interleave(candidates, seconds=1e9, rounds=(arguments.rounds, arguments.rounds))
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        cells = [folder.name, f"{size:.1f}"]
        cells += [f"{timings.median(name):.3f} s" for name in ("python", "library", "dnc")]
        cells += [str(timings.ratio(*pair)) for pair in (("dnc", "library"), ("dnc image", "library"))]
        cells += [str(timings.ratio("package", "dnc image"))]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
