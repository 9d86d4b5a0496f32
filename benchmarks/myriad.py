"""What compiling for the Myriad X costs, and what comes out, network by network.

    python benchmarks/myriad.py NET.cfg[=NET.weights]... [--shaves 6] [--repeats 3] [--depthai PYTHON]

NET.cfg may be a name of cfg/. Without weights here or in the zoo's cache it gets random ones. `--depthai` is a Python
that has depthai: every blob is parsed by it. Each blob is compiled `repeats` times more, and must have the same bytes
each time. Seconds are of processors, user and system, for the compiler the median; the memory is the most that the
compiler itself took. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import dnc
from dnc.bench.prepare import RANDOM, weights_or_random
from dnc.darknet.cfg import find_cfg
from dnc.errors import DncError
from dnc.runtime.runners.myriad import toolchain
from dnc.runtime.runners.myriad.process import Job, compile_blob

PARSE = """
import sys, json, depthai
blob = depthai.OpenVINO.Blob(sys.argv[1])
model = json.load(open(sys.argv[2]))
assert (blob.numShaves, blob.numSlices) == (model["shaves"], model["shaves"])
kinds = {"U8": "U8F", "FP16": "FP16"}
for way, tensors in (("inputs", blob.networkInputs), ("outputs", blob.networkOutputs)):
    for entry in model[way]:
        tensor = tensors[entry["tensor"]]
        assert tensor.dataType.name == kinds[entry["precision"]], (entry, tensor.dataType)
        dims = [dim for dim in tensor.dims if dim != 1]
        assert sorted(dims) == sorted(dim for dim in entry["shape"] if dim != 1), (entry, tensor.dims)
    assert set(tensors) == {entry["tensor"] for entry in model[way]}
"""


def processor_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def row(text: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The cells for one network."""
    cfg_name, _, weights_name = text.partition("=")
    cfg = find_cfg(cfg_name)
    weights = Path(weights_name) if weights_name else weights_or_random(cfg, folder)
    name = cfg.stem if weights.name != RANDOM else f"{cfg.stem} (random weights)"
    start = processor_seconds()
    try:
        engine = dnc.compile(
            cfg, weights, "myriad", folder / "out.engine", options={"shaves": str(arguments.shaves)}, lenient=True
        )
    except DncError as error:
        return [name, str(error).replace("\n", " ")[:400]]
    whole = processor_seconds() - start
    description = json.loads((engine.folder / "model.json").read_text(encoding="utf-8"))
    precisions = {tensor["tensor"]: tensor["precision"] for tensor in (*description["inputs"], *description["outputs"])}
    blob = (engine.folder / "model.blob").read_bytes()
    seconds, peaks, same = [], [], True
    for _ in range(arguments.repeats):
        start = processor_seconds()
        job = Job(toolchain.folder("myriad"), engine.folder / "model.onnx")
        dump = folder / "stages.dot"
        peaks.append(compile_blob(job, folder / "again.blob", precisions, shaves=arguments.shaves, dump=dump))
        seconds.append(processor_seconds() - start)
        same = same and (folder / "again.blob").read_bytes() == blob
    parsed = "not tried"
    if arguments.depthai:
        command = [arguments.depthai, "-c", PARSE, str(engine.folder / "model.blob"), str(engine.folder / "model.json")]
        result = subprocess.run(command, capture_output=True, text=True)
        parsed = "yes" if result.returncode == 0 else result.stderr.strip().splitlines()[-1]
    report = engine.manifest.report
    stages = report["stages"].partition(";")[0]
    return [
        name,
        f"{statistics.median(seconds):.1f}",
        f"{max(peaks) / 2**20:.0f}",
        f"{whole:.1f}",
        f"{len(blob) / 1e6:.1f}",
        "yes" if same else "NO",
        parsed,
        stages,
        report["numerics"],
    ]


def main() -> None:
    """Prints a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NET.cfg[=NET.weights]")
    parser.add_argument("--shaves", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depthai")
    arguments = parser.parse_args()
    titles = ("network", "compiler CPU s", "peak MiB", "dnc compile CPU s", "blob MB", "same bytes", "parsed", "stages")
    print(f"| {' | '.join((*titles, 'numerics'))} |")
    print("|" + " --- |" * (len(titles) + 1))
    for text in arguments.networks:
        with tempfile.TemporaryDirectory() as scratch:
            print(f"| {' | '.join(row(text, arguments, Path(scratch)))} |", flush=True)


if __name__ == "__main__":
    main()
