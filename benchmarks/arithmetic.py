"""What 8 bits are worth, and cost, on CPUs of each kind of 8-bit arithmetic: accuracy and processor time.

    python -m benchmarks.arithmetic NET.cfg NET.weights CALIBRATION --data IMAGES [--labels LABELS]

Compiles engines of targets onnx and openvino in float32, and in 8 bits for VNNI and for CPUs without it, and runs them
on this machine, and on it held down to AVX-512 without VNNI and to AVX2 (`benchmarks.held`). Prints Markdown: mAP@0.50
as Darknet measures it, or top-1, in percent; and the processor time of one image on one thread, as a multiple of
float32's on the same kind of CPU. What is measured takes turns; what else the machine does counts little.

IMAGES should not be those of the calibration. Needs a CPU with VNNI, gcc and objdump.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import dnc
from benchmarks.held import KINDS
from dnc.darknet.cfg import find_cfg
from dnc.evaluation.datasets import read_dataset
from dnc.evaluation.metrics import evaluate
from dnc.runtime.engine import load
from dnc.runtime.timing import device_name, interleave

TARGETS = ("onnx", "openvino")
MADE = {"fp32": "", "for VNNI": "avx512vnni", "for pairs": "avx2"}
HERE = "vnni"


def compiled(arguments: argparse.Namespace, folder: Path) -> None:
    """Writes an engine for each target and each of MADE."""
    for target in TARGETS:
        for made, isa in MADE.items():
            dnc.compile(
                find_cfg(arguments.cfg),
                arguments.weights,
                target,
                folder / target / made,
                batch=1,
                verify=False,
                precision="int8" if isa else "fp32",
                calibration=arguments.calibration if isa else None,
                options={"isa": isa} if isa else None,
            )


def measured(arguments: argparse.Namespace, folder: Path, target: str, all_of_them: bool) -> dict[str, list[float]]:
    """Accuracy, of float32 only with `all_of_them`, and processor time of each engine, in percent and milliseconds."""
    engines = {made: load(folder / target / made, threads=1) for made in MADE}
    dataset = read_dataset(arguments.data)
    found = {}
    for made, engine in engines.items():
        value = float("nan")
        if made != "fp32" or all_of_them:
            report = evaluate(engine, dataset, like_darknet=True, labels=arguments.labels)
            value = report.figures[0].value * 100
        found[made] = [value]
    x = np.random.default_rng(0).random((1, *engines["fp32"].manifest.input_shape), np.float32)
    runs = {made: partial(engine.forward, x) for made, engine in engines.items()}
    timings = interleave(runs, seconds=arguments.seconds, rounds=(9, 400), clock=time.process_time)
    for made in MADE:
        found[made] += [timings.median(made) * 1e3, timings.ratio(made, "fp32").value]
    return found


def main() -> None:
    """Prints a table, or as its own child one kind's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cfg")
    parser.add_argument("weights", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, for each target and kind")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measured(arguments, arguments.folder, arguments.target, arguments.kind == HERE)))
        return
    name = find_cfg(arguments.cfg).stem
    with tempfile.TemporaryDirectory() as scratch:
        compiled(arguments, Path(scratch))
        for target in TARGETS:
            for kind in (HERE, *KINDS):
                held = [] if kind == HERE else ["-m", "benchmarks.held", kind, sys.executable]
                child = ["-m", "benchmarks.arithmetic", *sys.argv[1:]]
                own = ["--folder", scratch, "--target", target, "--kind", kind]
                said = subprocess.run([sys.executable, *held, *child, *own], check=True, stdout=subprocess.PIPE)
                found = json.loads(said.stdout)
                if kind == HERE:
                    exact = found["fp32"][0]
                    print(f"{device_name()}; {name}\n\n| | {' | '.join(MADE)} |\n| --- | --- | --- | --- |", flush=True)
                cells = [f"{exact:.2f}; {found['fp32'][1]:.2f} ms"]
                cells += [f"{found[made][0]:.2f} ({found[made][2]:.2f})" for made in list(MADE)[1:]]
                print(f"| {name}, {target} on {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
