"""Latency on the CPU: dnc's engines against ONNX Runtime and OpenVINO by themselves, and other readers of Darknet.

    python benchmarks/cpu.py NET… [--threads 2] [--seconds 20] [--images FOLDER] [--opencv PYTHON] [--ncnn PYTHON]

NET is a .cfg file or the name of a network of cfg/; without weights, random ones stand in, which take as long.

    onnx, openvino, tvm             dnc's engines, as `dnc compile --target … --precision …` makes them; those that are
    openvino bf16, tvm bf16         installed, and as the CPU can run; why others are left out stands below the table
    onnx, openvino, tvm int8        the same, calibrated on 20 images of --images
    plain ONNX Runtime, OpenVINO    on the ONNX of the graph as it was lowered, before any pass; float32, batch 1
    OpenCV, ncnn                    see dnc.bench.peers; each in a process of its own

One image at a time, the same threads for all. All run in turn, round after round; each runs untimed for 20 ms before it
is timed, because threads of the one before it still spin. Ratios are medians over the rounds, to the fastest peer in
float32, with 95 % intervals. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import dnc
from dnc.bench.peers import Peer, Plain
from dnc.bench.prepare import weights_or_random
from dnc.compiler.source import preprocessing_for
from dnc.darknet.cfg import find_cfg
from dnc.darknet.network import Network
from dnc.errors import TargetError
from dnc.evaluation.datasets import images as find_images
from dnc.quantization.collecting import calibrate
from dnc.runtime.timing import Run, Timings, device_name, interleave
from dnc.targets import targets

OURS = {name: {"target": name} for name in ("onnx", "openvino", "tvm") if not targets[name]().missing()}
EIGHT_BITS = {f"{name} int8": {"target": name, "precision": "int8"} for name in OURS}
OURS |= {f"{name} bf16": {"target": name, "precision": "bf16"} for name in ("openvino", "tvm") if name in OURS}
CALIBRATED_ON = 20
SETTLE = 0.02

PEERS = {"opencv": "OpenCV", "ncnn": "ncnn"}


def plain(path: Path, x: Any, threads: int) -> dict[str, Callable[[], object]]:
    """ONNX Runtime and OpenVINO as their manuals show them."""
    import onnxruntime
    import openvino

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", config).create_infer_request()
    return {
        "plain ONNX Runtime": lambda: session.run(None, {"input": x}),
        "plain OpenVINO": lambda: request.infer({"input": x}),
    }


def measure(cfg: Path, arguments: argparse.Namespace, folder: Path) -> tuple[Timings, list[str]]:
    """Timings of everything that runs, and what does not."""
    weights = weights_or_random(cfg, folder)
    network = Network.load(cfg, weights)
    x = np.random.default_rng(0).random((1, *network.input_shape), np.float32)
    runs: dict[str, Run] = {}
    ours: dict[str, dict[str, Any]] = dict(OURS)
    if arguments.images is not None:
        images = find_images([arguments.images], limit=CALIBRATED_ON)
        table = folder / "calibration.json"
        calibrate(network, preprocessing_for(network, weights), images).write(table)
        ours |= {name: {**options, "calibration": table} for name, options in EIGHT_BITS.items()}
    notes = []
    for name, options in ours.items():
        try:
            built = dnc.compile(cfg, weights, out=folder / name, verify=False, **options).folder
            session = dnc.load(built, threads=arguments.threads).session
        except TargetError as error:
            notes.append(f"dnc {name}: {error.message}")
            continue
        runs[f"dnc {name}"] = lambda session=session: session.run({"input": x})  # type: ignore[misc]
    files = Plain.write(network, weights, x, folder)
    runs |= plain(files.model, x, arguments.threads)
    with ExitStack() as stack:
        for name, title in PEERS.items():
            python = getattr(arguments, name)
            if python is None:
                continue
            try:
                peer = Peer(name, files, arguments.threads, folder / "peers", python)
                runs[title] = stack.enter_context(peer.open())
            except TargetError as error:
                notes.append(error.message)
        timings = interleave(runs, seconds=arguments.seconds, rounds=(9, 400), settle=SETTLE)
    return timings, notes


def main() -> None:
    """Prints a table for each network, and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--images", metavar="FOLDER")
    parser.add_argument("--opencv", metavar="PYTHON")
    parser.add_argument("--ncnn", metavar="PYTHON")
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {}
    print(f"{device_name()}, {arguments.threads} threads\n")
    for network in arguments.networks:
        cfg = find_cfg(network)
        with tempfile.TemporaryDirectory() as scratch:
            timings, notes = measure(cfg, arguments, Path(scratch))
        best = min((name for name in timings.seconds if not name.startswith("dnc")), key=timings.median)
        print(f"### {cfg.stem}, {timings.rounds} rounds\n")
        print(f"| engine | ms, median | of the time of {best} |\n| --- | --- | --- |")
        fastest: dict[str, float] = {}
        for name in timings.seconds:
            ratio = timings.ratio(name, best)
            speeds.setdefault(name, []).append(1 / ratio.value)
            if name.startswith("dnc"):
                kind = "in float32" if name.count(" ") == 1 else "in bf16 or int8"
                fastest[kind] = max(fastest.get(kind, 0.0), 1 / ratio.value)
            print(f"| {name} | {timings.median(name) * 1e3:.2f} | {ratio} |")
        for kind, speed in fastest.items():
            speeds.setdefault(f"the fastest of dnc {kind}", []).append(speed)
        print("".join(f"\n{note}\n" for note in notes), flush=True)
    print("| engine | speed against the best peer of each network, geometric mean |\n| --- | --- |")
    for name, values in speeds.items():
        count = "" if len(values) == len(arguments.networks) else f" (of {len(values)})"
        print(f"| {name} | {np.exp(np.mean(np.log(values))):.2f}{count} |")


if __name__ == "__main__":
    main()
