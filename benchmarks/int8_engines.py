"""What 8 bits are worth: latency and accuracy of a network in each precision, on every engine that is installed.

    python benchmarks/int8_engines.py NET=CALIBRATION… [--targets onnx,openvino] [--threads 2] [--seconds 30]
        [--data IMAGES] [--cpu]

NET is a .cfg file or the name of a network of cfg/ whose weights are known, CALIBRATION what `dnc calibrate` wrote for
it. All engines are run in turn, one image at a time; ratios are medians over the rounds, with 95 % intervals, to the
first one. With --data, mAP@0.50 or top-1 on those labelled images is measured as well. With --cpu it is not the time
but the processor's time that counts, on one thread: what else the machine does then matters less. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

import dnc
from dnc.evaluation.datasets import read_dataset
from dnc.evaluation.metrics import evaluate
from dnc.runtime.engine import Engine, load
from dnc.runtime.timing import interleave
from dnc.targets import targets

PRECISIONS = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8")}


def engines(cfg: str, table: str, wanted: list[str], threads: int, folder: Path) -> dict[str, Engine]:
    """Compiled, by target and precision."""
    built = {}
    for target in wanted:
        if targets[target]().missing():
            continue
        for precision in PRECISIONS[target]:
            name = f"{target} {precision}"
            calibration = table if precision == "int8" else None
            out = folder / name.replace(" ", "-")
            dnc.compile(cfg, target=target, out=out, precision=precision, calibration=calibration, verify=False)
            built[name] = load(out, threads=threads)
    return built


def main() -> None:
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--targets", default=",".join(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--data")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    threads = 1 if arguments.cpu else arguments.threads
    for item in arguments.networks:
        cfg, _, table = item.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            built = engines(cfg, table, arguments.targets.split(","), threads, Path(folder))
            array = np.random.default_rng(0).random((1, *next(iter(built.values())).manifest.input_shape), np.float32)
            runs = {name: partial(engine.forward, array) for name, engine in built.items()}
            clock = time.process_time if arguments.cpu else time.perf_counter
            timings = interleave(runs, seconds=arguments.seconds, rounds=(7, 1000), clock=clock)
            base = next(iter(built))
            print(f"\n{Path(cfg).stem}, {threads} threads, {timings.rounds} rounds\n")
            accuracy = arguments.data is not None
            print(f"| engine | ms | to {base} |" + (" accuracy |" if accuracy else ""))
            print("| --- | --- | --- |" + (" --- |" if accuracy else ""))
            for name, engine in built.items():
                row = f"| {name} | {timings.median(name) * 1e3:.2f} | {timings.ratio(name, base)} |"
                if accuracy:
                    figure = evaluate(engine, read_dataset(arguments.data), like_darknet=True).figures[0]
                    row += f" {figure.value * 100:.2f} % {figure.name} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
