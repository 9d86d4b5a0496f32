"""What calibrating costs: processor seconds, seconds and peak memory of whole processes, interleaved, medians.

    python -m benchmarks.calibration NET.cfg NET.weights IMAGES [--count 100] [--repeats 3] [--nncf PYTHON]

Measured are `dnc calibrate` (KL), onnxruntime.quantization's entropy calibrater with its default of 128 bins, which
makes it minmax, the same with 2048 bins, and with `--nncf`, a Python that has nncf and openvino, all of `nncf.quantize`
but saving. All of them get the same images, preprocessed the same way, and the peers an ONNX model that
dnc made, which is not counted. The peers look at what convolutions read and write, dnc at every layer.

Then the thresholds: those of dnc against a plain implementation of the slides on the values of all layers, which are
kept in memory for it, and the peers' against dnc's. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.compile import measure

ONNXRUNTIME = """
import json, logging, sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator
import benchmarks.calibration as bench

class Reader(CalibrationDataReader):
    def __init__(self):
        self.arrays = bench.arrays(*sys.argv[1:4], int(sys.argv[4]))
    def get_next(self):
        array = next(self.arrays, None)
        return None if array is None else {"input": array}

options = {"symmetric": True, "num_bins": int(sys.argv[7]), "num_quantized_bins": 128}
calibrator = create_calibrator(sys.argv[5], ["Conv"], sys.argv[6], CalibrationMethod.Entropy, extra_options=options)
calibrator.collect_data(Reader())
data = calibrator.compute_data().data
thresholds = {name: float(max(map(abs, map(float, item.range_value)))) for name, item in data.items()}
open(sys.argv[8], "w").write(json.dumps(thresholds))
"""

NNCF = """
import sys
import nncf, openvino
import numpy as np
files = np.load(sys.argv[2])
model = openvino.Core().read_model(sys.argv[1])
nncf.quantize(model, nncf.Dataset([files[name] for name in files]), subset_size=len(files))
"""


def arrays(cfg: str, weights: str, images: str, count: int) -> Iterator[np.ndarray]:
    """The network's inputs (1, C, H, W), one after the other."""
    from dnc.compiler.source import preprocessing_for
    from dnc.darknet.network import Network
    from dnc.evaluation.datasets import images as find
    from dnc.runtime.images import read_image

    preprocessing = preprocessing_for(Network.load(cfg, weights), weights)
    assert preprocessing is not None
    for path in find(images, limit=count):
        yield preprocessing(read_image(path, preprocessing.channels))[None]


def slides(counts: np.ndarray) -> int:
    """The m of S7310, one candidate and one level after the other."""
    best, best_bins = np.inf, len(counts)
    for i in range(128, len(counts) + 1):
        inside = counts[:i].astype(np.float64)
        p, q = inside.copy(), np.zeros(i)
        p[-1] += counts[i:].sum()
        edges = [-(-level * i // 128) for level in range(129)]
        for start, end in itertools.pairwise(edges):
            filled = inside[start:end] > 0
            if filled.any():
                q[start:end][filled] = inside[start:end].sum() / filled.sum()
        some = p > 0
        if (q[some] == 0).any():
            continue
        p, q = p / p.sum(), q / q.sum()
        divergence = float((p[some] * np.log(p[some] / q[some])).sum())
        if divergence < best - 1e-10:
            best, best_bins = divergence, i
    return best_bins


def check(arguments: argparse.Namespace, calibration: dict, engine: Path) -> tuple[int, int, int]:
    """Counts thresholds that equal the slides', that are within a bin of theirs, and all."""
    import dnc

    loaded = dnc.load(engine)
    values: dict[str, list[np.ndarray]] = {}
    for array in arrays(arguments.cfg, arguments.weights, arguments.images, arguments.count):
        for name, output in zip(loaded.manifest.outputs, loaded.forward(array), strict=True):
            values.setdefault(name, []).append(np.abs(output[output != 0]))
    equal = near = 0
    for name, parts in values.items():
        width = calibration["histograms"][name]["width"]
        every = np.concatenate(parts)
        counts = np.bincount((every / np.float32(width)).astype(np.int64))
        bins = abs((slides(counts) + 0.5) * width - calibration["ranges"][name]["threshold"]) / width
        equal += bins < 1e-3
        near += bins < 1 + 1e-3
        parts.clear()
    return equal, near, len(values)


def main() -> None:
    """Runs every command in turn, `repeats` times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cfg")
    parser.add_argument("weights")
    parser.add_argument("images")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nncf")
    parser.add_argument("--no-check", action="store_true", help="leave the slow comparison of thresholds out")
    arguments = parser.parse_args()
    for name in ("cfg", "weights", "images"):
        setattr(arguments, name, str(Path(getattr(arguments, name)).resolve()))
    count = str(arguments.count)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dnc = [sys.executable, "-m", "dnc"]
        # Without passes: what is rounded otherwise may be counted otherwise.
        for out, more in (("model", []), ("layers", ["--keep-layers", "--batch", "1", "--passes", ","])):
            command = [*dnc, "compile", arguments.cfg, "-w", arguments.weights, "-t", "onnx", "-o", out, *more]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        files = [arguments.cfg, arguments.weights, arguments.images, count]
        model = str(folder / "model" / "model.onnx")
        commands = {
            "dnc calibrate": [
                *dnc,
                "calibrate",
                *files[:3],
                "-n",
                count,
                "--method",
                "kl",
                "--symmetric",
                "-o",
                str(folder / "dnc.json"),
            ]
        }
        for label, bins in (("onnxruntime entropy", "128"), ("onnxruntime entropy, 2048 bins", "2048")):
            results = [str(folder / "augmented.onnx"), bins, str(folder / f"{bins}.json")]
            commands[label] = [sys.executable, "-c", ONNXRUNTIME, *files, model, *results]
        if arguments.nncf:
            np.savez(folder / "inputs.npz", *arrays(*files[:3], arguments.count))
            commands["nncf.quantize"] = [arguments.nncf, "-c", NNCF, model, str(folder / "inputs.npz")]
        taken: dict[str, list[tuple[float, float, float]]] = {label: [] for label in commands}
        failed: dict[str, str] = {}
        for _ in range(arguments.repeats):
            for label, command in commands.items():
                result = measure(command, folder)
                if isinstance(result, str):
                    failed[label] = result
                else:
                    taken[label].append(result)
        print(f"{Path(arguments.cfg).stem}, {count} images\n")
        print("| | processor s | s | peak MiB |\n| --- | --- | --- | --- |")
        for label, rows in taken.items():
            cells = [f"{statistics.median(column):.1f}" for column in zip(*rows, strict=True)]
            print(f"| {label} | {' | '.join(cells) or failed[label]} |")
        calibration = json.loads((folder / "dnc.json").read_text(encoding="utf-8"))
        for bins in ("128", "2048"):
            path = folder / f"{bins}.json"
            if path.exists():
                peer = json.loads(path.read_text(encoding="utf-8"))
                common = peer.keys() & calibration["ranges"].keys()
                ratios = [peer[name] / calibration["ranges"][name]["threshold"] for name in common]
                low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
                print(
                    f"\nonnxruntime's thresholds with {bins} bins are {middle:.2f} ({low:.2f} to {high:.2f}) times "
                    f"dnc's: median and deciles of {len(common)} values; it looks at {len(peer)}, "
                    f"dnc at {len(calibration['ranges'])}."
                )
        if not arguments.no_check:
            equal, near, total = check(arguments, calibration, folder / "layers")
            print(f"\nOf {total} layers, {equal} have the slides' threshold, {near} are within one bin of it.")


if __name__ == "__main__":
    main()
