"""What compiling costs: processor seconds and peak memory of whole processes, interleaved, medians.

    python benchmarks/compile.py NET.cfg NET.weights [--repeats 5] [--opencv PYTHON] [--darknet2any FOLDER]

`--opencv` is a Python that has OpenCV 4 (OpenCV 5 has no Darknet reader any more), `--darknet2any` the folder of an
environment's commands that has darknet2any. What a peer cannot read is said in the table. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPENCV = "import sys, cv2; cv2.dnn.readNetFromDarknet(sys.argv[1], sys.argv[2]).getLayerNames()"


def measure(command: list[str], folder: Path) -> tuple[float, float, float] | str:
    """(processor seconds, seconds, peak MiB) of a finished process, or its last line where it failed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().strip()
    if process.returncode:
        return f"failed: {text.splitlines()[-1][:90] if text else process.returncode}"
    return usage.ru_utime + usage.ru_stime, seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Runs every command in turn, `repeats` times, after one round that warms the file cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cfg", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--opencv")
    parser.add_argument("--darknet2any")
    arguments = parser.parse_args()
    name = arguments.cfg.stem
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cfg, weights = folder / f"{name}.cfg", folder / f"{name}.weights"
        shutil.copy(arguments.cfg, cfg)
        weights.symlink_to(arguments.weights.resolve())
        dnc = [sys.executable, "-m", "dnc"]
        commands = {
            "dnc --help": [*dnc, "--help"],
            "dnc compile": [*dnc, "compile", str(cfg), "--weights", str(weights), "-o", str(folder / "out.engine")],
        }
        if arguments.opencv:
            commands["OpenCV readNetFromDarknet"] = [arguments.opencv, "-c", OPENCV, str(cfg), str(weights)]
        if arguments.darknet2any:
            convert = str(Path(arguments.darknet2any) / "darknet2onnx")
            commands["darknet2any darknet2onnx"] = [convert, "-i", str(weights), "-o", str(folder / "peer.onnx")]
        results: dict[str, list[tuple[float, float, float] | str]] = {label: [] for label in commands}
        for _ in range(arguments.repeats + 1):
            for label, command in commands.items():
                results[label].append(measure(command, folder))
        size = weights.stat().st_size / 2**20
        print(f"## {name}, weights of {size:.0f} MiB, {arguments.repeats} repeats\n")
        print("| process | CPU s, median (min, max) | against dnc | peak MiB | peak / weights |")
        print("| --- | --- | --- | --- | --- |")
        base = _median(results["dnc compile"][1:], 0)
        for label, values in results.items():
            failed = next((value for value in values if isinstance(value, str)), None)
            if failed is not None:
                print(f"| {label} | {failed} | | | |")
                continue
            seconds = [value[0] for value in values[1:] if not isinstance(value, str)]
            peak = _median(values[1:], 2)
            spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}, {max(seconds):.2f})"
            print(f"| {label} | {spread} | {statistics.median(seconds) / base:.2f} | {peak:.0f} | {peak / size:.2f} |")
        print()


def _median(values: list[tuple[float, float, float] | str], field: int) -> float:
    return statistics.median(value[field] for value in values if not isinstance(value, str))


if __name__ == "__main__":
    main()
